import ControlProtocol
import Glibc
import Linux
import Testing

extension GuestTests.DaemonTests {
    /// Disks and CDs of the daemon's machines: the parent opens them, the machine's process has the descriptors.
    @Suite struct Disks {
        /// Prints on the serial port by itself, then halts. mov $0x3f8, %dx; for each: mov $byte, %al; out %al, (%dx); sti; 1: hlt; jmp 1b
        private static func bootDisk(_ text: String) -> [UInt8] {
            var sector: [UInt8] = [0xBA, 0xF8, 0x03] + text.utf8.flatMap { [0xB0, $0, 0xEE] } + [0xFB, 0xF4, 0xEB, 0xFD]
            sector += Array(repeating: 0, count: 510 - sector.count) + [0x55, 0xAA]
            return sector
        }

        private func vmctl(_ words: String...) throws -> GuestProcess {
            let process = try GuestProcess(words, input: .nothing)
            guard try process.status() == 0 else { throw GuestFailure(description: "vmctl \(words): \(process.errorText)") }
            return process
        }

        @Test func `a machine boots from its disk, through what that stands on, and nobody else has it meanwhile`() throws {
            let folder = try Scratch()
            let base = try folder.file("base.raw", Self.bootDisk("from the base"), byteCount: 1 << 20)
            _ = try vmctl("create", "-b", base, folder.later("top.qcow2"))
            let daemon = try LiveDaemon(
                MachineText.allAtOnce + "vm \"one\" {\n memory 32M\n disk \"base.raw\"\n}\n"
                    + ["two", "three"].map { "vm \"\($0)\" {\n disable\n memory 32M\n disk \"\($0 == "two" ? "base.raw" : "top.qcow2")\"\n}\n" }.joined(),
                folder: folder)
            try daemon.wait(for: "one", .running)
            try ConsoleStream(daemon, "one").read(until: "from the base")
            for name in ["two", "three"] {
                let refusal = try daemon.ask(.start(StartRequest(.name(name))))
                #expect(refusal.refusal == .busy && refusal.text.contains("base.raw: is in use by vmd: one (process "), "\(refusal)")
            }
            _ = try daemon.client().list(.stop(.name("one"), isForced: true, waits: true))
            #expect(try daemon.ask(.start(StartRequest(.name("three")))).isStarted)
            try ConsoleStream(daemon, "three").read(until: "from the base")
            _ = try daemon.client().list(.stop(.name("three"), isForced: true, waits: true))
            _ = try vmctl("image", "check", "\(folder.path)/top.qcow2")
        }

        @Test func `what a disk stands on is in its folder, or where the administrator allows it`() throws {
            let elsewhere = try Scratch()
            let base = try elsewhere.file("base.raw", Self.bootDisk("from elsewhere"), byteCount: 1 << 20)
            let folder = try Scratch()
            _ = try vmctl("create", "--allow-base", elsewhere.path, "-b", base, folder.later("top.qcow2"))
            let text = "vm \"one\" {\n disable\n memory 32M\n disk \"top.qcow2\"\n}\n"
            let daemon = try LiveDaemon(text, folder: folder)
            let refusal = try daemon.ask(.start(StartRequest(.name("one"))))
            #expect(refusal.refusal == .invalid && refusal.text.contains("allow base"), "\(refusal)")
            _ = try folder.file("vm.conf", Array(text.replacing("disable\n", with: "disable\n allow base \"\(elsewhere.path)\"\n").utf8))
            #expect(try daemon.ask(.reload) == .done)
            #expect(try daemon.ask(.start(StartRequest(.name("one")))).isStarted)
            try ConsoleStream(daemon, "one").read(until: "from elsewhere")
        }

        @Test func `files that cannot be disks are refused with a reason`() throws {
            let folder = try Scratch()
            _ = try folder.file("bad.qcow2", Array("QFI\u{FB}".utf8) + Array(repeating: 0xFF, count: 600))
            let daemon = try LiveDaemon("", folder: folder)
            for (disk, reason) in [
                ("\(folder.path)/missing.raw", "No such file"), (folder.path, "directory"), ("\(folder.path)/bad.qcow2", "bad.qcow2"),
                ("relative.raw", "absolute"), ("qcow2:\(folder.path)/vm.conf", "qcow2"),
            ] {
                var request = StartRequest(.name("one"))
                request.disks = [disk]
                let refusal = try daemon.ask(.start(request))
                #expect(refusal.refusal == .invalid && refusal.text.contains(reason), "\(disk): \(refusal)")
            }
            #expect(try daemon.machines() == [])
        }

        @Test(.enabled(if: isRoot, "needs root to become other users"))
        func `who makes an instance gives it disks that he may write himself`() throws {
            let folder = try Scratch()
            chmod(folder.path, 0o755)
            let user = TestUser(uid: 65501, gid: 65501, groups: [65500])
            let mine = try folder.file("mine.raw", Self.bootDisk("mine"), byteCount: 1 << 20)
            let others = try folder.file("others.raw", Self.bootDisk("others"), byteCount: 1 << 20)
            try #require(chown(mine, user.uid, user.gid) == 0)
            let daemon = try LiveDaemon(
                "socket owner \":65500\"\nvm \"t\" {\n disable\n memory 32M\n allow instance { disk, owner \"\(user.uid)\" }\n}\n", folder: folder)
            func start(_ name: String, _ disk: String) throws -> Response {
                var request = StartRequest(.name(name))
                request.template = "t"
                request.disks = [disk]
                return try TestClient.connect(daemon.socketPath, as: user).ask(.start(request))
            }
            let refusal = try start("a", others)
            #expect(refusal.refusal == .invalid && refusal.text.contains("Permission denied"), "\(refusal)")
            #expect(try start("b", mine).isStarted)
            try ConsoleStream(daemon, "b", as: user).read(until: "mine")
        }
    }

    /// A Debian system as its installer leaves one, on a disk that stands on the one that was made.
    @Suite(.enabled(if: access(Paths.debian, R_OK) == 0, "no \(Paths.debian): make guests makes it of Debian's archive"))
    struct Debian {
        @Test func `Debian boots by itself, works, and its file system is clean after vmctl stop`() throws {
            let folder = try Scratch()
            let disk = folder.later("disk.qcow2")
            func run(_ program: String, _ words: [String]) throws {
                let process = try GuestProcess(words, input: .nothing, program: program)
                let status = try process.status()
                #expect(status == 0, "\(program) \(words): \(process.text.suffix(500))\(process.errorText)")
            }
            try run(Paths.vmctl, ["create", "--allow-base", Paths.guests, "-b", Paths.debian, disk])
            let daemon = try LiveDaemon(
                "vm \"debian\" {\n memory 512M\n disk \"disk.qcow2\"\n allow base \"\(Paths.guests)\"\n}\n", folder: folder)
            try daemon.wait(for: "debian", .running)
            let console = try ConsoleStream(daemon, "debian")
            try console.read(until: "ttyS0\n\ndebian login:")
            try console.send("root\n")
            try console.read(until: "root@debian:~#")
            // What installing packages comes to: unpack, write to the medium, delete.
            try console.send(
                "cp -r /usr/lib/grub /root/t && sync && rm -r /root/t && sync && tar -C /usr -cf /root/t.tar bin && tar -C /tmp -xf /root/t.tar && sync && cmp /tmp/bin/perl /usr/bin/perl && echo al''l right\n")
            try console.read(until: "all right\n")
            let stopped = try daemon.client().list(.stop(.name("debian"), isForced: false, waits: true))
            #expect(stopped.contains { if case .stopping(_, _, .powerButton) = $0 { true } else { false } }, "\(stopped)")
            #expect(stopped.contains { if case .ended(_, _, let reason) = $0 { reason == "shut down" } else { false } }, "\(stopped)")
            try console.readToEnd()
            #expect(console.text.contains("reboot: Power down"))
            // SeaBIOS moves the cursor in the middle of a line when its timer's tick comes there.
            let screen = console.text.replacing(#/\u{1B}\[\d+;\d+H/#, with: "")
            #expect(screen.contains("GRUB loading."))
            try run(Paths.vmctl, ["image", "check", disk])
            let raw = folder.later("disk.raw")
            try run(Paths.vmctl, ["image", "convert", "--allow-base", Paths.guests, disk, raw])
            // The partition begins at 1 MB; e2fsck knows no offsets.
            let partition = folder.later("partition")
            try run("/bin/dd", ["if=\(raw)", "of=\(partition)", "bs=1M", "skip=1", "conv=sparse", "status=none"])
            try run("/sbin/e2fsck", ["-f", "-n", partition])
        }
    }
}
