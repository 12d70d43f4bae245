/// The program headers of an ELF kernel (ELF-64 Object File Format; System V ABI, chapter 5), 32-bit or 64-bit.
///
/// The file is not trusted: every offset and length has been checked against the file; addresses have not been.
struct ELFFile {
    struct ProgramHeader {
        let type: UInt32
        let flags: UInt32
        let offset: UInt64
        let virtualAddress: UInt64
        let physicalAddress: UInt64
        let fileByteCount: UInt64
        let memoryByteCount: UInt64
    }

    /// Where the section headers are said to be; nothing of it has been checked.
    struct SectionTable {
        let offset: UInt64
        let entrySize: UInt16
        let count: UInt16
        /// Which section holds the sections' names.
        let nameIndex: UInt16
    }

    static let load: UInt32 = 1
    static let note: UInt32 = 4
    /// PT_OPENBSD_RANDOMIZE: memory to be filled with random bytes; nothing of it comes from the file.
    static let randomize: UInt32 = 0x65A3_DBE6

    let is64: Bool
    /// The ELF header itself.
    let header: [UInt8]
    let entry: UInt64
    /// Those that load something, are notes, or want random bytes.
    let programHeaders: [ProgramHeader]
    let sectionTable: SectionTable

    /// What an address has, and what structures of the file are aligned to.
    var wordByteCount: UInt64 { is64 ? 8 : 4 }
    var segments: [KernelSegment] { programHeaders.filter { $0.type == Self.load }.map(KernelSegment.init) }

    static func isELF(_ head: ByteReader) -> Bool { head.has([0x7F, 0x45, 0x4C, 0x46], at: 0) }

    init(_ kernel: BootFile, _ head: ByteReader) throws(MachineError) {
        guard let elfClass = head.load(4, as: UInt8.self), let encoding = head.load(5, as: UInt8.self),
            let machine = head.load(18, as: UInt16.self)
        else { throw kernel.truncated() }
        guard elfClass == 1 || elfClass == 2 else {
            throw kernel.error("has a damaged ELF header", "copy it again")
        }
        // EM_386, EM_X86_64
        guard encoding == 1, machine == 3 || machine == 62 else {
            throw kernel.error("is an ELF file for another processor", "give one for x86")
        }
        let is64 = elfClass == 2
        let headerByteCount = is64 ? 64 : 52
        guard head.bytes.count >= headerByteCount, let entry = Self.word(head, 24, is64),
            let tableOffset = Self.word(head, is64 ? 32 : 28, is64),
            let entrySize = head.load(is64 ? 54 : 42, as: UInt16.self),
            let entryCount = head.load(is64 ? 56 : 44, as: UInt16.self),
            let sectionOffset = Self.word(head, is64 ? 40 : 32, is64),
            let sectionSize = head.load(is64 ? 58 : 46, as: UInt16.self),
            let sectionCount = head.load(is64 ? 60 : 48, as: UInt16.self),
            let nameIndex = head.load(is64 ? 62 : 50, as: UInt16.self)
        else { throw kernel.truncated() }
        guard Int(entrySize) == (is64 ? 56 : 32), entryCount > 0, entryCount <= 256 else {
            throw kernel.error("has no usable program headers", "give a linked kernel, not an object file")
        }
        let tableByteCount = Int(entrySize) * Int(entryCount)
        guard kernel.contains(tableOffset, count: UInt64(tableByteCount)) else { throw kernel.truncated() }
        let table = try kernel.read(at: tableOffset, count: tableByteCount)

        var headers: [ProgramHeader] = []
        for index in 0..<Int(entryCount) {
            let start = index * Int(entrySize)
            guard let type = table.load(start, as: UInt32.self),
                let flags = table.load(start + (is64 ? 4 : 24), as: UInt32.self),
                let offset = Self.word(table, start + (is64 ? 8 : 4), is64),
                let virtualAddress = Self.word(table, start + (is64 ? 16 : 8), is64),
                let physicalAddress = Self.word(table, start + (is64 ? 24 : 12), is64),
                let fileByteCount = Self.word(table, start + (is64 ? 32 : 16), is64),
                let memoryByteCount = Self.word(table, start + (is64 ? 40 : 20), is64)
            else { throw kernel.truncated() }
            guard [Self.load, Self.note, Self.randomize].contains(type) else { continue }
            guard type == Self.randomize || kernel.contains(offset, count: fileByteCount) else {
                throw kernel.truncated()
            }
            if type == Self.load {
                guard memoryByteCount > 0 else { continue }
                guard fileByteCount <= memoryByteCount else {
                    throw kernel.error("has a segment longer than its memory", "copy it again")
                }
            }
            headers.append(
                ProgramHeader(
                    type: type, flags: flags, offset: offset, virtualAddress: virtualAddress, physicalAddress: physicalAddress,
                    fileByteCount: fileByteCount, memoryByteCount: memoryByteCount))
        }
        self.is64 = is64
        header = Array(head.bytes[..<headerByteCount])
        self.entry = entry
        programHeaders = headers
        sectionTable = SectionTable(
            offset: sectionOffset, entrySize: sectionSize, count: sectionCount, nameIndex: nameIndex)
    }

    /// The description of the first note of a name and type, in any of the note segments: their first 64 KB are searched.
    func note(_ name: String, type: UInt32, _ kernel: BootFile) throws(MachineError) -> ByteReader? {
        for header in programHeaders where header.type == Self.note {
            let notes = try kernel.read(at: header.offset, count: Int(min(header.fileByteCount, 1 << 16)))
            if let found = notes.note(Array(name.utf8) + [0], type: type) { return found }
        }
        return nil
    }

    /// A field that is as wide as the file's class.
    static func word(_ reader: ByteReader, _ offset: Int, _ is64: Bool) -> UInt64? {
        is64 ? reader.load(offset, as: UInt64.self) : reader.load(offset, as: UInt32.self).map(UInt64.init)
    }
}

extension ELFFile.ProgramHeader {
    /// Whether an address as the kernel's own code sees it lies in this part.
    func contains(virtual address: UInt64) -> Bool {
        address >= virtualAddress && address - virtualAddress < memoryByteCount
    }
}

extension KernelSegment {
    init(_ header: ELFFile.ProgramHeader) {
        self.init(
            offset: header.offset, address: header.physicalAddress, fileByteCount: header.fileByteCount,
            memoryByteCount: header.memoryByteCount)
    }
}

extension ByteReader {
    /// Looks through notes: name length, description length, type, then both padded to four bytes.
    fileprivate func note(_ name: [UInt8], type wanted: UInt32) -> ByteReader? {
        var offset = 0
        while let nameLength = load(offset, as: UInt32.self),
            let length = load(offset + 4, as: UInt32.self),
            let type = load(offset + 8, as: UInt32.self)
        {
            let description = offset + 12 + (Int(nameLength) + 3) & ~3
            if type == wanted, Int(nameLength) == name.count, has(name, at: offset + 12) {
                return ByteReader(bytes: Array(bytes.dropFirst(description).prefix(Int(length))))
            }
            offset = description + (Int(length) + 3) & ~3
        }
        return nil
    }
}
