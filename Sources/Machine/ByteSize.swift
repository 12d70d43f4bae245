/// Sizes as OpenBSD's tools read them: digits with an optional suffix K, M, G or T, powers of 1024.
public enum ByteSize {
    /// `nil` when the text is no size or the size does not fit in 64 bits.
    public static func parse(_ text: some StringProtocol) -> UInt64? {
        var digits = text[...]
        var shift: UInt64 = 0
        if let last = text.last, let index = Array("KMGT").firstIndex(of: Character(last.uppercased())) {
            digits = text.dropLast()
            shift = UInt64(index + 1) * 10
        }
        guard !digits.isEmpty, digits.utf8.allSatisfy({ (UInt8(ascii: "0")...UInt8(ascii: "9")).contains($0) }),
            let number = UInt64(digits), number <= UInt64.max >> shift
        else { return nil }
        return number << shift
    }
}
