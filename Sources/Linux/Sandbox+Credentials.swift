import CLinux
import Glibc

extension Sandbox {
    /// Gives up root's user and groups, saved ones included.
    func become(_ identity: Identity) throws(SystemError) {
        // Rights that are to be kept would go with the user.
        if !capabilities.isEmpty { try Self.require("prctl(PR_SET_KEEPCAPS)", clinux_prctl(PR_SET_KEEPCAPS, 1, 0)) }
        try Self.require("setgroups", setgroups(identity.groups.count, identity.groups))
        let (user, group) = (UInt(identity.userID), UInt(identity.groupID))
        try Self.require("setresgid", CInt(clinux_syscall(Int(SYS_setresgid), group, group, group, 0, 0, 0)))
        try Self.require("setresuid", CInt(clinux_syscall(Int(SYS_setresuid), user, user, user, 0, 0, 0)))
    }

    /// A user namespace with this user and group as the only ones, under their own numbers. setgroups stays forbidden
    /// in it (user_namespaces(7)).
    func enterUserNamespace(_ report: inout Report) {
        let (user, group) = (geteuid(), getegid())
        // /proc/self belongs to root as long as the process is not dumpable, and a change of user makes it so.
        _ = clinux_prctl(PR_SET_DUMPABLE, 1, 0)
        guard report.attempt("user namespace", { clinux_unshare(Namespace.user.flag) }) else { return }
        do {
            try Self.write("deny", to: "/proc/self/setgroups")
            try Self.write("\(user) \(user) 1", to: "/proc/self/uid_map")
            try Self.write("\(group) \(group) 1", to: "/proc/self/gid_map")
        } catch where error.isMissing {
            // Started in an empty root already: without a map it has no numbers (65534), and all the walls.
        } catch {
            report.failed("user namespace's map", error)
        }
    }

    private static func write(_ text: String, to path: String) throws(SystemError) {
        let file = try FileDescriptor(open: path, flags: O_WRONLY)
        try Stream.writeAll(file.raw, [UInt8](text.utf8))
    }

    /// Neither programs with file capabilities nor being root give rights back. Needs CAP_SETPCAP, so it comes before the
    /// change of user.
    func dropBoundingSet(_ report: inout Report) {
        report.attempt("capability bounding set") {
            for number in UInt(0)..<64 where !capabilities.contains(Capability(Int(number))) {
                // EINVAL: behind the last that the kernel knows.
                let isSet = clinux_prctl(PR_CAPBSET_READ, number, 0)
                if isSet < 0 { break }
                if isSet == 1, clinux_prctl(PR_CAPBSET_DROP, number, 0) != 0 { return -1 }
            }
            return 0
        }
        // SECBIT_NOROOT and SECBIT_NO_SETUID_FIXUP stay as they are for a role that keeps rights over the change of user.
        if capabilities.isEmpty {
            // SECBIT_NOROOT, SECBIT_NOROOT_LOCKED
            report.attempt("secure bits") { clinux_prctl(PR_SET_SECUREBITS, 3, 0) }
        }
    }

    func dropCapabilities() throws(SystemError) {
        let kept = capabilities.reduce(UInt64(0)) { $0 | 1 << UInt64($1.rawValue & 63) }
        // EINVAL: a kernel without ambient capabilities.
        let ambient = clinux_prctl(PR_CAP_AMBIENT, 4, 0)  // PR_CAP_AMBIENT_CLEAR_ALL
        if ambient != 0, errno != EINVAL { throw SystemError("prctl(PR_CAP_AMBIENT)", errno: errno) }
        try Self.require("capset", clinux_keep_capabilities(kept))
    }

    func setLimits(_ report: inout Report) {
        var limits = limits
        limits[.coreSize] = 0
        for resource in Resource.allCases {
            guard let wanted = limits[resource] else { continue }
            report.attempt("limit of \(resource)") {
                var before = rlimit()
                let number = UInt(resource.number)
                let get = clinux_syscall(Int(SYS_prlimit64), 0, number, 0, Self.address(&before), 0, 0)
                if get != 0 { return -1 }
                let value = rlim_t(min(wanted, UInt64(before.rlim_max)))
                var after = rlimit(rlim_cur: min(value, before.rlim_cur), rlim_max: value)
                return CInt(clinux_syscall(Int(SYS_prlimit64), 0, number, Self.address(&after), 0, 0, 0))
            }
        }
    }

    private static func address<Value>(_ pointer: UnsafeMutablePointer<Value>) -> UInt { UInt(bitPattern: pointer) }
}
