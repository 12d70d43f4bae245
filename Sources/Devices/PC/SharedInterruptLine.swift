import Synchronization
import VMM

/// A wire that several devices pull, each without knowing of the others: up while one of them does (PCI 3.0, section
/// 2.2.6). The interrupt controller has to take it as level-triggered.
///
/// Its lock nests inside a device's and outside of the interrupt controller's.
public final class SharedInterruptLine: InterruptController {
    private struct State {
        var count: UInt8 = 0
        var pulling: UInt32 = 0
    }

    private let state = Mutex(State())
    private let line: InterruptLine

    public init(_ line: InterruptLine) { self.line = line }

    /// The end of the wire for one more device.
    /// - Precondition: at most 32: the machine's own wiring.
    public func connect() -> InterruptLine {
        state.withLock { state in
            precondition(state.count < 32)
            defer { state.count += 1 }
            return InterruptLine(self, state.count)
        }
    }

    public func setLine(_ number: UInt8, _ asserted: Bool) {
        state.withLock { state in
            let before = state.pulling
            let bit = 1 as UInt32 &<< UInt32(number)
            if asserted { state.pulling |= bit } else { state.pulling &= ~bit }
            if (before == 0) != (state.pulling == 0) { line.set(state.pulling != 0) }
        }
    }
}
