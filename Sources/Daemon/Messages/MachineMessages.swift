import ControlProtocol
import DiskImage

/// What vmm says to a machine's process.
enum MachineCommand: Message, Hashable {
    static var longestPacket: Int { innerPacketByteCount }
    static var mostDescriptors: Int { MachineSetup.mostDescriptors }

    /// First and once; with descriptors.
    case setUp(MachineSetup)
    /// Ask the guest to end.
    case shutDown
    case pause
    case unpause
    /// Make a stream of the console for `client`, whom messages call `holder`.
    case attachConsole(client: UInt32, holder: String)
    case log(isVerbose: Bool)
    /// A BREAK on the first serial port.
    case sendBreak
    /// Each of these is answered to `client`: by `image`s and `diskDone`, or by `diskRefused`.
    case disks(client: UInt32, DiskCommand)
    /// With the image and what it stands on as descriptors.
    case insertDisc(client: UInt32, [ImageChain.Member], isForced: Bool)
    case ejectDisc(client: UInt32, isForced: Bool)

    var kind: UInt16 {
        switch self {
        case .setUp: 1
        case .shutDown: 2
        case .pause: 3
        case .unpause: 4
        case .attachConsole: 5
        case .log: 6
        case .sendBreak: 7
        case .disks: 8
        case .insertDisc: 9
        case .ejectDisc: 10
        }
    }

    var descriptorCount: Int {
        switch self {
        case .setUp(let setup): setup.descriptorCount
        case .insertDisc(_, let members, _): members.count
        default: 0
        }
    }

    func writeFields(to writer: inout MessageWriter) {
        switch self {
        case .setUp(let setup): setup.write(to: &writer)
        case .shutDown, .pause, .unpause, .sendBreak: break
        case .attachConsole(let client, let holder):
            writer.put(client)
            writer.put(holder)
        case .log(let isVerbose): writer.put(isVerbose)
        case .disks(let client, let command):
            writer.put(client)
            command.write(to: &writer)
        case .insertDisc(let client, let members, let isForced):
            writer.put(client)
            SetupImage(members).write(to: &writer)
            writer.put(isForced)
        case .ejectDisc(let client, let isForced):
            writer.put(client)
            writer.put(isForced)
        }
    }

    init(kind: UInt16, from reader: inout MessageReader) throws(MalformedMessage) {
        switch kind {
        case 1: self = .setUp(try reader.value())
        case 2: self = .shutDown
        case 3: self = .pause
        case 4: self = .unpause
        case 5: self = .attachConsole(client: try reader.number(), holder: try reader.string())
        case 6: self = .log(isVerbose: try reader.bool())
        case 7: self = .sendBreak
        case 8: self = .disks(client: try reader.number(), try reader.value())
        case 9:
            self = .insertDisc(
                client: try reader.number(), try SetupImage(from: &reader).members.map(\.member), isForced: try reader.bool())
        case 10: self = .ejectDisc(client: try reader.number(), isForced: try reader.bool())
        default: throw MalformedMessage("unknown command \(kind)")
        }
    }
}

/// What a machine's process says. The guest may have taken the process over: nothing of this is believed but about
/// that machine.
enum MachineReport: Message, Hashable {
    static var longestPacket: Int { innerPacketByteCount }
    /// So many `image`s answer one request at most.
    static let mostImages = 1024

    /// Built, sandboxed, running.
    case running
    case restarted(String)
    case paused
    case unpaused
    case shutDownAsked(Response.StopMeans)
    /// The guest was asked and has not ended in time.
    case shutDownTimedOut(String)
    /// The last word; the process exits behind it.
    case ended(End, String)
    /// With the stream as a descriptor.
    case consoleAttached(client: UInt32)
    case consoleRefused(client: UInt32, holder: String)
    /// Who is attached now.
    case consoleHolder(String?)
    case log(String)
    /// Tests only: a line of the sandbox's probe.
    case probe(String)
    case image(client: UInt32, DiskReport)
    case diskDone(client: UInt32)
    case diskRefused(client: UInt32, Response.Failure, String)

    enum End: UInt8, Hashable, Sendable, WireValue {
        /// The guest switched itself off, or was stopped.
        case stopped = 0
        /// It could not be built, or could not go on.
        case failed = 1
    }

    var kind: UInt16 {
        switch self {
        case .running: 1
        case .restarted: 2
        case .paused: 3
        case .unpaused: 4
        case .shutDownAsked: 5
        case .shutDownTimedOut: 6
        case .ended: 7
        case .consoleAttached: 8
        case .consoleRefused: 9
        case .consoleHolder: 10
        case .log: 11
        case .probe: 12
        case .image: 13
        case .diskDone: 14
        case .diskRefused: 15
        }
    }

    var descriptorCount: Int {
        if case .consoleAttached = self { 1 } else { 0 }
    }

    func writeFields(to writer: inout MessageWriter) {
        switch self {
        case .running, .paused, .unpaused: break
        case .restarted(let text), .shutDownTimedOut(let text), .log(let text), .probe(let text):
            writer.putLine(text)
        case .shutDownAsked(let means): means.write(to: &writer)
        case .ended(let end, let text):
            end.write(to: &writer)
            writer.putLine(text)
        case .consoleAttached(let client): writer.put(client)
        case .consoleRefused(let client, let holder):
            writer.put(client)
            writer.putLine(holder)
        case .consoleHolder(let holder):
            writer.put(holder != nil)
            if let holder { writer.putLine(holder) }
        case .image(let client, let report):
            writer.put(client)
            report.write(to: &writer)
        case .diskDone(let client): writer.put(client)
        case .diskRefused(let client, let failure, let text):
            writer.put(client)
            failure.write(to: &writer)
            writer.putLine(text)
        }
    }

    init(kind: UInt16, from reader: inout MessageReader) throws(MalformedMessage) {
        switch kind {
        case 1: self = .running
        case 2: self = .restarted(try reader.line())
        case 3: self = .paused
        case 4: self = .unpaused
        case 5: self = .shutDownAsked(try reader.value())
        case 6: self = .shutDownTimedOut(try reader.line())
        case 7: self = .ended(try reader.value(), try reader.line())
        case 8: self = .consoleAttached(client: try reader.number())
        case 9: self = .consoleRefused(client: try reader.number(), holder: try reader.line())
        case 10: self = .consoleHolder(try reader.bool() ? reader.line() : nil)
        case 11: self = .log(try reader.line())
        case 12: self = .probe(try reader.line())
        case 13: self = .image(client: try reader.number(), try reader.value())
        case 14: self = .diskDone(client: try reader.number())
        case 15: self = .diskRefused(client: try reader.number(), try reader.value(), try reader.line())
        default: throw MalformedMessage("unknown report \(kind)")
        }
    }
}

extension String {
    /// At most so many bytes of UTF-8.
    func cut(to byteCount: Int) -> String {
        guard utf8.count > byteCount else { return self }
        return String(decoding: utf8.prefix(byteCount - 3), as: UTF8.self) + "..."
    }
}

/// Between the daemon's processes: a whole request or answer, and what is put around it.
let innerPacketByteCount = 2 * Packet.longest

/// Longer texts are cut: they are lines for logs and terminals.
let longestLine = 1024

extension MessageWriter {
    /// A text as `MessageReader.line` takes it.
    mutating func putLine(_ text: String) { put(text.oneLine.cut(to: longestLine)) }
}

extension MessageReader {
    /// A text that goes to logs and terminals: bounded, and of one line.
    mutating func line() throws(MalformedMessage) -> String {
        let text = try string()
        // A letter that is cut in two becomes three bytes.
        guard text.utf8.count <= longestLine + 3, !text.unicodeScalars.contains(where: { $0.properties.generalCategory == .control })
        else { throw MalformedMessage("text that is no line") }
        return text
    }
}
