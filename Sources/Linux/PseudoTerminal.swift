import CLinux
import Glibc

/// A pseudo-terminal: a terminal whose keyboard and screen are a descriptor.
public struct PseudoTerminal: ~Copyable, Sendable {
    /// The keyboard and screen.
    public let master: FileDescriptor
    /// The terminal that a program runs on.
    public let slave: FileDescriptor

    /// Makes a pair that is nobody's controlling terminal.
    public init() throws(SystemError) {
        let keyboard = try FileDescriptor(open: "/dev/ptmx", flags: O_RDWR | O_NOCTTY)
        let number = keyboard.raw
        var unlocked: CInt = 0
        _ = try retrying("ioctl") {
            withUnsafeMutablePointer(to: &unlocked) {
                // TIOCSPTLCK
                clinux_ioctl(number, 0x4004_5431, UInt(bitPattern: $0))
            }
        }
        slave = try Self.openSlave(of: number)
        master = keyboard
    }

    /// Opens the terminal of a keyboard and screen without a path, so that it works in every mount namespace.
    /// - Parameter isRaw: whether it is to pass bytes as they are: no echo, no line editing, no signals from keys.
    public static func openSlave(of master: CInt, isRaw: Bool = false) throws(SystemError) -> FileDescriptor {
        let flags = UInt(O_RDWR | O_NOCTTY | O_CLOEXEC)
        // TIOCGPTPEER
        let slave = FileDescriptor(owning: try retrying("ioctl") { clinux_ioctl(master, 0x5441, flags) })
        if isRaw { try setRaw(slave.raw) }
        return slave
    }

    static func setRaw(_ slave: CInt) throws(SystemError) {
        var attributes = termios()
        _ = try retrying("tcgetattr") { tcgetattr(slave, &attributes) }
        cfmakeraw(&attributes)
        _ = try retrying("tcsetattr") { tcsetattr(slave, TCSANOW, &attributes) }
    }
}
