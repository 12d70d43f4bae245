import Synchronization
import VMM

/// The interrupt controller of a PC: two 8259A, their ports, the ELCR, and the INTR line to a virtual CPU.
///
/// The innermost lock of a machine: devices call `setLine` with their own lock held, and nothing is called from
/// here with the lock held.
public final class I8259Pair: InterruptController, InterruptSource, PortClaimant, Resettable {
    public static let ports: [ClosedRange<UInt16>] = [0x20...0x21, 0xA0...0xA1, 0x4D0...0x4D1]

    private struct State {
        var chips = I8259Cascade()
        var notify: (@Sendable () -> Void)?
    }

    private let state = Mutex(State())
    /// A copy of INTR that CPUs may look at without the lock.
    private let pending = Atomic(false)

    public init() {}

    public var isPending: Bool { pending.load(ordering: .acquiring) }

    /// Sets what is called when INTR rises, and calls it when INTR is up already. It runs on the thread that
    /// caused the rise, which may be the virtual CPU's own, with a device's lock held. INTR that stays up is not
    /// announced again: a CPU looks at `isPending` after each acknowledgement and when it can take interrupts.
    public func onInterruptRequest(_ notify: (@Sendable () -> Void)?) {
        state.withLock { $0.notify = notify }
        if isPending { notify?() }
    }

    public func setLine(_ number: UInt8, _ asserted: Bool) { change { $0.setLine(number, asserted) } }

    public func acknowledge() -> UInt8 {
        state.withLock { state in
            let vector = state.chips.acknowledge()
            pending.store(state.chips.isInterrupting, ordering: .releasing)
            return vector
        }
    }

    /// Whether IRQ `number` is requested and not masked: another edge would be lost. Any thread; may be called
    /// with a device's lock held.
    public func isWaiting(_ number: UInt8) -> Bool { state.withLock { $0.chips.isWaiting(number) } }

    /// What a PC's firmware does for the lines of PCI: the ELCR says which are level-triggered.
    public func setLevelTriggered(_ lines: some Sequence<UInt8>) {
        let mask = lines.reduce(0 as UInt16) { $0 | 1 &<< UInt16($1 & 15) }
        change { chips in
            chips.changeMaster { $0.writeELCR($0.elcr | UInt8(truncatingIfNeeded: mask)) }
            chips.changeSlave { $0.writeELCR($0.elcr | UInt8(truncatingIfNeeded: mask >> 8)) }
        }
    }

    public func reset() { change { $0.reset() } }

    public func save() -> I8259Cascade { state.withLock { $0.chips } }

    public func restore(_ chips: I8259Cascade) { change { $0 = chips } }

    @inline(__always)
    fileprivate func change<R>(_ body: (inout I8259Cascade) -> R) -> R {
        let (result, notify) = state.withLock { state in
            let result = body(&state.chips)
            let now = state.chips.isInterrupting
            guard now != pending.load(ordering: .relaxed) else { return (result, nil as (@Sendable () -> Void)?) }
            pending.store(now, ordering: .releasing)
            return (result, now ? state.notify : nil)
        }
        notify?()
        return result
    }

    public var claims: [PortBus.Claim] {
        [
            .init(Self.ports[0], CommandPorts(self, isMaster: true)),
            .init(Self.ports[1], CommandPorts(self, isMaster: false)),
            .init(Self.ports[2], LevelPorts(self)),
        ]
    }

    /// The two ports of one chip.
    private final class CommandPorts: BytePortDevice {
        let pair: I8259Pair
        let isMaster: Bool

        init(_ pair: I8259Pair, isMaster: Bool) {
            self.pair = pair
            self.isMaster = isMaster
        }

        func readByte(_ offset: UInt16) -> UInt8 {
            guard offset < 2 else { return 0xFF }
            return pair.change { chips in
                isMaster
                    ? chips.changeMaster { $0.read(odd: offset == 1) } : chips.changeSlave { $0.read(odd: offset == 1) }
            }
        }

        func writeByte(_ offset: UInt16, _ value: UInt8) {
            guard offset < 2 else { return }
            pair.change { chips in
                isMaster
                    ? chips.changeMaster { $0.write(odd: offset == 1, value) }
                    : chips.changeSlave { $0.write(odd: offset == 1, value) }
            }
        }
    }

    /// The edge/level control registers.
    private final class LevelPorts: BytePortDevice {
        let pair: I8259Pair

        init(_ pair: I8259Pair) { self.pair = pair }

        func readByte(_ offset: UInt16) -> UInt8 {
            switch offset {
            case 0: pair.state.withLock { $0.chips.master.elcr }
            case 1: pair.state.withLock { $0.chips.slave.elcr }
            default: 0xFF
            }
        }

        func writeByte(_ offset: UInt16, _ value: UInt8) {
            switch offset {
            case 0: pair.change { chips in chips.changeMaster { $0.writeELCR(value) } }
            case 1: pair.change { chips in chips.changeSlave { $0.writeELCR(value) } }
            default: break
            }
        }
    }
}
