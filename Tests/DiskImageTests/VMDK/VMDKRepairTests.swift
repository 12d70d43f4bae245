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

    private enum Target: CaseIterable { case data, descriptor, directory, anothersCopy }

    /// What a damaged directory leads to is not taken for a table, and not written over.
    @Test(arguments: Copy.allCases, Target.allCases)
    private func `directory's entry that leads to something else gets a table of its own`(copy: Copy, target: Target) throws {
        let pattern = (0..<60_000).map { UInt8(truncatingIfNeeded: $0 &* 7 | 1) }
        let image = try VMDKImage(.open(path))
        try image.put(pattern, at: 0)
        try image.close()
        let other: Copy = copy == .first ? .second : .first
        let sector =
            switch target {
            case .data: try number(at: try tableEntry(0, .first)) + 8
            case .descriptor: UInt32(1)
            case .directory: try number(at: 56)
            case .anothersCopy: try number(at: try directoryEntry(0, other))
            }
        try put(sector, at: try directoryEntry(1, copy))
        let before = try folder.read("disk.vmdk").prefix(512 * 21)
        let result = try repair()
        #expect(result.damage == 0 && result.damageFixed > 0, "\(result.findings)")
        #expect(try folder.read("disk.vmdk").prefix(512 * 21) == before, "header and descriptor")
        let found = try VMDKImage(.open(path))
        #expect(try DiskModel.difference(found.bytes(at: 0, count: pattern.count), pattern) == nil)
        for part in Self.data.dropFirst() { #expect(try found.bytes(at: part.place, count: part.bytes.count) == part.bytes) }
        if Peer.hasQEMU { try Peer.must("qemu-img", "check", "-f", "vmdk", path) }
    }

    private enum Mixture: CaseIterable { case exchanged, shifted, shiftedByOtherCopy, anothersOtherCopy }

    /// All of them lead to tables, but not to their own.
    @Test(arguments: Copy.allCases, Mixture.allCases)
    private func `directory that leads to others' tables costs no data`(copy: Copy, mixture: Mixture) throws {
        let other: Copy = copy == .first ? .second : .first
        let good = try (0..<2).map { try number(at: try directoryEntry($0, copy)) }
        let others = try (0..<2).map { try number(at: try directoryEntry($0, other)) }
        let bad: [UInt32] =
            switch mixture {
            case .exchanged: [good[1], good[0]]
            case .shifted: [good[1], 0]
            case .shiftedByOtherCopy: [others[1], good[1]]
            // The table that nothing else leads to is the wrong one.
            case .anothersOtherCopy: [others[1], good[0]]
            }
        for table in 0..<2 { try put(bad[table], at: try directoryEntry(table, copy)) }
        #expect(try VMDKCheck(.open(path)).count > 0)
        _ = try repair()
        if try hasData() { return }
        // Not mended: but what the directory led to is as it was.
        for table in 0..<2 { try put(good[table], at: try directoryEntry(table, copy)) }
        #expect(try hasData())
    }

    private func hasData() throws -> Bool {
        let image = try VMDKImage(.open(path))
        return try Self.data.allSatisfy { try image.bytes(at: $0.place, count: $0.bytes.count) == $0.bytes }
    }

    /// An entry that is wrong in both copies stays, and is not in a lost table's way.
    @Test(arguments: [0xFFFF_FFFF, 0xFFFF_FF80] as [UInt32])
    private func `entry that leads far behind the file's end does not keep a lost table from it`(entry: UInt32) throws {
        for copy in Copy.allCases { try put(entry, at: try tableEntry(300, copy)) }
        try put(0, at: try tableEntry(0, .second))
        try put(0, at: try directoryEntry(1, .first))
        let result = try repair()
        #expect(result.damage == 1 && result.findings.contains { $0.contains("grain 300") }, "\(result.findings)")
        #expect(try hasData())
        #expect(try ImageFile.open(path).byteCount() < 1 << 30)
    }

    /// After a power failure the second copy alone may have an entry: its place is no other grain's.
    @Test private func `new grain does not lie where one copy alone has one`() throws {
        let place = UInt32((try ImageFile.open(path).byteCount() + 65535) / 65536 * 128)
        try put(place, at: try tableEntry(400, .second))
        let image = try VMDKImage(.open(path))
        try image.put([9], at: 410 << 16)
        try image.close()
        #expect(try number(at: try tableEntry(410, .first)) != place)
        #expect(try repair().damage == 0)
        let again = try VMDKImage(.open(path))
        #expect(try again.bytes(at: 410 << 16, count: 1) == [9] && again.bytes(at: 400 << 16, count: 1) == [0])
        try expectData()
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
