import Testing
import VMConfig

/// Reads files out of a dictionary. The main one is `vm.conf`.
func parse(
    _ text: String, files: [String: String] = [:], macros: [String: String] = [:], known: Configuration = Configuration(),
    limits: ParseLimits = ParseLimits()
) -> ParseResult {
    parse(Array(text.utf8), files: files.mapValues { Array($0.utf8) }, macros: macros, known: known, limits: limits)
}

func parse(
    _ bytes: [UInt8], files: [String: [UInt8]] = [:], macros: [String: String] = [:], known: Configuration = Configuration(),
    limits: ParseLimits = ParseLimits()
) -> ParseResult {
    Configuration.parse(path: "vm.conf", macros: macros, known: known, limits: limits) { (path, _) throws(FileReadError) in
        if path == "vm.conf" { return bytes }
        guard let bytes = files[path] else { throw FileReadError("No such file or directory") }
        return bytes
    }
}

/// The configuration of a text that has to be right, without warnings.
func configuration(
    _ text: String, macros: [String: String] = [:], files: [String: String] = [:], sourceLocation: Testing.SourceLocation = #_sourceLocation
) throws -> Configuration {
    let result = parse(text, files: files, macros: macros)
    #expect(result.diagnostics.map(\.description) == [], sourceLocation: sourceLocation)
    return try #require(result.configuration, sourceLocation: sourceLocation)
}

/// The only machine of a body; it boots from a disk, so that nothing has to be warned of.
func machine(_ body: String, sourceLocation: Testing.SourceLocation = #_sourceLocation) throws -> MachineDefinition {
    let configuration = try configuration("vm \"a\" {\n\(body)\ndisk /first\n}\n", sourceLocation: sourceLocation)
    return try #require(configuration.machines.first, sourceLocation: sourceLocation)
}

/// `LINE: message` of all errors.
func errors(_ text: String, files: [String: String] = [:]) -> [String] {
    parse(text, files: files).errors.map { "\($0.location.line): \($0.message)" }
}

/// `LINE: message` of all warnings.
func warnings(_ text: String) -> [String] {
    parse(text).warnings.map { "\($0.location.line): \($0.message)" }
}
