/// One row of `vmctl status`.
public struct MachineStatus: Hashable, Sendable, WireValue {
    /// In the order in which `vmctl status` asks: the first that applies.
    public enum State: UInt8, Hashable, Sendable, WireValue, CaseIterable {
        case stopped = 0
        case paused = 1
        /// Its turn to start has not come (`staggered start`).
        case waiting = 2
        case stopping = 3
        case running = 4
        /// Its process is being made.
        case starting = 5
        /// It ended by an error of its own, and stays so until it is started.
        case crashed = 6
    }

    public var id: UInt32
    public var name: String
    public var state: State
    public var cpus: UInt32
    /// Bytes.
    public var maxMemory: UInt64
    /// Resident bytes of its process, while it has one.
    public var currentMemory: UInt64?
    public var pid: UInt32?
    /// Path of its terminal.
    public var tty: String?
    /// `user`, `user:group` or `:group`.
    public var owner: String
    public var engine: String
    /// Times that its guest restarted since it was started.
    public var restarts: UInt32
    /// What ended it last, or restarted it; one line.
    public var lastEvent: String?
    /// Seconds since 1970 at which it was started, while it runs.
    public var startTime: UInt64?
    /// Who is attached to its console.
    public var consoleHolder: String?

    public init(
        id: UInt32, name: String, state: State, cpus: UInt32, maxMemory: UInt64, owner: String, engine: String
    ) {
        self.id = id
        self.name = name
        self.state = state
        self.cpus = cpus
        self.maxMemory = maxMemory
        self.owner = owner
        self.engine = engine
        restarts = 0
    }

    public func write(to writer: inout MessageWriter) {
        writer.put(id)
        writer.put(name)
        state.write(to: &writer)
        writer.put(cpus)
        writer.put(maxMemory)
        writer.put(currentMemory)
        writer.put(pid)
        writer.put(tty)
        writer.put(owner)
        writer.put(engine)
        writer.put(restarts)
        writer.put(lastEvent)
        writer.put(startTime)
        writer.put(consoleHolder)
    }

    public init(from reader: inout MessageReader) throws(MalformedMessage) {
        id = try reader.number()
        name = try reader.string()
        state = try reader.value()
        cpus = try reader.number()
        maxMemory = try reader.number()
        currentMemory = try reader.optional()
        pid = try reader.optional()
        tty = try reader.optional()
        owner = try reader.string()
        engine = try reader.string()
        restarts = try reader.number()
        lastEvent = try reader.optional()
        startTime = try reader.optional()
        consoleHolder = try reader.optional()
    }
}
