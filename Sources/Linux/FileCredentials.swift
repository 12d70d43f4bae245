import CLinux
import Glibc

/// Another user's rights to files, for one thread and a short while: what the kernel checks then is what that user may do, so
/// nobody has to guess it (setfsuid(2)).
public struct FileCredentials: Hashable, Sendable {
    public let userID: UInt32
    public let groupID: UInt32
    /// Supplementary groups.
    public let groups: [UInt32]

    public init(userID: UInt32, groupID: UInt32, groups: [UInt32]) {
        self.userID = userID
        self.groupID = groupID
        self.groups = groups
    }

    /// Runs `body` on the calling thread with somebody's rights, or, for `nil`, with those that it has.
    /// Root's rights to files go with the user and come back behind it.
    /// Whoever is not root has only his own: then it is `body` alone.
    /// - Throws: what `body` throws; what `orElse` makes of it when they cannot be taken. When they cannot be given
    ///   back the process ends: with half of it nothing it does would be right.
    public static func run<Result: ~Copyable, Failure: Error>(
        as credentials: FileCredentials?, orElse refused: (SystemError) -> Failure, _ body: () throws(Failure) -> Result
    ) throws(Failure) -> Result {
        guard let credentials, geteuid() == 0 else { return try body() }
        let before = threadGroups()
        let (user, group) = (geteuid(), getegid())
        do throws(SystemError) {
            try setGroups(credentials.groups)
        } catch {
            // Nothing has changed: a root without that right.
            throw refused(error)
        }
        setID(SYS_setfsgid, credentials.groupID)
        setID(SYS_setfsuid, credentials.userID)
        guard isID(SYS_setfsuid, credentials.userID), isID(SYS_setfsgid, credentials.groupID) else {
            restore(user, group, before)
            throw refused(SystemError("setfsuid", errno: EPERM))
        }
        defer { restore(user, group, before) }
        return try body()
    }

    private static func restore(_ user: uid_t, _ group: gid_t, _ groups: [gid_t]) {
        // The user first: a thread whose file user is root's has the right to the rest.
        setID(SYS_setfsuid, user)
        setID(SYS_setfsgid, group)
        guard isID(SYS_setfsuid, user), isID(SYS_setfsgid, group), (try? setGroups(groups)) != nil else {
            fatalError("the process's own user cannot be taken back")
        }
    }

    // The system calls themselves: glibc's functions would change every thread's groups.

    private static func setID(_ call: CInt, _ id: UInt32) { _ = clinux_syscall(Int(call), UInt(id), 0, 0, 0, 0, 0) }

    /// They answer with what was before, and never with an error: -1 is nobody, so nothing changes.
    private static func isID(_ call: CInt, _ id: UInt32) -> Bool {
        UInt32(truncatingIfNeeded: clinux_syscall(Int(call), UInt(UInt32.max), 0, 0, 0, 0, 0)) == id
    }

    private static func threadGroups() -> [gid_t] {
        let count = clinux_syscall(Int(SYS_getgroups), 0, 0, 0, 0, 0, 0)
        guard count > 0 else { return [] }
        var groups = [gid_t](repeating: 0, count: count)
        let got = groups.withUnsafeMutableBufferPointer {
            clinux_syscall(Int(SYS_getgroups), UInt($0.count), UInt(bitPattern: $0.baseAddress), 0, 0, 0, 0)
        }
        return Array(groups.prefix(max(0, got)))
    }

    private static func setGroups(_ groups: [gid_t]) throws(SystemError) {
        let result = groups.withUnsafeBufferPointer {
            clinux_syscall(Int(SYS_setgroups), UInt($0.count), UInt(bitPattern: $0.baseAddress), 0, 0, 0, 0)
        }
        guard result == 0 else { throw SystemError("setgroups", errno: errno) }
    }
}
