import VMM

/// The files and the text that boot a guest, and how they are laid into its memory.
///
/// `load` is used at the start and again at each restart, so the guest gets the same files however often it reboots.
struct KernelLoader: Sendable {
    private(set) var kernel: BootFile
    let initrd: BootFile?
    /// For multiboot kernels.
    let modules: [BootModule]
    /// `nil` for what suits the kernel.
    let commandLine: String?
    /// The link-layer address of the interface that the machine boots from, if it boots from one.
    let bootAddress: [UInt8]?

    init(
        kernel source: BootSource, initrd initrdSource: BootSource?, modules sources: [BootModuleSource] = [],
        commandLine: String?, bootAddress: [UInt8]? = nil
    ) throws(MachineError) {
        kernel = try BootFile("kernel", source)
        initrd = try initrdSource.map { source throws(MachineError) in try BootFile("initrd", source) }
        modules = try sources.map { source throws(MachineError) in try BootModule(source) }
        self.commandLine = commandLine
        self.bootAddress = bootAddress
    }

    /// Writes the kernel and all it needs into memory that reads as zeros.
    /// - Parameter rsdp: where the ACPI tables start, if there are any.
    /// - Returns: the state in which the CPU enters the kernel.
    func load(
        into memory: GuestMemory, _ map: MemoryMap, rsdp: UInt64?
    ) throws(MachineError) -> CPUState {
        var loader = self
        // For as long as it takes: the guest's copy is the one that stays.
        loader.kernel = try kernel.unpacked(room: map.byteCount)
        return try loader.loadUnpacked(into: memory, map, rsdp: rsdp)
    }

    private func loadUnpacked(
        into memory: GuestMemory, _ map: MemoryMap, rsdp: UInt64?
    ) throws(MachineError) -> CPUState {
        let head = try kernel.read(at: 0, count: Multiboot2Header.searchByteCount)
        if head.has(Array("HdrS".utf8), at: 0x202) {
            let image = try LinuxImage(kernel, head)
            try refuseModules("is Linux")
            return try image.load(self, into: memory, map, rsdp: rsdp)
        }
        // What a kernel asks for by a header comes before what it is; of two headers the richer protocol's counts.
        if let image = try Multiboot2Image(kernel, head) { return try image.load(self, into: memory, map, rsdp: rsdp) }
        if let image = try MultibootImage(kernel, head) { return try image.load(self, into: memory, map) }
        if ELFFile.isELF(head) {
            let file = try ELFFile(kernel, head)
            if try OpenBSDImage.isOpenBSD(file, kernel) {
                let image = try OpenBSDImage(kernel, file)
                try refuseModules("is OpenBSD's")
                return try image.load(self, into: memory, map)
            }
            let image = try PVHImage(kernel, file)
            try refuseModules("is entered by PVH")
            return try image.load(self, into: memory, map, rsdp: rsdp)
        }
        throw try foreign(head)
    }

    /// What is no kernel, nothing that is foreign for sure, and could be firmware, is firmware, as on OpenBSD.
    func firmware() throws(MachineError) -> FirmwareImage? {
        let head = try kernel.read(at: 0, count: Multiboot2Header.searchByteCount)
        guard try !isKernel(head), try foreignFormat(head) == nil, try FirmwareImage.isPlausible(kernel) else { return nil }
        return FirmwareImage(kernel)
    }

    /// Whether `load` tries to load it.
    private func isKernel(_ head: ByteReader) throws(MachineError) -> Bool {
        if head.has(Array("HdrS".utf8), at: 0x202) || ELFFile.isELF(head) { return true }
        if try Multiboot2Image(kernel, head) != nil { return true }
        guard let image = try MultibootImage(kernel, head) else { return false }
        // U-Boot's images have a header for loaders that start them once more, and say in it that they lie in ROM.
        return image.start != MemoryMap.fourGigabytes - kernel.byteCount
    }

    /// Loads the initial ramdisk as high as it may lie, clear of the kernel that grows up from below.
    /// - Parameters:
    ///   - start: the end of what the kernel needs.
    ///   - highest: the last address the kernel can read it from.
    /// - Returns: where it is, or `nil` without one.
    func loadInitrd(
        into memory: GuestMemory, _ map: MemoryMap, above start: UInt64, highest: UInt64
    ) throws(MachineError) -> Range<UInt64>? {
        guard let initrd else { return nil }
        let count = initrd.byteCount
        let end = min(map.lowEnd, highest < .max ? highest + 1 : highest)
        let room = end >= start ? end - start : 0
        guard count <= room, (end - count) & ~0xFFF >= start else {
            let missing = count - min(count, room)
            let advice =
                end == map.lowEnd
                ? "give at least -m \(megabytesText(map.byteCount + missing + GuestMemory.pageSize))"
                : "use a smaller one"
            throw initrd.error(
                "its \(sizeText(count)) do not fit beside the kernel, there is room for \(sizeText(room))", advice)
        }
        let base = (end - count) & ~0xFFF
        try initrd.load(at: 0, count: count, into: memory, base)
        return base..<base + count
    }

    private func refuseModules(_ reason: String) throws(MachineError) {
        guard let module = modules.first else { return }
        throw module.file.error("the kernel \(reason) and takes no modules", "give it as --initrd")
    }

    /// What is wrong with a file that is no kernel for this machine.
    private func foreign(_ head: ByteReader) throws(MachineError) -> MachineError {
        try foreignFormat(head)
            ?? kernel.error("is not a kernel", "give a Linux bzImage, an OpenBSD kernel, or one with a multiboot header or a PVH note")
    }

    /// What a file is that is surely neither a kernel nor firmware, as far as its first bytes tell.
    private func foreignFormat(_ head: ByteReader) throws(MachineError) -> MachineError? {
        let formats: [(pattern: [UInt8], offset: Int, reason: String, advice: String)] = [
            ([0x1F, 0x8B], 0, "is compressed with gzip twice", "unpack it with gunzip"),
            ([0xFD, 0x37, 0x7A, 0x58, 0x5A], 0, "is compressed with xz", "unpack it with unxz"),
            ([0x28, 0xB5, 0x2F, 0xFD], 0, "is compressed with zstd", "unpack it with unzstd"),
            ([0x41, 0x52, 0x4D, 0x64], 0x38, "is an ARM64 kernel", "give one for x86-64"),
            ([0x52, 0x53, 0x43, 0x05], 0x38, "is a RISC-V kernel", "give one for x86-64"),
        ]
        for format in formats where head.has(format.pattern, at: format.offset) {
            return kernel.error(format.reason, format.advice)
        }
        // The first volume descriptor (ECMA-119, 8.1), behind sixteen sectors that are free for other uses.
        if try kernel.read(at: 0x8001, count: 5).has(Array("CD001".utf8), at: 0) {
            return kernel.error("is a CD image", "give the kernel inside it")
        }
        return nil
    }
}
