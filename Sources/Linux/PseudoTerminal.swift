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
        // TIOCGPTPEER opens the other end without a path, so it works in every mount namespace.
        let flags = UInt(O_RDWR | O_NOCTTY | O_CLOEXEC)
        slave = FileDescriptor(owning: try retrying("ioctl") { clinux_ioctl(number, 0x5441, flags) })
        master = keyboard
    }
}
