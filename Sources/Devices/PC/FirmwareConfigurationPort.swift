import Synchronization
import VMM

/// The firmware configuration device on its ports: a selector of 16 bits at 0x510, data of 8 bits at 0x511, the address of
/// a transfer's description, big-endian, at 0x514 and, which starts it, 0x518.
///
/// As in QEMU selector and data share their ports: a word written to either selects, a byte read from either is data.
/// Other accesses are not decoded.
public final class FirmwareConfigurationPort: PortDevice, PortClaimant, Resettable {
    public static let ports: [ClosedRange<UInt16>] = [0x510...0x511, 0x514...0x51B]

    /// What is saved.
    public struct State: Codable, Hashable, Sendable {
        public var selection = FirmwareConfiguration.Selection()
        /// The high half of a transfer's address.
        public var addressHigh: UInt32 = 0
        public init() {}
    }

    private struct Live {
        var chip: FirmwareConfiguration
        var addressHigh: UInt32 = 0
    }

    private let live: Mutex<Live>
    private let memory: GuestMemory?

    /// - Parameter memory: for transfers; without it they are not there.
    public init(_ chip: FirmwareConfiguration, memory: GuestMemory? = nil) {
        live = Mutex(Live(chip: chip))
        self.memory = memory
    }

    public var claims: [PortBus.Claim] {
        [PortBus.Claim(Self.ports[0], self), PortBus.Claim(Self.ports[1], TransferPort(self))]
    }

    public func read(_ offset: UInt16, _ width: AccessWidth) -> UInt32 {
        guard width == .byte else { return UInt32(truncatingIfNeeded: width.allOnes) }
        return UInt32(live.withLock { $0.chip.readData() })
    }

    public func write(_ offset: UInt16, _ width: AccessWidth, _ value: UInt32) {
        guard width == .word else { return }
        live.withLock { $0.chip.select(UInt16(truncatingIfNeeded: value)) }
    }

    public func reset() {
        live.withLock {
            $0.chip.reset()
            $0.addressHigh = 0
        }
    }

    public func save() -> State {
        live.withLock { live in
            var state = State()
            state.selection = live.chip.selection
            state.addressHigh = live.addressHigh
            return state
        }
    }

    public func restore(_ saved: State) {
        live.withLock {
            $0.chip.selection = saved.selection
            $0.addressHigh = saved.addressHigh
        }
    }

    // MARK: Transfers

    /// Bits of a transfer's control word (FW_CFG_DMA_CTL_*). With `select` the upper half is the item.
    private enum Control {
        static let error: UInt32 = 1 << 0
        static let read: UInt32 = 1 << 1
        static let skip: UInt32 = 1 << 2
        static let select: UInt32 = 1 << 3
        static let write: UInt32 = 1 << 4
    }

    /// A description has control word, length and address, all big-endian.
    private static let descriptionByteCount = 16
    /// More than any item has. What lies behind an item's end is zeros, which a guest could ask 4 GB of, and nothing else of
    /// the machine would run meanwhile.
    private static let longestTransfer: UInt32 = 16 << 20

    /// "QEMU CFG", as a guest finds out whether transfers are there.
    private static let signature: UInt64 = 0x5145_4D55_2043_4647

    private func transfer(_ live: inout Live, _ description: UInt64) {
        guard let memory, let bytes = memory.read(description, count: Self.descriptionByteCount) else { return }
        func number(_ range: Range<Int>) -> UInt64 { bytes[range].reduce(0) { $0 << 8 | UInt64($1) } }
        let control = UInt32(truncatingIfNeeded: number(0..<4))
        let isDone = transfer(
            &live.chip, memory, control: control, count: UInt32(truncatingIfNeeded: number(4..<8)), at: number(8..<16))
        memory.store(description, (isDone ? 0 : Control.error).bigEndian)
    }

    /// - Returns: `false` for an error.
    private func transfer(
        _ chip: inout FirmwareConfiguration, _ memory: GuestMemory, control: UInt32, count: UInt32, at address: UInt64
    ) -> Bool {
        if control & Control.select != 0 { chip.select(UInt16(truncatingIfNeeded: control >> 16)) }
        if control & Control.read != 0 {
            guard count > 0 else { return true }
            guard count <= Self.longestTransfer, memory.contains(address, count: UInt64(count)) else { return false }
            let part = chip.take(count)
            return memory.write(Array(part) + Array(repeating: 0, count: Int(count) - part.count), at: address)
        }
        // No item can be written.
        if control & Control.write != 0 { return count == 0 }
        if control & Control.skip != 0 { _ = chip.take(count) }
        return true
    }

    private func readTransferRegister(_ offset: UInt16, _ width: AccessWidth) -> UInt32 {
        guard memory != nil, width != .qword else { return .max }
        var value: UInt32 = 0
        for index in 0..<UInt16(width.rawValue) {
            let place = UInt64(offset &+ index)
            let byte = place < 8 ? Self.signature >> (56 - place * 8) & 0xFF : 0xFF
            value |= UInt32(byte) << UInt32(index * 8)
        }
        return value
    }

    private func writeTransferRegister(_ offset: UInt16, _ width: AccessWidth, _ value: UInt32) {
        guard memory != nil, width == .dword else { return }
        live.withLock { live in
            switch offset {
            case 0: live.addressHigh = value.byteSwapped
            case 4:
                let address = UInt64(live.addressHigh) << 32 | UInt64(value.byteSwapped)
                live.addressHigh = 0
                transfer(&live, address)
            default: break
            }
        }
    }

    private final class TransferPort: PortDevice {
        let device: FirmwareConfigurationPort
        init(_ device: FirmwareConfigurationPort) { self.device = device }

        func read(_ offset: UInt16, _ width: AccessWidth) -> UInt32 { device.readTransferRegister(offset, width) }

        func write(_ offset: UInt16, _ width: AccessWidth, _ value: UInt32) {
            device.writeTransferRegister(offset, width, value)
        }
    }
}
