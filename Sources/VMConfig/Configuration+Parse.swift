/// Reads a whole file, which may be any path that a configuration names.
///
/// The parser opens nothing itself. The reader has to refuse what is no regular file (a FIFO would block it) and should
/// read no more than `byteLimit + 1` bytes: a file that has more than the limit is refused.
public typealias FileReader = (_ path: String, _ byteLimit: Int) throws(FileReadError) -> [UInt8]

/// Why a file cannot be read.
public struct FileReadError: Error, Hashable, Sendable {
    /// For the user, without the path: "No such file or directory".
    public var reason: String

    public init(_ reason: String) { self.reason = reason }
}

/// What came of reading a configuration.
public struct ParseResult: Sendable {
    /// `nil` when there are errors.
    public var configuration: Configuration?
    /// All of them, those of one file in the order of its lines.
    public var diagnostics: [Diagnostic]

    public var errors: [Diagnostic] { diagnostics.filter { $0.severity == .error } }
    public var warnings: [Diagnostic] { diagnostics.filter { $0.severity == .warning } }
}

extension Configuration {
    /// Reads and checks a configuration file with all that it includes.
    ///
    /// Time and memory are bounded by `limits`, whatever the files hold.
    ///
    /// - Parameters:
    ///   - path: the main file's; included files are found from the folder of the file that names them.
    ///   - macros: names and values that win over those of the files (`vmd -D`).
    ///   - known: what is configured already; machines may refer to its templates and switches (`vmctl load`).
    ///   - read: gives a file's bytes.
    public static func parse(
        path: String, macros: [String: String] = [:], known: Configuration = Configuration(), limits: ParseLimits = ParseLimits(),
        read: @escaping FileReader
    ) -> ParseResult {
        var parser = Parser(read: read, macros: macros, limits: limits)
        parser.parseFile(path, includedAt: nil)
        for macro in parser.macros.unused {
            parser.diagnostics.warning("macro \(quoteForMessage(macro.name)) not used", at: macro.location)
        }
        let checks = Checks(parser.tree, known: known, parser.diagnostics)
        let diagnostics = sorted(checks.diagnostics.all)
        let hasErrors = diagnostics.contains { $0.severity == .error }
        return ParseResult(configuration: hasErrors ? nil : checks.configuration, diagnostics: diagnostics)
    }

    /// Checks come after reading; the user wants the order of the file.
    private static func sorted(_ diagnostics: [Diagnostic]) -> [Diagnostic] {
        var files: [String: Int] = [:]
        for diagnostic in diagnostics where files[diagnostic.location.file] == nil { files[diagnostic.location.file] = files.count }
        func key(_ index: Int) -> (Int, Int, Int) {
            let location = diagnostics[index].location
            return (files[location.file] ?? 0, location.line, index)
        }
        return diagnostics.indices.sorted { key($0) < key($1) }.map { diagnostics[$0] }
    }
}
