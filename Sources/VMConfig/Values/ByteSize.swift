/// Sizes as OpenBSD's tools read them: digits with an optional suffix K, M, G or T, powers of 1024.
public enum ByteSize {
    private static let suffixes: [UInt8] = Array("KMGT".utf8)

    /// `nil` when the text is no size or the size does not fit in 64 bits.
    public static func parse(_ text: some StringProtocol) -> UInt64? {
        var digits = Array(text.utf8)[...]
        var shift: UInt64 = 0
        // ASCII letters differ from their capitals in this bit.
        if let last = digits.last, let index = suffixes.firstIndex(of: last & ~0x20) {
            digits = digits.dropLast()
            shift = UInt64(index + 1) * 10
        }
        guard let number = UInt64(asciiDigits: digits), number <= UInt64.max >> shift else { return nil }
        return number << shift
    }

    /// The size as `parse` reads it, with the largest suffix that loses nothing: `512M`, `1G`, `1000`.
    public static func describe(_ byteCount: UInt64) -> String {
        var number = byteCount
        var suffix = ""
        for letter in suffixes where number != 0 && number % 1024 == 0 {
            number /= 1024
            suffix = String(UnicodeScalar(letter))
        }
        return "\(number)\(suffix)"
    }
}

extension FixedWidthInteger {
    /// The number that these ASCII digits spell; `nil` for none, for anything else, and for what does not fit.
    init?(asciiDigits digits: some Collection<UInt8>) {
        guard !digits.isEmpty else { return nil }
        self = 0
        for byte in digits {
            guard (UInt8(ascii: "0")...UInt8(ascii: "9")).contains(byte) else { return nil }
            let (product, high) = multipliedReportingOverflow(by: 10)
            let (sum, carry) = product.addingReportingOverflow(Self(byte - UInt8(ascii: "0")))
            guard !high, !carry else { return nil }
            self = sum
        }
    }
}
