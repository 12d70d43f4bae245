/// What a machine is made of.
public struct MachineConfiguration: Hashable, Sendable {
    /// Path of a Linux bzImage or an ELF file with a PVH note.
    public var kernel: String
    /// Path of an initial ramdisk.
    public var initrd: String?
    public var commandLine: String
    /// The guest's RAM in bytes.
    public var memoryByteCount: UInt64
    /// Name of a CPU model, or `nil` for the best that the engine recommends.
    public var cpuModel: String?

    /// vmd's default.
    public static let defaultMemoryByteCount: UInt64 = 512 << 20
    /// Linux is silent without a console.
    public static let defaultCommandLine = "console=ttyS0"

    public init(
        kernel: String, initrd: String? = nil, commandLine: String = defaultCommandLine,
        memoryByteCount: UInt64 = defaultMemoryByteCount, cpuModel: String? = nil
    ) {
        self.kernel = kernel
        self.initrd = initrd
        self.commandLine = commandLine
        self.memoryByteCount = memoryByteCount
        self.cpuModel = cpuModel
    }
}
