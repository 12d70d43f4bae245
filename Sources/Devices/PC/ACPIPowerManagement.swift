import Synchronization
import VMM

/// ACPI's fixed registers on their ports: power button, soft off and the power management timer.
public final class ACPIPowerManagement: BytePortDevice, PortClaimant, Resettable {
    public static let eventPort: UInt16 = 0xB000
    public static let controlPort: UInt16 = 0xB008
    public static let timerPort: UInt16 = 0xB00C
    public static let ports: [ClosedRange<UInt16>] = [0xB000...0xB00F]

    private struct State {
        var chip: ACPIRegisters
        var timer: (any DeviceTimer)?
        var isArmed = false
        var level = false
    }

    private let state: Mutex<State>
    private let clock: any Clock
    private let line: InterruptLine
    private let power: any PowerControl

    /// - Parameters:
    ///   - line: the SCI, IRQ 9, level-triggered.
    ///   - timerBits: 24 or 32, as the FADT says.
    public init(clock: any Clock, line: InterruptLine, power: any PowerControl, timerBits: UInt8 = 24) {
        var chip = ACPIRegisters(timerBits: timerBits)
        chip.reset(TickRate.acpi.ticks(at: clock.now()))
        state = Mutex(State(chip: chip))
        self.clock = clock
        self.line = line
        self.power = power
        let timer = clock.makeTimer { [weak self] in self?.change { _, _ in } }
        state.withLock { $0.timer = timer }
    }

    private var now: UInt64 { TickRate.acpi.ticks(at: clock.now()) }

    private func change<R>(_ body: (inout ACPIRegisters, UInt64) -> R) -> R {
        state.withLock { state in
            let now = now
            state.chip.account(now)
            let result = body(&state.chip, now)
            let level = state.chip.interruptPending
            if level != state.level {
                state.level = level
                line.set(level)
            }
            if let tick = state.chip.nextOverflow(now) {
                state.timer?.arm(at: TickRate.acpi.nanoseconds(at: tick))
                state.isArmed = true
            } else if state.isArmed {
                state.timer?.cancel()
                state.isArmed = false
            }
            return result
        }
    }

    /// Somebody presses the machine's power button: the guest is asked to shut down. Any thread.
    public func pressPowerButton() { change { chip, _ in chip.pressPowerButton() } }

    /// The timer is a clock source for guests: one read, one lock.
    public func read(_ offset: UInt16, _ width: AccessWidth) -> UInt32 {
        if offset == 12, width == .dword { return state.withLock { $0.chip.timer(now) } }
        var value: UInt32 = 0
        for index in 0..<UInt16(min(width.rawValue, 4)) {
            value |= UInt32(readByte(offset &+ index)) << UInt32(index * 8)
        }
        return value
    }

    public func readByte(_ offset: UInt16) -> UInt8 { change { $0.read(offset, $1) } }

    public func writeByte(_ offset: UInt16, _ value: UInt8) {
        if change({ $0.write(offset, value, $1) }) { power.requestPowerOff() }
    }

    public func reset() { change { $0.reset($1) } }

    /// The chip with its ticks counted from now.
    public func save() -> ACPIRegisters {
        change { chip, now in
            var chip = chip
            chip.shift(by: 0 &- now)
            return chip
        }
    }

    public func restore(_ chip: ACPIRegisters) {
        change { current, now in
            current = chip
            current.shift(by: now)
        }
    }

    public var claims: [PortBus.Claim] { [.init(Self.ports[0], self)] }
}
