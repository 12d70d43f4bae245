import Synchronization
import VMM

/// The other end of a serial line.
public protocol SerialTerminal: AnyObject, Sendable {
    /// A byte from the guest. Called on the virtual CPU's thread without locks; a terminal that is slow may block
    /// here, which slows the guest down and loses nothing.
    func send(_ byte: UInt8)
    /// After `receive` took less than it was given: there is room again. Called on the virtual CPU's thread without
    /// locks. `receive` may be called from here, but then a guest's interrupt handler never sees the end of a long
    /// input and nothing else in the guest runs: a terminal does better to wake a thread of its own.
    func roomAvailable()
}

/// A serial port of a PC: the 16550A with its interrupt line and its terminal.
public final class SerialPort: BytePortDevice, PortClaimant, Resettable {
    public static let ports: [ClosedRange<UInt16>] = [0x3F8...0x3FF]

    private struct State {
        var chip = UART16550()
        var level = false
        /// The terminal has more than we took.
        var isOwedRoom = false
        /// Input flows from here on.
        var quietUntil: UInt64 = 0
        var timer: (any DeviceTimer)?
    }

    private let state = Mutex(State())
    private let line: InterruptLine
    private let terminal: any SerialTerminal
    private let base: UInt16
    private let clock: (any Clock)?

    /// How long the line is quiet after a driver has set the chip up. On a wire the next character takes its time;
    /// here it would come between two instructions of a driver that reads the receiver once more "for luck" and then
    /// switches the FIFOs on, which empties them. Characters would be lost that somebody had waiting.
    private static let quietNanoseconds: UInt64 = 1_000_000

    /// - Parameters:
    ///   - base: the first port: 0x3F8 for COM1.
    ///   - line: IRQ 4 for COM1.
    ///   - clock: times the quiet after a set-up; without it there is none.
    public init(
        base: UInt16 = 0x3F8, line: InterruptLine, terminal: any SerialTerminal, clock: (any Clock)? = nil
    ) {
        precondition(base <= 0xFFF8)
        self.base = base
        self.line = line
        self.terminal = terminal
        self.clock = clock
        let timer = clock?.makeTimer { [weak self] in self?.quietEnded() }
        state.withLock { $0.timer = timer }
    }

    private func quietEnded() {
        if state.withLock({ takeRoom(&$0) }) { terminal.roomAvailable() }
    }

    /// Whether the driver has just set the chip up. If so, the timer is set to look again.
    private func isQuiet(_ state: inout State) -> Bool {
        guard let clock, clock.now() < state.quietUntil else { return false }
        state.timer?.arm(at: state.quietUntil)
        return true
    }

    /// Sets the line where it changed: two CPUs must not reorder levels, so this is done inside the lock.
    private func settle(_ state: inout State) {
        let level = state.chip.interruptPending
        guard level != state.level else { return }
        state.level = level
        line.set(level)
    }

    /// Whether the terminal has to be told that it may go on. A full FIFO is emptied first: a call for each byte
    /// would cost more than it brings.
    private func takeRoom(_ state: inout State) -> Bool {
        guard state.isOwedRoom, state.chip.receiver.isEmpty, state.chip.room > 0, !isQuiet(&state) else {
            return false
        }
        state.isOwedRoom = false
        return true
    }

    public func readByte(_ offset: UInt16) -> UInt8 {
        guard let register = UART16550.Register(rawValue: offset) else { return 0xFF }
        let (value, hasRoom) = state.withLock { state in
            let value = state.chip.read(register)
            settle(&state)
            return (value, takeRoom(&state))
        }
        if hasRoom { terminal.roomAvailable() }
        return value
    }

    public func writeByte(_ offset: UInt16, _ value: UInt8) {
        guard let register = UART16550.Register(rawValue: offset) else { return }
        let (sent, hasRoom) = state.withLock { state in
            let before = state.chip.setUp
            let sent = state.chip.write(register, value)
            if let clock, register == .iir || state.chip.setUp != before {
                state.quietUntil = clock.now() &+ Self.quietNanoseconds
            }
            settle(&state)
            if sent != nil {
                state.chip.finishSending()
                settle(&state)
            }
            return (sent, takeRoom(&state))
        }
        if let sent { terminal.send(sent) }
        if hasRoom { terminal.roomAvailable() }
    }

    /// Whether a driver waits for input by interrupt, as operating systems do and boot loaders and firmware do not. Any thread.
    public var isDrivenByInterrupts: Bool { state.withLock { $0.chip.ier.contains(.erbfi) } }

    /// Input from the terminal. Any thread.
    /// - Returns: how many bytes were taken, from the first. If not all, `roomAvailable` follows.
    public func receive(_ bytes: some Collection<UInt8>) -> Int {
        state.withLock { state in
            var taken = 0
            var room = isQuiet(&state) ? 0 : state.chip.room
            for byte in bytes {
                guard room > 0 else {
                    state.isOwedRoom = true
                    break
                }
                state.chip.receive(byte)
                room -= 1
                taken += 1
            }
            settle(&state)
            return taken
        }
    }

    /// A break from the terminal. Any thread. `false` when there is no room for it now, and `roomAvailable` follows.
    public func receiveBreak() -> Bool {
        state.withLock { state in
            let isTaken = !isQuiet(&state) && state.chip.receiveBreak()
            if !isTaken { state.isOwedRoom = true }
            settle(&state)
            return isTaken
        }
    }

    /// The terminal's modem lines changed: hanging up drops DCD, for instance. Any thread.
    public func setModemInputs(_ lines: UART16550.MSR) {
        state.withLock { state in
            state.chip.setModemInputs(lines)
            settle(&state)
        }
    }

    /// Bytes in the FIFO that the guest has not read are lost; the terminal's modem lines stay.
    public func reset() {
        state.withLock { state in
            state.chip = UART16550(modemInputs: state.chip.modemInputs)
            settle(&state)
        }
    }

    public func save() -> UART16550 { state.withLock { $0.chip } }

    /// The terminal should offer its input again afterwards.
    public func restore(_ chip: UART16550) {
        state.withLock { state in
            state.chip = chip
            settle(&state)
        }
    }

    public var claims: [PortBus.Claim] { [.init(base...(base + 7), self)] }
}
