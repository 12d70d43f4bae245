import CLinux
import Glibc

/// syslog(3), without formats.
public enum SystemLog {
    /// LOG_DAEMON
    private static let facility = 3 << 3

    /// Opens the connection: before a sandbox, if there is to be one.
    public static func open() { clinux_openlog("vmd", Int32(facility)) }

    /// - Parameter priority: 0 (emergency) to 7 (debug).
    public static func write(priority: Int, _ text: String) { clinux_syslog(Int32(facility | priority & 7), text) }
}
