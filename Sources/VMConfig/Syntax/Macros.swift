/// The macros of a configuration: those of the command line win over those of the files.
struct Macros {
    private struct Entry {
        var value: [UInt8]
        var location: SourceLocation?
        var isUsed = false
    }

    private var entries: [String: Entry] = [:]
    private let expandedByteLimit: Int
    private var expandedByteCount = 0

    init(fixed: [String: String], expandedByteLimit: Int) {
        self.expandedByteLimit = expandedByteLimit
        for (name, value) in fixed { entries[name] = Entry(value: Array(value.utf8)) }
    }

    static func isNameByte(_ byte: UInt8) -> Bool { isAlphanumeric(byte) || byte == UInt8(ascii: "_") }

    static func isName(_ name: String) -> Bool { !name.isEmpty && name.utf8.allSatisfy(isNameByte) }

    /// A definition in a file. The last one before the use counts.
    mutating func define(_ name: String, _ value: String, at location: SourceLocation) {
        if let entry = entries[name], entry.location == nil { return }
        entries[name] = Entry(value: Array(value.utf8), location: location, isUsed: entries[name]?.isUsed ?? false)
    }

    enum Lookup {
        case value([UInt8])
        case undefined(nearest: String?)
        /// All macros together have expanded to more than the limit.
        case exhausted
    }

    mutating func expand(_ name: String) -> Lookup {
        guard let value = entries[name]?.value else { return .undefined(nearest: Keywords.nearest(to: name, among: entries.keys)) }
        entries[name]?.isUsed = true
        expandedByteCount += value.count
        return expandedByteCount > expandedByteLimit ? .exhausted : .value(value)
    }

    /// Names that a file defines and nothing uses.
    var unused: [(name: String, location: SourceLocation)] {
        entries.compactMap { name, entry in entry.isUsed ? nil : entry.location.map { (name, $0) } }
            .sorted { ($0.location.line, $0.name) < ($1.location.line, $1.name) }
    }
}

/// A macro that a command line defines: `-D name=value`.
public struct MacroDefinition: Hashable, Sendable {
    public var name: String
    public var value: String

    /// Splits at the last `=`, as vmd(8) does; `nil` when there is none, when the name is not of letters, digits and
    /// `_`, or when the value is longer than `Limits.tokenByteCount`.
    public init?(argument: String) {
        guard let equals = argument.lastIndex(of: "=") else { return nil }
        name = String(argument[..<equals])
        value = String(argument[argument.index(after: equals)...])
        guard Macros.isName(name), value.utf8.count <= Limits.tokenByteCount else { return nil }
    }
}
