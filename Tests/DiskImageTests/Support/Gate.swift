import DiskImage
import Linux

/// Holds one change of a file up until it is let go: then whatever waits for it can be seen to wait, and what does not, not.
final class Gate: FileObserver {
    private struct State: Sendable {
        var isArmed = false
        var isReached = false
        var isOpen = false
        var timedOut = false
    }

    private let state = Monitor(State())
    private let stops: @Sendable (FileChange) -> Bool
    private static let patience: UInt64 = 20_000_000_000

    /// - Parameter stops: which change it is for.
    init(_ stops: @escaping @Sendable (FileChange) -> Bool) { self.stops = stops }

    func willChange(_ change: FileChange) throws(SystemError) {
        guard stops(change) else { return }
        let isThis = state.withLock { state in
            defer { state.isArmed = false }
            state.isReached = state.isReached || state.isArmed
            return state.isArmed
        }
        guard isThis else { return }
        state.broadcast()
        state.withLock(waitingWhile: { !$0.isOpen }, until: SystemTime.monotonic() + Self.patience) { $0.timedOut = !$0.isOpen }
    }

    /// The next one is held up.
    func arm() { state.withLock { $0.isArmed = true } }

    /// - Returns: whether it came.
    func awaitChange() -> Bool {
        state.withLock(waitingWhile: { !$0.isReached }, until: SystemTime.monotonic() + Self.patience) { $0.isReached }
    }

    func open() {
        state.withLock { $0.isOpen = true }
        state.broadcast()
    }

    /// Nobody opened it for a long time: who was to do so waited for what it holds up.
    var timedOut: Bool { state.withLock { $0.timedOut } }
}
