import Devices
import Synchronization
import VMM

/// What its owner can do with a machine that runs, and what he hears of it. All of it from any thread.
extension Machine {
    /// How a guest is asked to shut down.
    public enum ShutdownMethod: Hashable, Sendable {
        /// By vmmci(4), whose driver answers.
        case controlDevice
        /// By ACPI's power button, which a guest may ignore.
        case powerButton
    }

    /// Something that happened to a machine. Events come on the thread that caused them, with nothing locked; those of the
    /// guest's own doing come in the order in which it did it.
    public enum Event: Hashable, Sendable {
        /// The virtual CPU runs.
        case started
        /// The guest reset itself and boots again; why, and where it was.
        case restarted(String)
        case paused
        case unpaused
        case shutdownRequested(ShutdownMethod)
        /// vmmci's driver has seen the request and the guest goes down. A guest that does so by itself and says so counts.
        case shutdownAcknowledged
        /// The guest did not go down in time. It is left alone: `requestStop` ends it.
        case shutdownTimedOut(ShutdownMethod, wasAcknowledged: Bool)
        /// The last event.
        case ended(Outcome)
    }

    /// Asks the guest to shut down: through vmmci when its driver answers, else by the power button.
    ///
    /// vmmci's guest has 3 s to acknowledge and 120 s to go; one that gets the power button has 120 s. Then
    /// `Event.shutdownTimedOut` comes, and asking again asks again. vmmci asks for a reboot, as vmd does, so that a guest without
    /// ACPI does not wait for a key at its end: the reset that follows ends the machine, as does any other after this,
    /// until the power button has timed out. Those times stand still while the machine is paused.
    @discardableResult
    public func requestShutdown() -> ShutdownMethod {
        defer { haltWatch?.start() }
        return shutdown.request()
    }

    /// Stops the virtual CPU between two instructions, and the guest's time with it: timers, the time-stamp counter and
    /// kvm-clock go on later as if nothing had been. The real-time clock's time of day goes on, as a battery's does.
    /// - Parameter answer: called once: `true` when the machine stands still, at once if it does already; `false` when
    ///   `unpause` came before that or the machine ended. Usually on the machine's thread: do not block in it.
    public func pause(_ answer: @escaping @Sendable (Bool) -> Void = { _ in }) { requests.requestPause(true, answer) }

    /// Lets a paused machine go on. A guest that has vmmci's driver is asked to set its clock; others are behind by
    /// the length of the pause until their time daemon notices.
    /// - Parameter answer: as for `pause`: `true` when the machine runs.
    public func unpause(_ answer: @escaping @Sendable (Bool) -> Void = { _ in }) { requests.requestPause(false, answer) }

    /// Tells a guest that knows vmmci to set its clock: for an owner who notices that the host's time was set or that
    /// the host slept. The machine notices by itself only when the guest uses its real-time clock.
    public func synchronizeClock() { board.controlDevice.synchronizeClock() }
}

/// The shutdown that was asked for, if any.
final class ShutdownControl: Sendable {
    private struct State {
        var method: Machine.ShutdownMethod?
        var powerButtonTimer: (any DeviceTimer)?
        var deadline: UInt64 = 0
    }

    private static let powerButtonTimeout: UInt64 = 120_000_000_000

    private let state = Mutex(State())
    private let board: Board
    private let clock: any Clock
    private let report: @Sendable (Machine.Event) -> Void

    init(_ board: Board, clock: any Clock, report: @escaping @Sendable (Machine.Event) -> Void) {
        self.board = board
        self.clock = clock
        self.report = report
        let timer = clock.makeTimer { [weak self] in self?.expire() }
        state.withLock { $0.powerButtonTimer = timer }
    }

    /// Whether the guest's next reset, or a halt for good, ends the machine as it should.
    var isExpected: Bool { state.withLock { $0.method != nil } || board.controlDevice.isSwitchingOff }

    func request() -> Machine.ShutdownMethod {
        if board.controlDevice.answersCommands {
            // Before the guest can answer, so that its answer finds this and comes after it.
            state.withLock { $0.method = .controlDevice }
            report(.shutdownRequested(.controlDevice))
            if board.controlDevice.request(.reboot) { return .controlDevice }
        }
        state.withLock { state in
            state.method = .powerButton
            state.deadline = clock.now() &+ Self.powerButtonTimeout
            state.powerButtonTimer?.arm(at: state.deadline)
        }
        report(.shutdownRequested(.powerButton))
        board.powerManagement.pressPowerButton()
        return .powerButton
    }

    private func expire() {
        let isOver = state.withLock { state in
            guard state.method == .powerButton, clock.now() >= state.deadline else { return false }
            state.method = nil
            return true
        }
        if isOver { report(.shutdownTimedOut(.powerButton, wasAcknowledged: false)) }
    }
}

extension Machine.Event {
    /// What vmmci has to say.
    init(_ event: VMMCIFunction.Event) {
        switch event {
        case .acknowledged, .shutsDown: self = .shutdownAcknowledged
        case .timedOut(let wasAcknowledged):
            self = .shutdownTimedOut(.controlDevice, wasAcknowledged: wasAcknowledged)
        }
    }
}

/// Carries events to the owner, who is not known yet when the devices are made.
final class EventSink: Sendable {
    private let handler = Mutex<(@Sendable (Machine.Event) -> Void)?>(nil)

    func connect(_ handler: @escaping @Sendable (Machine.Event) -> Void) { self.handler.withLock { $0 = handler } }

    func report(_ event: Machine.Event) { handler.withLock { $0 }?(event) }
}
