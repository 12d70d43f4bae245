import ControlProtocol

/// What the parent says to vmm. A run is one start of one machine; its number is never used again.
enum MonitorCommand: Message, Hashable {
    static var longestPacket: Int { innerPacketByteCount }
    static var mostDescriptors: Int { MachineSetup.mostDescriptors }

    /// With the descriptors of the set-up.
    case start(run: UInt32, MachineSetup)
    case tell(run: UInt32, MachineCommand)
    /// End the process: by SIGTERM, or at once.
    case kill(run: UInt32, isForced: Bool)

    var kind: UInt16 {
        switch self {
        case .start: 1
        case .tell: 2
        case .kill: 3
        }
    }

    var descriptorCount: Int {
        switch self {
        case .start(_, let setup): setup.descriptorCount
        case .tell(_, let command): command.descriptorCount
        case .kill: 0
        }
    }

    func writeFields(to writer: inout MessageWriter) {
        switch self {
        case .start(let run, let setup):
            writer.put(run)
            setup.write(to: &writer)
        case .tell(let run, let command):
            writer.put(run)
            writer.put(command.kind)
            command.writeFields(to: &writer)
        case .kill(let run, let isForced):
            writer.put(run)
            writer.put(isForced)
        }
    }

    init(kind: UInt16, from reader: inout MessageReader) throws(MalformedMessage) {
        let run: UInt32 = try reader.number()
        switch kind {
        case 1: self = .start(run: run, try reader.value())
        case 2: self = .tell(run: run, try MachineCommand(kind: try reader.number(), from: &reader))
        case 3: self = .kill(run: run, isForced: try reader.bool())
        default: throw MalformedMessage("unknown command \(kind)")
        }
    }
}

/// What vmm says to the parent.
enum MonitorReport: Message, Hashable {
    static var longestPacket: Int { innerPacketByteCount }

    /// The process exists.
    case started(run: UInt32, pid: UInt32)
    case told(run: UInt32, MachineReport)
    /// The process is gone, whether it had started or not.
    case exited(run: UInt32, MachineExit)
    case log(String)
    case probe(String)

    var kind: UInt16 {
        switch self {
        case .started: 1
        case .told: 2
        case .exited: 3
        case .log: 4
        case .probe: 5
        }
    }

    var descriptorCount: Int {
        if case .told(_, let report) = self { report.descriptorCount } else { 0 }
    }

    func writeFields(to writer: inout MessageWriter) {
        switch self {
        case .started(let run, let pid):
            writer.put(run)
            writer.put(pid)
        case .told(let run, let report):
            writer.put(run)
            writer.put(report.kind)
            report.writeFields(to: &writer)
        case .exited(let run, let exit):
            writer.put(run)
            exit.write(to: &writer)
        case .log(let text), .probe(let text): writer.putLine(text)
        }
    }

    init(kind: UInt16, from reader: inout MessageReader) throws(MalformedMessage) {
        switch kind {
        case 1: self = .started(run: try reader.number(), pid: try reader.number())
        case 2: self = .told(run: try reader.number(), try MachineReport(kind: try reader.number(), from: &reader))
        case 3: self = .exited(run: try reader.number(), try reader.value())
        case 4: self = .log(try reader.line())
        case 5: self = .probe(try reader.line())
        default: throw MalformedMessage("unknown report \(kind)")
        }
    }
}

/// How a machine's process came to its end, as its parent saw it.
enum MachineExit: Hashable, Sendable, WireValue {
    case exited(UInt8)
    case killed(signal: UInt8)
    /// There was no process.
    case notStarted(String)
    /// It said what no machine says, and was killed.
    case cutOff(String)

    func write(to writer: inout MessageWriter) {
        switch self {
        case .exited(let status):
            writer.put(0 as UInt8)
            writer.put(status)
        case .killed(let signal):
            writer.put(1 as UInt8)
            writer.put(signal)
        case .notStarted(let text):
            writer.put(2 as UInt8)
            writer.putLine(text)
        case .cutOff(let text):
            writer.put(3 as UInt8)
            writer.putLine(text)
        }
    }

    init(from reader: inout MessageReader) throws(MalformedMessage) {
        let form: UInt8 = try reader.number()
        switch form {
        case 0: self = .exited(try reader.number())
        case 1: self = .killed(signal: try reader.number())
        case 2: self = .notStarted(try reader.line())
        case 3: self = .cutOff(try reader.line())
        default: throw MalformedMessage("unknown end \(form)")
        }
    }
}
