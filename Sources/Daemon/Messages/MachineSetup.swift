import ControlProtocol

/// All that a machine's process is told about its machine. Descriptors come along in the order of `Descriptor`.
struct MachineSetup: Hashable, Sendable, WireValue {
    /// The descriptors of a start, in their order; the optional ones only when `MachineSetup` says so.
    enum Descriptor: Int, CaseIterable {
        case kernel, terminal, initrd, networkROM, kvm
    }

    var name: String
    /// Paths, for messages. The kernel may be firmware.
    var kernel: String
    var initrd: String?
    var networkROM: String?
    /// What firmware boots from.
    var bootDevice: BootDevice?
    var commandLine: String?
    /// Bytes.
    var memory: UInt64
    var engine: String
    var cpuModel: String?
    /// `/dev/kvm` comes along.
    var hasKVM: Bool
    var isVerbose: Bool
    /// Tests only: try what the sandbox forbids, and say how that went.
    var probes: Bool

    var descriptorCount: Int { 2 + (initrd == nil ? 0 : 1) + (networkROM == nil ? 0 : 1) + (hasKVM ? 1 : 0) }

    func write(to writer: inout MessageWriter) {
        writer.put(name)
        writer.put(kernel)
        writer.put(initrd)
        writer.put(networkROM)
        writer.put(bootDevice)
        writer.put(commandLine)
        writer.put(memory)
        writer.put(engine)
        writer.put(cpuModel)
        writer.put(hasKVM)
        writer.put(isVerbose)
        writer.put(probes)
    }

    init(
        name: String, kernel: String, initrd: String?, networkROM: String? = nil, bootDevice: BootDevice? = nil,
        commandLine: String?, memory: UInt64, engine: String,
        cpuModel: String?, hasKVM: Bool, isVerbose: Bool, probes: Bool
    ) {
        self.name = name
        self.kernel = kernel
        self.initrd = initrd
        self.networkROM = networkROM
        self.bootDevice = bootDevice
        self.commandLine = commandLine
        self.memory = memory
        self.engine = engine
        self.cpuModel = cpuModel
        self.hasKVM = hasKVM
        self.isVerbose = isVerbose
        self.probes = probes
    }

    init(from reader: inout MessageReader) throws(MalformedMessage) {
        name = try reader.string()
        kernel = try reader.string()
        initrd = try reader.optional()
        networkROM = try reader.optional()
        bootDevice = try reader.optional()
        commandLine = try reader.optional()
        memory = try reader.number()
        engine = try reader.string()
        cpuModel = try reader.optional()
        hasKVM = try reader.bool()
        isVerbose = try reader.bool()
        probes = try reader.bool()
    }
}
