/// Statements out of words. It goes on behind each error, so that one pass finds them all; each loop takes at least
/// one word, and braces nest two deep at most, so it ends on any input.
struct Parser {
    /// What has been said so far.
    var tree = SyntaxTree()
    var diagnostics: DiagnosticList
    var macros: Macros
    /// The word to look at.
    private(set) var token = Token(kind: .newline, line: 1)
    private var lexer = Lexer(file: "", bytes: [])
    private let read: FileReader
    private let limits: ParseLimits
    /// The files that include each other, the main one first.
    private var openFiles: [String] = []
    private var fileCount = 0
    /// A '}' is missing, and the next statement is what comes next.
    private(set) var isClosedEarly = false
    private var byteCount = 0

    /// Thrown when the rest of a statement cannot be understood; the reason has been reported.
    struct Skip: Error {}

    init(read: @escaping FileReader, macros: [String: String], limits: ParseLimits) {
        self.read = read
        self.limits = limits
        diagnostics = DiagnosticList(limit: limits.diagnosticCount)
        self.macros = Macros(fixed: macros, expandedByteLimit: limits.expandedByteCount)
    }

    // MARK: Files

    /// Reads a file with all its statements.
    /// - Parameter include: where it is included; `nil` for the main file.
    mutating func parseFile(_ path: String, includedAt include: SourceLocation?) {
        let place = include ?? SourceLocation(file: path, line: 0)
        let prefix = include == nil ? "" : "failed to include file \(path): "
        let key = FilePath.normalized(path)
        if let first = openFiles.firstIndex(where: { FilePath.normalized($0) == key }) {
            let chain = (openFiles[first...] + [path]).joined(separator: " includes ")
            return diagnostics.error("\(prefix)files include each other: \(chain)", at: place)
        }
        guard openFiles.count < limits.includeDepth else {
            return diagnostics.error("\(prefix)more than \(limits.includeDepth) files include each other", at: place)
        }
        guard fileCount < limits.fileCount else {
            return diagnostics.error("\(prefix)more than \(limits.fileCount) files", at: place)
        }
        fileCount += 1
        let bytes: [UInt8]
        do {
            bytes = try read(path, limits.fileByteCount)
        } catch {
            return diagnostics.error("\(prefix)\(error.reason)", at: place)
        }
        guard bytes.count <= limits.fileByteCount, limits.totalByteCount - byteCount >= bytes.count else {
            let limit = min(limits.fileByteCount, limits.totalByteCount - byteCount)
            return diagnostics.error("\(prefix)file too large: \(bytes.count) bytes, and at most \(limit) are read", at: place)
        }
        byteCount += bytes.count
        checkText(bytes, path)

        let (outerLexer, outerToken) = (lexer, token)
        openFiles.append(path)
        lexer = Lexer(file: path, bytes: bytes)
        advance()
        parseStatements()
        openFiles.removeLast()
        (lexer, token) = (outerLexer, outerToken)
    }

    /// The file has to be text.
    private mutating func checkText(_ bytes: [UInt8], _ path: String) {
        let isUTF8 = String(validating: bytes, as: UTF8.self) != nil
        guard !isUTF8 || bytes.contains(0) else { return }
        var number = 0
        var rest = bytes[...]
        while !rest.isEmpty, !diagnostics.isFull {
            number += 1
            let line = rest.prefix { $0 != UInt8(ascii: "\n") }
            rest = rest.dropFirst(line.count + 1)
            let place = SourceLocation(file: path, line: number)
            if line.contains(0) { diagnostics.error("NUL byte: this is no text file", at: place) }
            if !isUTF8, String(validating: line, as: UTF8.self) == nil { diagnostics.error("invalid UTF-8", at: place) }
        }
    }

    /// `include "file"`, from the folder of the file that says so.
    private mutating func includeStatement() throws(Skip) {
        let place = location
        advance()
        let path = try string("the path of a file")
        guard checkPath(path, "include") else { return }
        parseFile(FilePath.resolved(path.value, from: lexer.file), includedAt: place)
    }

    // MARK: Statements

    private mutating func parseStatements() {
        while token.kind != .endOfFile, !diagnostics.isFull {
            if token.kind == .newline {
                advance()
                continue
            }
            isClosedEarly = false
            do {
                try statement()
                if !isClosedEarly { try endOfStatement() }
            } catch {
                skipStatement()
            }
        }
    }

    enum StatementKeyword: String, CaseIterable { case agentx, include, local, socket, staggered, `switch`, vm }

    private mutating func statement() throws(Skip) {
        if token.kind == Token.closeBrace { throw fail("'}' without '{'") }
        let place = location
        if case .word(let text) = token.kind, StatementKeyword(rawValue: text) == nil {
            advance()
            if token.kind == Token.equals { return try macroStatement(text, at: place) }
            let nearest = Keywords.nearest(to: text, among: StatementKeyword.allCases.map(\.rawValue))
            let word = quoteForMessage(text)
            diagnostics.error(
                MachineKeyword(rawValue: text) != nil
                    ? "syntax error: \(word) stands outside of vm \"name\" { ... }; is a '{' missing, or a '}' too many?"
                    : "syntax error: expected a statement (\(Self.list(StatementKeyword.self)) or name = value), found \(word)"
                        + didYouMean(nearest),
                at: place)
            // What has a body is read on, as what it looks like, to find the errors in there too.
            switch nearest {
            case "vm": return try machineStatement()
            case "switch": return try switchStatement()
            default: throw Skip()
            }
        }
        if case .quoted(let text) = token.kind {
            advance()
            guard token.kind == Token.equals else {
                throw fail(expected: "a statement", found: "string \(quoteForMessage(text))", at: place)
            }
            return try macroStatement(text, at: place)
        }
        switch try keyword(StatementKeyword.self, "a statement", advances: false) {
        case .include: try includeStatement()
        case .agentx: try agentxStatement()
        case .local: try localStatement()
        case .socket: try socketStatement()
        case .staggered: try staggeredStatement()
        case .switch:
            advance()
            try switchStatement()
        case .vm:
            advance()
            try machineStatement()
        }
    }

    /// `name = value`, from the `=` on.
    private mutating func macroStatement(_ name: String, at place: SourceLocation) throws(Skip) {
        advance()
        var parts: [String] = []
        value: while true {
            switch token.kind {
            case .word(let text), .quoted(let text): parts.append(text)
            case .number(let number): parts.append(String(number))
            default: break value
            }
            advance()
        }
        guard !parts.isEmpty else { throw fail(expected: "the value of macro \(quoteForMessage(name))") }
        let value = parts.joined(separator: " ")
        if name.utf8.contains(where: { $0 == UInt8(ascii: " ") || $0 == UInt8(ascii: "\t") }) {
            diagnostics.error("macro name cannot contain whitespace: \(quoteForMessage(name))", at: place)
        } else if !Macros.isName(name) {
            diagnostics.error("invalid macro name \(quoteForMessage(name)): use letters, digits and '_'", at: place)
        } else if value.utf8.count > Limits.tokenByteCount {
            diagnostics.error("value of macro \(quoteForMessage(name)) too long: the limit is \(Limits.tokenByteCount) bytes", at: place)
        } else {
            macros.define(name, value, at: place)
        }
    }

    /// Keeps a machine or a switch.
    mutating func add<Statement>(_ statement: Statement, to list: WritableKeyPath<SyntaxTree, [Statement]>, _ kind: String, at place: SourceLocation) {
        guard tree[keyPath: list].count < limits.definitionCount else {
            return diagnostics.error("too many \(kind): at most \(limits.definitionCount) are read", at: place)
        }
        tree[keyPath: list].append(statement)
    }

    // MARK: Words

    /// Where the word to look at begins.
    var location: SourceLocation { SourceLocation(file: lexer.file, line: token.line) }

    mutating func advance() { token = lexer.next(&macros, &diagnostics) }

    /// Whether the word to look at is this bare word.
    func isWord(_ text: String) -> Bool { token.kind == .word(text) }

    /// Takes the word if it is there.
    mutating func take(_ text: String) -> Bool {
        guard isWord(text) else { return false }
        advance()
        return true
    }

    mutating func expect(_ text: String) throws(Skip) {
        guard take(text) else { throw fail(expected: "'\(text)'", nearest: [text]) }
    }

    /// A bare word out of a list.
    mutating func keyword<K: RawRepresentable & CaseIterable>(_: K.Type, _ what: String, advances: Bool = true) throws(Skip) -> K
    where K.RawValue == String {
        if case .word(let text) = token.kind, let keyword = K(rawValue: text) {
            if advances { advance() }
            return keyword
        }
        throw fail(expected: "\(what) (\(Self.list(K.self)))", nearest: K.allCases.map(\.rawValue))
    }

    static func list<K: RawRepresentable & CaseIterable>(_: K.Type) -> String where K.RawValue == String {
        K.allCases.map(\.rawValue).sorted().joined(separator: ", ")
    }

    /// Text: in quotes, or a bare word that is no keyword. Neighbours are joined with a space.
    /// - Parameter following: keywords that may come next; a slip in one of them is not taken for text.
    mutating func string(_ what: String, following: [String] = []) throws(Skip) -> Located<String> {
        let place = location
        guard let first = text else {
            if case .number(let number) = token.kind { throw fail(expected: what, hint: "; write \"\(number)\" in quotes") }
            if case .word(let word) = token.kind { throw fail(expected: what, hint: "; write \"\(word)\" in quotes if it is meant as text") }
            throw fail(expected: what)
        }
        advance()
        var parts = [first]
        var joinsWord = false
        while let next = text {
            if case .word = token.kind {
                if let nearest = Keywords.nearest(to: next, among: following) { throw fail(expected: "'\(nearest)'", hint: didYouMean(nearest)) }
                joinsWord = true
            }
            parts.append(next)
            advance()
        }
        let result = parts.joined(separator: " ")
        if joinsWord { diagnostics.warning("words joined to \(quoteForMessage(result)); write text that holds blanks in quotes", at: place) }
        return Located(result, at: place)
    }

    private var text: String? {
        switch token.kind {
        case .quoted(let text): text
        case .word(let text) where !Keywords.reserved.contains(text): text
        default: nil
        }
    }

    /// A whole number in bounds; one that is out of bounds is reported, and is `nil`.
    mutating func number(_ what: String, in range: ClosedRange<Int>, invalid: String) throws(Skip) -> Located<Int>? {
        let place = location
        let value: Int64
        switch token.kind {
        case .number(let number): value = number
        // A brace, say, behind the digits made them a word.
        case .word(let text):
            guard let number = Int64(asciiDigits: text.utf8) else { fallthrough }
            value = number
        default: throw fail(expected: "\(what), \(range.lowerBound) to \(range.upperBound)")
        }
        advance()
        guard let number = Int(exactly: value), range.contains(number) else {
            diagnostics.error("\(invalid): \(value): expected \(what), \(range.lowerBound) to \(range.upperBound)", at: place)
            return nil
        }
        return Located(number, at: place)
    }

    // MARK: Errors

    /// Reports what was expected in the place of the word to look at.
    mutating func fail(expected: String, nearest candidates: [String] = [], hint: String = "") -> Skip {
        var hint = hint
        if case .word(let text) = token.kind, let nearest = Keywords.nearest(to: text, among: candidates) { hint = didYouMean(nearest) }
        // What is invalid has been reported as such.
        if token.kind == .invalid { return Skip() }
        return fail(expected: expected, found: token.description + hint, at: location)
    }

    private mutating func fail(expected: String, found: String, at place: SourceLocation) -> Skip {
        diagnostics.error("syntax error: expected \(expected), found \(found)", at: place)
        return Skip()
    }

    private mutating func fail(_ message: String) -> Skip {
        diagnostics.error("syntax error: \(message)", at: location)
        return Skip()
    }

    private mutating func endOfStatement() throws(Skip) {
        guard token.kind == .newline || token.kind == .endOfFile else { throw fail(expected: "end of line") }
    }

    /// Leaves the rest of a statement, with any braces that open in it.
    private mutating func skipStatement() {
        var depth = 0
        while token.kind != .endOfFile, depth > 0 || token.kind != .newline, !diagnostics.isFull {
            if token.kind == Token.openBrace { depth += 1 }
            if token.kind == Token.closeBrace { depth -= 1 }
            advance()
        }
    }

    /// Leaves the rest of an option: to the end of the line, or to the brace that closes the body it stands in.
    private mutating func skipOption(stopsAtComma: Bool) {
        var depth = 0
        while token.kind != .endOfFile, !diagnostics.isFull {
            if depth == 0, token.kind == .newline || token.kind == Token.closeBrace || stopsAtComma && token.kind == Token.comma { return }
            if token.kind == Token.openBrace { depth += 1 }
            if token.kind == Token.closeBrace { depth -= 1 }
            advance()
        }
    }

    // MARK: Bodies

    /// What separates the options of a body.
    enum Separator {
        /// Each has a line of its own.
        case newline
        /// Commas, newlines or nothing.
        case comma
    }

    /// `{ option ... }`.
    ///
    /// - Parameter owner: whose body it is, for messages.
    /// - Parameter option: parses one, from its first word on; has to take at least one word or throw.
    mutating func body(of owner: String, _ separator: Separator, option: (inout Parser) throws(Skip) -> Void) throws(Skip) {
        let opening = location
        if token.kind == .newline, separator == .newline {
            _ = fail(expected: "'{' on the same line as \(owner)")
            while token.kind == .newline { advance() }
        }
        guard token.kind == Token.openBrace else { throw fail(expected: "'{'") }
        advance()
        var isEmpty = true
        while token.kind != Token.closeBrace {
            if token.kind == .newline || separator == .comma && !isEmpty && token.kind == Token.comma {
                advance()
                continue
            }
            if diagnostics.isFull { return }
            if token.kind == .endOfFile || isWord("vm") || separator == .newline && isWord("switch") {
                diagnostics.error("syntax error: the '}' of \(owner), whose '{' is on line \(opening.line), is missing", at: location)
                isClosedEarly = true
                return
            }
            isEmpty = false
            do {
                try option(&self)
                if isClosedEarly { return }
                if separator == .newline, token.kind != .newline, token.kind != Token.closeBrace, token.kind != .endOfFile {
                    let skip = fail(expected: "end of line", hint: optionBegins ? "; each option has a line of its own" : "")
                    // Another option that stands here is read all the same.
                    if !optionBegins { throw skip }
                }
            } catch {
                skipOption(stopsAtComma: separator == .comma)
            }
        }
        advance()
    }

    private var optionBegins: Bool {
        guard case .word(let text) = token.kind else { return false }
        return MachineKeyword(rawValue: text) != nil || SwitchKeyword(rawValue: text) != nil
    }
}
