import Synchronization
import VMM

/// vmmci(4) on the PCI bus, 0b5d:0777, with the time that it gives a guest.
///
/// A guest that is asked to reboot has 3 s to acknowledge, then 120 s until it is gone; what happens to one that does not
/// keep to that is the machine's to decide. A guest that says by itself that it switches off has 3 s to do it, then
/// its power is cut: not every guest knows how to do that.
public final class VMMCIFunction: PCIFunction {
    /// What the guest made of a request. Called without locks, on vCPU and timer threads.
    public enum Event: Hashable, Sendable {
        /// The guest is doing what it was asked.
        case acknowledged
        /// It did not acknowledge (`false`), or did and is still there (`true`).
        case timedOut(wasAcknowledged: Bool)
        /// The guest switches itself off.
        case shutsDown
    }

    /// What the timer runs for.
    public enum Phase: UInt8, Codable, Sendable { case idle, awaitsAcknowledgement, awaitsEnd, switchesOff }

    /// What is saved.
    public struct State: Codable, Hashable, Sendable {
        public var space: PCIConfigurationSpace
        public var chip = VMMCI()
        public var phase = Phase.idle
        /// Nanoseconds of the clock; of the saved state, what is left.
        public var deadline: UInt64 = 0
    }

    private static let shortTimeout: UInt64 = 3_000_000_000
    private static let longTimeout: UInt64 = 120_000_000_000
    private static let portCount: UInt32 = 0x1000

    private struct Live {
        var state: State
        var level = false
        var timer: (any DeviceTimer)?
    }

    private let live: Mutex<Live>
    private let initial: PCIConfigurationSpace
    private let clock: any Clock
    private let line: InterruptLine
    private let power: any PowerControl
    private let onEvent: @Sendable (Event) -> Void

    /// - Parameters:
    ///   - ports: where the base address is after power-on.
    ///   - line: the wire of INTA.
    ///   - lineNumber: its number, for the guest.
    public init(
        clock: any Clock, ports: UInt16, line: InterruptLine, lineNumber: UInt8, power: any PowerControl,
        onEvent: @escaping @Sendable (Event) -> Void = { _ in }
    ) {
        var space = PCIConfigurationSpace(
            vendor: 0x0B5D, device: 0x0777, classCode: 0x07_80_00, subsystemVendor: 0x0B5D, subsystem: 0xFFFF)
        space.addBaseAddress(0, .ports, byteCount: Self.portCount, at: UInt32(ports))
        space.addInterrupt(line: lineNumber)
        initial = space
        live = Mutex(Live(state: State(space: space)))
        self.clock = clock
        self.line = line
        self.power = power
        self.onEvent = onEvent
        let timer = clock.makeTimer { [weak self] in self?.expire() }
        live.withLock { $0.timer = timer }
    }

    // MARK: The host's side

    /// Whether a driver runs that answers commands.
    public var answersCommands: Bool {
        live.withLock { $0.state.chip.isDriverReady && $0.state.chip.guestFeatures.contains(.acknowledge) }
    }

    /// Asks the guest to shut down or to reboot, and watches that it does. Any thread.
    /// - Returns: `false` when no driver answers. A request that the guest is working on is not repeated.
    public func request(_ command: VMMCI.Command) -> Bool {
        live.withLock { live in
            guard live.state.chip.isDriverReady, live.state.chip.guestFeatures.contains(.acknowledge) else { return false }
            guard live.state.phase == .idle else { return true }
            live.state.chip.post(command)
            arm(&live, .awaitsAcknowledgement, Self.shortTimeout)
            settle(&live)
            return true
        }
    }

    /// Asks the guest to set its clock. Any thread.
    /// - Returns: `false` when no driver knows how, or the guest is about to end.
    @discardableResult public func synchronizeClock() -> Bool {
        live.withLock { live in
            guard live.state.chip.isDriverReady, live.state.chip.guestFeatures.contains(.clockSync) else { return false }
            guard live.state.chip.command == .none else { return live.state.chip.command == .synchronizeClock }
            live.state.chip.post(.synchronizeClock)
            settle(&live)
            return true
        }
    }

    /// Whether the guest has said that it switches itself off.
    public var isSwitchingOff: Bool { live.withLock { $0.state.phase == .switchesOff } }

    // MARK: Inside

    private func arm(_ live: inout Live, _ phase: Phase, _ nanoseconds: UInt64) {
        live.state.phase = phase
        live.state.deadline = clock.now() &+ nanoseconds
        live.timer?.arm(at: live.state.deadline)
    }

    private func disarm(_ live: inout Live) {
        guard live.state.phase != .idle else { return }
        live.state.phase = .idle
        live.timer?.cancel()
    }

    private func expire() {
        let ended = live.withLock { live in
            guard live.state.phase != .idle else { return Phase.idle }
            // Too early: a firing that was under way when the deadline moved.
            guard clock.now() >= live.state.deadline else {
                live.timer?.arm(at: live.state.deadline)
                return .idle
            }
            defer { live.state.phase = .idle }
            return live.state.phase
        }
        switch ended {
        case .idle: break
        case .awaitsAcknowledgement: onEvent(.timedOut(wasAcknowledged: false))
        case .awaitsEnd: onEvent(.timedOut(wasAcknowledged: true))
        case .switchesOff: power.requestPowerOff()
        }
    }

    private func settle(_ live: inout Live) {
        let level = live.state.space.setInterrupt(live.state.chip.interruptPending)
        guard level != live.level else { return }
        live.level = level
        line.set(level)
    }

    // MARK: The guest's side

    public func readConfiguration(_ offset: UInt8, _ width: AccessWidth) -> UInt32 {
        live.withLock { $0.state.space.read(offset, width) }
    }

    public func writeConfiguration(_ offset: UInt8, _ width: AccessWidth, _ value: UInt32) {
        live.withLock { live in
            live.state.space.write(offset, width, value)
            settle(&live)
        }
    }

    public var windows: [PCIConfigurationSpace.Window] { live.withLock { $0.state.space.windows } }

    public func read(_ index: Int, _ offset: UInt64, _ width: AccessWidth) -> UInt64 {
        live.withLock { live in
            let value = live.state.chip.read(offset, width.rawValue) { clock.wallClock() }
            settle(&live)
            return value
        }
    }

    public func write(_ index: Int, _ offset: UInt64, _ width: AccessWidth, _ value: UInt64) {
        let event: Event? = live.withLock { live in
            let effect = live.state.chip.write(offset, width.rawValue, value)
            settle(&live)
            switch effect {
            case .nothing, .reset, .acknowledged(.none), .acknowledged(.synchronizeClock): return nil
            case .acknowledged(.shutdown), .acknowledged(.reboot):
                // Once: a guest cannot put its end off by saying it again.
                guard live.state.phase == .awaitsAcknowledgement else { return nil }
                arm(&live, .awaitsEnd, Self.longTimeout)
                return .acknowledged
            case .shutsDown:
                guard live.state.phase == .idle else { return nil }
                arm(&live, .switchesOff, Self.shortTimeout)
                return .shutsDown
            }
        }
        if let event { onEvent(event) }
    }

    // MARK: State

    public func reset() {
        live.withLock { live in
            disarm(&live)
            live.state = State(space: initial)
            settle(&live)
        }
    }

    public func save() -> State {
        live.withLock { live in
            var state = live.state
            let now = clock.now()
            state.deadline = state.phase == .idle || state.deadline < now ? 0 : state.deadline - now
            return state
        }
    }

    /// `PCIHostBridge.restore` follows, for the base address.
    public func restore(_ saved: State) {
        live.withLock { live in
            disarm(&live)
            live.state.space.adopt(saved.space)
            live.state.chip = saved.chip
            if saved.phase != .idle { arm(&live, saved.phase, min(saved.deadline, Self.longTimeout)) }
            settle(&live)
        }
    }
}
