/// What names may look like. Each function returns what is wrong, or `nil` when nothing is.
public enum Names {
    /// A machine's: 1 to 63 bytes of letters, digits, `.`, `_` and `-`, the first a letter or a digit.
    public static func problem(inMachineName name: String) -> String? {
        let bytes = name.utf8
        if bytes.count > Limits.machineNameByteCount { return "vm name too long: the limit is \(Limits.machineNameByteCount) bytes" }
        guard let first = bytes.first else { return "invalid VM name: it is empty" }
        guard isAlphanumeric(first) else { return "invalid VM name: \(quoteForMessage(name)): it must begin with a letter or a digit" }
        guard bytes.allSatisfy({ isAlphanumeric($0) || ".-_".utf8.contains($0) }) else {
            return "invalid VM name: \(quoteForMessage(name)): use letters, digits, '.', '-' and '_'"
        }
        return nil
    }

    /// A switch's: 1 to 63 bytes.
    public static func problem(inSwitchName name: String) -> String? {
        if name.isEmpty { return "invalid switch name: it is empty" }
        return name.utf8.count > Limits.machineNameByteCount ? "switch name too long: the limit is \(Limits.machineNameByteCount) bytes" : nil
    }

    /// A network interface's on Linux: 1 to 15 bytes, no blank, `/` or `:` (dev_valid_name in the kernel).
    public static func isInterfaceName(_ name: String) -> Bool {
        let bytes = name.utf8
        return (1...15).contains(bytes.count) && name != "." && name != ".."
            && bytes.allSatisfy { $0 > 0x20 && $0 != 0x7F && !"/:".utf8.contains($0) }
    }

    /// An interface group's: 1 to 15 bytes, no blank, not ending in a digit.
    public static func isGroupName(_ name: String) -> Bool {
        let bytes = name.utf8
        guard let last = bytes.last, bytes.count <= 15 else { return false }
        return !(UInt8(ascii: "0")...UInt8(ascii: "9")).contains(last) && bytes.allSatisfy { $0 > 0x20 && $0 != 0x7F }
    }
}

func isAlphanumeric(_ byte: UInt8) -> Bool {
    switch byte {
    case UInt8(ascii: "0")...UInt8(ascii: "9"), UInt8(ascii: "a")...UInt8(ascii: "z"), UInt8(ascii: "A")...UInt8(ascii: "Z"): true
    default: false
    }
}

/// Text from a file for a message: in quotes, on one line, with no control characters, and not too long.
func quoteForMessage(_ text: some StringProtocol) -> String {
    var result = "'"
    var count = 0
    for scalar in text.unicodeScalars {
        if count == 60 { return result + "...'" }
        count += 1
        switch scalar.properties.generalCategory {
        case .control, .format, .lineSeparator, .paragraphSeparator: result += "\\u{\(String(scalar.value, radix: 16))}"
        default: result.unicodeScalars.append(scalar)
        }
    }
    return result + "'"
}
