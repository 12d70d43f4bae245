/// What boots a machine when its disks could as well.
public enum BootDevice: UInt8, Hashable, Sendable, WireValue, CaseIterable {
    case disk = 1
    case cdrom = 2
    case net = 3

    public init?(name: String) {
        guard let device = Self.allCases.first(where: { "\($0)" == name }) else { return nil }
        self = device
    }
}

/// `vmctl start`: a machine of the configuration, an instance of a template, or one made up on the spot.
public struct StartRequest: Hashable, Sendable, WireValue {
    /// A network interface asked for.
    public enum Interface: Hashable, Sendable, WireValue {
        case local
        case onSwitch(String)

        public func write(to writer: inout MessageWriter) {
            switch self {
            case .local: writer.put(nil as String?)
            case .onSwitch(let name): writer.put(name as String?)
            }
        }

        public init(from reader: inout MessageReader) throws(MalformedMessage) {
            let name: String? = try reader.optional()
            self = name.map(Interface.onSwitch) ?? .local
        }
    }

    /// Sizes of the lists; the daemon's own limits are lower, and say so.
    static let mostDisks = 16
    static let mostInterfaces = 16

    public var machine: MachineReference
    /// Name of the machine to make an instance of.
    public var template: String?
    /// Paths are absolute. A kernel and an initrd come as descriptors that the client opened, in this order; these are
    /// their names for messages.
    public var kernel: String?
    public var initrd: String?
    public var commandLine: String?
    public var bootDevice: BootDevice?
    /// Bytes.
    public var memory: UInt64?
    public var cpus: UInt32?
    /// As in vm.conf, with a prefix `raw:`, `qcow2:` or `vmdk:` or without.
    public var disks: [String] = []
    public var cdrom: String?
    /// The least number of interfaces; those of `interfaces` are among them.
    public var interfaceCount: UInt32?
    public var interfaces: [Interface] = []
    public var engine: String?
    public var cpuModel: String?

    public init(_ machine: MachineReference) { self.machine = machine }

    /// Whether it says anything but which machine.
    public var hasOptions: Bool { self != StartRequest(machine) }

    public func write(to writer: inout MessageWriter) {
        machine.write(to: &writer)
        writer.put(template)
        writer.put(kernel)
        writer.put(initrd)
        writer.put(commandLine)
        writer.put(bootDevice)
        writer.put(memory)
        writer.put(cpus)
        writer.put(disks)
        writer.put(cdrom)
        writer.put(interfaceCount)
        writer.put(interfaces)
        writer.put(engine)
        writer.put(cpuModel)
    }

    public init(from reader: inout MessageReader) throws(MalformedMessage) {
        machine = try reader.value()
        template = try reader.optional()
        kernel = try reader.optional()
        initrd = try reader.optional()
        commandLine = try reader.optional()
        bootDevice = try reader.optional()
        memory = try reader.optional()
        cpus = try reader.optional()
        disks = try reader.list(atMost: Self.mostDisks)
        cdrom = try reader.optional()
        interfaceCount = try reader.optional()
        interfaces = try reader.list(atMost: Self.mostInterfaces)
        engine = try reader.optional()
        cpuModel = try reader.optional()
    }
}
