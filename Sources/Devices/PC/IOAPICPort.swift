import Synchronization
import VMM

/// The I/O APIC in memory, with the pins that devices pull and the bus to the local APICs.
///
/// Its lock nests inside devices' and outside of the local APICs', so that messages arrive in the order of the levels
/// that they come from.
public final class IOAPICPort: InterruptController, MMIODevice, Resettable {
    public static let addresses: Range<UInt64> = 0xFEC0_0000..<0xFEC0_1000

    private let chip: Mutex<IOAPIC>
    private let bus: any InterruptCarrier

    init(id: UInt8, bus: any InterruptCarrier) {
        chip = Mutex(IOAPIC(id: id))
        self.bus = bus
    }

    /// A line is a pin.
    public func setLine(_ number: UInt8, _ asserted: Bool) { send { $0.setPin(Int(number), asserted) } }

    private func send(_ body: (inout IOAPIC) -> InterruptMessage?) {
        chip.withLock { chip in
            if let message = body(&chip) { bus.deliver(message) }
        }
    }

    func endInterrupt(_ vector: UInt8) {
        chip.withLock { chip in
            for pin in 0..<IOAPIC.pinCount {
                if let message = chip.endInterrupt(vector, pin: pin) { bus.deliver(message) }
            }
        }
    }

    /// Whether a pin's interrupt is requested and not yet in service: another edge would be lost.
    func isWaiting(pin: Int) -> Bool { chip.withLock { chip in chip.vector(ofPin: pin).map(bus.isWaiting) ?? false } }

    // MARK: Registers

    private enum Offset {
        static let select: UInt64 = 0x00
        static let window: UInt64 = 0x10
        static let endOfInterrupt: UInt64 = 0x40
    }

    /// Registers have 32 bits; narrower reads see their part.
    public func read(_ offset: UInt64, _ width: AccessWidth) -> UInt64 {
        let value: UInt32 =
            switch offset & ~3 {
            case Offset.select: UInt32(chip.withLock { $0.selected })
            case Offset.window: chip.withLock { $0.read() }
            default: 0
            }
        return UInt64(value) >> ((offset & 3) * 8)
    }

    public func write(_ offset: UInt64, _ width: AccessWidth, _ value: UInt64) {
        let value = UInt32(truncatingIfNeeded: value)
        switch offset {
        case Offset.select: chip.withLock { $0.selected = UInt8(truncatingIfNeeded: value) }
        case Offset.window:
            chip.withLock { chip in
                let message = chip.write(value)
                // Before the message, so that its end is told.
                bus.tableChanged(chip)
                if let message { bus.deliver(message) }
            }
        case Offset.endOfInterrupt: endInterrupt(UInt8(truncatingIfNeeded: value))
        default: break
        }
    }

    public func reset() { replace { $0.reset() } }

    private func replace(_ body: (inout IOAPIC) -> Void) {
        chip.withLock { chip in
            body(&chip)
            bus.tableChanged(chip)
        }
    }

    public func save() -> IOAPIC { chip.withLock { $0 } }

    public func restore(_ chip: IOAPIC) { replace { $0 = chip } }
}
