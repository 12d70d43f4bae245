/// The bytes of one file, one after the other: joined lines are one, and the text of a macro stands in the place of
/// its name.
struct Source {
    private let bytes: [UInt8]
    private var index: Int
    /// The line of the next byte, from 1.
    private(set) var line = 1
    private var expansion: [UInt8] = []
    private var expansionIndex = 0

    init(_ bytes: [UInt8]) {
        self.bytes = bytes
        // A byte order mark says nothing in UTF-8.
        index = bytes.starts(with: [0xEF, 0xBB, 0xBF]) ? 3 : 0
    }

    /// Whether the next byte comes from a macro.
    var isExpanding: Bool { expansionIndex < expansion.count }

    /// The next byte, or `nil` at the end of the file. A backslash at the end of a line joins it with the next.
    mutating func peek() -> UInt8? {
        if isExpanding { return expansion[expansionIndex] }
        while index < bytes.count, bytes[index] == UInt8(ascii: "\\"), let length = newlineLength(at: index + 1) {
            index += 1 + length
            line += 1
        }
        return index < bytes.count ? bytes[index] : nil
    }

    /// Moves behind the byte that `peek` returned.
    mutating func advance() {
        if isExpanding {
            expansionIndex += 1
        } else if index < bytes.count {
            if bytes[index] == UInt8(ascii: "\n") { line += 1 }
            index += 1
        }
    }

    /// Lets `text` come next. Only when nothing expands already.
    mutating func expand(_ text: [UInt8]) {
        expansion = text
        expansionIndex = 0
    }

    /// Goes back to `place` and from there to the end of its line. Text of a macro is left.
    mutating func resume(atEndOfLineFrom place: Source) {
        self = place
        expansion = []
        expansionIndex = 0
        while index < bytes.count, bytes[index] != UInt8(ascii: "\n") { index += 1 }
    }

    private func newlineLength(at index: Int) -> Int? {
        guard index < bytes.count else { return nil }
        if bytes[index] == UInt8(ascii: "\n") { return 1 }
        return bytes[index] == UInt8(ascii: "\r") && index + 1 < bytes.count && bytes[index + 1] == UInt8(ascii: "\n") ? 2 : nil
    }
}
