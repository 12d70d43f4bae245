import VMM

/// What a loader leaves in low memory for the kernel's first instructions. All of it lies in memory that the map
/// offers as RAM: kernels copy what they need and reuse the rest.
enum BootStructures {
    static let globalDescriptorTable: UInt64 = 0x1000
    static let pvhStartInfo: UInt64 = 0x2000
    static let multibootInformation: UInt64 = 0x2000
    static let linuxRandomSeed: UInt64 = 0x6000
    static let zeroPage: UInt64 = 0x7000
    /// PML4, PDPT and four page directories.
    static let pageTables: UInt64 = 0x9000
    static let commandLine: UInt64 = 0x20000
    /// Space for the command line with its terminator.
    static let commandLineCapacity: UInt64 = 0x10000
    static let multibootModules: UInt64 = 0x30000
    static let multibootModulesCapacity = 0x40000

    /// __BOOT_CS and __BOOT_DS of the boot protocol.
    static let codeSelector: UInt16 = 0x10
    static let dataSelector: UInt16 = 0x18

    /// Flat segments (SDM Vol. 3, 3.4.5): present, ring 0, 4 GB.
    static let code64: UInt64 = 0x00AF_9B00_0000_FFFF
    static let code32: UInt64 = 0x00CF_9B00_0000_FFFF
    static let data: UInt64 = 0x00CF_9300_0000_FFFF

    /// Writes a GDT with the code segment at 0x10 and the data segment at 0x18.
    static func writeDescriptorTable(_ memory: GuestMemory, code: UInt64) -> DescriptorTableRegister {
        writeDescriptorTable(memory, [0, 0, code, data], at: globalDescriptorTable)
    }

    static func writeDescriptorTable(
        _ memory: GuestMemory, _ descriptors: [UInt64], at base: UInt64
    ) -> DescriptorTableRegister {
        for (index, descriptor) in descriptors.enumerated() { memory.store(base + UInt64(index) * 8, descriptor) }
        return DescriptorTableRegister(base: base, limit: UInt16(descriptors.count * 8 - 1))
    }

    /// Maps the first 4 GB to themselves in 2 MB pages (SDM Vol. 3, 4.5.4). Returns the value for CR3.
    static func writePageTables(_ memory: GuestMemory) -> UInt64 {
        let presentWritable: UInt64 = 3
        let largePage: UInt64 = 1 << 7
        let pointers = pageTables + 0x1000
        let directories = pageTables + 0x2000
        memory.store(pageTables, pointers | presentWritable)
        for gigabyte in UInt64(0)..<4 {
            memory.store(pointers + gigabyte * 8, (directories + gigabyte * 0x1000) | presentWritable)
        }
        var entries = ByteWriter()
        for page in UInt64(0)..<2048 { entries.append(page << 21 | largePage | presentWritable) }
        memory.write(entries.bytes, at: directories)
        return pageTables
    }

    /// Writes the command line with its terminating zero.
    /// - Parameter limit: the longest the kernel takes, without the zero.
    static func writeCommandLine(_ text: String, limit: UInt64, _ memory: GuestMemory) throws(MachineError) {
        let bytes = Array(text.utf8)
        let limit = min(limit, commandLineCapacity - 1)
        guard UInt64(bytes.count) <= limit else {
            throw MachineError(
                "command line: has \(bytes.count) bytes, the kernel takes at most \(limit): shorten --cmdline")
        }
        guard !bytes.contains(0) else { throw MachineError("command line: contains a zero byte: remove it") }
        memory.write(bytes + [0], at: commandLine)
    }

    /// 32-bit protected mode without paging and with flat segments, as 32-bit Linux, PVH and multiboot are entered.
    static func setProtectedMode(_ state: inout CPUState, _ memory: GuestMemory) {
        setSegments(&state, code: 0xC09B)
        state.gdtr = writeDescriptorTable(memory, code: code32)
        // PE, ET
        state.cr0 = 0x11
    }

    /// The segments that all entry protocols want: flat, and a task register that is valid but never used.
    static func setSegments(
        _ state: inout CPUState, code attributes: UInt32, codeSelector: UInt16 = codeSelector,
        dataSelector: UInt16 = dataSelector
    ) {
        state.cs = SegmentRegister(selector: codeSelector, attributes: attributes, limit: .max)
        // Read/write, accessed, present, 32 bit, page granular.
        let data = SegmentRegister(selector: dataSelector, attributes: 0xC093, limit: .max)
        state.ds = data
        state.es = data
        state.ss = data
        state.fs = data
        state.gs = data
        state.ldtr = SegmentRegister()
        // Busy TSS, present; the smallest a CPU accepts.
        state.tr = SegmentRegister(attributes: 0x8B, limit: 0x67)
        state.idtr = DescriptorTableRegister(base: 0, limit: 0)
    }
}
