import VMM

/// The port by which test kernels end a machine with a status, as QEMU's isa-debug-exit does: a write of v, at any
/// width, ends it with (v << 1) | 1, of which a process's exit status has the lowest eight bits.
///
/// Reads answer zeros, as QEMU's does. The status is odd whatever the guest writes, so it is never mistaken for a
/// power-off.
public final class DebugExit: PortDevice {
    private let end: @Sendable (_ status: UInt8) -> Void

    /// - Parameter end: called on the vCPU's thread, for each write.
    public init(_ end: @escaping @Sendable (_ status: UInt8) -> Void) { self.end = end }

    /// The device's claim: one port.
    public func claim(_ port: UInt16) -> PortBus.Claim { PortBus.Claim(port...port, self) }

    public func read(_ offset: UInt16, _ width: AccessWidth) -> UInt32 { 0 }

    public func write(_ offset: UInt16, _ width: AccessWidth, _ value: UInt32) {
        end(UInt8(truncatingIfNeeded: value) << 1 | 1)
    }
}
