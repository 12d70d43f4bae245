/// A place in a configuration file.
public struct SourceLocation: Hashable, Sendable, Codable, CustomStringConvertible {
    /// The path, as it was given or made from an `include`.
    public var file: String
    /// From 1; 0 means the file as a whole.
    public var line: Int

    public init(file: String, line: Int) {
        self.file = file
        self.line = line
    }

    /// `FILE:LINE`, or `FILE` for the whole file.
    public var description: String { line == 0 ? file : "\(file):\(line)" }
}

/// A value and where it was written, for checks that come later (is there such a file, such a user).
///
/// Two are equal when their values are, wherever they stand.
public struct Located<Value> {
    public var value: Value
    public var location: SourceLocation

    public init(_ value: Value, at location: SourceLocation) {
        self.value = value
        self.location = location
    }
}

extension Located: Sendable where Value: Sendable {}
extension Located: Encodable where Value: Encodable {}
extension Located: Decodable where Value: Decodable {}
extension Located: Equatable where Value: Equatable {
    public static func == (a: Self, b: Self) -> Bool { a.value == b.value }
}
extension Located: Hashable where Value: Hashable {
    public func hash(into hasher: inout Hasher) { hasher.combine(value) }
}

/// One thing to tell the user about a configuration.
public struct Diagnostic: Hashable, Sendable, CustomStringConvertible {
    public enum Severity: Sendable { case error, warning }

    public var severity: Severity
    public var location: SourceLocation
    /// One line, without the location.
    public var message: String

    public init(_ severity: Severity, at location: SourceLocation, _ message: String) {
        self.severity = severity
        self.location = location
        self.message = message
    }

    /// `FILE:LINE: message`, or `FILE:LINE: warning: message`.
    public var description: String { "\(location): \(severity == .warning ? "warning: " : "")\(message)" }
}

/// What has been found so far. Bounded: a hostile file has an error on each line.
struct DiagnosticList {
    private(set) var all: [Diagnostic] = []
    let limit: Int

    /// Whether reading should end.
    var isFull: Bool { all.count >= limit }

    mutating func error(_ message: String, at location: SourceLocation) { add(Diagnostic(.error, at: location, message)) }

    mutating func warning(_ message: String, at location: SourceLocation) { add(Diagnostic(.warning, at: location, message)) }

    private mutating func add(_ diagnostic: Diagnostic) {
        guard !isFull else { return }
        all.append(diagnostic)
        if isFull { all.append(Diagnostic(.error, at: diagnostic.location, "too many errors and warnings: the rest is not read")) }
    }
}
