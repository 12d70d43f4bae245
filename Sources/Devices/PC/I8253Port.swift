import Synchronization
import VMM

/// The interval timer on its ports, with the clock that drives it and the line to IRQ 0.
///
/// Counts are computed from the clock when somebody looks. The only thing that ever waits is one timer, armed while
/// OUT 0 has an edge ahead.
public final class I8253Port: BytePortDevice, PortClaimant, Resettable {
    public static let ports: [ClosedRange<UInt16>] = [0x40...0x43, 0x61...0x61]

    private struct State {
        var chip = I8253()
        var timer: (any DeviceTimer)?
        var deadline: UInt64?
        var level = false
    }

    private let state = Mutex(State())
    private let clock: any Clock
    private let line: InterruptLine
    private let isWaiting: @Sendable () -> Bool

    /// - Parameters:
    ///   - line: IRQ 0.
    ///   - isWaiting: whether the interrupt controller has a tick that the guest has not taken, so that another one
    ///     would be lost: `I8259Pair.isWaiting(0)`.
    public init(clock: any Clock, line: InterruptLine, isWaiting: @escaping @Sendable () -> Bool = { false }) {
        self.clock = clock
        self.line = line
        self.isWaiting = isWaiting
        let timer = clock.makeTimer { [weak self] in self?.settle() }
        state.withLock {
            $0.chip.reset(TickRate.pit.ticks(at: clock.now()))
            $0.timer = timer
        }
    }

    private var now: UInt64 { TickRate.pit.ticks(at: clock.now()) }

    /// Brings line and timer into accord with the chip.
    private func settle() { state.withLock { settle(&$0, now) } }

    private func settle(_ state: inout State, _ now: UInt64) {
        let interrupt = state.chip.interrupt(now, isWaiting: isWaiting())
        if interrupt.rises {
            if state.level { line.set(false) }
            line.set(true)
            state.level = true
        }
        if interrupt.level != state.level {
            line.set(interrupt.level)
            state.level = interrupt.level
        }
        let deadline = state.chip.nextInterrupt(now).map(TickRate.pit.nanoseconds(at:))
        if let deadline {
            state.timer?.arm(at: deadline)
        } else if state.deadline != nil {
            state.timer?.cancel()
        }
        state.deadline = deadline
    }

    public func readByte(_ offset: UInt16) -> UInt8 { state.withLock { $0.chip.read(offset, now) } }

    public func writeByte(_ offset: UInt16, _ value: UInt8) {
        state.withLock { state in
            let now = now
            // Edges before the write belong to what was programmed then.
            settleIfDue(&state, now)
            state.chip.write(offset, value, now)
            if offset == 0 || offset == 3 { settle(&state, now) }
        }
    }

    private func settleIfDue(_ state: inout State, _ now: UInt64) {
        if let deadline = state.deadline, TickRate.pit.ticks(at: deadline) <= now { settle(&state, now) }
    }

    fileprivate func readControl() -> UInt8 { state.withLock { $0.chip.readControl(now) } }

    fileprivate func writeControl(_ value: UInt8) { state.withLock { $0.chip.writeControl(value, now) } }

    public func reset() {
        state.withLock { state in
            let now = now
            state.chip.reset(now)
            settle(&state, now)
        }
    }

    /// The chip with its ticks counted from now.
    public func save() -> I8253 {
        state.withLock { state in
            let now = now
            settleIfDue(&state, now)
            var chip = state.chip
            chip.shift(by: 0 &- now)
            return chip
        }
    }

    public func restore(_ chip: I8253) {
        state.withLock { state in
            let now = now
            state.chip = chip
            state.chip.shift(by: now)
            settle(&state, now)
        }
    }

    public var claims: [PortBus.Claim] {
        [.init(Self.ports[0], self), .init(Self.ports[1], ControlPort(self))]
    }

    /// Port 0x61, system control port B.
    private final class ControlPort: BytePortDevice {
        let timer: I8253Port

        init(_ timer: I8253Port) { self.timer = timer }

        func readByte(_ offset: UInt16) -> UInt8 { offset == 0 ? timer.readControl() : 0xFF }

        func writeByte(_ offset: UInt16, _ value: UInt8) {
            if offset == 0 { timer.writeControl(value) }
        }
    }
}
