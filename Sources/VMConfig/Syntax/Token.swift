/// A word of the file.
struct Token {
    enum Kind: Equatable {
        /// Bare text; it may be a keyword.
        case word(String)
        /// Text that stood in quotes; never a keyword.
        case quoted(String)
        case number(Int64)
        /// `{`, `}`, `,`, `=`, `(`, `)` or `!`.
        case punctuation(UInt8)
        case newline
        case endOfFile
        /// Something that has been reported already.
        case invalid
    }

    var kind: Kind
    /// Where it begins.
    var line: Int

    static let openBrace = Kind.punctuation(UInt8(ascii: "{"))
    static let closeBrace = Kind.punctuation(UInt8(ascii: "}"))
    static let comma = Kind.punctuation(UInt8(ascii: ","))
    static let equals = Kind.punctuation(UInt8(ascii: "="))

    /// As messages name it.
    var description: String {
        switch kind {
        case .word(let text): Keywords.reserved.contains(text) ? "keyword \(quoteForMessage(text))" : quoteForMessage(text)
        case .quoted(let text): "string \(quoteForMessage(text))"
        case .number(let number): "number \(number)"
        case .punctuation(let byte): "'\(UnicodeScalar(byte))'"
        case .newline: "end of line"
        case .endOfFile: "end of file"
        case .invalid: "something invalid"
        }
    }
}
