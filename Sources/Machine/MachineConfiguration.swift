/// What a machine is made of.
public struct MachineConfiguration: Hashable, Sendable {
    /// A Linux bzImage, or a kernel with a multiboot header or a PVH note.
    public var kernel: BootSource
    /// An initial ramdisk.
    public var initrd: BootSource?
    /// For multiboot kernels.
    public var modules: [BootModuleSource]
    /// `nil` for what suits the kernel: Linux and its kin get a console, a multiboot kernel nothing.
    public var commandLine: String?
    /// The guest's RAM in bytes.
    public var memoryByteCount: UInt64
    /// Name of a CPU model, or `nil` for the best that the engine recommends.
    public var cpuModel: String?
    /// The port at which a write ends the machine with a status; `nil` for none.
    public var debugExitPort: UInt16?
    /// In the order in which the guest finds them; at most `mostDisks`.
    public var disks: [DiskSource]

    /// The disc in the CD-ROM drive; `nil` for a machine without a drive.
    public var cdrom: DiskSource?

    /// vmd's limit.
    public static let mostDisks = 4

    /// vmd's default.
    public static let defaultMemoryByteCount: UInt64 = 512 << 20
    /// Linux is silent without a console.
    public static let defaultCommandLine = "console=ttyS0"

    public init(
        kernel: BootSource, initrd: BootSource? = nil, modules: [BootModuleSource] = [], commandLine: String? = nil,
        memoryByteCount: UInt64 = defaultMemoryByteCount, cpuModel: String? = nil, debugExitPort: UInt16? = nil,
        disks: [DiskSource] = [], cdrom: DiskSource? = nil
    ) {
        self.kernel = kernel
        self.initrd = initrd
        self.modules = modules
        self.commandLine = commandLine
        self.memoryByteCount = memoryByteCount
        self.cpuModel = cpuModel
        self.debugExitPort = debugExitPort
        self.disks = disks
        self.cdrom = cdrom
    }

    /// The same with paths.
    /// - Parameter modules: FILE or FILE,ARGUMENTS each.
    public init(
        kernel: String, initrd: String? = nil, modules: [String] = [], commandLine: String? = nil,
        memoryByteCount: UInt64 = defaultMemoryByteCount, cpuModel: String? = nil, debugExitPort: UInt16? = nil,
        disks: [DiskSource] = [], cdrom: DiskSource? = nil
    ) {
        self.init(
            kernel: .path(kernel), initrd: initrd.map { .path($0) }, modules: modules.map { BootModuleSource($0) },
            commandLine: commandLine, memoryByteCount: memoryByteCount, cpuModel: cpuModel, debugExitPort: debugExitPort,
            disks: disks, cdrom: cdrom)
    }
}
