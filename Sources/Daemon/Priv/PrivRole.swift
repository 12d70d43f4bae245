import ControlProtocol
import Linux

/// What the parent says to priv.
enum PrivCommand: Message, Hashable {
    /// Look whether a switch's interface is there and is a bridge, and set it up or down.
    case setSwitch(name: String, interface: String, isUp: Bool)

    var kind: UInt16 { 1 }

    func writeFields(to writer: inout MessageWriter) {
        switch self {
        case .setSwitch(let name, let interface, let isUp):
            writer.put(name)
            writer.put(interface)
            writer.put(isUp)
        }
    }

    init(kind: UInt16, from reader: inout MessageReader) throws(MalformedMessage) {
        guard kind == 1 else { throw MalformedMessage("unknown command \(kind)") }
        self = .setSwitch(name: try reader.string(), interface: try reader.string(), isUp: try reader.bool())
    }
}

/// What priv says to the parent.
enum PrivReport: Message, Hashable {
    case log(String)
    case probe(String)

    var kind: UInt16 {
        switch self {
        case .log: 1
        case .probe: 2
        }
    }

    func writeFields(to writer: inout MessageWriter) {
        switch self {
        case .log(let text), .probe(let text): writer.putLine(text)
        }
    }

    init(kind: UInt16, from reader: inout MessageReader) throws(MalformedMessage) {
        switch kind {
        case 1: self = .log(try reader.line())
        case 2: self = .probe(try reader.line())
        default: throw MalformedMessage("unknown report \(kind)")
        }
    }
}

/// The process that may configure the host's network interfaces, and nothing else.
final class PrivRole {
    private let loop: EventLoop
    private let parent: MessageChannel<PrivCommand, PrivReport>
    private let links: NetworkLinks?

    /// - Parameter links: `nil` where the host gives no netlink socket.
    init(loop: EventLoop, parent: MessageChannel<PrivCommand, PrivReport>, links: consuming NetworkLinks?) {
        self.loop = loop
        self.parent = parent
        self.links = links
        parent.onMessage = { [unowned self] command, _ in handle(command) }
        parent.onEnd = { [unowned self] _ in self.loop.stop() }
    }

    private func handle(_ command: PrivCommand) {
        switch command {
        case .setSwitch(let name, let interface, let isUp):
            do {
                guard let link = try links?.link(named: interface) else {
                    return parent.send(
                        .log("switch \(name): no interface \(interface): make it with `ip link add \(interface) type bridge`"))
                }
                guard link.isBridge else {
                    return parent.send(.log("switch \(name): \(interface) is not a bridge: name one"))
                }
                if link.isUp != isUp { try links?.set(link, isUp: isUp) }
            } catch {
                parent.send(.log("switch \(name): \(interface): \(error)"))
            }
        }
    }
}
