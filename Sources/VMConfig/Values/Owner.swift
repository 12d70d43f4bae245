/// Who a machine or the control socket belongs to, as written: `user`, `user:group` or `:group`, names or numbers.
///
/// Whether there is such a user is not asked here.
public struct Owner: Hashable, Sendable, Codable, CustomStringConvertible {
    /// A name, or a number from 0 to 4294967294; `nil` when only a group is given.
    public var user: String?
    /// A name, or a number from 0 to 4294967294.
    public var group: String?

    public init(user: String? = nil, group: String? = nil) {
        self.user = user
        self.group = group
    }

    /// `nil` when the text is no owner.
    public init?(_ text: String) {
        let parts = text.split(separator: ":", maxSplits: 1, omittingEmptySubsequences: false).map(String.init)
        guard let user = parts.first, parts.allSatisfy({ $0.isEmpty || Self.isName($0) }) else { return nil }
        if parts.count == 1 {
            guard !user.isEmpty else { return nil }
            self.init(user: user)
        } else {
            guard !parts[1].isEmpty else { return nil }
            self.init(user: user.isEmpty ? nil : user, group: parts[1])
        }
    }

    public var description: String { (user ?? "") + (group.map { ":\($0)" } ?? "") }

    /// The number that a user or group is written as, or `nil` for a name.
    public static func number(_ text: String) -> UInt32? { UInt32(asciiDigits: text.utf8) }

    /// Linux's names have up to 32 bytes (useradd(8)). The number 4294967295 means "none" to the kernel.
    private static func isName(_ text: String) -> Bool {
        let bytes = text.utf8
        guard bytes.count <= 32, bytes.first != UInt8(ascii: "-"), bytes.allSatisfy({ $0 > 0x20 && $0 != 0x7F && !":,/".utf8.contains($0) }) else { return false }
        guard bytes.allSatisfy({ (UInt8(ascii: "0")...UInt8(ascii: "9")).contains($0) }) else { return true }
        return number(text).map { $0 != .max } ?? false
    }
}
