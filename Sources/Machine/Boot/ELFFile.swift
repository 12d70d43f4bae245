/// The program headers of an ELF kernel (ELF-64 Object File Format; System V ABI, chapter 5), 32-bit or 64-bit.
///
/// The file is not trusted: every offset and length has been checked against the file; addresses have not been.
struct ELFFile {
    struct ProgramHeader {
        let type: UInt32
        let offset: UInt64
        let virtualAddress: UInt64
        let physicalAddress: UInt64
        let fileByteCount: UInt64
        let memoryByteCount: UInt64
    }

    static let load: UInt32 = 1
    static let note: UInt32 = 4

    let entry: UInt64
    /// Those that load something or are notes.
    let programHeaders: [ProgramHeader]

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
        guard let entry = Self.word(head, 24, is64),
            let tableOffset = Self.word(head, is64 ? 32 : 28, is64),
            let entrySize = head.load(is64 ? 54 : 42, as: UInt16.self),
            let entryCount = head.load(is64 ? 56 : 44, as: UInt16.self)
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
                let offset = Self.word(table, start + (is64 ? 8 : 4), is64),
                let virtualAddress = Self.word(table, start + (is64 ? 16 : 8), is64),
                let physicalAddress = Self.word(table, start + (is64 ? 24 : 12), is64),
                let fileByteCount = Self.word(table, start + (is64 ? 32 : 16), is64),
                let memoryByteCount = Self.word(table, start + (is64 ? 40 : 20), is64)
            else { throw kernel.truncated() }
            guard type == Self.load || type == Self.note else { continue }
            guard kernel.contains(offset, count: fileByteCount) else { throw kernel.truncated() }
            if type == Self.load {
                guard memoryByteCount > 0 else { continue }
                guard fileByteCount <= memoryByteCount else {
                    throw kernel.error("has a segment longer than its memory", "copy it again")
                }
            }
            headers.append(
                ProgramHeader(
                    type: type, offset: offset, virtualAddress: virtualAddress, physicalAddress: physicalAddress,
                    fileByteCount: fileByteCount, memoryByteCount: memoryByteCount))
        }
        self.entry = entry
        programHeaders = headers
    }

    private static func word(_ reader: ByteReader, _ offset: Int, _ is64: Bool) -> UInt64? {
        is64 ? reader.load(offset, as: UInt64.self) : reader.load(offset, as: UInt32.self).map(UInt64.init)
    }
}
