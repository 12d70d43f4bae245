import ControlProtocol
import ControlTestSupport
import DiskImage
import DiskTestSupport
import Foundation
import Linux
import Synchronization
import Testing

@testable import VmctlCommands

/// Commands on disks that are given a machine: who does what, and what is told.
@Suite("Commands on the disks of machines", .timeLimit(.minutes(2))) struct MachineDiskTests {
    private let folder: ScratchFolder

    init() throws {
        folder = try ScratchFolder()
        for name in ["a", "b"] { #expect(Call(["create", "-s", "4M", folder["\(name).qcow2"]]).status == 0) }
    }

    private func description(_ state: MachineStatus.State, disks: [String] = ["a.qcow2", "b.qcow2"]) -> MachineDescription {
        var description = MachineDescription(
            id: 7, name: "web", state: state, memory: 1 << 30, cpus: 2, interfaceCount: 3, hasDrive: true)
        description.disks = disks.map { "qcow2:" + folder[$0] }
        description.disc = "/isos/install.iso"
        description.allowedBases = [folder.path]
        return description
    }

    /// A daemon with one machine.
    private func daemon(_ description: MachineDescription, _ answers: [Response] = [.done]) throws -> StubDaemon {
        try StubDaemon { request in
            guard case .describe(let machine) = request else { return .answer(answers) }
            guard machine == .id(7) || machine == .name("web") else { return .answer([.failed(.noSuchMachine, "no vm \(machine): sorry")]) }
            return .answer([.description(description)])
        }
    }

    private func call(_ line: String, _ daemon: StubDaemon) -> Call {
        Call(line.split(separator: " ").map { String($0).replacing("%", with: folder.path) }, daemon)
    }

    private func must(_ line: String, _ daemon: StubDaemon, _ comment: String? = nil) {
        let call = call(line, daemon)
        #expect(call.status == 0, "\(line): \(call.error)")
        if let comment { #expect(call.error == comment.replacing("%", with: folder.path) + "\n") }
    }

    private func change(_ name: String, _ bytes: [UInt8]) throws {
        let image = try ImageChain(ImageLocation(folder[name]), ImageOpening(isReadOnly: false)).assemble()
        try bytes.withUnsafeBytes { try image.write($0, at: 0) }
        try image.close()
    }

    private func first(_ name: String) throws -> UInt8 {
        let image = try ImageChain(ImageLocation(folder[name]), ImageOpening(isReadOnly: true)).assemble()
        var bytes: [UInt8] = [0xEE]
        try bytes.withUnsafeMutableBytes { try image.read(into: $0, at: 0) }
        return bytes[0]
    }

    // MARK: Names

    /// A file of the folder that the tests run in, which could be a machine's name.
    private static let file: String? = try? FileManager.default.contentsOfDirectory(atPath: ".").sorted().first {
        var isFolder: ObjCBool = false
        return $0.first?.isLetter == true && FileManager.default.fileExists(atPath: $0, isDirectory: &isFolder) && !isFolder.boolValue
    }

    @Test func `a word is a machine, a file, or refused when it is both`() throws {
        let file = try #require(Self.file)
        var both = description(.stopped)
        (both.name, both.id) = (file, 3)
        let named = try StubDaemon { [both] _ in .answer([.description(both)]) }
        defer { named.stop() }
        let ambiguous = Call(["image", "info", file], named)
        #expect(ambiguous.status == 1 && ambiguous.error == "vmctl: \(file) is a vm and a file: ./\(file) is the file, 3 the vm\n")
        // A path asks nobody.
        #expect(Call(["image", "info", "./" + file], named).status == 0)
        #expect(Call(["image", "info", "raw:" + file], named).status == 0)
        #expect(named.requests.count == 1)
        let refusing = try StubDaemon { _ in .answer([.failed(.permission, "vm \(file) belongs to root: ask there, or root")]) }
        defer { refusing.stop() }
        #expect(Call(["image", "info", file], refusing).error.contains("is a vm and a file: ./\(file) is the file; vm \(file) belongs to root"))
        // What says nothing of a machine is no reason to say that there is one.
        for failure in [Response.Failure.malformed, .unavailable] {
            let unable = try StubDaemon { _ in .answer([.failed(failure, "cannot say")]) }
            defer { unable.stop() }
            let error = Call(["image", "info", file], unable).error
            #expect(error == "vmctl: whether \(file) is a vm is not known: cannot say; ./\(file) is the file\n")
            #expect(Call(["image", "info", "nofile"], unable).error == "vmctl: cannot say\n")
        }
        let unknowing = try daemon(description(.stopped))
        defer { unknowing.stop() }
        #expect(Call(["image", "info", file], unknowing).status == 0)
        #expect(Call(["image", "info", "nofile"], unknowing).error == "vmctl: nofile: no such file, and no vm nofile: sorry\n")
        // Without a daemon words are files.
        #expect(Call(["-s", "/nonexistent/s", "image", "info", file]).status == 0)
        let neither = Call(["-s", "/nonexistent/s", "image", "info", "nofile"])
        #expect(neither.status == 1 && neither.error.hasPrefix("vmctl: nofile: no such file, and no vmd to ask for a vm: /nonexistent/s: "), "\(neither.error)")
        let numbered = call("image info 7", unknowing)
        #expect(numbered.status == 0 && numbered.output.contains(folder["a.qcow2"]) && numbered.output.contains(folder["b.qcow2"]))
    }

    // MARK: Stopped

    @Test func `snapshots of a stopped machine are of all its disks`() throws {
        let daemon = try daemon(description(.stopped))
        defer { daemon.stop() }
        try change("a.qcow2", [1])
        try change("b.qcow2", [2])
        must("snapshot create web monday", daemon, "vmctl: snapshot monday created")
        try change("a.qcow2", [3])
        try change("b.qcow2", [4])
        let list = call("snapshot list web", daemon).output
        #expect(list.contains("disk 0, \(folder["a.qcow2"]):\nID ") && list.contains("disk 1, \(folder["b.qcow2"]):\nID "), "\(list)")
        #expect(list.components(separatedBy: "monday\n").count == 3)
        let json = call("snapshot list -j 7", daemon).output
        #expect(json.contains("{\"disk\": 1, \"file\": \"\(folder["b.qcow2"])\", \"snapshots\": [{\"id\": \"1\", \"name\": \"monday\""), "\(json)")
        must("snapshot apply web monday", daemon, "vmctl: snapshot monday applied")
        #expect(try [first("a.qcow2"), first("b.qcow2")] == [1, 2])
        must("snapshot delete web monday", daemon, "vmctl: snapshot monday deleted")
        #expect(try ImageSummary(ImageLocation(folder["a.qcow2"])).qcow2?.snapshots == [])
        // All or none: one of them is somebody else's now.
        let chain = try ImageChain(ImageLocation(folder["b.qcow2"]), ImageOpening(isReadOnly: false))
        let refused = call("snapshot create web tuesday", daemon)
        #expect(refused.status == 1 && refused.error.contains("b.qcow2: is in use by"), "\(refused.error)")
        #expect(try ImageSummary(ImageLocation(folder["a.qcow2"])).qcow2?.snapshots == [])
        _ = chain.members
        // What it is asked for is only what the machine is.
        #expect(Set(daemon.requests.map(\.request)) == [.describe(.name("web")), .describe(.id(7))])
    }

    @Test func `history of a stopped machine is of all its disks`() throws {
        let daemon = try daemon(description(.crashed))
        defer { daemon.stop() }
        try change("a.qcow2", [1])
        try change("b.qcow2", [2])
        must("snapshot create -d web monday.qcow2", daemon, "vmctl: %/a.qcow2 stands on monday-0.qcow2 now\nvmctl: %/b.qcow2 stands on monday-1.qcow2 now")
        try change("a.qcow2", [3])
        try change("b.qcow2", [4])
        must("rollback web", daemon, "vmctl: %/a.qcow2 is as %/monday-0.qcow2 now\nvmctl: %/b.qcow2 is as %/monday-1.qcow2 now")
        #expect(try [first("a.qcow2"), first("b.qcow2")] == [1, 2])
        must("rollforward web", daemon)
        #expect(try [first("a.qcow2"), first("b.qcow2")] == [3, 4])
        // The second cannot: the first stays as it is.
        #expect(call("image rebase --disk 1 web", daemon).status == 0)
        let refused = call("rollback web", daemon)
        #expect(refused.status == 1 && refused.error.contains("b.qcow2: stands on no other image"), "\(refused.error)")
        #expect(try [first("a.qcow2"), first("b.qcow2")] == [3, 4])
        #expect(folder.names == ["a.qcow2", "b.qcow2", "monday-0.qcow2", "monday-1.qcow2"])
        try folder.write("tuesday-1.qcow2", [])
        #expect(call("snapshot create -d web tuesday.qcow2", daemon).error.contains("exists already"))
        #expect(!folder.names.contains("tuesday-0.qcow2"))
        // With -f what was written is gone, on both.
        must("snapshot create -d web wednesday.qcow2", daemon)
        try change("b.qcow2", [5])
        must("rollback web", daemon)
        try change("b.qcow2", [6])
        #expect(call("rollforward web", daemon).error.contains("was written since"))
        must("rollforward -f web", daemon)
        #expect(try [first("a.qcow2"), first("b.qcow2")] == [3, 5])
    }

    @Test func `a disk that cannot be written is no part of a stopped machine's snapshots`() throws {
        #expect(Call(["image", "convert", "-c", folder["b.qcow2"], folder["c.vmdk"]]).status == 0)
        var mixed = description(.stopped)
        mixed.disks = [folder["a.qcow2"], folder["c.vmdk"]]
        let daemon = try daemon(mixed)
        defer { daemon.stop() }
        try change("a.qcow2", [1])
        must("snapshot create web monday", daemon, "vmctl: snapshot monday created")
        try change("a.qcow2", [2])
        must("snapshot apply web monday", daemon, "vmctl: snapshot monday applied")
        #expect(try first("a.qcow2") == 1)
        must("snapshot delete web monday", daemon, "vmctl: snapshot monday deleted")
        mixed.disks = [folder["c.vmdk"]]
        let none = try self.daemon(mixed)
        defer { none.stop() }
        #expect(call("snapshot create web x", none).error.contains("c.vmdk: only qcow2 images have snapshots"))
    }

    @Test(arguments: ["snapshot create web x", "snapshot apply web x", "snapshot delete web x"] + refused.map(\.0))
    func `a machine that waits to be started keeps its disks`(line: String) throws {
        let daemon = try daemon(description(.waiting))
        defer { daemon.stop() }
        let call = call(line, daemon)
        #expect(
            call.status == 1
                && call.error == "vmctl: vm web waits to be started and needs its disks then: `vmctl stop web` first\n", "\(call.error)")
        #expect(folder.names == ["a.qcow2", "b.qcow2"])
    }

    @Test func `commands that want one disk are told which`() throws {
        let daemon = try daemon(description(.stopped))
        defer { daemon.stop() }
        let both = call("image resize web 8M", daemon)
        #expect(both.status == 2 && both.complaint == "vmctl: vm web has 2 disks: --disk gives the number of one, from 0")
        must("image resize --disk 1 web +4M", daemon, "vmctl: %/b.qcow2 has 8M now")
        #expect(try ImageSummary(ImageLocation(folder["a.qcow2"])).byteCount == 4 << 20)
        #expect(call("image repair --disk 2 web", daemon).complaint == "vmctl: vm web has no disk 2: its disks are 0 to 1")
        #expect(call("image info --disk 1 web", daemon).output.contains(folder["a.qcow2"]) == false)
        must("image check web", daemon)
        must("image convert --disk 0 web %/c.raw", daemon)
        #expect(call("image info --disk 0 %/a.qcow2", daemon).complaint.contains("--disk is for machines"))
        let one = try self.daemon(description(.stopped, disks: ["b.qcow2"]))
        defer { one.stop() }
        must("image resize web 9M", one, "vmctl: %/b.qcow2 has 9M now")
        let none = try self.daemon(description(.stopped, disks: []))
        defer { none.stop() }
        #expect(call("image info web", none).complaint == "vmctl: vm web has no disk")
    }

    @Test func `a stopped machine is exported as it is configured`() throws {
        let daemon = try daemon(description(.stopped))
        defer { daemon.stop() }
        try change("b.qcow2", [7])
        must("export web %/out", daemon, "vmctl: %/out/web-0.vmdk created\nvmctl: %/out/web-1.vmdk created\nvmctl: %/out/web.vmx created")
        let lines = String(decoding: try folder.read("out/web.vmx"), as: UTF8.self).split(separator: "\n").map(String.init)
        for line in [
            "displayName = \"web\"", "memsize = \"1024\"", "numvcpus = \"2\"", "scsi0:1.fileName = \"web-1.vmdk\"", "ethernet2.present = \"TRUE\"",
            "ide1:0.deviceType = \"cdrom-image\"", "ide1:0.fileName = \"/isos/install.iso\"",
        ] { #expect(lines.contains(line), "\(line)") }
        #expect(!lines.contains("ethernet3.present = \"TRUE\""))
        #expect(try first("out/web-1.vmdk") == 7)
        must("export -c -m 2G -n other web %/out", daemon)
        #expect(String(decoding: try folder.read("out/other.vmx"), as: UTF8.self).contains("memsize = \"2048\""))
        let running = try self.daemon(description(.running))
        defer { running.stop() }
        let refused = call("export web %/none", running)
        #expect(refused.status == 1 && refused.error == "vmctl: vm web runs: its guest changes what would be read: `vmctl stop -w web` first\n")
        #expect(!folder.names.contains("none"))
        // A name that would break its line ends nowhere.
        var odd = description(.stopped)
        odd.disc = "/a\"\nb"
        let oddDaemon = try self.daemon(odd)
        defer { oddDaemon.stop() }
        must("export -n odd web %/out", oddDaemon)
        #expect(String(decoding: try folder.read("out/odd.vmx"), as: UTF8.self).contains("ide1:0.startConnected = \"FALSE\""))
    }

    // MARK: Running

    @Test(arguments: [MachineStatus.State.running, .paused, .starting, .stopping])
    func `a machine that runs is asked to do it itself`(state: MachineStatus.State) throws {
        let daemon = try daemon(description(state))
        defer { daemon.stop() }
        must("snapshot create web monday", daemon, "vmctl: snapshot monday created")
        must("snapshot delete 7 monday", daemon, "vmctl: snapshot monday deleted")
        #expect(
            daemon.requests.map(\.request) == [
                .describe(.name("web")), .disks(.name("web"), .createSnapshot("monday")), .describe(.id(7)),
                .disks(.id(7), .deleteSnapshot("monday")),
            ])
        let refusing = try self.daemon(description(state), [.failed(.invalid, "vm web: /b.raw: only qcow2 images have snapshots")])
        defer { refusing.stop() }
        let refused = call("snapshot create web x", refusing)
        #expect(refused.status == 1 && refused.error == "vmctl: command failed: vm web: /b.raw: only qcow2 images have snapshots\n")
    }

    static let refused: [(String, String)] = [
        ("snapshot apply web x", "has in memory"), ("snapshot create -d web x", "cannot be exchanged"), ("rollback web", "cannot be exchanged"),
        ("rollforward web", "cannot be exchanged"), ("image check web", "changes what would be read"), ("image map --disk 0 web", "changes what"),
        ("image repair --disk 0 web", "tables are in use"), ("image resize --disk 0 web 8M", "another size"), ("image commit --disk 0 web", "the base"),
        ("image rebase --disk 0 web", "cannot be exchanged"), ("image convert --disk 0 web %/x.raw", "changes what"), ("export web %/x", "changes what"),
    ]

    @Test(arguments: refused)
    func `what is not safe while a guest runs is refused with the reason and the way out`(line: String, reason: String) throws {
        let daemon = try daemon(description(.running))
        defer { daemon.stop() }
        let call = call(line, daemon)
        #expect(call.status == 1 && call.error.hasPrefix("vmctl: vm web runs: ") && call.error.contains(reason), "\(call.error)")
        #expect(call.error.hasSuffix(": `vmctl stop -w web` first\n"))
        #expect(daemon.requests.map(\.request) == [.describe(.name("web"))])
    }

    private static func image(_ path: String, _ snapshots: [String], backing: String? = nil) -> ImageSummary {
        ImageSummary(
            path: path, format: .qcow2, byteCount: 1 << 30, fileByteCount: 1 << 20, hostByteCount: 1 << 19,
            qcow2: QCOW2Info(
                version: 3, byteCount: 1 << 30, fileByteCount: 1 << 20, clusterSize: 65536, refcountBits: 16, compression: .zlib,
                hasLazyRefcounts: false, hasExtendedL2: false, isDirty: false, isCorrupt: false,
                backing: backing.map { QCOW2Backing(name: $0, format: "raw") },
                snapshots: snapshots.map { ImageSnapshot(id: "1", name: $0, seconds: 0, machineStateByteCount: 0, byteCount: 1 << 30) },
                bitmapCount: 0), vmdkKind: nil)
    }

    @Test func `what a running machine says of its disks is put together`() throws {
        let answers: [Response] = [
            .image(DiskReport(disk: 0, level: 0, image: Self.image("/a", ["x", "y"], backing: "base"))),
            .image(DiskReport(disk: 0, level: 0, image: Self.image("/a", ["z"], backing: "base"))),
            .image(DiskReport(disk: 0, level: 1, image: Self.image("/base", []))),
            .image(DiskReport(disk: 1, level: 0, image: Self.image("/b\u{1B}[2J", ["w"]))),
            // What makes no sense is left out.
            .image(DiskReport(disk: 9, level: 0, image: Self.image("/c", ["v"]))), .image(DiskReport(disk: 1, level: 5, image: Self.image("/d", ["u"]))),
            .end,
        ]
        let daemon = try daemon(description(.running), answers)
        defer { daemon.stop() }
        let info = call("image info web", daemon)
        #expect(info.status == 0 && info.output.contains("x, y, z") && !info.output.contains("/base\n"), "\(info.output)")
        #expect(info.output.contains("/b?[2J") && !info.output.contains("/c") && !info.output.contains("/d"))
        #expect(call("image info --chain --disk 0 web", daemon).output.contains("/base\n"))
        #expect(!call("image info --disk 1 web", daemon).output.contains("/a"))
        let list = call("snapshot list web", daemon).output
        // Of those that nobody asked for there may be many.
        let asked = daemon.requests.map(\.request).filter { if case .describe = $0 { false } else { true } }
        #expect(asked == [.describeTop, .describe, .describeTop, .describeTop].map { .disks(.name("web"), $0) })
        #expect(list.hasPrefix("disk 0, /a:\nID ") && list.contains(" z\n\ndisk 1, /b?[2J:\n"), "\(list)")
        let silent = try self.daemon(description(.running), [.end])
        defer { silent.stop() }
        #expect(call("image info web", silent).status == 0)
    }

    // MARK: cdrom

    @Test func `discs are put in, taken out and shown`() throws {
        let daemon = try daemon(description(.running))
        defer { daemon.stop() }
        let file = folder["a.qcow2"]
        must("cdrom insert web %/../\(folder.path.split(separator: "/").last ?? "")/a.qcow2", daemon, "vmctl: \(file) is in the drive of vm web now")
        must("cdrom eject -f 7", daemon, "vmctl: the drive of vm 7 is empty now")
        #expect(daemon.requests.map(\.request) == [.insertDisc(.name("web"), path: file, isForced: false), .ejectDisc(.id(7), isForced: true)])
        #expect(call("cdrom show web", daemon).output == "/isos/install.iso\n")
        var empty = description(.running)
        empty.disc = nil
        let emptyDaemon = try self.daemon(empty)
        defer { emptyDaemon.stop() }
        #expect(call("cdrom show web", emptyDaemon).output == "-\n")
        empty.hasDrive = false
        let driveless = try self.daemon(empty, [.failed(.busy, "vm web: the guest has locked the drive")])
        defer { driveless.stop() }
        #expect(call("cdrom show web", driveless).error == "vmctl: vm web has no CD-ROM drive\n")
        let locked = call("cdrom eject web", driveless)
        #expect(locked.status == 1 && locked.error == "vmctl: command failed: vm web: the guest has locked the drive\n")
    }

    // MARK: Signals

    @Test func `a signal ends work on several disks only when all are done`() throws {
        let daemon = try daemon(description(.stopped))
        defer { daemon.stop() }
        func interrupted(_ line: String, _ comment: String) {
            let transcript = Transcript()
            var output = transcript.sink
            output.watchSignals = { { SIGHUP } }
            let status = Program.run(["-s", daemon.path] + line.split(separator: " ").map(String.init), output)
            #expect(status == 128 + SIGHUP, "\(line)")
            #expect(transcript.error.hasSuffix(comment.replacing("%", with: folder.path) + "\nvmctl: interrupted\n"), "\(transcript.error)")
        }
        try change("a.qcow2", [1])
        try change("b.qcow2", [2])
        interrupted("snapshot create web x", "vmctl: snapshot x created")
        try change("b.qcow2", [3])
        interrupted("snapshot apply web x", "vmctl: snapshot x applied")
        #expect(try [first("a.qcow2"), first("b.qcow2")] == [1, 2])
        interrupted("snapshot delete web x", "vmctl: snapshot x deleted")
        interrupted("snapshot create -d web y.qcow2", "vmctl: %/b.qcow2 stands on y-1.qcow2 now")
        // What is like its point already goes no further back than the others.
        try change("a.qcow2", [4])
        interrupted("rollback web", "vmctl: %/b.qcow2 is as %/y-1.qcow2 now")
        #expect(try [first("a.qcow2"), first("b.qcow2")] == [1, 2])
        interrupted("rollforward web", "vmctl: %/b.qcow2 is as it was before it was rolled back")
        #expect(try [first("a.qcow2"), first("b.qcow2")] == [4, 2])
    }

    @Test func `a signal is held until what must be whole is done`() throws {
        let output = Output.standard
        let outcome = Monitor<(isDone: Bool, signal: CInt?)>((false, nil))
        // In a thread of its own, which keeps the signal out as vmctl does.
        try PosixThread("held") {
            do {
                try output.whole {
                    pthread_kill(pthread_self(), SIGTERM)
                    outcome.withLock { $0.isDone = true }
                }
            } catch {
                outcome.withLock { $0.signal = (error as? Interrupted)?.signal }
            }
        }.join()
        #expect(outcome.withLock { $0.isDone && $0.signal == SIGTERM })
    }

    @Test(arguments: ["image commit %/top.qcow2", "image rebase %/top.qcow2"])
    func `commit and rebase end at a signal, and the disk stays as it was`(line: String) throws {
        #expect(Call(["create", "-b", folder["a.qcow2"], folder["top.qcow2"]]).status == 0)
        try change("a.qcow2", [1])
        try change("top.qcow2", [9])
        var output = Transcript().sink
        output.watchSignals = { { SIGINT } }
        let words = line.split(separator: " ").map { String($0).replacing("%", with: folder.path) }
        #expect(Program.run(words, output) == 128 + SIGINT)
        #expect(try first("top.qcow2") == 9)
        #expect(try ImageSummary(ImageLocation(folder["top.qcow2"])).qcow2?.backing?.name == "a.qcow2")
        #expect(Call(["image", "check", "--chain", folder["top.qcow2"]]).status == 0)
        #expect(Call(words).status == 0)
        #expect(try first("top.qcow2") == 9)
    }
}
