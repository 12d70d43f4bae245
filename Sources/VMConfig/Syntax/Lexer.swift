/// Words out of bytes.
///
/// A number must be followed by something that ends it, or it is part of a word: `10.0.0.0/8` is a word. `$name` stands
/// for a macro's text, which is read as if it stood there; inside a word it is part of the word. The text is not
/// searched for macros again, so expansion ends.
struct Lexer {
    let file: String
    private var source: Source

    init(file: String, bytes: [UInt8]) {
        self.file = file
        source = Source(bytes)
    }

    mutating func next(_ macros: inout Macros, _ diagnostics: inout DiagnosticList) -> Token {
        while let byte = source.peek() {
            let line = source.line
            switch byte {
            case UInt8(ascii: " "), UInt8(ascii: "\t"), UInt8(ascii: "\r"), 0:  // NUL bytes have been reported.
                source.advance()
            case UInt8(ascii: "#"):
                while let byte = source.peek(), byte != UInt8(ascii: "\n") { source.advance() }
            case UInt8(ascii: "\n"):
                source.advance()
                return Token(kind: .newline, line: line)
            case UInt8(ascii: "\""), UInt8(ascii: "'"):
                return Token(kind: quoted(byte, &diagnostics), line: line)
            case UInt8(ascii: "$"):
                guard let value = macro(&macros, &diagnostics) else { return Token(kind: .invalid, line: line) }
                source.expand(value)
            case UInt8(ascii: "-"), UInt8(ascii: "0")...UInt8(ascii: "9"):
                return Token(kind: numberOrWord(&macros, &diagnostics), line: line)
            case UInt8(ascii: "{"), UInt8(ascii: "}"), UInt8(ascii: ","), UInt8(ascii: "="), UInt8(ascii: "("), UInt8(ascii: ")"), UInt8(ascii: "!"):
                source.advance()
                return Token(kind: .punctuation(byte), line: line)
            case _ where isAlphanumeric(byte) || byte == UInt8(ascii: ":") || byte == UInt8(ascii: "_") || byte == UInt8(ascii: "/"):
                return Token(kind: word(after: [], &macros, &diagnostics), line: line)
            default:
                unexpected(byte, line, &diagnostics)
                return Token(kind: .invalid, line: line)
            }
        }
        return Token(kind: .endOfFile, line: source.line)
    }

    // MARK: Words and numbers

    private static func isWordByte(_ byte: UInt8) -> Bool {
        (0x21...0x7E).contains(byte) && !"(){}!=#,".utf8.contains(byte)
    }

    private mutating func numberOrWord(_ macros: inout Macros, _ diagnostics: inout DiagnosticList) -> Token.Kind {
        let line = source.line
        var text: [UInt8] = []
        if source.peek() == UInt8(ascii: "-") {
            text.append(UInt8(ascii: "-"))
            source.advance()
        }
        while let byte = source.peek(), (UInt8(ascii: "0")...UInt8(ascii: "9")).contains(byte), text.count <= Limits.tokenByteCount {
            text.append(byte)
            source.advance()
        }
        let next = source.peek()
        let isNegative = text.first == UInt8(ascii: "-")
        let digits = text.drop { $0 == UInt8(ascii: "-") }
        // A slash ends a number; other bytes that words may hold make it one.
        guard !digits.isEmpty, next.map({ !Self.isWordByte($0) && $0 < 0x80 || $0 == UInt8(ascii: "/") }) ?? true else {
            if !isNegative { return word(after: text, &macros, &diagnostics) }
            _ = word(after: text, &macros, &diagnostics)
            diagnostics.error("syntax error: unexpected '-'; write words that begin with it in quotes", at: location(line))
            return .invalid
        }
        guard let number = Int64(asciiDigits: digits) else {
            diagnostics.error("number too large: \(quoteForMessage(String(decoding: text, as: UTF8.self)))", at: location(line))
            return .invalid
        }
        return .number(isNegative ? -number : number)
    }

    private mutating func word(after start: [UInt8], _ macros: inout Macros, _ diagnostics: inout DiagnosticList) -> Token.Kind {
        let line = source.line
        var text = start
        var isTooLong = false
        var hasQuote = false
        while let byte = source.peek(), Self.isWordByte(byte) {
            if text.count > Limits.tokenByteCount {
                isTooLong = true
                text = []
            }
            if byte == UInt8(ascii: "$"), !source.isExpanding {
                guard let value = macro(&macros, &diagnostics) else { return .invalid }
                text += value
                continue
            }
            hasQuote = hasQuote || byte == UInt8(ascii: "\"") || byte == UInt8(ascii: "'")
            text.append(byte)
            source.advance()
        }
        if let byte = source.peek(), byte >= 0x80 {
            unexpected(byte, source.line, &diagnostics)
            return .invalid
        }
        guard !isTooLong, text.count <= Limits.tokenByteCount else {
            diagnostics.error("word too long: the limit is \(Limits.tokenByteCount) bytes", at: location(line))
            return .invalid
        }
        guard !text.contains(where: isControl) else {
            diagnostics.error("control character in a word", at: location(line))
            return .invalid
        }
        let word = String(decoding: text, as: UTF8.self)
        if hasQuote { diagnostics.warning("the quote inside of \(quoteForMessage(word)) is part of the word", at: location(line)) }
        return .word(word)
    }

    // MARK: Strings

    private mutating func quoted(_ quote: UInt8, _ diagnostics: inout DiagnosticList) -> Token.Kind {
        let start = source
        let isExpanding = source.isExpanding
        source.advance()
        var text: [UInt8] = []
        while let byte = source.peek(), text.count <= Limits.tokenByteCount, source.isExpanding == isExpanding {
            source.advance()
            switch byte {
            case quote:
                if source.line != start.line, !isExpanding { reportSpan(start.line, &diagnostics) }
                if !text.contains(where: isControl) { return .quoted(String(decoding: text, as: UTF8.self)) }
                diagnostics.error("control character in a string", at: location(start.line))
                return .invalid
            case UInt8(ascii: "\n"):
                // Part of a line's end, like the newline.
                if text.last == UInt8(ascii: "\r") { text.removeLast() }
            case UInt8(ascii: "\\"):
                guard let next = source.peek(), [quote, UInt8(ascii: " "), UInt8(ascii: "\t"), UInt8(ascii: "\\")].contains(next) else {
                    text.append(byte)
                    continue
                }
                text.append(next)
                source.advance()
            default:
                text.append(byte)
            }
        }
        diagnostics.error(
            source.peek() == nil || source.isExpanding != isExpanding
                ? "unterminated string: the closing \(UnicodeScalar(quote)) is missing"
                : "string too long: the limit is \(Limits.tokenByteCount) bytes; is the closing \(UnicodeScalar(quote)) missing?",
            at: location(start.line))
        source.resume(atEndOfLineFrom: start)
        return .invalid
    }

    private func reportSpan(_ line: Int, _ diagnostics: inout DiagnosticList) {
        diagnostics.warning("string goes on to line \(source.line); is a closing quote missing?", at: location(line))
    }

    private func isControl(_ byte: UInt8) -> Bool { byte < 0x20 && byte != UInt8(ascii: "\t") || byte == 0x7F }

    // MARK: Macros and the rest

    /// The text of the macro whose `$` comes next; `nil` when that has been reported.
    private mutating func macro(_ macros: inout Macros, _ diagnostics: inout DiagnosticList) -> [UInt8]? {
        let line = source.line
        let isNested = source.isExpanding
        source.advance()
        var name: [UInt8] = []
        while let byte = source.peek(), Macros.isNameByte(byte) {
            if name.count <= Limits.tokenByteCount { name.append(byte) }
            source.advance()
        }
        let text = String(decoding: name, as: UTF8.self)
        if isNested {
            diagnostics.error("'$' in the text of a macro: macros do not expand there", at: location(line))
            return nil
        }
        guard !name.isEmpty else {
            diagnostics.error("syntax error: expected the name of a macro behind '$'", at: location(line))
            return nil
        }
        switch macros.expand(text) {
        case .value(let value): return value
        case .undefined(let nearest):
            diagnostics.error("macro \(quoteForMessage(text)) not defined\(didYouMean(nearest))", at: location(line))
        case .exhausted:
            diagnostics.error("macros expand to too much text", at: location(line))
        }
        return nil
    }

    private mutating func unexpected(_ byte: UInt8, _ line: Int, _ diagnostics: inout DiagnosticList) {
        var bytes: [UInt8] = []
        repeat {
            bytes.append(source.peek() ?? byte)
            source.advance()
        } while bytes.count < 4 && byte >= 0xC0 && source.peek().map { $0 & 0xC0 == 0x80 } ?? false
        let text = quoteForMessage(String(decoding: bytes, as: UTF8.self))
        diagnostics.error("syntax error: unexpected character \(text); write text that holds it in quotes (\")", at: location(line))
        // What follows belongs to it; a second error would say nothing new.
        while let byte = source.peek(), Self.isWordByte(byte) || byte >= 0x80 { source.advance() }
    }

    private func location(_ line: Int) -> SourceLocation { SourceLocation(file: file, line: line) }
}

/// The end of a message about something that is not known.
func didYouMean(_ nearest: String?) -> String { nearest.map { "; did you mean \(quoteForMessage($0))?" } ?? "" }
