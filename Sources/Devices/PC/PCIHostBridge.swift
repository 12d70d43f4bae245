import Synchronization
import VMM

/// The host bridge: PCI configuration mechanism 1 (PCI 3.0, section 3.2.2.3.2) and itself as device 0, 0b5d:0666 as on
/// OpenBSD. Port 0xCF9 in its middle is reset control.
///
/// Functions cannot come or go while the machine runs. Nobody answers on other buses, which reads as ones. The bridge's
/// reset is the bus's: all functions are reset with it.
public final class PCIHostBridge: PortDevice, PCIFunction, PortClaimant {
    public static let ports: [ClosedRange<UInt16>] = [0xCF8...0xCFF]

    /// What is saved.
    public struct State: Codable, Hashable, Sendable {
        public var address: UInt32 = 0
        public var space = PCIConfigurationSpace(vendor: 0x0B5D, device: 0x0666, classCode: 0x06_00_00)
        public init() {}
    }

    private static let enable: UInt32 = 0x8000_0000
    /// Bus, device, function, register; the rest reads as zero.
    private static let addressMask: UInt32 = 0x80FF_FFFC

    /// Registers whose change moves what a function decodes: command, base addresses.
    private static let decoders: Set<UInt8> = [0x04, 0x10, 0x14, 0x18, 0x1C, 0x20, 0x24]

    private let state = Mutex(State())
    /// Everything but the bridge itself.
    public let bus: PCIBus
    private let resetControl: ResetControl

    /// - Parameter functions: everything on the bus but the bridge itself.
    public init(resetControl: ResetControl, functions: [PCIAddress: any PCIFunction] = [:]) {
        precondition(functions[PCIAddress(device: 0)] == nil, "slot 0 is the host bridge's")
        bus = PCIBus(functions)
        self.resetControl = resetControl
    }

    public func readConfiguration(_ offset: UInt8, _ width: AccessWidth) -> UInt32 {
        state.withLock { $0.space.read(offset, width) }
    }

    public func writeConfiguration(_ offset: UInt8, _ width: AccessWidth, _ value: UInt32) {
        state.withLock { $0.space.write(offset, width, value) }
    }

    /// The bridge decodes configuration ports and nothing that could be moved.
    public var windows: [PCIConfigurationSpace.Window] { [] }
    public func read(_ index: Int, _ offset: UInt64, _ width: AccessWidth) -> UInt64 { width.allOnes }
    public func write(_ index: Int, _ offset: UInt64, _ width: AccessWidth, _ value: UInt64) {}

    /// The function that the address register selects, and the register in it.
    private var selected: (function: any PCIFunction, offset: UInt8)? {
        let address = state.withLock { $0.address }
        guard address & Self.enable != 0, address & 0x00FF_0000 == 0 else { return nil }
        let index = UInt8(truncatingIfNeeded: address >> 8)
        guard let function = index == 0 ? self : bus.function(at: index) else { return nil }
        return (function, UInt8(truncatingIfNeeded: address))
    }

    public func read(_ offset: UInt16, _ width: AccessWidth) -> UInt32 {
        switch (offset, width) {
        case (0, .dword): return state.withLock { $0.address }
        case (1, .byte): return UInt32(resetControl.read())
        case (4...7, _):
            guard let (function, register) = selected else { return .max }
            let place = UInt8(offset & 3)
            if Int(place) + width.rawValue <= 4 { return function.readConfiguration(register | place, width) }
            var value = UInt32.max
            for index in 0..<4 - place {
                let shift = UInt32(index) * 8
                value &= ~(0xFF << shift)
                value |= (function.readConfiguration(register | place + index, .byte) & 0xFF) << shift
            }
            return value
        default: return .max
        }
    }

    public func write(_ offset: UInt16, _ width: AccessWidth, _ value: UInt32) {
        switch (offset, width) {
        case (0, .dword): state.withLock { $0.address = value & Self.addressMask }
        case (1, .byte): resetControl.write(UInt8(truncatingIfNeeded: value))
        case (4...7, _):
            guard let (function, register) = selected else { return }
            let place = UInt8(offset & 3)
            if Int(place) + width.rawValue <= 4 {
                function.writeConfiguration(register | place, width, value)
            } else {
                for index in 0..<4 - place {
                    function.writeConfiguration(register | place + index, .byte, value >> (UInt32(index) * 8) & 0xFF)
                }
            }
            if Self.decoders.contains(register) { bus.refresh() }
        default: break
        }
    }

    public func reset() {
        state.withLock { $0 = State() }
        bus.reset()
    }

    public func save() -> State { state.withLock { $0 } }

    /// The functions are restored before it: the bus looks at them then.
    public func restore(_ saved: State) {
        state.withLock {
            $0.space.adopt(saved.space)
            $0.address = saved.address & Self.addressMask
        }
        bus.refresh()
    }

    public var claims: [PortBus.Claim] { [.init(Self.ports[0], self)] }
}
