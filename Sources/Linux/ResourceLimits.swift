import Glibc

/// This process's own limits.
public enum ResourceLimits {
    /// Allows as many open files as may be allowed. The usual limit, 1024, is low for the sake of select(2), which nobody
    /// here uses.
    public static func raiseOpenFiles() {
        var limit = rlimit()
        guard getrlimit(__rlimit_resource_t(RLIMIT_NOFILE.rawValue), &limit) == 0 else { return }
        limit.rlim_cur = limit.rlim_max
        _ = setrlimit(__rlimit_resource_t(RLIMIT_NOFILE.rawValue), &limit)
    }
}
