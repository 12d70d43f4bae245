import CLinux
import Glibc

/// What the console of a machine needs of a terminal that other programs open by its path.
extension PseudoTerminal {
    /// What others open: "/dev/pts/3". Of the devpts mount that /dev/ptmx belongs to.
    public borrowing func slavePath() throws(SystemError) -> String {
        let number = master.raw
        var index: CUnsignedInt = 0
        _ = try retrying("ioctl") {
            // TIOCGPTN
            withUnsafeMutablePointer(to: &index) { clinux_ioctl(number, 0x8004_5430, UInt(bitPattern: $0)) }
        }
        return "/dev/pts/\(index)"
    }

    /// Bytes go through the slave as they are, also while nobody has it open: no echo, no line editing, no signals. The
    /// modes last until somebody changes them, or both ends are closed.
    public borrowing func makeRaw() throws(SystemError) { try Self.setRaw(slave.raw) }

    /// Who may open the slave by its path.
    /// - Throws: EPERM without the right to give files away.
    public borrowing func setOwner(user: uid_t, group: gid_t, mode: mode_t) throws(SystemError) {
        let number = slave.raw
        // Nobody's in between: neither the old mode for the new owner nor the other way round.
        _ = try retrying("fchmod") { fchmod(number, 0) }
        _ = try retrying("fchown") { fchown(number, user, group) }
        _ = try retrying("fchmod") { fchmod(number, mode) }
    }

    public struct WindowSize: Hashable, Sendable {
        public var rows: UInt16
        public var columns: UInt16

        public init(rows: UInt16, columns: UInt16) {
            self.rows = rows
            self.columns = columns
        }
    }

    public borrowing func windowSize() throws(SystemError) -> WindowSize {
        let number = master.raw
        var size = winsize()
        _ = try retrying("ioctl") {
            withUnsafeMutablePointer(to: &size) { clinux_ioctl(number, UInt(TIOCGWINSZ), UInt(bitPattern: $0)) }
        }
        return WindowSize(rows: size.ws_row, columns: size.ws_col)
    }

    /// Programs on the slave get SIGWINCH.
    public borrowing func setWindowSize(_ size: WindowSize) throws(SystemError) {
        let number = master.raw
        var value = winsize(ws_row: size.rows, ws_col: size.columns, ws_xpixel: 0, ws_ypixel: 0)
        _ = try retrying("ioctl") {
            withUnsafeMutablePointer(to: &value) { clinux_ioctl(number, UInt(TIOCSWINSZ), UInt(bitPattern: $0)) }
        }
    }

    /// For an event loop: reads and writes of the keyboard and screen do not wait.
    public borrowing func setMasterNonBlocking() throws(SystemError) { try master.setNonBlocking() }

    /// Both ends as descriptors of their own, to hand them to other processes.
    public consuming func split(_ body: (_ master: consuming FileDescriptor, _ slave: consuming FileDescriptor) -> Void) {
        body(master, slave)
    }
}
