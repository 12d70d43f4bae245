import Synchronization
import VMM

/// The real-time clock on ports 0x70 and 0x71 with its line to IRQ 8.
///
/// Its timer is armed only while an interrupt is enabled that can still come.
public final class MC146818Port: BytePortDevice, PortClaimant, Resettable {
    public static let ports: [ClosedRange<UInt16>] = [0x70...0x71]

    private struct State {
        var chip: MC146818
        var timer: (any DeviceTimer)?
        var isArmed = false
        var level = false
        /// What the wall clock was ahead of the other one at the last look.
        var lead: UInt64
    }

    /// A guest is told of larger steps of the wall clock: somebody set the host's, or the host slept.
    private static let largestStep: UInt64 = 5_000_000_000

    /// An alarm may be a day away, and the wall clock may be set or slewed meanwhile: look at it once a minute.
    private static let longestWait: UInt64 = 60_000_000_000

    private let state: Mutex<State>
    private let clock: any Clock
    private let line: InterruptLine
    private let onTimeStep: @Sendable () -> Void

    /// - Parameters:
    ///   - line: IRQ 8.
    ///   - memory: what the firmware finds in the CMOS memory.
    ///   - onTimeStep: called after the wall clock has jumped by more than 5 s against the other clock, at the next look
    ///     that the chip takes at it: when its registers are used or its timer fires. There is no timer for this alone.
    ///     Any thread, without locks.
    public init(
        clock: any Clock, line: InterruptLine, memory: CMOSMemory = CMOSMemory(),
        onTimeStep: @escaping @Sendable () -> Void = {}
    ) {
        var chip = MC146818()
        chip.memory = memory
        chip.account(clock.wallClock())
        // What passed before power-on is no event.
        chip.reset()
        state = Mutex(State(chip: chip, lead: clock.wallClock() &- clock.now()))
        self.clock = clock
        self.line = line
        self.onTimeStep = onTimeStep
        let timer = clock.makeTimer { [weak self] in self?.fire() }
        state.withLock { $0.timer = timer }
    }

    private func fire() {
        look { state, wall in
            state.chip.account(wall)
            settle(&state, wall)
        }
    }

    /// Changes the state at a time of the wall clock, and notices when that has jumped.
    private func look<R>(_ body: (inout State, UInt64) -> R) -> R {
        let (result, hasJumped) = state.withLock { state in
            let wall = clock.wallClock()
            let lead = wall &- clock.now()
            let step = Int64(bitPattern: lead &- state.lead).magnitude
            state.lead = lead
            return (body(&state, wall), step > Self.largestStep)
        }
        if hasJumped { onTimeStep() }
        return result
    }

    private func settle(_ state: inout State, _ wall: UInt64) {
        let level = state.chip.interruptPending
        if level != state.level {
            state.level = level
            line.set(level)
        }
        if let wait = state.chip.nanosecondsToInterrupt(wall) {
            state.timer?.arm(at: clock.now() &+ min(wait, Self.longestWait))
            state.isArmed = true
        } else if state.isArmed {
            state.timer?.cancel()
            state.isArmed = false
        }
    }

    public func readByte(_ offset: UInt16) -> UInt8 {
        guard offset == 1 else { return 0xFF }
        return look { state, wall in
            let isFlags = state.chip.index == 0x0C
            let value = state.chip.read(wall)
            if isFlags { settle(&state, wall) }
            return value
        }
    }

    public func writeByte(_ offset: UInt16, _ value: UInt8) {
        switch offset {
        case 0: state.withLock { $0.chip.select(value) }
        case 1:
            look { state, wall in
                state.chip.write(value, wall)
                settle(&state, wall)
            }
        default: break
        }
    }

    public func reset() {
        state.withLock { state in
            let wall = clock.wallClock()
            state.chip.account(wall)
            state.chip.reset()
            settle(&state, wall)
        }
    }

    public func save() -> MC146818 { state.withLock { $0.chip } }

    public func restore(_ chip: MC146818) {
        state.withLock { state in
            state.chip = chip
            settle(&state, clock.wallClock())
        }
    }

    public var claims: [PortBus.Claim] { [.init(Self.ports[0], self)] }
}
