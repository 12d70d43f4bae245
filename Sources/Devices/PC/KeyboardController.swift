import Synchronization
import VMM

/// The keyboard controller on ports 0x60 and 0x64, and system control port A (0x92), which does the same two things
/// faster: A20 and reset.
public final class KeyboardController: PortClaimant, Resettable {
    public static let ports: [ClosedRange<UInt16>] = [0x60...0x60, 0x64...0x64, 0x92...0x92]

    /// What is saved.
    public struct State: Codable, Hashable, Sendable {
        public var chip = I8042()
        /// Port 0x92: bit 1 A20, bit 0 reset.
        public var controlA: UInt8 = 0x02
        public init() {}
    }

    private struct Lines {
        var keyboard = false
        var auxiliary = false
    }

    private let state = Mutex((State(), Lines()))
    private let power: any PowerControl
    private let keyboardLine: InterruptLine
    private let auxiliaryLine: InterruptLine
    private let a20: AddressLine20?

    /// - Parameters:
    ///   - keyboardLine: IRQ 1.
    ///   - auxiliaryLine: IRQ 12.
    ///   - a20: open while the controller's output port or port 0x92 says so.
    public init(
        power: any PowerControl, keyboardLine: InterruptLine, auxiliaryLine: InterruptLine, a20: AddressLine20? = nil
    ) {
        self.a20 = a20
        self.power = power
        self.keyboardLine = keyboardLine
        self.auxiliaryLine = auxiliaryLine
    }

    /// - Parameter body: returns whether to reset the machine.
    private func change(_ body: (inout State) -> Bool) -> Bool {
        state.withLock { state in
            let resets = body(&state.0)
            a20?.set(open: state.0.chip.outputPort.contains(.a20) || state.0.controlA & 0x02 != 0)
            if state.0.chip.keyboardInterrupt != state.1.keyboard {
                state.1.keyboard.toggle()
                keyboardLine.set(state.1.keyboard)
            }
            if state.0.chip.auxiliaryInterrupt != state.1.auxiliary {
                state.1.auxiliary.toggle()
                auxiliaryLine.set(state.1.auxiliary)
            }
            return resets
        }
    }

    private func readData() -> UInt8 {
        var value: UInt8 = 0
        _ = change {
            value = $0.chip.readData()
            return false
        }
        return value
    }

    private func writeData(_ value: UInt8) {
        if change({ $0.chip.writeData(value) }) { power.requestReset("keyboard controller") }
    }

    private func writeCommand(_ value: UInt8) {
        if change({ $0.chip.writeCommand(value) }) { power.requestReset("keyboard controller") }
    }

    /// A rise of bit 0 resets (82371SB, section 2.5.6).
    private func writeControlA(_ value: UInt8) {
        let resets = change { state in
            let before = state.controlA
            state.controlA = value & 0x03
            return value & ~before & 1 != 0
        }
        if resets { power.requestReset("port 0x92") }
    }

    public func reset() {
        _ = change {
            $0 = State()
            return false
        }
    }

    public func save() -> State { state.withLock { $0.0 } }

    public func restore(_ saved: State) {
        _ = change {
            $0 = saved
            return false
        }
    }

    public var claims: [PortBus.Claim] {
        [
            .init(Self.ports[0], Port(read: { self.readData() }, write: { self.writeData($0) })),
            .init(Self.ports[1], Port(read: { self.save().chip.status.rawValue }, write: { self.writeCommand($0) })),
            .init(Self.ports[2], Port(read: { self.save().controlA }, write: { self.writeControlA($0) })),
        ]
    }

    /// One port.
    private final class Port: BytePortDevice {
        let readPort: @Sendable () -> UInt8
        let writePort: @Sendable (UInt8) -> Void

        init(read: @escaping @Sendable () -> UInt8, write: @escaping @Sendable (UInt8) -> Void) {
            readPort = read
            writePort = write
        }

        func readByte(_ offset: UInt16) -> UInt8 { offset == 0 ? readPort() : 0xFF }

        func writeByte(_ offset: UInt16, _ value: UInt8) {
            if offset == 0 { writePort(value) }
        }
    }
}
