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

    private struct State {
        var waiting: Request?
        var notify: (@Sendable () -> Void)?
    }

    private let state = Mutex(State())

    func requestReset(_ reason: String) { post(.reset(reason: reason)) }
    func requestPowerOff() { post(.powerOff) }
    func requestExit(_ status: UInt8) { post(.exit(status: status)) }
    func requestStop() { post(.stop) }

    /// Sets what tells the vCPU thread that something waits; called on the thread that asks.
    func onRequest(_ notify: @escaping @Sendable () -> Void) { state.withLock { $0.notify = notify } }

    var isEmpty: Bool { state.withLock { $0.waiting == nil } }

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
}
