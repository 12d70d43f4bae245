import CLinux
import DiskImage
import DiskTestSupport
import Glibc
import Linux
import Testing

/// What decides what an image is: the administrator's word, the path's suffix, what it was used as before, and last and only
/// once its header.
@Suite("Formats of images", .timeLimit(.minutes(1))) struct FormatTests {
    private let folder: ScratchFolder

    init() throws { folder = try ScratchFolder() }

    /// The beginning of a good qcow2 image.
    private func header(backing: String? = nil, size: UInt64 = 1 << 20) throws -> [UInt8] {
        let path = folder["header-\(UInt32.random(in: 0 ... .max)).qcow2"]
        let file = try ImageFile.open(path, create: true)
        var options = QCOW2Options(byteCount: size)
        options.backing = backing.map { QCOW2Backing(name: $0, format: "raw") }
        try QCOW2Image.create(file, options)
        let count = Int(try file.byteCount())
        var bytes = [UInt8](repeating: 0, count: count)
        _ = try bytes.withUnsafeMutableBytes { try file.read(into: $0, at: 0) }
        unlink(path)
        return bytes
    }

    private func format(_ text: String, isReadOnly: Bool = false) throws -> ImageFormat? {
        var opening = ImageOpening(isReadOnly: isReadOnly)
        opening.opensBases = false
        return try ImageChain(ImageLocation(text), opening).members.first?.format
    }

    private func refusal(_ text: String) -> ImageError? {
        do {
            _ = try format(text)
            return nil
        } catch {
            return error as? ImageError
        }
    }

    @Test(arguments: [
        ("raw:/a/b", "/a/b", ImageFormat.raw), ("qcow2:x:y", "x:y", .qcow2), ("vmdk:a.raw", "a.raw", .vmdk), ("a.RAW", "a.RAW", .raw),
        ("a.b.QCOW2", "a.b.QCOW2", .qcow2), ("a.vmdk", "a.vmdk", .vmdk), ("a.iso", "a.iso", .raw), ("a.img", "a.img", nil),
        ("disk", "disk", nil), ("a.qcow2/disk", "a.qcow2/disk", nil), ("QCOW2:a", "QCOW2:a", nil), ("", "", nil),
    ] as [(String, String, ImageFormat?)])
    func `prefix and suffix`(text: String, path: String, format: ImageFormat?) {
        let location = ImageLocation(text)
        #expect(location.path == path && location.statedFormat == format)
    }

    @Test func `raw disk stays raw whatever its guest writes`() throws {
        try folder.write("disk", [UInt8](repeating: 0, count: 1 << 20))
        #expect(try format(folder["disk"]) == .raw)
        try folder.write("disk", try header())
        #expect(try format(folder["disk"]) == .raw)
        // In another place, too: the note goes with the file.
        rename(folder["disk"], folder["other"])
        #expect(try format(folder["other"]) == .raw)
    }

    @Test func `raw by its suffix stays so without it`() throws {
        try folder.write("disk.raw", try header())
        #expect(try format(folder["disk.raw"]) == .raw)
        rename(folder["disk.raw"], folder["disk"])
        #expect(try format(folder["disk"]) == .raw)
        rename(folder["disk"], folder["disk.qcow2"])
        let error = try #require(refusal(folder["disk.qcow2"]))
        #expect(error.kind == .refused && error.reason.contains("say raw: or qcow2:"))
        #expect(try format("qcow2:" + folder["disk.qcow2"]) == .qcow2)
    }

    @Test func `header is asked once`() throws {
        try folder.write("disk", try header())
        #expect(try format(folder["disk"]) == .qcow2)
        try folder.write("disk", [UInt8](repeating: 0, count: 1 << 20))
        #expect(try format(folder["disk"]) == .qcow2)
    }

    @Test func `header alone leads to no other file`() throws {
        try folder.write("secret", [1])
        try folder.write("disk", try header(backing: "secret"))
        let error = try #require(refusal(folder["disk"]))
        #expect(error.kind == .refused && error.reason.contains("names another file"))
        // And nothing was kept: the next time is the same.
        #expect(refusal(folder["disk"]) != nil)
        #expect(try format("qcow2:" + folder["disk"]) == .qcow2)
        #expect(try format(folder["disk"]) == .qcow2)
    }

    @Test func `looking writes nothing down`() throws {
        try folder.write("disk", try header())
        #expect(try ImageChain(ImageLocation(folder["disk"]), .look).members.first?.format == .qcow2)
        try folder.write("disk", [UInt8](repeating: 0, count: 1 << 20))
        #expect(try ImageChain(ImageLocation(folder["disk"]), .look).members.first?.format == .raw)
    }

    @Test func `what cannot be kept is not believed`() throws {
        // A file whose room for attributes is full.
        func fill(_ content: [UInt8]) throws {
            unlink(folder["disk"])
            try folder.write("disk", content)
            var number = 0
            var size = 2048
            while size > 0 {
                let value = [UInt8](repeating: 1, count: size)
                if setxattr(folder["disk"], "user.fill.\(number)", value, size, 0) != 0 { size /= 2 }
                number += 1
                try #require(number < 10_000, "this file system keeps attributes without bound")
            }
        }
        try fill([UInt8](repeating: 0, count: 4096))
        #expect(try format(folder["disk"]) == .raw)
        try fill(try header())
        let error = try #require(refusal(folder["disk"]))
        #expect(error.kind == .refused && error.reason.contains("cannot be kept"), "\(error)")
        #expect(try format("qcow2:" + folder["disk"]) == .qcow2)
        #expect(try format("raw:" + folder["disk"]) == .raw)
    }

    @Test(arguments: ["", "folder", "fifo", "missing"]) func `what is no file is told in a line`(name: String) throws {
        mkdir(folder["folder"], 0o700)
        mkfifo(folder["fifo"], 0o600)
        let error = try #require(refusal("raw:" + (name.isEmpty ? "" : folder[name])))
        #expect(!error.reason.isEmpty)
    }
}
