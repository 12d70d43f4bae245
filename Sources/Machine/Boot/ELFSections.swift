import VMM

/// The section headers of an ELF file (System V ABI, chapter 4): a kernel that prints its own symbols wants them.
///
/// The file is not trusted: the table lies in it, and every name and content that is asked for is checked then.
struct ELFSections {
    struct Section {
        let name: UInt32
        let type: UInt32
        let address: UInt64
        let offset: UInt64
        let byteCount: UInt64
    }

    static let symbolTable: UInt32 = 2
    static let stringTable: UInt32 = 3
    /// Takes no bytes in the file.
    static let noBits: UInt32 = 8
    /// SHF_ALLOC
    static let allocated: UInt64 = 2

    private static let namesByteCountMax: UInt64 = 1 << 20

    let sections: [Section]
    /// The table, as it stands in the file or as a loader has changed it.
    private(set) var table: [UInt8]
    let entrySize: Int
    let nameIndex: UInt16
    private let is64: Bool
    private let names: ByteReader

    /// - Returns: `nil` when the file has no section headers.
    init?(_ kernel: BootFile, _ file: ELFFile) throws(MachineError) {
        let place = file.sectionTable
        guard place.count > 0, place.offset > 0 else { return nil }
        is64 = file.is64
        entrySize = is64 ? 64 : 40
        guard Int(place.entrySize) == entrySize else {
            throw kernel.error("has section headers of \(place.entrySize) bytes", "link it again, or strip it")
        }
        let byteCount = entrySize * Int(place.count)
        guard kernel.contains(place.offset, count: UInt64(byteCount)) else { throw kernel.truncated() }
        let reader = try kernel.read(at: place.offset, count: byteCount)
        guard reader.bytes.count == byteCount else { throw kernel.truncated() }
        table = reader.bytes
        nameIndex = place.nameIndex
        var sections: [Section] = []
        for start in stride(from: 0, to: byteCount, by: entrySize) {
            guard let name = reader.load(start, as: UInt32.self), let type = reader.load(start + 4, as: UInt32.self),
                let address = ELFFile.word(reader, start + (is64 ? 16 : 12), is64),
                let offset = ELFFile.word(reader, start + (is64 ? 24 : 16), is64),
                let size = ELFFile.word(reader, start + (is64 ? 32 : 20), is64)
            else { throw kernel.truncated() }
            sections.append(Section(name: name, type: type, address: address, offset: offset, byteCount: size))
        }
        self.sections = sections
        guard Int(place.nameIndex) < sections.count else {
            throw kernel.error("has no section \(place.nameIndex) with the names of sections", "link it again, or strip it")
        }
        let strings = sections[Int(place.nameIndex)]
        guard strings.type != Self.noBits else {
            names = ByteReader(bytes: [])
            return
        }
        guard kernel.contains(strings.offset, count: strings.byteCount) else { throw kernel.truncated() }
        guard strings.byteCount <= Self.namesByteCountMax else {
            throw kernel.error("has \(sizeText(strings.byteCount)) of section names", "link it again, or strip it")
        }
        names = try kernel.read(at: strings.offset, count: Int(strings.byteCount))
    }

    func isNamed(_ section: Section, _ name: String) -> Bool { names.has(Array(name.utf8) + [0], at: Int(section.name)) }

    /// Copies a section's bytes to `gpa`.
    /// - Parameter end: where the memory for it ends.
    static func load(
        _ section: Section, of kernel: BootFile, into memory: GuestMemory, _ gpa: UInt64, below end: UInt64
    ) throws(MachineError) {
        guard kernel.contains(section.offset, count: section.byteCount) else { throw kernel.truncated() }
        guard gpa <= end, section.byteCount <= end - gpa else {
            throw kernel.error(
                "has \(sizeText(section.byteCount)) of symbols, which do not fit behind it",
                "give more memory with -m, or strip it")
        }
        try kernel.load(at: section.offset, count: section.byteCount, into: memory, gpa)
    }

    // MARK: - Where a loader has put things

    mutating func setOffset(_ index: Int, _ value: UInt64) { set(index, is64 ? 24 : 16, value) }
    mutating func setAddress(_ index: Int, _ value: UInt64) { set(index, is64 ? 16 : 12, value) }
    mutating func setAllocated(_ index: Int) {
        let at = index * entrySize + 8
        table[at] |= UInt8(truncatingIfNeeded: Self.allocated)
    }

    private mutating func set(_ index: Int, _ field: Int, _ value: UInt64) {
        var writer = ByteWriter()
        if is64 { writer.append(value) } else { writer.append(UInt32(truncatingIfNeeded: value)) }
        let start = index * entrySize + field
        table.replaceSubrange(start..<start + writer.bytes.count, with: writer.bytes)
    }
}
