import VMM

/// A port device whose registers are one byte each, as on the ISA bus, where a wider access is split into byte
/// cycles at consecutive ports.
///
/// Any offset may come: an access that starts inside a claim can end behind it. Offsets outside the device read
/// 0xFF and swallow writes.
public protocol BytePortDevice: PortDevice {
    func readByte(_ offset: UInt16) -> UInt8
    func writeByte(_ offset: UInt16, _ value: UInt8)
}

extension BytePortDevice {
    public func read(_ offset: UInt16, _ width: AccessWidth) -> UInt32 {
        var value = UInt32(readByte(offset))
        guard width != .byte else { return value }
        for index in 1..<UInt16(min(width.rawValue, 4)) {
            value |= UInt32(readByte(offset &+ index)) << UInt32(index * 8)
        }
        return value
    }

    public func write(_ offset: UInt16, _ width: AccessWidth, _ value: UInt32) {
        writeByte(offset, UInt8(truncatingIfNeeded: value))
        guard width != .byte else { return }
        for index in 1..<UInt16(min(width.rawValue, 4)) {
            writeByte(offset &+ index, UInt8(truncatingIfNeeded: value >> UInt32(index * 8)))
        }
    }
}

/// A device that the machine's wiring puts on the port bus. The claims hold the device, which need not be kept
/// elsewhere.
public protocol PortClaimant: AnyObject, Sendable {
    /// All ports that the device answers, in ascending order.
    static var ports: [ClosedRange<UInt16>] { get }
    /// One claim for each of `ports`.
    var claims: [PortBus.Claim] { get }
}

/// The RESET# line: puts a device into the state it has after power-on, without losing what a battery or a
/// strap keeps (time of day, CMOS memory, addresses).
public protocol Resettable: AnyObject, Sendable {
    func reset()
}
