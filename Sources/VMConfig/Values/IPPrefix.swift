/// An IPv4 network: an address and how many of its first bits count.
public struct IPv4Prefix: Hashable, Sendable, Codable, CustomStringConvertible {
    /// In host byte order: 10.0.0.0 is 0x0A000000. Bits beyond `length` are zero.
    public let address: UInt32
    /// 1 to 32.
    public let length: Int

    /// - Parameter text: `ADDRESS` or `ADDRESS/LENGTH`, four decimal numbers with dots between.
    /// - Parameter standardLength: the length when the text has none.
    init?(_ text: String, standardLength: Int) {
        guard let (head, length) = splitPrefix(text, maximum: 32), let address = Self.parse(head) else { return nil }
        self.length = length ?? standardLength
        self.address = address & ~(UInt32.max >> UInt32(self.length))
    }

    /// Four decimal numbers with dots between.
    static func parse(_ text: Substring) -> UInt32? {
        let groups = text.split(separator: ".", omittingEmptySubsequences: false)
        let bytes = groups.compactMap { $0.utf8.count <= 3 ? UInt8(asciiDigits: $0.utf8) : nil }
        guard groups.count == 4, bytes.count == 4 else { return nil }
        return bytes.reduce(0) { $0 << 8 | UInt32($1) }
    }

    public var description: String {
        [24, 16, 8, 0].map { String(address >> UInt32($0) & 0xFF) }.joined(separator: ".") + "/\(length)"
    }
}

/// An IPv6 network: an address and how many of its first bits count.
public struct IPv6Prefix: Hashable, Sendable, Codable, CustomStringConvertible {
    /// Eight groups, the first first. Bits beyond `length` are zero.
    public let groups: [UInt16]
    /// 1 to 128.
    public let length: Int

    /// - Parameter text: `ADDRESS/LENGTH`, the address as in RFC 4291, section 2.2.
    init?(_ text: String) {
        guard let (head, length) = splitPrefix(text, maximum: 128), let length, let groups = Self.parse(head) else { return nil }
        self.length = length
        self.groups = groups.enumerated().map { index, group in
            let kept = min(max(length - index * 16, 0), 16)
            return group & ~(UInt16.max >> UInt16(kept))
        }
    }

    static func parse(_ text: Substring) -> [UInt16]? {
        guard text.utf8.count <= 45 else { return nil }
        guard let gap = text.range(of: "::") else {
            let groups = parseGroups(text)
            return groups?.count == 8 ? groups : nil
        }
        let front = text[..<gap.lowerBound]
        let back = text[gap.upperBound...]
        guard let head = front.isEmpty ? [] : parseGroups(front), let tail = back.isEmpty ? [] : parseGroups(back),
            head.count + tail.count <= 7
        else { return nil }
        return head + Array(repeating: 0, count: 8 - head.count - tail.count) + tail
    }

    /// Groups with colons between; the last may be an IPv4 address, which is two.
    private static func parseGroups(_ text: Substring) -> [UInt16]? {
        var groups: [UInt16] = []
        let parts = text.split(separator: ":", omittingEmptySubsequences: false)
        for (index, part) in parts.enumerated() {
            if index == parts.count - 1, part.utf8.contains(UInt8(ascii: ".")) {
                guard let address = IPv4Prefix.parse(part) else { return nil }
                groups += [UInt16(truncatingIfNeeded: address >> 16), UInt16(truncatingIfNeeded: address)]
            } else {
                guard let group = UInt16(hexadecimal: part.utf8) else { return nil }
                groups.append(group)
            }
        }
        return groups
    }

    /// As RFC 5952 wants it: lower case, the longest run of two or more zero groups as `::`.
    public var description: String {
        var best = 0..<0
        var start = 0
        for index in 0...groups.count where index == groups.count || groups[index] != 0 {
            if index - start > max(best.count, 1) { best = start..<index }
            start = index + 1
        }
        func text(_ part: ArraySlice<UInt16>) -> String { part.map { String($0, radix: 16) }.joined(separator: ":") }
        let address = best.isEmpty ? text(groups[...]) : "\(text(groups[..<best.lowerBound]))::\(text(groups[best.upperBound...]))"
        return "\(address)/\(length)"
    }
}

/// Splits `ADDRESS/LENGTH`; the length is `nil` when there is no slash.
private func splitPrefix(_ text: String, maximum: Int) -> (Substring, Int?)? {
    guard let slash = text.firstIndex(of: "/") else { return (text[...], nil) }
    let digits = text[text.index(after: slash)...].utf8
    guard digits.count <= 3, let length = Int(asciiDigits: digits), (1...maximum).contains(length) else { return nil }
    return (text[..<slash], length)
}

extension Substring {
    /// Where `needle` first stands.
    fileprivate func range(of needle: String) -> Range<Index>? {
        var start = startIndex
        while start < endIndex {
            if self[start...].hasPrefix(needle) { return start..<index(start, offsetBy: needle.count) }
            start = index(after: start)
        }
        return nil
    }
}
