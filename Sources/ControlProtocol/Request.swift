/// What a client asks of the daemon. Each request has one answer, or a list that ends with `Response.end`.
public enum Request: Message, Hashable {
    /// `nil` for all machines. Answers: `machine`..., `end`.
    case status(MachineReference?, isRunningOnly: Bool)
    /// Answers: `started`, or `failed`.
    case start(StartRequest)
    /// `nil` for all that run. Answers: `stopping`..., when `waits` each followed by its `ended` or `failed`, then `end`.
    case stop(MachineReference?, isForced: Bool, waits: Bool)
    /// Answer: `ended` when it has.
    case wait(MachineReference)
    /// Answer: `done`.
    case pause(MachineReference)
    case unpause(MachineReference)
    /// Answer: `console` with the descriptor of its stream.
    case console(MachineReference)
    /// Absolute path of a further vm.conf. Answer: `done`.
    case load(String)
    case reload
    case reset(ResetScope)
    case log(isVerbose: Bool)
    /// A BREAK on a machine's first serial port, for whoever holds its console: the console's stream cannot carry one.
    /// Answer: `done`.
    case sendBreak(MachineReference)
    /// Answer: `description`.
    case describe(MachineReference)
    /// Of a machine that runs. Answers: `done`; to a `DiskCommand` that lists `image`..., `end`.
    case disks(MachineReference, DiskCommand)
    /// Absolute path of an image for the CD-ROM drive of a machine that runs. Answer: `done`.
    case insertDisc(MachineReference, path: String, isForced: Bool)
    case ejectDisc(MachineReference, isForced: Bool)

    public enum ResetScope: UInt8, Hashable, Sendable, WireValue, CaseIterable {
        case all = 0
        case switches = 1
        case vms = 2
    }

    public var kind: UInt16 {
        switch self {
        case .status: 1
        case .start: 2
        case .stop: 3
        case .wait: 4
        case .pause: 5
        case .unpause: 6
        case .console: 7
        case .load: 8
        case .reload: 9
        case .reset: 10
        case .log: 11
        case .sendBreak: 12
        case .describe: 13
        case .disks: 14
        case .insertDisc: 15
        case .ejectDisc: 16
        }
    }

    public var descriptorCount: Int {
        guard case .start(let request) = self else { return 0 }
        return (request.kernel == nil ? 0 : 1) + (request.initrd == nil ? 0 : 1)
    }

    public func writeFields(to writer: inout MessageWriter) {
        switch self {
        case .status(let machine, let isRunningOnly):
            writer.put(machine)
            writer.put(isRunningOnly)
        case .start(let request): request.write(to: &writer)
        case .stop(let machine, let isForced, let waits):
            writer.put(machine)
            writer.put(isForced)
            writer.put(waits)
        case .wait(let machine), .pause(let machine), .unpause(let machine), .console(let machine), .sendBreak(let machine),
            .describe(let machine):
            machine.write(to: &writer)
        case .disks(let machine, let command):
            machine.write(to: &writer)
            command.write(to: &writer)
        case .insertDisc(let machine, let path, let isForced):
            machine.write(to: &writer)
            writer.put(path)
            writer.put(isForced)
        case .ejectDisc(let machine, let isForced):
            machine.write(to: &writer)
            writer.put(isForced)
        case .load(let path): writer.put(path)
        case .reload: break
        case .reset(let scope): scope.write(to: &writer)
        case .log(let isVerbose): writer.put(isVerbose)
        }
    }

    public init(kind: UInt16, from reader: inout MessageReader) throws(MalformedMessage) {
        switch kind {
        case 1: self = .status(try reader.optional(), isRunningOnly: try reader.bool())
        case 2: self = .start(try reader.value())
        case 3: self = .stop(try reader.optional(), isForced: try reader.bool(), waits: try reader.bool())
        case 4: self = .wait(try reader.value())
        case 5: self = .pause(try reader.value())
        case 6: self = .unpause(try reader.value())
        case 7: self = .console(try reader.value())
        case 8: self = .load(try reader.string())
        case 9: self = .reload
        case 10: self = .reset(try reader.value())
        case 11: self = .log(isVerbose: try reader.bool())
        case 12: self = .sendBreak(try reader.value())
        case 13: self = .describe(try reader.value())
        case 14: self = .disks(try reader.value(), try reader.value())
        case 15: self = .insertDisc(try reader.value(), path: try reader.string(), isForced: try reader.bool())
        case 16: self = .ejectDisc(try reader.value(), isForced: try reader.bool())
        default: throw MalformedMessage("unknown request \(kind): use vmctl and vmd of one release")
        }
    }
}
