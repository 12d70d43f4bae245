extension [UInt8] {
    /// Whether bytes stand in these, together. Takes time in proportion to both, whatever a guest has written (Knuth, Morris
    /// and Pratt, "Fast Pattern Matching in Strings", 1977).
    func holds(_ part: ArraySlice<UInt8>) -> Bool {
        let part = Array(part)
        guard !part.isEmpty else { return true }
        guard part.count <= count else { return false }
        // How much of the beginning of `part` ends with each of its bytes, the byte's own beginning aside.
        var fallbacks = [Int](repeating: 0, count: part.count)
        var matched = 0
        for index in part.indices.dropFirst() {
            while matched > 0, part[index] != part[matched] { matched = fallbacks[matched - 1] }
            if part[index] == part[matched] { matched += 1 }
            fallbacks[index] = matched
        }
        matched = 0
        for byte in self {
            while matched > 0, byte != part[matched] { matched = fallbacks[matched - 1] }
            if byte == part[matched] { matched += 1 }
            if matched == part.count { return true }
        }
        return false
    }
}
