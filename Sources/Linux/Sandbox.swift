import CLinux
import Glibc

/// Takes a process's rights away, in one order, for good.
///
/// Every wall stands by itself: a process that got through one (a hole in the filter) still finds no files, no network
/// and no rights behind it. What a host does not allow (user namespaces switched off, mounts forbidden in a container)
/// is reported, not fatal; no_new_privs, the system-call filter, a change of user and the drop of capabilities are.
public struct Sandbox: Sendable {
    /// What is left of the file system.
    public enum Root: Sendable {
        /// As it is, in this process's own mount namespace.
        case host
        /// An empty folder that nothing can be put into.
        case empty
        /// The interpreter and the shared libraries of the running program by their names and nothing else, read-only:
        /// enough to run `Program.running()` again. There is no ld.so.cache, so the environment needs `libraryPath`.
        case libraries
    }

    public struct Identity: Hashable, Sendable {
        public var userID: uid_t
        public var groupID: gid_t
        /// Supplementary groups.
        public var groups: [gid_t] = []

        public init(userID: uid_t, groupID: gid_t, groups: [gid_t] = []) {
            self.userID = userID
            self.groupID = groupID
            self.groups = groups
        }
    }

    /// A right of root's (capabilities(7)), by its number.
    public struct Capability: Hashable, Sendable {
        public let rawValue: Int
        public init(_ rawValue: Int) { self.rawValue = rawValue }
        public static let chown = Capability(0)
        public static let overrideFileAccess = Capability(1)  // CAP_DAC_OVERRIDE
        public static let fileOwner = Capability(3)
        public static let networkAdministration = Capability(12)
    }

    /// What is limited (setrlimit(2)).
    public enum Resource: Hashable, Sendable, CaseIterable {
        case openFiles, coreSize, fileSize, processes, addressSpace, data, lockedMemory

        var number: CInt {
            let resource =
                switch self {
                case .openFiles: RLIMIT_NOFILE
                case .coreSize: RLIMIT_CORE
                case .fileSize: RLIMIT_FSIZE
                case .processes: __RLIMIT_NPROC
                case .addressSpace: RLIMIT_AS
                case .data: RLIMIT_DATA
                case .lockedMemory: __RLIMIT_MEMLOCK
                }
            return CInt(resource.rawValue)
        }
    }

    /// Network, IPC, host name and cgroup namespaces of its own, each empty. The mount namespace comes with `root`. Not
    /// a PID namespace: its first process ignores signals, and its end is the end of all others in it.
    public var namespaces: Set<Namespace> = [.network, .ipc, .hostName, .cgroup]
    public enum Namespace: String, Hashable, Sendable, CaseIterable {
        case mount, network, ipc
        case hostName = "UTS"
        case cgroup, user

        var flag: CInt {
            switch self {
            case .mount: 0x0002_0000
            case .cgroup: 0x0200_0000
            case .hostName: 0x0400_0000
            case .ipc: 0x0800_0000
            case .user: 0x1000_0000
            case .network: 0x4000_0000
            }
        }
    }
    public var root = Root.empty
    /// A user namespace, in which the other namespaces can be had without being root. Without root's rights it is always
    /// used.
    public var usesUserNamespace = false
    /// Whom to become; only root can.
    public var identity: Identity?
    /// Rights to keep; a role that keeps some should not have a user namespace, in which they are worth nothing.
    public var capabilities: Set<Capability> = []
    /// At most; a lower limit that was there stays. Core dumps are always off: they would hold a guest's memory.
    public var limits: [Resource: UInt64] = [:]
    public var umask: mode_t = 0o077
    /// Signals reach no process outside (landlock(7), Linux 6.12): for a role whose filter has to let its children
    /// signal themselves, which is not to be told from signals to others of the same user.
    public var scopesSignals = false
    public var policy: SystemCallPolicy

    public init(policy: SystemCallPolicy) { self.policy = policy }

    /// Enters. Call it on the only thread of the process, before any other is started: others would stay outside.
    ///
    /// The order: umask; user and groups (first when a user namespace follows, so that its map has the right user);
    /// namespaces; root; bounding set, identity, capabilities; limits; no_new_privs; not dumpable; parent-death signal,
    /// which changes of credentials had cleared; the filter.
    /// - Returns: what could not be had, one line each: "mount namespace: Operation not permitted".
    /// - Throws: EBUSY when there are other threads, and what the parts that are never optional say. The process must then
    ///   end: it may be half inside.
    public func enter() throws(SystemError) -> [String] {
        guard Self.isOnlyThread else { throw SystemError("enter", errno: EBUSY) }
        var report = Report()
        let parent = getppid()
        var deathSignal: CInt = 0
        _ = clinux_prctl(PR_GET_PDEATHSIG, UInt(bitPattern: withUnsafeMutablePointer(to: &deathSignal) { Int(bitPattern: $0) }), 0)
        _ = Glibc.umask(umask)
        // Root of a container may lack the right to make namespaces: CAP_SYS_ADMIN.
        let inUserNamespace = usesUserNamespace || clinux_capabilities() & 1 << 21 == 0

        if inUserNamespace {
            if let identity { try become(identity) }
            enterUserNamespace(&report)
        }
        for namespace in Namespace.allCases where namespaces.contains(namespace) && namespace != .user && namespace != .mount {
            report.attempt("\(namespace.rawValue) namespace") { clinux_unshare(namespace.flag) }
        }
        enterRoot(&report)
        dropBoundingSet(&report)
        if !inUserNamespace, let identity { try become(identity) }
        try dropCapabilities()
        setLimits(&report)
        try Self.require("prctl(PR_SET_NO_NEW_PRIVS)", clinux_prctl(PR_SET_NO_NEW_PRIVS, 1, 0))
        try Self.require("prctl(PR_SET_DUMPABLE)", clinux_prctl(PR_SET_DUMPABLE, 0, 0))
        if deathSignal != 0 {
            try Self.require("prctl(PR_SET_PDEATHSIG)", clinux_prctl(PR_SET_PDEATHSIG, UInt(deathSignal), 0))
            // It may have died while the signal was off.
            if getppid() != parent { throw SystemError("parent", errno: ESRCH) }
        }
        if scopesSignals { enterSignalScope(&report) }
        for name in try SeccompFilter.load(policy) { report.missing.append("system call \(name): unknown to libseccomp") }
        return report.missing
    }

    private static var isOnlyThread: Bool {
        // unshare(2): CLONE_THREAD is refused with EINVAL, and does nothing else, where there are other threads.
        if clinux_unshare(0x0001_0000) == 0 { return true }
        if errno == EINVAL { return false }
        // A container may forbid the call. The folder has a link for each thread, and two of its own.
        var status = stat()
        return stat("/proc/self/task", &status) != 0 || status.st_nlink == 3
    }

    private func enterSignalScope(_ report: inout Report) {
        // struct landlock_ruleset_attr: no rules for files and ports, LANDLOCK_SCOPE_SIGNAL.
        let attributes: [UInt64] = [0, 0, 2]
        report.attempt("signal scope") {
            let ruleset = attributes.withUnsafeBytes { bytes in
                clinux_syscall(444, UInt(bitPattern: bytes.baseAddress), UInt(bytes.count), 0, 0, 0, 0)
            }
            guard ruleset >= 0 else { return -1 }
            defer { close(CInt(ruleset)) }
            return clinux_syscall(446, UInt(ruleset), 0, 0, 0, 0, 0) == 0 ? 0 : -1
        }
    }

    /// Collects what could not be had.
    struct Report {
        var missing: [String] = []

        /// Runs a call that returns 0, or -1 and errno.
        @discardableResult mutating func attempt(_ what: String, _ body: () -> CInt) -> Bool {
            guard body() != 0 else { return true }
            missing.append("\(what): \(SystemError(what, errno: errno).reason)")
            return false
        }

        mutating func failed(_ what: String, _ error: SystemError) { missing.append("\(what): \(error)") }
    }

    static func require(_ call: String, _ result: CInt) throws(SystemError) {
        let code = errno
        if result != 0 { throw SystemError(call, errno: code) }
    }
}
