import VMM

/// A Linux bzImage, entered by the 64-bit or the 32-bit boot protocol ("The Linux/x86 Boot Protocol", sections "The
/// Real-Mode Kernel Header", "32-bit Boot Protocol" and "64-bit Boot Protocol").
///
/// The real-mode part of the file is skipped: its header is copied into the zero page. A kernel that says that it has
/// a 64-bit entry is entered there, 0x200 bytes into the protected-mode part, in long mode, with the first 4 GB mapped
/// to themselves. Any other is entered at the first byte of that part, in protected mode without paging.
///
/// The file is not trusted: each length and address is checked against the file and the guest's memory.
struct LinuxImage {
    /// Offsets of the setup header, in the file and in the zero page alike.
    private enum Field {
        static let setupSectors = 0x1F1
        static let protectedModeParagraphs = 0x1F4
        static let bootFlag = 0x1FE
        static let headerLength = 0x201
        static let version = 0x206
        static let loaderType = 0x210
        static let loadFlags = 0x211
        static let code32Start = 0x214
        static let ramdiskImage = 0x218
        static let ramdiskSize = 0x21C
        static let commandLinePointer = 0x228
        static let initrdAddressMax = 0x22C
        static let kernelAlignment = 0x230
        static let extendedLoadFlags = 0x236
        static let commandLineSize = 0x238
        static let setupData = 0x250
        static let preferredAddress = 0x258
        static let initSize = 0x260
    }

    /// Offsets in the zero page outside the setup header ("Zero Page").
    private enum ZeroPage {
        static let acpiRSDP: UInt64 = 0x70
        static let e820Count: UInt64 = 0x1E8
        static let e820Table: UInt64 = 0x2D0
        /// The setup header may not grow beyond what follows it.
        static let headerEnd = 0x290
    }

    /// Whether there is a 64-bit entry point (XLF_KERNEL_64).
    private let has64BitEntry: Bool
    private let setupByteCount: UInt64
    private let payloadByteCount: UInt64
    private let loadAddress: UInt64
    /// From the load address: what the kernel needs before it looks at its memory map.
    private let initByteCount: UInt64
    private let initrdAddressMax: UInt64
    private let commandLineLimit: UInt64
    private let header: [UInt8]

    /// Where in the protected-mode part the 64-bit entry point lies.
    private static let entry64: UInt64 = 0x200

    /// Takes the header apart.
    init(_ kernel: BootFile, _ head: ByteReader) throws(MachineError) {
        guard let setupSectors = head.load(Field.setupSectors, as: UInt8.self),
            let paragraphs = head.load(Field.protectedModeParagraphs, as: UInt32.self),
            let bootFlag = head.load(Field.bootFlag, as: UInt16.self),
            let headerLength = head.load(Field.headerLength, as: UInt8.self),
            let version = head.load(Field.version, as: UInt16.self),
            let loadFlags = head.load(Field.loadFlags, as: UInt8.self)
        else { throw kernel.truncated() }
        guard bootFlag == 0xAA55 else { throw kernel.error("has a damaged setup header", "copy it again") }
        // 2.10 brought the preferred address and the memory that the kernel needs until it reads its memory map.
        guard version >= 0x20A else {
            throw kernel.error(
                "speaks boot protocol \(version >> 8).\(version & 0xFF) and needs a BIOS",
                "boot it from a disk or CD, or give Linux 2.6.31 or newer")
        }
        guard let alignment = head.load(Field.kernelAlignment, as: UInt32.self),
            let extendedLoadFlags = head.load(Field.extendedLoadFlags, as: UInt16.self),
            let commandLineSize = head.load(Field.commandLineSize, as: UInt32.self),
            let initrdAddressMax = head.load(Field.initrdAddressMax, as: UInt32.self),
            let preferredAddress = head.load(Field.preferredAddress, as: UInt64.self),
            let initSize = head.load(Field.initSize, as: UInt32.self)
        else { throw kernel.truncated() }
        // LOADED_HIGH
        guard loadFlags & 1 != 0 else { throw kernel.error("is a zImage", "give a bzImage") }
        // XLF_KERNEL_64; the field came with 2.12.
        has64BitEntry = version >= 0x20C && extendedLoadFlags & 1 != 0
        let headerEnd = 0x202 + Int(headerLength)
        guard headerEnd >= Field.initSize + 4, headerEnd <= ZeroPage.headerEnd, alignment.nonzeroBitCount == 1 else {
            throw kernel.error("has a damaged setup header", "copy it again")
        }

        // Zero means four, for historical reasons.
        setupByteCount = (UInt64(setupSectors == 0 ? 4 : setupSectors) + 1) * 512
        let fileByteCount = kernel.byteCount
        guard fileByteCount > setupByteCount else { throw kernel.truncated() }
        let available = fileByteCount - setupByteCount
        let claimed = UInt64(paragraphs) * 16
        // Some builds round the length up to a paragraph without padding the file.
        guard available + 15 >= claimed else { throw kernel.truncated() }
        payloadByteCount = min(claimed, available)
        guard payloadByteCount > (has64BitEntry ? Self.entry64 : 0) else { throw kernel.truncated() }

        // A kernel with no preference, or one below the memory a PC keeps for itself, goes to the first aligned
        // address above that. Otherwise the preference is an order: loaded elsewhere, the kernel would move there.
        let lowest = (MemoryMap.oneMegabyte + UInt64(alignment) - 1) & ~(UInt64(alignment) - 1)
        loadAddress = preferredAddress < MemoryMap.oneMegabyte ? lowest : preferredAddress
        initByteCount = max(UInt64(initSize), payloadByteCount)
        self.initrdAddressMax = UInt64(initrdAddressMax)
        commandLineLimit = UInt64(commandLineSize)
        guard head.bytes.count >= headerEnd else { throw kernel.truncated() }
        header = Array(head.bytes[Field.setupSectors..<headerEnd])
    }

    /// Lays out everything; see `KernelLoader.load`.
    func load(
        _ loader: KernelLoader, into memory: GuestMemory, _ map: MemoryMap, rsdp: UInt64?
    ) throws(MachineError) -> CPUState {
        let (end, overflow) = loadAddress.addingReportingOverflow(initByteCount)
        guard !overflow, end <= map.lowEnd else {
            guard !overflow, end <= MemoryMap.acpiBase else {
                throw loader.kernel.error(
                    "wants to be loaded at \(hexText(loadAddress)), where no memory can be", "copy it again")
            }
            throw loader.kernel.error(
                "does not fit in \(sizeText(map.byteCount)) of memory", "give at least -m \(megabytesText(end))")
        }
        try loader.kernel.load(at: setupByteCount, count: payloadByteCount, into: memory, loadAddress)
        try BootStructures.writeCommandLine(
            loader.commandLine ?? MachineConfiguration.defaultCommandLine, limit: commandLineLimit, memory)
        let initrd = try loader.loadInitrd(into: memory, map, above: end, highest: initrdAddressMax)

        let zeroPage = BootStructures.zeroPage
        memory.write(header, at: zeroPage + UInt64(Field.setupSectors))
        func set<T: FixedWidthInteger & BitwiseCopyable>(_ field: Int, _ value: T) {
            memory.store(zeroPage + UInt64(field), value)
        }
        set(Field.code32Start, UInt32(truncatingIfNeeded: loadAddress))
        // A loader without a number of its own.
        set(Field.loaderType, UInt8(0xFF))
        set(Field.ramdiskImage, UInt32(truncatingIfNeeded: initrd?.lowerBound ?? 0))
        set(Field.ramdiskSize, UInt32(truncatingIfNeeded: initrd?.count ?? 0))
        set(Field.commandLinePointer, UInt32(truncatingIfNeeded: BootStructures.commandLine))
        set(Field.setupData, Self.writeRandomSeed(memory))
        memory.store(zeroPage + ZeroPage.acpiRSDP, rsdp ?? 0)
        var table = ByteWriter()
        for entry in map.entries {
            table.append(entry.base)
            table.append(entry.byteCount)
            table.append(entry.kind.rawValue)
        }
        memory.store(zeroPage + ZeroPage.e820Count, UInt8(truncatingIfNeeded: map.entries.count))
        memory.write(table.bytes, at: zeroPage + ZeroPage.e820Table)

        var state = CPUState()
        state[.rsi] = zeroPage
        if has64BitEntry {
            BootStructures.setSegments(&state, code: 0xA09B)
            state.gdtr = BootStructures.writeDescriptorTable(memory, code: BootStructures.code64)
            state.cr3 = BootStructures.writePageTables(memory)
            // PE, ET, NE, WP, PG
            state.cr0 = 0x8001_0031
            // PAE
            state.cr4 = 1 << 5
            // LME, LMA
            state.msr.efer = 1 << 8 | 1 << 10
            state.rip = loadAddress + Self.entry64
        } else {
            BootStructures.setProtectedMode(&state, memory)
            state.rip = loadAddress
        }
        return state
    }

    /// A list of one `setup_data`, SETUP_RNG_SEED: the kernel (6.0 or newer) takes the bytes as a start for its random
    /// numbers, wipes them, and need not wait for interrupts to give it some. Older kernels pass over it.
    /// - Returns: where it is.
    private static func writeRandomSeed(_ memory: GuestMemory) -> UInt64 {
        var random = SystemRandomNumberGenerator()
        var node = ByteWriter()
        // next, type, len, data
        node.append(UInt64(0))
        node.append(UInt32(9))
        node.append(UInt32(32))
        for _ in 0..<4 { node.append(random.next()) }
        memory.write(node.bytes, at: BootStructures.linuxRandomSeed)
        return BootStructures.linuxRandomSeed
    }
}
