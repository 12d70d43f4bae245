import DiskImage
import DiskTestSupport
import Glibc
import Linux
import Testing

@testable import VmctlCommands

/// The commands on image files, from their arguments to what is on the disk.
@Suite("Commands on images", .timeLimit(.minutes(2))) struct ImageCommandTests {
    private let folder: ScratchFolder

    init() throws { folder = try ScratchFolder() }

    /// One call; `%` stands for the folder.
    private func vmctl(_ line: String) -> Call {
        Call(line.split(separator: " ").map { String($0).replacing("%", with: folder.path) })
    }

    private func must(_ line: String, _ comment: String? = nil) {
        let call = vmctl(line)
        #expect(call.status == 0, "\(line): \(call.error)")
        if let comment { #expect(call.error == comment.replacing("%", with: folder.path) + "\n") }
    }

    private func change(_ name: String, _ bytes: [UInt8], at offset: UInt64 = 0) throws {
        let image = try ImageChain(ImageLocation(folder[name]), ImageOpening(isReadOnly: false)).assemble()
        try bytes.withUnsafeBytes { try image.write($0, at: offset) }
        try image.flush()
        try (image as? QCOW2Image)?.close()
    }

    private func bytes(_ name: String, count: Int = 4, at offset: UInt64 = 0) throws -> [UInt8] {
        let image = try ImageChain(ImageLocation(folder[name]), ImageOpening(isReadOnly: true)).assemble()
        var bytes = [UInt8](repeating: 0xEE, count: count)
        try bytes.withUnsafeMutableBytes { try image.read(into: $0, at: offset) }
        return bytes
    }

    // MARK: create

    @Test(arguments: [
        ("a.raw", "raw"), ("a", "raw"), ("a.QCOW2", "qcow2"), ("qcow2:%/a", "qcow2"), ("a.vmdk", "vmdk"), ("raw:%/a.qcow2", "raw"),
    ])
    func `create makes what prefix or suffix say, for nobody else`(name: String, format: String) throws {
        let path = name.contains("%") ? name : "%/" + name
        must("create -s 3M \(path)", "vmctl: \(format) imagefile created")
        let summary = try ImageSummary(ImageLocation(path.replacing("%", with: folder.path)))
        #expect(summary.format.rawValue == format && summary.byteCount == 3 << 20 && summary.hostByteCount < 1 << 20)
        var status = stat()
        #expect(stat(summary.path, &status) == 0 && status.st_mode & 0o777 == 0o600)
        // What is there is left alone.
        let again = vmctl("create -s 3M \(path)")
        #expect(again.status == 1 && again.complaint.contains("exists already"))
    }

    @Test func `sizes are rounded down, with a warning`() throws {
        must("create -s 3000K %/a.raw", "vmctl: disk size rounded to 2M\nvmctl: raw imagefile created")
        #expect(try ImageSummary(ImageLocation(folder["a.raw"])).byteCount == 2 << 20)
    }

    @Test func `derived image holds what its base holds`() throws {
        must("create -s 4M %/base.raw")
        try change("base.raw", [1, 2, 3, 4])
        must("create -b %/base.raw %/top.qcow2", "vmctl: qcow2 imagefile created")
        #expect(try bytes("top.qcow2") == [1, 2, 3, 4])
        try change("top.qcow2", [9])
        #expect(try bytes("top.qcow2") == [9, 2, 3, 4])
        #expect(try bytes("base.raw") == [1, 2, 3, 4])
        let backing = try ImageSummary(ImageLocation(folder["top.qcow2"])).qcow2?.backing
        #expect(backing == QCOW2Backing(name: "base.raw", format: "raw"))
        // Larger is good, smaller is not.
        must("create -s 8M -b %/top.qcow2 %/large.qcow2")
        #expect(try bytes("large.qcow2") == [9, 2, 3, 4])
        let small = vmctl("create -s 2M -b %/top.qcow2 %/small.qcow2")
        #expect(small.status == 1 && small.complaint.hasPrefix("vmctl: base size does not match requested size: "))
        #expect(!folder.names.contains("small.qcow2"))
    }

    @Test func `base in another folder needs a word`() throws {
        mkdir(folder["sub"], 0o755)
        must("create -s 4M %/base.raw")
        let call = vmctl("create -b %/base.raw %/sub/top.qcow2")
        #expect(call.status == 0 && call.error.contains("allow base \"\(folder["base.raw"])\""), "\(call.error)")
        let info = vmctl("image info --chain %/sub/top.qcow2")
        #expect(info.status == 1 && info.complaint.contains("is outside of the image's folder"), "\(info.error)")
        must("image info --chain --allow-base % %/sub/top.qcow2")
        // Without --chain it is not looked at.
        must("image info %/sub/top.qcow2")
        must("image check %/sub/top.qcow2")
    }

    @Test func `copy of a disk keeps what it holds, in whole megabytes`() throws {
        must("create -s 4M %/a.raw")
        try change("a.raw", [1, 2, 3, 4], at: 3 << 20)
        must("create -i %/a.raw %/b.qcow2", "vmctl: qcow2 imagefile created")
        must("create -c -i %/b.qcow2 %/c.qcow2")
        must("create -i %/c.qcow2 -s 6M %/d.vmdk")
        #expect(try bytes("d.vmdk", at: 3 << 20) == [1, 2, 3, 4])
        #expect(try ImageSummary(ImageLocation(folder["d.vmdk"])).byteCount == 6 << 20)
        let small = vmctl("create -i %/a.raw -s 2M %/e.raw")
        #expect(small.status == 1 && small.complaint.contains("size cannot be smaller than input disk size"))
        truncate(folder["a.raw"], (4 << 20) + 512)
        must("create -i %/a.raw %/f.raw", "vmctl: destination size rounded to 5 megabytes\nvmctl: raw imagefile created")
        must("image convert %/a.raw %/g.raw")
        #expect(try ImageSummary(ImageLocation(folder["g.raw"])).byteCount == (4 << 20) + 512)
    }

    // MARK: snapshots and history

    @Test func `snapshot is come back to`() throws {
        must("create -s 4M %/a.qcow2")
        try change("a.qcow2", [1])
        must("snapshot create %/a.qcow2 one", "vmctl: snapshot one created")
        try change("a.qcow2", [2])
        must("snapshot create %/a.qcow2 two")
        let list = vmctl("snapshot list %/a.qcow2")
        #expect(list.output.split(separator: "\n").count == 3 && list.output.hasPrefix("ID "), "\(list.output)")
        #expect(vmctl("snapshot list -j %/a.qcow2").output.contains("\"name\": \"two\""))
        must("snapshot apply %/a.qcow2 one", "vmctl: snapshot one applied")
        #expect(try bytes("a.qcow2").first == 1)
        must("snapshot delete %/a.qcow2 one")
        #expect(vmctl("snapshot apply %/a.qcow2 one").status == 1)
        #expect(vmctl("snapshot create %/a.qcow2 two").status == 1)
        must("create -s 4M %/b.raw")
        #expect(vmctl("snapshot create %/b.raw x").complaint.contains("only qcow2 images have snapshots"))
    }

    @Test func `history is walked back and forth`() throws {
        must("create -s 4M %/a.qcow2")
        for step: UInt8 in 1...3 {
            try change("a.qcow2", [step])
            must("snapshot create -d %/a.qcow2 a-\(step).qcow2")
        }
        try change("a.qcow2", [4])
        for expected: UInt8 in [3, 2, 1] {
            must("rollback %/a.qcow2")
            #expect(try bytes("a.qcow2").first == expected)
        }
        #expect(vmctl("rollback %/a.qcow2").complaint.contains("at the beginning of its history"))
        for expected: UInt8 in [2, 3, 4] {
            must("rollforward %/a.qcow2")
            #expect(try bytes("a.qcow2").first == expected)
        }
        #expect(vmctl("rollforward %/a.qcow2").complaint.contains("nothing to go forward to"))
        #expect(folder.names == ["a-1.qcow2", "a-2.qcow2", "a-3.qcow2", "a.qcow2"])
    }

    @Test func `what was written since a rollback is not lost unasked`() throws {
        must("create -s 4M %/a.qcow2")
        try change("a.qcow2", [1])
        must("snapshot create -d %/a.qcow2 one.qcow2")
        try change("a.qcow2", [2])
        must("rollback %/a.qcow2")
        try change("a.qcow2", [3])
        #expect(vmctl("rollforward %/a.qcow2").complaint.contains("was written since"))
        #expect(try bytes("a.qcow2").first == 3)
        must("rollforward -f %/a.qcow2")
        #expect(try bytes("a.qcow2").first == 2)
        // Another history has begun: the old one does not come back by mistake.
        must("rollback %/a.qcow2")
        try change("a.qcow2", [4])
        must("snapshot create -d %/a.qcow2 two.qcow2")
        #expect(vmctl("rollforward %/a.qcow2").complaint.contains("another history"))
        #expect(vmctl("snapshot create -d %/a.qcow2 two.qcow2").status == 1)
        #expect(vmctl("snapshot create -d %/a.qcow2 ../x").status == 1)
        #expect(try bytes("a.qcow2").first == 4)
    }

    @Test func `rollback that was cut short is done again`() throws {
        must("create -s 4M %/a.qcow2")
        try change("a.qcow2", [1])
        must("snapshot create -d %/a.qcow2 one.qcow2")
        try change("a.qcow2", [2])
        // The first half of it: the second name.
        try #require(link(folder["a.qcow2"], folder["a.qcow2.undone-1"]) == 0)
        must("rollback %/a.qcow2")
        #expect(folder.names == ["a.qcow2", "a.qcow2.undone-1", "one.qcow2"])
        #expect(try bytes("a.qcow2").first == 1)
        must("rollforward %/a.qcow2")
        #expect(try bytes("a.qcow2").first == 2)
        #expect(folder.names == ["a.qcow2", "one.qcow2"])
    }

    // MARK: image

    @Test func `sizes change, and nothing is lost unasked`() throws {
        must("create -s 4M %/a.qcow2")
        try change("a.qcow2", [1], at: 0)
        must("image resize %/a.qcow2 8M", "vmctl: %/a.qcow2 has 8M now")
        #expect(vmctl("image resize %/a.qcow2 4M").complaint.contains("--shrink"))
        must("image resize --shrink %/a.qcow2 4M")
        #expect(try bytes("a.qcow2").first == 1)
        must("create -s 4M %/b.raw")
        must("image resize %/b.raw 5M")
        must("create -s 4M %/c.vmdk")
        #expect(vmctl("image resize %/c.vmdk 5M").status == 1)
    }

    @Test func `changes go to the base, and another base is taken`() throws {
        must("create -s 4M %/base.qcow2")
        try change("base.qcow2", [1, 1])
        must("create -b %/base.qcow2 %/top.qcow2")
        try change("top.qcow2", [2])
        must("image commit %/top.qcow2", "vmctl: %/top.qcow2 is committed to its base")
        #expect(try bytes("base.qcow2", count: 2) == [2, 1])
        must("create -s 4M %/other.raw")
        must("image rebase -b %/other.raw %/top.qcow2", "vmctl: %/top.qcow2 stands on other.raw now")
        #expect(try bytes("top.qcow2", count: 2) == [2, 1])
        must("image rebase %/top.qcow2", "vmctl: %/top.qcow2 stands alone now")
        unlink(folder["other.raw"])
        #expect(try bytes("top.qcow2", count: 2) == [2, 1])
        must("image rebase -u -b %/base.qcow2 %/top.qcow2")
        must("image check --chain %/top.qcow2")
    }

    @Test func `info and check tell people and programs`() throws {
        must("create -s 4M --cluster-size 4K --refcount-bits 8 --compression zstd %/a.qcow2")
        let info = vmctl("image info %/a.qcow2")
        #expect(info.output.contains("qcow2 (version 3, zstd, 8-bit refcounts)") && info.output.contains("4K"), "\(info.output)")
        let json = vmctl("image info -j %/a.qcow2").output
        #expect(json.contains("\"disk_size\": 4194304") && json.contains("\"cluster_size\": 4096"), "\(json)")
        #expect(vmctl("image check %/a.qcow2").output.contains("no errors"))
        #expect(vmctl("image map %/a.qcow2").output.hasSuffix("zero\n"))
        try change("a.qcow2", [1], at: 1 << 20)
        #expect(vmctl("image map -j %/a.qcow2").output.contains("{\"start\": 1048576, \"length\": 4096, \"kind\": \"data\"}"))
        must("create -s 4M %/b.raw")
        must("image check %/b.raw")
        must("image check -j %/b.raw")
    }

    @Test func `damage is told, and mended`() throws {
        must("create -s 4M %/a.qcow2")
        try change("a.qcow2", [1])
        // The last cluster's refcount without a cluster: a leak.
        var file = try folder.read("a.qcow2")
        file += [UInt8](repeating: 0, count: 2 * 65536 - file.count % 65536)
        let table = 48
        let place = file[table..<table + 8].reduce(0) { $0 << 8 | Int($1) }
        let block = file[place..<place + 8].reduce(0) { $0 << 8 | Int($1) }
        file[block + 2 * (file.count / 65536 - 1) + 1] = 1
        try folder.write("a.qcow2", file)
        let call = vmctl("image check %/a.qcow2")
        #expect(call.status == 3 && call.output.contains("1 clusters that nothing uses"), "\(call.output) \(call.error)")
        must("image repair %/a.qcow2")
        must("image check %/a.qcow2")
        #expect(vmctl("image repair %/a.vmdk").status == 1)
    }

    @Test func `image in use is refused, with who has it`() throws {
        must("create -s 4M %/a.qcow2")
        let chain = try ImageChain(ImageLocation(folder["a.qcow2"]), ImageOpening(isReadOnly: false))
        for line in [
            "snapshot create %/a.qcow2 x", "image resize %/a.qcow2 8M", "image commit %/a.qcow2", "image check %/a.qcow2",
            "create -i %/a.qcow2 %/b.raw", "rollback %/a.qcow2", "export %/a.qcow2 %/out", "image rebase %/a.qcow2", "image repair %/a.qcow2",
        ] {
            let call = vmctl(line)
            #expect(call.status == 1 && call.error.contains("is in use by "), "\(line): \(call.error)")
        }
        // To look at it is no use of it.
        must("image info %/a.qcow2")
        must("create -b %/a.qcow2 %/top.qcow2")
        _ = chain.members
    }

    // MARK: export

    @Test func `machine is exported whole`() throws {
        must("create -s 4M %/web.qcow2")
        try change("web.qcow2", [1, 2, 3])
        must("create -s 2M %/data.raw")
        must("export -m 1G %/web.qcow2 %/data.raw %/out", "vmctl: %/out/web-0.vmdk created\nvmctl: %/out/web-1.vmdk created\nvmctl: %/out/web.vmx created")
        let machine = String(decoding: try folder.read("out/web.vmx"), as: UTF8.self)
        for line in ["displayName = \"web\"", "memsize = \"1024\"", "scsi0:0.fileName = \"web-0.vmdk\"", "scsi0:1.fileName = \"web-1.vmdk\""] {
            #expect(machine.contains(line + "\n"))
        }
        #expect(try bytes("out/web-0.vmdk", count: 3) == [1, 2, 3])
        must("export -c -n other %/web.qcow2 %/out")
        #expect(try ImageSummary(ImageLocation(folder["out/other.vmdk"])).vmdkKind == "streamOptimized")
        // A second time nothing is touched, and a failure leaves nothing.
        #expect(vmctl("export -n other %/web.qcow2 %/out").status == 1)
        try folder.write("out/third-1.vmdk", [])
        #expect(vmctl("export -n third %/web.qcow2 %/data.raw %/out").status == 1)
        #expect(vmctl("export -n ../x %/web.qcow2 %/out").status == 1)
        let names = try Peer.must("ls", "-A", folder["out"]).split(separator: "\n").map(String.init).sorted()
        #expect(names == ["other.vmdk", "other.vmx", "third-1.vmdk", "web-0.vmdk", "web-1.vmdk", "web.vmx"])
    }

    // MARK: progress

    @Test func `long work shows how far it is, and stops at a signal`() throws {
        let transcript = Transcript()
        var output = transcript.sink
        output.showsProgress = true
        let progress = Progress("disk", output)
        usleep(250_000)
        progress.update(1, 2)
        progress.finish()
        #expect(transcript.error.contains(" 50% disk") && transcript.error.hasSuffix("\r"))
        output.watchSignals = { { SIGINT } }
        must("create -s 4M %/a.raw")
        let status = Program.run(["create", "-i", folder["a.raw"], folder["b.raw"]], output)
        #expect(status == 128 + SIGINT)
        #expect(folder.names == ["a.raw"])
    }
}
