/// Finds the commands in what a person types: a tilde at the start of a line and one character, as in cu(1).
///
/// Everything else is for the guest, also a tilde with a character that is no command, so nothing typed is lost.
/// Shells ask the terminal where the cursor is when they prompt, and its answer (CPR, ECMA-48 8.3.14: `ESC [ row ; column
/// R`) comes as input: it does not count as something on the line.
public struct EscapeParser {
    public enum Action: Hashable {
        case send([UInt8])
        case sendBreak
        case leave
        case help
    }

    private enum State { case middle, lineStart, tilde, escape, report }
    private var state = State.lineStart

    public init() {}

    /// What `~?` prints.
    /// - Parameter leaving: what `~.` does.
    public static func help(leaving: String) -> String {
        """
        The escape sequences, at the start of a line:
        ~.      \(leaving)
        ~#      send BREAK
        ~~      send ~
        ~?      this list

        """
    }

    /// What to do about the next bytes that were typed, in order.
    public mutating func parse(_ bytes: some Sequence<UInt8>) -> [Action] {
        var actions: [Action] = []
        var text: [UInt8] = []
        func act(_ action: Action) {
            if !text.isEmpty { actions.append(.send(text)) }
            text = []
            actions.append(action)
        }
        for byte in bytes {
            switch (state, byte) {
            case (.lineStart, UInt8(ascii: "~")):
                state = .tilde
            case (.tilde, UInt8(ascii: ".")):
                act(.leave)
                state = .lineStart
            case (.tilde, UInt8(ascii: "#")):
                act(.sendBreak)
                state = .lineStart
            case (.tilde, UInt8(ascii: "?")):
                act(.help)
                state = .lineStart
            case (.tilde, UInt8(ascii: "~")):
                text.append(byte)
                state = .middle
            case (.lineStart, 0x1B):
                text.append(byte)
                state = .escape
            case (.escape, UInt8(ascii: "[")), (.report, UInt8(ascii: "0")...UInt8(ascii: "9")), (.report, UInt8(ascii: ";")):
                text.append(byte)
                state = .report
            case (.report, UInt8(ascii: "R")):
                text.append(byte)
                state = .lineStart
            default:
                if state == .tilde { text.append(UInt8(ascii: "~")) }
                text.append(byte)
                // Carriage return is what the key sends, newline what a paste may hold.
                state = byte == 0x0D || byte == 0x0A ? .lineStart : .middle
            }
        }
        if !text.isEmpty { actions.append(.send(text)) }
        return actions
    }
}
