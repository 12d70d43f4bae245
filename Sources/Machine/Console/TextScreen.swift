/// A screen of characters, and what a terminal has to be told to show it: a value without clock or memory.
///
/// Rows that are gone over the top are scrolled, so that a log of the terminal reads like the screen did; of the rest
/// what changed is written where it is. Colours are left out.
struct TextScreen {
    static let columns = 80
    static let rows = 25
    static let cellCount = columns * rows

    /// What the terminal shows: characters of code page 437, blanks as spaces.
    private var shown = [UInt8](repeating: blank, count: cellCount)
    private static let blank = UInt8(ascii: " ")

    /// Characters as they are compared: what looks like nothing is a space.
    static func normalized(_ characters: [UInt8]) -> [UInt8] {
        characters.map { $0 == 0 || $0 == 0xFF ? blank : $0 }
    }

    private func row(_ number: Int, of page: [UInt8]) -> ArraySlice<UInt8> {
        page[number * Self.columns..<(number + 1) * Self.columns]
    }

    /// Goes over to another page.
    /// - Parameters:
    ///   - page: `normalized` characters, one for each cell.
    ///   - cursor: the cell of the cursor; anything else leaves it where the output ends.
    ///   - isKnown: whether the terminal has been sent that text by another way, lately.
    /// - Returns: bytes for the terminal; none when there is nothing that it does not know.
    mutating func show(_ page: [UInt8], cursor: Int, isKnown: (ArraySlice<UInt8>) -> Bool) -> [UInt8] {
        guard page.count == Self.cellCount, page != shown else { return [] }
        let scrolled = scrolling(to: page)
        var before = shown
        if scrolled > 0 {
            before.removeFirst(scrolled * Self.columns)
            before += Array(repeating: Self.blank, count: scrolled * Self.columns)
        }
        shown = page
        if !page.contains(where: { $0 != Self.blank }) { return Self.escape("2J") + Self.place(0) }

        var output: [UInt8] = []
        for number in 0..<Self.rows {
            let new = row(number, of: page), old = row(number, of: before)
            guard let first = zip(new.indices, zip(new, old)).first(where: { $1.0 != $1.1 })?.0,
                let last = zip(new.indices, zip(new, old)).reversed().first(where: { $1.0 != $1.1 })?.0
            else { continue }
            let text = Self.trimmed(new)
            if !text.isEmpty, isKnown(text) { continue }
            output += Self.place(first)
            // The terminal may have the firmware's text in front of it, where the page has nothing.
            if first > new.startIndex, !old.contains(where: { $0 != Self.blank }) { output += Self.escape("1K") }
            // Blanks up to the end of the row.
            let end = text.isEmpty ? new.startIndex : text.endIndex
            output += new[first..<max(first, min(last + 1, end))].flatMap { CodePage437.utf8[Int($0)] }
            if last >= end { output += Self.escape("K") }
        }
        guard !output.isEmpty else { return [] }
        if scrolled > 0 {
            output = Self.place(Self.cellCount - Self.columns) + Array(repeating: UInt8(ascii: "\n"), count: scrolled) + output
        }
        if (0..<Self.cellCount).contains(cursor) { output += Self.place(cursor) }
        return output
    }

    /// By how many rows the page shown has gone up to become another, 0 for not at all.
    private func scrolling(to page: [UInt8]) -> Int {
        for count in 1..<Self.rows {
            let kept = (Self.rows - count) * Self.columns
            let old = shown[(count * Self.columns)...]
            // Blank rows agree with everything.
            if old.contains(where: { $0 != Self.blank }), page[..<kept].elementsEqual(old), page[..<kept] != shown[..<kept] {
                return count
            }
        }
        return 0
    }

    /// Without blanks at both ends.
    private static func trimmed(_ text: ArraySlice<UInt8>) -> ArraySlice<UInt8> {
        guard let first = text.firstIndex(where: { $0 != blank }), let last = text.lastIndex(where: { $0 != blank }) else {
            return text[text.startIndex..<text.startIndex]
        }
        return text[first...last]
    }

    private static func escape(_ sequence: String) -> [UInt8] { [0x1B, UInt8(ascii: "[")] + sequence.utf8 }

    /// Cursor position (ECMA-48, 8.3.21).
    private static func place(_ cell: Int) -> [UInt8] { escape("\(cell / columns + 1);\(cell % columns + 1)H") }
}

/// The characters of the PC's code page.
enum CodePage437 {
    private static let low = Array(" ☺☻♥♦♣♠•◘○◙♂♀♪♫☼►◄↕‼¶§▬↨↑↓→←∟↔▲▼")
    private static let high = Array(
        "ÇüéâäàåçêëèïîìÄÅÉæÆôöòûùÿÖÜ¢£¥₧ƒáíóúñÑªº¿⌐¬½¼¡«»░▒▓│┤╡╢╖╕╣║╗╝╜╛┐└┴┬├─┼╞╟╚╔╩╦╠═╬╧╨╤╥╙╘╒╓╫╪┘┌█▄▌▐▀αßΓπΣσµτΦΘΩδ∞φε∩≡±≥≤⌠⌡÷≈°∙·√ⁿ²■ ")

    /// Each as UTF-8.
    static let utf8: [[UInt8]] = (0..<256).map { code in
        switch code {
        case 0..<0x20: Array(String(low[code]).utf8)
        case 0x20..<0x7F: [UInt8(code)]
        case 0x7F: Array("⌂".utf8)
        default: Array(String(high[code - 0x80]).utf8)
        }
    }
}
