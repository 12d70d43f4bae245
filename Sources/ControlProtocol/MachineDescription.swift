/// What a machine is made of, for who works on its files or takes it elsewhere. Told to those who may control it.
///
/// Of a machine that runs it is what it was started with, of another what it would be started with.
public struct MachineDescription: Hashable, Sendable, WireValue {
    public var id: UInt32
    public var name: String
    public var state: MachineStatus.State
    /// Bytes.
    public var memory: UInt64
    public var cpus: UInt32
    public var interfaceCount: UInt32
    /// Absolute paths in their order, with `raw:`, `qcow2:` or `vmdk:` where the configuration says so.
    public var disks: [String] = []
    public var hasDrive: Bool
    /// What lies in the CD-ROM drive.
    public var disc: String?
    /// Absolute paths of files and folders that the images may stand on, besides those of their own folder.
    public var allowedBases: [String] = []

    static let mostDisks = 16
    static let mostBases = 1024

    public init(
        id: UInt32, name: String, state: MachineStatus.State, memory: UInt64, cpus: UInt32, interfaceCount: UInt32, hasDrive: Bool
    ) {
        self.id = id
        self.name = name
        self.state = state
        self.memory = memory
        self.cpus = cpus
        self.interfaceCount = interfaceCount
        self.hasDrive = hasDrive
    }

    /// Whether it has a process, which has its disks open.
    public var isRunning: Bool {
        switch state {
        case .stopped, .waiting, .crashed: false
        case .paused, .stopping, .running, .starting: true
        }
    }

    public func write(to writer: inout MessageWriter) {
        writer.put(id)
        writer.put(name)
        state.write(to: &writer)
        writer.put(memory)
        writer.put(cpus)
        writer.put(interfaceCount)
        writer.put(disks)
        writer.put(hasDrive)
        writer.put(disc)
        writer.put(allowedBases)
    }

    public init(from reader: inout MessageReader) throws(MalformedMessage) {
        id = try reader.number()
        name = try reader.string()
        state = try reader.value()
        memory = try reader.number()
        cpus = try reader.number()
        interfaceCount = try reader.number()
        disks = try reader.list(atMost: Self.mostDisks)
        hasDrive = try reader.bool()
        disc = try reader.optional()
        allowedBases = try reader.list(atMost: Self.mostBases)
    }
}
