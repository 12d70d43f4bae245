import Glibc

/// The host's users and groups, by name or number. Needs the host's files: a sandboxed process cannot ask.
public enum UserDatabase {
    public struct User: Hashable, Sendable {
        public let name: String
        public let userID: uid_t
        /// The primary group.
        public let groupID: gid_t
        public let home: String
    }

    public struct Group: Hashable, Sendable {
        public let name: String
        public let groupID: gid_t
    }

    /// The user of that name, or `nil` when there is none.
    /// - Throws: what the database says: EIO, EMFILE, ENOMEM.
    public static func user(named name: String) throws(SystemError) -> User? {
        try look("getpwnam_r", passwd()) { getpwnam_r(name, $0, $1, $2, $3) }.map(User.init)
    }

    public static func user(_ id: uid_t) throws(SystemError) -> User? {
        try look("getpwuid_r", passwd()) { getpwuid_r(id, $0, $1, $2, $3) }.map(User.init)
    }

    public static func group(named name: String) throws(SystemError) -> Group? {
        try look("getgrnam_r", Glibc.group()) { getgrnam_r(name, $0, $1, $2, $3) }.map(Group.init)
    }

    public static func group(_ id: gid_t) throws(SystemError) -> Group? {
        try look("getgrgid_r", Glibc.group()) { getgrgid_r(id, $0, $1, $2, $3) }.map(Group.init)
    }

    /// The number that a configuration means: a name comes first, as with chown(1), then a number, which needs no entry.
    public static func userID(_ text: String) throws(SystemError) -> uid_t? { try user(named: text)?.userID ?? number(text) }

    public static func groupID(_ text: String) throws(SystemError) -> gid_t? {
        try group(named: text)?.groupID ?? number(text)
    }

    /// The name, or the number where there is none: for people to read.
    public static func name(ofUser id: uid_t) -> String { (try? user(id))?.name ?? String(id) }
    public static func name(ofGroup id: gid_t) -> String { (try? group(id))?.name ?? String(id) }

    /// All groups of a user, the primary one included.
    public static func groups(of user: User) -> [gid_t] {
        var groups = [gid_t](repeating: 0, count: 32)
        while true {
            var count = CInt(groups.count)
            if getgrouplist(user.name, user.groupID, &groups, &count) >= 0 { return Array(groups.prefix(Int(count))) }
            // glibc says how many there are; one that does not must not keep us here.
            groups = [gid_t](repeating: 0, count: max(Int(count), groups.count * 2))
        }
    }

    /// -1 means "leave as it is" to chown and setresuid, so it is nobody's number.
    private static func number(_ text: String) -> UInt32? {
        guard text.utf8.allSatisfy({ UInt8(ascii: "0")...UInt8(ascii: "9") ~= $0 }), let value = UInt32(text) else { return nil }
        return value == .max ? nil : value
    }

    /// Calls a lookup with a buffer that grows until the entry fits, and copies the strings out of it.
    private static func look<Entry>(
        _ call: StaticString, _ empty: Entry,
        _ body: (
            UnsafeMutablePointer<Entry>, UnsafeMutablePointer<CChar>, Int,
            UnsafeMutablePointer<UnsafeMutablePointer<Entry>?>
        ) -> CInt
    ) throws(SystemError) -> Found<Entry>? {
        var capacity = 1024
        while true {
            let buffer = Buffer(capacity)
            var entry = empty
            var result: UnsafeMutablePointer<Entry>?
            switch body(&entry, buffer.bytes, capacity, &result) {
            case 0: return result == nil ? nil : Found(entry: entry, buffer: buffer)
            case ERANGE where capacity < 1 << 24: capacity *= 2
            case EINTR: continue
            // Some databases say these for "no such entry" (getpwnam_r(3)).
            case ENOENT, ESRCH, EBADF, EPERM: return nil
            case let code: throw SystemError("\(call)", errno: code)
            }
        }
    }

    /// An entry's strings lie in its buffer.
    fileprivate struct Found<Entry> {
        let entry: Entry
        let buffer: Buffer
    }

    fileprivate final class Buffer {
        let bytes: UnsafeMutablePointer<CChar>
        init(_ capacity: Int) { bytes = .allocate(capacity: capacity) }
        deinit { bytes.deallocate() }
    }
}

extension UserDatabase.User {
    fileprivate init(_ found: UserDatabase.Found<passwd>) {
        self = withExtendedLifetime(found.buffer) {
            .init(
                name: String(cString: found.entry.pw_name), userID: found.entry.pw_uid, groupID: found.entry.pw_gid,
                home: String(cString: found.entry.pw_dir))
        }
    }
}

extension UserDatabase.Group {
    fileprivate init(_ found: UserDatabase.Found<Glibc.group>) {
        self = withExtendedLifetime(found.buffer) {
            .init(name: String(cString: found.entry.gr_name), groupID: found.entry.gr_gid)
        }
    }
}
