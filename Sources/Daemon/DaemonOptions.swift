import Glibc
import Linux

/// How the daemon was started.
public struct DaemonOptions: Sendable {
    /// Path of the configuration; `nil` for the usual place, where it may be missing.
    public var configurationPath: String?
    /// Macros that win over the file's.
    public var macros: [String: String] = [:]
    /// Path of the control socket; `nil` for the usual place, or one that systemd opened.
    public var socketPath: String?
    /// Stay in the foreground and log to standard error.
    public var isForeground = false
    public var isVerbose = false
    /// Tests only: every role tries what its sandbox forbids, and says how that went.
    public var probes = false
    /// The user that the daemon runs as.
    public let uid = geteuid()

    public init() {}

    var isSystemWide: Bool { uid == 0 }
}

/// Where things are, for root and for everybody else.
public enum DaemonPaths {
    public static let systemConfiguration = "/etc/vm.conf"

    /// The user's own, after the XDG base directory specification.
    public static var userConfiguration: String? {
        if let base = ProcessEnvironment.value("XDG_CONFIG_HOME"), base.hasPrefix("/") { return base + "/vmd/vm.conf" }
        return ProcessEnvironment.value("HOME").map { $0 + "/.config/vmd/vm.conf" }
    }
}
