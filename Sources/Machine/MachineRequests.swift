import Synchronization
import VMM

/// What devices and people ask of a machine, waiting for its vCPU thread: reset lines, power buttons, `vmctl`.
///
/// Devices hold this and not the machine, which is made after them.
final class MachineRequests: PowerControl {
    /// In ascending order of strength: a stronger one replaces a weaker one, not the other way round.
    enum Request: Equatable {
        case reset(reason: String)
        case powerOff
        /// The guest ends the machine with a status of its own.
        case exit(status: UInt8)
        case stop

        fileprivate var strength: Int {
            switch self {
            case .reset: 0
            case .powerOff, .exit: 1
            case .stop: 2
            }
        }
    }

    /// Gets to know whether a machine is in the state that was asked for.
    typealias Answer = @Sendable (Bool) -> Void

    private struct State {
        var waiting: Request?
        var notify: (@Sendable () -> Void)?
        var isPaused = false
        var hasEnded = false
        /// Of the pause or its end, whichever was asked for last.
        var answers: [Answer] = []
        /// How many want the CPU to stand still for a moment.
        var holders = 0
        var isHeld = false
        var holdAnswers: [Answer] = []
    }

    private let state = Mutex(State())
    /// Whether the machine is to stand still. A copy to look at between two runs of a CPU; changed under the lock.
    private let pauseFlag = Atomic(false)
    /// Whether there are holders, likewise.
    private let holdFlag = Atomic(false)

    func requestReset(_ reason: String) { post(.reset(reason: reason)) }
    func requestPowerOff() { post(.powerOff) }
    func requestExit(_ status: UInt8) { post(.exit(status: status)) }
    func requestStop() { post(.stop) }

    /// Sets what tells the vCPU thread that something waits; called on the thread that asks.
    func onRequest(_ notify: @escaping @Sendable () -> Void) { state.withLock { $0.notify = notify } }

    var isEmpty: Bool { state.withLock { $0.waiting == nil } }

    /// Whether something waits that ends the machine, and so a pause.
    var isEnding: Bool { state.withLock { $0.waiting.map { $0.strength > 0 } ?? false } }

    /// Takes what waits.
    func take() -> Request? {
        state.withLock { state in
            defer { state.waiting = nil }
            return state.waiting
        }
    }

    private func post(_ request: Request) {
        let notify = state.withLock { state in
            if let waiting = state.waiting, waiting.strength >= request.strength { return state.notify }
            state.waiting = request
            return state.notify
        }
        notify?()
    }

    // MARK: Pause

    var isPauseWanted: Bool { pauseFlag.load(ordering: .acquiring) }

    /// Asks for a pause, or for its end. `answer` comes at once when it is so already, else on the vCPU thread; `false`
    /// when the opposite was asked for meanwhile, or the machine ended.
    func requestPause(_ isWanted: Bool, _ answer: @escaping Answer) {
        let (notify, denied, isReached) = state.withLock { state -> ((@Sendable () -> Void)?, [Answer], Bool?) in
            if state.hasEnded { return (nil, [], false) }
            var denied: [Answer] = []
            if pauseFlag.exchange(isWanted, ordering: .sequentiallyConsistent) != isWanted {
                denied = state.answers
                state.answers = []
            }
            if state.isPaused == isWanted { return (nil, denied, true) }
            state.answers.append(answer)
            return (state.notify, denied, nil)
        }
        for denied in denied { denied(false) }
        if let isReached { answer(isReached) }
        notify?()
    }

    /// The vCPU thread has stopped the machine or lets it go on.
    func didPause(_ isPaused: Bool) {
        let answers = state.withLock { state -> [Answer] in
            state.isPaused = isPaused
            // One that stands still is held as well.
            var answers = isPaused ? state.holdAnswers : []
            if isPaused { state.holdAnswers = [] }
            guard pauseFlag.load(ordering: .relaxed) == isPaused else { return answers }
            defer { state.answers = [] }
            answers += state.answers
            return answers
        }
        for answer in answers { answer(true) }
    }

    /// The vCPU thread leaves a pause, by its end, the machine's or an error: no hold is granted for its sake any more. Says nothing to
    /// those who asked for a pause: `didPause` or `didEnd` does.
    func leavePause() { state.withLock { $0.isPaused = false } }

    // MARK: Holding the CPU

    /// Whether the vCPU thread has to look at `isHoldWanted` and `isPauseWanted` before it goes on.
    var isRestWanted: Bool { isPauseWanted || isHoldWanted }
    var isHoldWanted: Bool { holdFlag.load(ordering: .acquiring) }

    /// Has the CPU stand still until `release`, also over the end of a pause; the machine's clocks go on, so it is for moments only.
    /// - Parameter answer: called once, with nothing locked: `true` when the CPU stands still, `false` when the machine has ended:
    ///   then there is nothing to release.
    func hold(_ answer: @escaping Answer) {
        let (notify, isReached) = state.withLock { state -> ((@Sendable () -> Void)?, Bool?) in
            if state.hasEnded { return (nil, false) }
            state.holders += 1
            holdFlag.store(true, ordering: .sequentiallyConsistent)
            if state.isHeld || state.isPaused { return (nil, true) }
            state.holdAnswers.append(answer)
            return (state.notify, nil)
        }
        if let isReached { answer(isReached) }
        notify?()
    }

    func release() {
        let notify = state.withLock { state in
            state.holders -= 1
            if state.holders == 0 { holdFlag.store(false, ordering: .sequentiallyConsistent) }
            return state.notify
        }
        notify?()
    }

    /// The vCPU thread stands still for those who hold it, or looks whether it has to go on doing so.
    func didHold(_ isHeld: Bool) {
        let answers = state.withLock { state -> [Answer] in
            state.isHeld = isHeld
            guard isHeld else { return [] }
            defer { state.holdAnswers = [] }
            return state.holdAnswers
        }
        for answer in answers { answer(true) }
    }

    /// The machine is gone.
    func didEnd() {
        let answers = state.withLock { state in
            state.hasEnded = true
            state.holders -= state.holdAnswers.count
            defer { (state.answers, state.holdAnswers) = ([], []) }
            return state.answers + state.holdAnswers
        }
        for answer in answers { answer(false) }
    }
}
