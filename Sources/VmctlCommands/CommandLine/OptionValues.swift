import VMConfig

/// The texts of options as values, with OpenBSD's words for what is wrong with them.
enum OptionValues {
    private static let megabyte: UInt64 = 1 << 20

    /// The only value of an option that must not be repeated.
    static func single(_ values: [String], _ complaint: String) throws(WrongUsage) -> String? {
        guard values.count <= 1 else { throw WrongUsage("\(complaint) specified multiple times") }
        return values.first
    }

    /// Memory in whole megabytes, rounded down.
    /// - Parameter warn: told when something was lost.
    static func memory(_ text: String, _ warn: (String) -> Void) throws(WrongUsage) -> UInt64 {
        guard let bytes = ByteSize.parse(text) else {
            throw WrongUsage("invalid memory size: \(text): give a number with K, M, G or T")
        }
        guard bytes >= megabyte else { throw WrongUsage("memory size must be at least 1MB") }
        guard bytes <= Limits.memoryByteCount.upperBound else {
            throw WrongUsage("memory size too large (limit is \(ByteSize.describe(Limits.memoryByteCount.upperBound)))")
        }
        return round(bytes, warn)
    }

    /// Less than a megabyte is left as it is: whoever gets it says what is wrong with it.
    static func round(_ bytes: UInt64, _ warn: (String) -> Void) -> UInt64 {
        let rounded = bytes - bytes % megabyte
        guard rounded > 0 else { return bytes }
        if rounded != bytes { warn("memory size rounded to \(rounded / megabyte)M") }
        return rounded
    }

    /// One of a few words.
    static func choice(_ word: String, of words: [String], _ what: String) throws(WrongUsage) -> String {
        guard words.contains(word) else {
            throw WrongUsage("unknown \(what) \(word): give one of \(words.joined(separator: ", "))")
        }
        return word
    }

    /// A count in strtonum(3)'s words.
    static func count(_ text: String, in range: ClosedRange<Int>, _ what: String) throws(WrongUsage) -> UInt32 {
        let digits = text.hasPrefix("-") ? text.dropFirst() : text[...]
        guard !digits.isEmpty, digits.utf8.allSatisfy({ (UInt8(ascii: "0")...UInt8(ascii: "9")).contains($0) }) else {
            throw WrongUsage("\(what) is invalid: \(text)")
        }
        guard let number = Int(text) else {
            throw WrongUsage("\(what) is \(text.hasPrefix("-") ? "too small" : "too large"): \(text)")
        }
        guard number >= range.lowerBound else { throw WrongUsage("\(what) is too small: \(text)") }
        guard number <= range.upperBound, let count = UInt32(exactly: number) else {
            throw WrongUsage("\(what) is too large: \(text)")
        }
        return count
    }
}
