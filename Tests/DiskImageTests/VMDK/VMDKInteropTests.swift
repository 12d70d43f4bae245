import DiskImage
import DiskTestSupport
import Linux
import TestSupport
import Testing

/// VMDK images of QEMU's tools and ours, read, written and checked by the other.
@Suite("VMDK and qemu-img", .enabled(if: Peer.hasQEMU, "no qemu-img: install qemu-utils"), .timeLimit(.minutes(2)))
struct VMDKInteropTests {
    private let folder: ScratchFolder

    init() throws { folder = try ScratchFolder() }

    /// A raw file with data and holes.
    private func rawFile(_ name: String, byteCount: Int, _ random: inout SplitMix64) throws -> [UInt8] {
        let file = try ImageFile.open(folder[name], create: true)
        try RawImage.create(file, byteCount: UInt64(byteCount))
        let image = try RawImage(file)
        var model = DiskModel(byteCount: byteCount)
        for _ in 0..<12 { try model.change(image, &random) }
        return model.bytes
    }

    @Test(arguments: 0..<6) func `our sparse images are theirs`(seed: UInt64) throws {
        var random = SplitMix64(seed: seed)
        let size = Int.random(in: 1...20_000, using: &random) * 512
        let file = try ImageFile.open(folder["a.vmdk"], create: true)
        try VMDKImage.create(file, byteCount: UInt64(size), fileName: "a.vmdk")
        var model = DiskModel(byteCount: size)
        do {
            let image = try VMDKImage(file)
            for _ in 0..<40 { try model.change(image, &random) }
            try image.flush()
        }
        #expect(DiskModel.difference(try DiskModel.contents(of: try VMDKImage(file)), model.bytes) == nil)
        try Peer.must("qemu-img", "check", "-f", "vmdk", folder["a.vmdk"])
        try Peer.must("qemu-img", "convert", "-f", "vmdk", "-O", "raw", folder["a.vmdk"], folder["a.raw"])
        #expect(DiskModel.difference(try folder.read("a.raw"), model.bytes) == nil)
        #expect(try VMDKCheck(file).findings == [])
    }

    @Test(arguments: 0..<6) func `their sparse images are ours, to write as well`(seed: UInt64) throws {
        var random = SplitMix64(seed: seed &+ 100)
        let size = Int.random(in: 1...20_000, using: &random) * 512
        let expected = try rawFile("b.raw", byteCount: size, &random)
        let zeroed = Bool.random(using: &random)
        try Peer.must(
            "qemu-img", "convert", "-f", "raw", "-O", "vmdk", "-o", "zeroed_grain=\(zeroed ? "on" : "off")", folder["b.raw"],
            folder["b.vmdk"])
        let image = try VMDKImage(.open(folder["b.vmdk"]))
        // Theirs may have another size only by rounding up.
        #expect(image.byteCount >= UInt64(size))
        #expect(DiskModel.difference(Array(try DiskModel.contents(of: image).prefix(size)), expected) == nil)
        var model = DiskModel(bytes: expected + [UInt8](repeating: 0, count: Int(image.byteCount) - size))
        for _ in 0..<20 { try model.change(image, &random) }
        try image.flush()
        try Peer.must("qemu-img", "check", "-f", "vmdk", folder["b.vmdk"])
        try Peer.must("qemu-img", "convert", "-f", "vmdk", "-O", "raw", folder["b.vmdk"], folder["c.raw"])
        #expect(DiskModel.difference(try folder.read("c.raw"), model.bytes) == nil)
        #expect(try VMDKCheck(.open(folder["b.vmdk"])).findings == [])
    }

    @Test(arguments: 0..<4) func `stream-optimised images go both ways`(seed: UInt64) throws {
        var random = SplitMix64(seed: seed &+ 200)
        let size = Int.random(in: 1...100_000, using: &random) * 512
        let expected = try rawFile("d.raw", byteCount: size, &random)
        try Peer.must(
            "qemu-img", "convert", "-f", "raw", "-O", "vmdk", "-o", "subformat=streamOptimized", folder["d.raw"], folder["d.vmdk"])
        let theirs = try VMDKImage(.open(folder["d.vmdk"]))
        #expect(theirs.isStreamOptimized && theirs.isReadOnly)
        #expect(DiskModel.difference(Array(try DiskModel.contents(of: theirs).prefix(size)), expected) == nil)
        #expect { try theirs.put([1], at: 0) } throws: { ($0 as? ImageError)?.kind == .readOnly }

        let file = try ImageFile.open(folder["e.vmdk"], create: true)
        var conversion = Conversion(.vmdk(isStreamOptimized: true), byteCount: UInt64(size))
        conversion.threadCount = Int(seed) + 1
        try conversion.run(from: try RawImage(.open(folder["d.raw"], isReadOnly: true)), into: file, fileName: "e.vmdk")
        #expect(DiskModel.difference(try DiskModel.contents(of: try VMDKImage(file)), expected) == nil)
        try Peer.must("qemu-img", "convert", "-f", "vmdk", "-O", "raw", folder["e.vmdk"], folder["e.raw"])
        #expect(DiskModel.difference(try folder.read("e.raw"), expected) == nil)
        #expect(try VMDKCheck(file).findings == [])
    }

    @Test(arguments: ["monolithicFlat", "twoGbMaxExtentSparse"])
    func `images of several files are refused, and nothing else is opened`(kind: String) throws {
        try Peer.must("qemu-img", "create", "-f", "vmdk", "-o", "subformat=\(kind)", folder["f.vmdk"], "4M")
        #expect { _ = try VMDKImage(.open(folder["f.vmdk"])) } throws: { ($0 as? ImageError)?.kind == .unsupported }
    }
}
