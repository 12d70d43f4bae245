/// What the daemon answers.
public enum Response: Message, Hashable {
    /// The request is refused or has failed; one line for a person says why and what to do.
    case failed(Failure, String)
    case done
    /// Ends a list.
    case end
    case machine(MachineStatus)
    case started(id: UInt32, name: String, tty: String)
    /// A machine has been asked to stop, or been killed.
    case stopping(id: UInt32, name: String, StopMeans)
    case ended(id: UInt32, name: String, reason: String)
    /// The stream of a console comes along as a descriptor: what is read is the guest's, what is written is typed.
    case console(id: UInt32, name: String, tty: String)
    case description(MachineDescription)
    /// An image of one of a machine's disks, or a part of what there is to say of it.
    case image(DiskReport)

    /// Why, for programs; the text is for people.
    public enum Failure: UInt8, Hashable, Sendable, WireValue, CaseIterable {
        case other = 0
        /// The message was none, or of another version. The connection is closed.
        case malformed = 1
        case permission = 2
        case noSuchMachine = 3
        case alreadyRunning = 4
        case notRunning = 5
        /// Somebody else holds it.
        case busy = 6
        case invalid = 7
        /// It did not do what it was asked in time.
        case timeout = 8
        /// The daemon is ending, or serves too many already.
        case unavailable = 9
    }

    /// How a machine is brought to its end.
    public enum StopMeans: UInt8, Hashable, Sendable, WireValue, CaseIterable {
        /// The guest's vmmci driver was told.
        case vmmci = 0
        /// The power button was pressed; the guest may ignore it.
        case powerButton = 1
        case killed = 2
        /// It was asked before.
        case alreadyStopping = 3
        /// It had only waited for its turn to start.
        case notStarted = 4
    }

    public var kind: UInt16 {
        switch self {
        case .failed: 1
        case .done: 2
        case .end: 3
        case .machine: 4
        case .started: 5
        case .stopping: 6
        case .ended: 7
        case .console: 8
        case .description: 9
        case .image: 10
        }
    }

    public var descriptorCount: Int {
        if case .console = self { 1 } else { 0 }
    }

    public func writeFields(to writer: inout MessageWriter) {
        switch self {
        case .failed(let failure, let text):
            failure.write(to: &writer)
            writer.put(text)
        case .done, .end: break
        case .machine(let status): status.write(to: &writer)
        case .description(let description): description.write(to: &writer)
        case .image(let report): report.write(to: &writer)
        case .started(let id, let name, let tty), .console(let id, let name, let tty):
            writer.put(id)
            writer.put(name)
            writer.put(tty)
        case .stopping(let id, let name, let means):
            writer.put(id)
            writer.put(name)
            means.write(to: &writer)
        case .ended(let id, let name, let reason):
            writer.put(id)
            writer.put(name)
            writer.put(reason)
        }
    }

    public init(kind: UInt16, from reader: inout MessageReader) throws(MalformedMessage) {
        switch kind {
        case 1: self = .failed(try reader.value(), try reader.string())
        case 2: self = .done
        case 3: self = .end
        case 4: self = .machine(try reader.value())
        case 5: self = .started(id: try reader.number(), name: try reader.string(), tty: try reader.string())
        case 6: self = .stopping(id: try reader.number(), name: try reader.string(), try reader.value())
        case 7: self = .ended(id: try reader.number(), name: try reader.string(), reason: try reader.string())
        case 8: self = .console(id: try reader.number(), name: try reader.string(), tty: try reader.string())
        case 9: self = .description(try reader.value())
        case 10: self = .image(try reader.value())
        default: throw MalformedMessage("unknown answer \(kind): use vmctl and vmd of one release")
        }
    }
}
