/// The first sector of a hosted sparse extent ("Virtual Disk Format 5.0", Hosted Sparse Extents), as a value; offsets and sizes
/// are in sectors.
///
/// Hostile: each number is checked before anything is computed from it, and no table is larger than the disk's size explains.
struct VMDKHeader: Hashable {
    struct Flags: OptionSet, Hashable {
        let rawValue: UInt32
        /// The characters behind `uncleanShutdown` are to be looked at.
        static let newlineTest = Flags(rawValue: 1)
        static let redundantTable = Flags(rawValue: 1 << 1)
        /// An entry of 1 is a grain of zeros.
        static let zeroedGrain = Flags(rawValue: 1 << 2)
        static let compressed = Flags(rawValue: 1 << 16)
        static let markers = Flags(rawValue: 1 << 17)
        static let known: Flags = [.newlineTest, .redundantTable, .zeroedGrain, .compressed, .markers]
    }

    static let byteCount = 512
    static let magic = Array("KDMV".utf8)
    /// The grain directory's place stands in the footer.
    static let directoryAtEnd = UInt64.max
    /// Of each grain table; the format knows no other number.
    static let tableEntries = 512
    static let tableSectors: UInt64 = 4
    /// Entries are numbers of sectors in 32 bits: no larger file can be written, so no larger disk is taken.
    static let capacityLimit: UInt64 = 1 << 32
    /// CR, LF and a blank, so that a transfer as text is found.
    private static let newlines: [UInt8] = [0x0A, 0x20, 0x0D, 0x0A]

    var version: UInt32 = 1
    var flags: Flags = [.newlineTest, .redundantTable]
    var capacity: UInt64
    var grainSectors: UInt64 = 128
    var descriptorOffset: UInt64 = 1
    var descriptorSectors: UInt64 = 20
    var redundantDirectory: UInt64 = 0
    var directory: UInt64 = 0
    /// In front of the first grain.
    var overhead: UInt64 = 0
    var isUnclean = false
    var compression: UInt16 = 0

    var grainByteCount: Int { Int(grainSectors) * 512 }
    /// Disk sectors that a grain table covers.
    var tableCoverage: UInt64 { grainSectors * UInt64(Self.tableEntries) }
    var tableCount: Int { Int((capacity + tableCoverage - 1) / tableCoverage) }
    var directorySectors: UInt64 { (UInt64(tableCount) * 4 + 511) / 512 }
    var isCompressed: Bool { flags.contains(.compressed) }

    /// The sector of a grain by its entry; 0 for zeros, `nil` for one that would lie among the tables.
    func place(_ entry: UInt32) -> UInt64? {
        if entry == 0 || entry == 1 && flags.contains(.zeroedGrain) { return 0 }
        return UInt64(entry) >= max(1, overhead) ? UInt64(entry) : nil
    }

    init(capacity: UInt64) { self.capacity = capacity }

    /// - Throws: `malformed`, `unsupported`.
    init(_ bytes: UnsafeRawBufferPointer, _ name: String) throws(ImageError) {
        func malformed(_ reason: String) -> ImageError { ImageError(.malformed, name, "not a good VMDK image: \(reason)") }
        func unsupported(_ reason: String) -> ImageError { ImageError(.unsupported, name, reason) }
        guard bytes.count >= Self.byteCount, bytes.prefix(4).elementsEqual(Self.magic) else { throw malformed("no header") }
        version = bytes.little(4)
        guard (1...3).contains(version) else { throw unsupported("VMDK version \(version) is not known: 1 to 3 are") }
        flags = Flags(rawValue: bytes.little(8))
        guard flags.subtracting(.known).isEmpty else {
            throw unsupported("VMDK flags 0x\(String(flags.subtracting(.known).rawValue, radix: 16)) are not known")
        }
        capacity = bytes.little(12)
        grainSectors = bytes.little(20)
        descriptorOffset = bytes.little(28)
        descriptorSectors = bytes.little(36)
        let entries: UInt32 = bytes.little(44)
        redundantDirectory = bytes.little(48)
        directory = bytes.little(56)
        overhead = bytes.little(64)
        isUnclean = bytes[72] != 0
        compression = bytes.little(77)
        guard capacity > 0, capacity <= Self.capacityLimit else {
            throw malformed("\(capacity) sectors; a disk has 1 to \(Self.capacityLimit)")
        }
        guard (8...4096).contains(grainSectors), grainSectors & (grainSectors - 1) == 0 else {
            throw malformed("grains of \(grainSectors) sectors; they have a power of two, 8 to 4096")
        }
        guard overhead <= Self.capacityLimit else { throw malformed("its first grain is at sector \(overhead)") }
        guard entries == Self.tableEntries else { throw malformed("grain tables of \(entries) entries; they have 512") }
        if flags.contains(.newlineTest), !bytes[73..<77].elementsEqual(Self.newlines) {
            throw malformed("it was changed by a transfer as text")
        }
        guard isCompressed == flags.contains(.markers), compression == (isCompressed ? 1 : 0) else {
            throw unsupported("compression method \(compression) with flags 0x\(String(flags.rawValue, radix: 16))")
        }
        guard descriptorOffset > 0, descriptorOffset < 1 << 32, (1...2048).contains(descriptorSectors) else {
            throw unsupported("its descriptor is in another file, or too long: only images of one file are read")
        }
    }

    var bytes: [UInt8] {
        var bytes = Self.magic
        bytes.append(little: version)
        bytes.append(little: flags.rawValue)
        for number in [capacity, grainSectors, descriptorOffset, descriptorSectors] { bytes.append(little: number) }
        bytes.append(little: UInt32(Self.tableEntries))
        for number in [redundantDirectory, directory, overhead] { bytes.append(little: number) }
        bytes.append(isUnclean ? 1 : 0)
        bytes += Self.newlines
        bytes.append(little: compression)
        bytes.pad(to: Self.byteCount)
        return bytes
    }
}
