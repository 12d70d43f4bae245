/// Where firmware boots from.
public enum BootDevice: String, Hashable, Sendable, CaseIterable { case disk, cdrom, net }

/// What a machine is made of.
public struct MachineConfiguration: Hashable, Sendable {
    /// A Linux bzImage, an OpenBSD kernel, or one with a multiboot header or a PVH note; gzip may have packed it. Or firmware.
    /// `nil`: the host's SeaBIOS.
    public var kernel: BootSource?
    /// An initial ramdisk.
    public var initrd: BootSource?
    /// For multiboot kernels.
    public var modules: [BootModuleSource]
    /// `nil` for what suits the kernel: Linux and its kin get a console, a multiboot kernel nothing.
    public var commandLine: String?
    /// The link-layer address of the interface that the machine boots from, six bytes; `nil` when it boots from none.
    /// An OpenBSD kernel that is told of it goes on as if it had come over the network: its installer asks there for what
    /// to do.
    public var bootAddress: [UInt8]?
    /// The guest's RAM in bytes.
    public var memoryByteCount: UInt64
    /// Name of a CPU model, or `nil` for the best that the engine recommends.
    public var cpuModel: String?
    /// The port at which a write ends the machine with a status; `nil` for none.
    public var debugExitPort: UInt16?
    /// In the order in which the guest finds them; at most `mostDisks`.
    public var disks: [DiskSource]
    /// Where firmware boots from; `nil` for its own order: disk, CD, network.
    public var bootDevice: BootDevice?
    /// The option ROM for booting from the network; `nil`: the host's iPXE.
    public var networkROM: BootSource?
    /// Whether firmware finds a port to write to what it does.
    public var logsFirmware = false

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

    /// The same with paths, or with the host's firmware.
    /// - Parameter modules: FILE or FILE,ARGUMENTS each.
    public init(
        kernel: String?, initrd: String? = nil, modules: [String] = [], commandLine: String? = nil,
        memoryByteCount: UInt64 = defaultMemoryByteCount, cpuModel: String? = nil, debugExitPort: UInt16? = nil,
        disks: [DiskSource] = [], cdrom: DiskSource? = nil
    ) {
        self.kernel = kernel.map { .path($0) }
        self.initrd = initrd.map { .path($0) }
        self.modules = modules.map { BootModuleSource($0) }
        self.commandLine = commandLine
        self.memoryByteCount = memoryByteCount
        self.cpuModel = cpuModel
        self.debugExitPort = debugExitPort
        self.disks = disks
        self.cdrom = cdrom
    }
}
