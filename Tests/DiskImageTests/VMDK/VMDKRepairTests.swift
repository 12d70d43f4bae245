import DiskImage
import DiskTestSupport
import Linux
import TestSupport
import Testing

/// What one copy of the tables of a VMDK image says wrongly, and the other does not.
@Suite("VMDK repair", .timeLimit(.minutes(2))) struct VMDKRepairTests {
    private let folder: ScratchFolder
    private var path: String { folder["disk.vmdk"] }

    /// Two grain tables, data in both.
    private static let size: UInt64 = 40 << 20
    private static let data: [(place: UInt64, bytes: [UInt8])] = [(0, [1, 2, 3]), (100_000, [4, 5]), (39 << 20, [6])]

    init() throws {
        folder = try ScratchFolder()
        let file = try ImageFile.open(folder["disk.vmdk"], create: true)
        try VMDKImage.create(file, byteCount: Self.size, fileName: "disk.vmdk")
        let image = try VMDKImage(file)
        for part in Self.data { try image.put(part.bytes, at: part.place) }
        try image.close()
    }

    private func number(at offset: UInt64) throws -> UInt32 {
        var value: UInt32 = 0
        let file = try ImageFile.open(path)
        _ = try withUnsafeMutableBytes(of: &value) { try file.read(into: $0, at: offset) }
        return UInt32(littleEndian: value)
    }

    private func put(_ value: UInt32, at offset: UInt64) throws {
        let file = try ImageFile.open(path)
        try withUnsafeBytes(of: value.littleEndian) { try file.write($0, at: offset) }
    }

    private enum Copy: CaseIterable { case first, second }

    /// Where a directory's entry stands ("Virtual Disk Format 5.0", SparseExtentHeader: rgdOffset at 48, gdOffset at 56).
    private func directoryEntry(_ table: Int, _ copy: Copy) throws -> UInt64 {
        UInt64(try number(at: copy == .first ? 56 : 48)) * 512 + UInt64(table) * 4
    }

    private func tableEntry(_ grain: Int, _ copy: Copy) throws -> UInt64 {
        UInt64(try number(at: try directoryEntry(grain / 512, copy))) * 512 + UInt64(grain % 512) * 4
    }

    private func expectData() throws {
        let image = try VMDKImage(.open(path))
        for part in Self.data { #expect(try image.bytes(at: part.place, count: part.bytes.count) == part.bytes, "at \(part.place)") }
    }

    private func repair() throws -> ImageCheck { try ImageCheck.repair(ImageLocation(path), leaksOnly: false) }

    /// Of grain 1: none, one that is another's, one among the tables, one behind the end.
    @Test(arguments: Copy.allCases, [0, nil, 2, 0x0FFF_FFFF] as [UInt32?])
    private func `entry that cannot be is made like the other copy's`(copy: Copy, value: UInt32?) throws {
        let other = try number(at: try tableEntry(0, copy))
        try put(value ?? other, at: try tableEntry(1, copy))
        #expect(try VMDKCheck(.open(path)).count > 0)
        let result = try repair()
        #expect(result.damage == 0 && result.damageFixed > 0, "\(result.findings)")
        #expect(try VMDKCheck(.open(path)).findings == [])
        try expectData()
        if Peer.hasQEMU { try Peer.must("qemu-img", "check", "-f", "vmdk", path) }
    }

    /// The one that is another's comes first in the table.
    @Test private func `grain that took another's place gets its own again`() throws {
        try put(try number(at: try tableEntry(1, .first)), at: try tableEntry(0, .first))
        #expect(try repair().damage == 0)
        try expectData()
    }

    @Test private func `of two places that are both possible none is chosen`() throws {
        let file = try ImageFile.open(path)
        let end = try file.byteCount()
        try file.setByteCount(end + 65536)
        try put(UInt32(end / 512), at: try tableEntry(0, .second))
        let result = try repair()
        #expect(result.damage == 1 && result.damageFixed == 0)
        #expect(result.findings.contains { $0.contains("two copies of grain table 0 differ") })
        try expectData()
    }

    @Test(arguments: Copy.allCases, [0, 0x0FFF_FFFF] as [UInt32])
    private func `lost grain table is written anew`(copy: Copy, value: UInt32) throws {
        try put(value, at: try directoryEntry(1, copy))
        #expect(try VMDKCheck(.open(path)).findings.contains { $0.contains("only one copy of grain table 1") })
        let result = try repair()
        #expect(result.damage == 0 && result.damageFixed > 0, "\(result.findings)")
        try expectData()
        // It is one of its own: both copies are written from now on.
        let image = try VMDKImage(.open(path))
        try image.put([9], at: 33 << 20)
        try image.close()
        #expect(try VMDKCheck(.open(path)).findings == [])
        try expectData()
        if Peer.hasQEMU { try Peer.must("qemu-img", "check", "-f", "vmdk", path) }
    }

    @Test private func `what both copies say wrongly stays`() throws {
        for copy in Copy.allCases { try put(2, at: try tableEntry(1, copy)) }
        let result = try repair()
        #expect(result.damage == 1 && result.damageFixed == 0)
    }

    @Test private func `sound image is not written to`() throws {
        let before = try folder.read("disk.vmdk")
        #expect(try repair().damageFixed == 0)
        #expect(try folder.read("disk.vmdk") == before)
    }

    @Test private func `room that leaks is for qcow2, and raw has nothing to repair`() throws {
        #expect { _ = try ImageCheck.repair(ImageLocation(path), leaksOnly: true) } throws: { ($0 as? ImageError)?.kind == .refused }
        try folder.write("disk.raw", [UInt8](repeating: 0, count: 512))
        #expect { _ = try ImageCheck.repair(ImageLocation(folder["disk.raw"]), leaksOnly: false) } throws: {
            ($0 as? ImageError)?.kind == .refused
        }
    }

    /// What QEMU made, damaged by us, is sound for QEMU again.
    @Test(.enabled(if: Peer.hasQEMU, "no qemu-img: install qemu-utils"), arguments: 0..<6)
    private func `qemu-img reads of its own image what it wrote`(seed: UInt64) throws {
        var random = SplitMix64(seed: seed)
        let bytes = (0..<(3 << 20)).map { _ in UInt8.random(in: 0...255, using: &random) }
        try folder.write("source.raw", bytes)
        try Peer.must("rm", path)
        try Peer.must("qemu-img", "convert", "-f", "raw", "-O", "vmdk", folder["source.raw"], path)
        for grain in 0..<48 where Bool.random(using: &random) {
            let copy: Copy = Bool.random(using: &random) ? .first : .second
            try put([0, 3, 0x0FFF_FFFF].randomElement(using: &random) ?? 0, at: try tableEntry(grain, copy))
        }
        #expect(try repair().damage == 0)
        try Peer.must("qemu-img", "check", "-f", "vmdk", path)
        try Peer.must("qemu-img", "compare", "-f", "raw", "-F", "vmdk", folder["source.raw"], path)
    }
}
