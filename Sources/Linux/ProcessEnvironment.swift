import Glibc

/// The environment, variable by variable.
public enum ProcessEnvironment {
    /// `nil` when it is not set.
    public static func value(_ name: String) -> String? { getenv(name).map { String(cString: $0) } }
    /// Before there are threads.
    public static func remove(_ name: String) { unsetenv(name) }
}

/// The folder that relative paths start from.
public enum WorkingDirectory {
    public static var path: String? {
        guard let text = getcwd(nil, 0) else { return nil }
        defer { free(text) }
        return String(cString: text)
    }

    public static func change(to path: String) throws(SystemError) { _ = try retrying("chdir") { chdir(path) } }
}

extension FileDescriptor {
    /// Whether there is something by that path.
    public static func exists(_ path: String) -> Bool { access(path, F_OK) == 0 }
}
