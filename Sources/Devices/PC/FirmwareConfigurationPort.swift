import Synchronization
import VMM

/// The firmware configuration device on its ports: a selector of 16 bits at 0x510, data of 8 bits at 0x511.
///
/// As in QEMU the two registers share their ports: a word written to either selects, a byte read from either is data.
/// Other accesses are not decoded.
public final class FirmwareConfigurationPort: PortDevice, PortClaimant, Resettable {
    public static let ports: [ClosedRange<UInt16>] = [0x510...0x511]

    private let chip: Mutex<FirmwareConfiguration>

    public init(_ chip: FirmwareConfiguration) { self.chip = Mutex(chip) }

    public var claims: [PortBus.Claim] { Self.ports.map { PortBus.Claim($0, self) } }

    public func read(_ offset: UInt16, _ width: AccessWidth) -> UInt32 {
        guard width == .byte else { return UInt32(truncatingIfNeeded: width.allOnes) }
        return UInt32(chip.withLock { $0.readData() })
    }

    public func write(_ offset: UInt16, _ width: AccessWidth, _ value: UInt32) {
        guard width == .word else { return }
        chip.withLock { $0.select(UInt16(truncatingIfNeeded: value)) }
    }

    public func reset() { chip.withLock { $0.reset() } }

    public func save() -> FirmwareConfiguration.Selection { chip.withLock { $0.selection } }

    public func restore(_ saved: FirmwareConfiguration.Selection) { chip.withLock { $0.selection = saved } }
}
