import CLinux
import Glibc

/// The terminal that the process was started on: raw while a guest has it, and given back as it was found.
///
/// There is one per process, since the handlers of fatal signals must find it: a crash must not leave a shell without
/// echo.
public enum Terminal {
    /// Whether the descriptor is a terminal.
    public static func isTerminal(_ descriptor: CInt) -> Bool { isatty(descriptor) == 1 }

    /// Whether this process's job is the one that the terminal is for. A terminal that is not the session's own asks
    /// nobody.
    public static func isForeground(_ descriptor: CInt) -> Bool {
        let group = tcgetpgrp(descriptor)
        return group < 0 || group == getpgrp()
    }

    /// Makes every way out of the process restore what `guardModes` remembered. Call it before any engine is made:
    /// handlers of guest faults come on top of these, and pass on what is not a guest's.
    public static func guardExits() { clinux_terminal_guard_exits() }

    /// Remembers the terminal's modes as those to restore.
    public static func guardModes(of descriptor: CInt) throws(SystemError) {
        _ = try retrying("tcgetattr") { clinux_terminal_guard(descriptor) }
    }

    /// Bytes go through as they are: no echo, no line editing, no signals from keys.
    public static func enterRawMode() throws(SystemError) {
        _ = try retrying("tcsetattr") { clinux_terminal_raw() }
    }

    /// Puts the modes back; `enterRawMode` may follow.
    public static func restore() { clinux_terminal_restore() }

    /// Puts the modes back for good.
    public static func release() { clinux_terminal_release() }
}
