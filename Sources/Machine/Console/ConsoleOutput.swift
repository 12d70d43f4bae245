import Linux
import Synchronization

/// Carries the guest's output to a descriptor that may be slow, stuck or closed.
///
/// A thread of its own does the blocking writes, so that signals and the guest go on meanwhile. Bytes are gathered for up to
/// 2 ms, below what a person notices, so that a guest that prints byte by byte costs few system calls. When 256 KB
/// wait, the guest waits as well: a bounded buffer that loses nothing.
final class ConsoleOutput: Sendable {
    private struct State {
        var waiting: [UInt8] = []
        /// The writer looks again only when told.
        var isWriterIdle = true
        var isFinishing = false
        /// The reader is gone or nobody wants to wait for it: bytes are dropped.
        var isDiscarding = false
    }

    /// How the writer's work ended.
    enum End: Sendable {
        case drained
        case failed(SystemError)
    }

    private static let capacity = 256 << 10
    /// Enough for a write of its own.
    private static let batch = 4096
    private static let gatherNanoseconds: UInt64 = 2_000_000

    private let state = Monitor(State())

    /// Starts the writer.
    /// - Parameters:
    ///   - descriptor: borrowed.
    ///   - onEnd: called once, on the writer's thread: after `finish`, when all is written, or after a failure.
    init(_ descriptor: CInt, onEnd: @escaping @Sendable (End) -> Void) throws(SystemError) {
        let thread = try PosixThread("console") { [self] in onEnd(write(to: descriptor)) }
        // It may hang in a write for good; the process ends without it.
        thread.detach()
    }

    /// Takes bytes for writing; blocks while too many wait. Any thread.
    func send(_ bytes: some Collection<UInt8>) {
        let wakesWriter = state.withLock(waitingWhile: { $0.waiting.count >= Self.capacity && !$0.isDiscarding }) {
            state in
            guard !state.isDiscarding else { return false }
            let before = state.waiting.count
            state.waiting.append(contentsOf: bytes)
            guard state.isWriterIdle || before < Self.batch && state.waiting.count >= Self.batch else { return false }
            state.isWriterIdle = false
            return true
        }
        if wakesWriter { state.broadcast() }
    }

    /// No more bytes will come: `onEnd` follows when all are written.
    func finish() {
        state.withLock { $0.isFinishing = true }
        state.broadcast()
    }

    /// Drops what waits and all that comes, so that nobody is blocked here.
    func discard() {
        state.withLock { state in
            state.isDiscarding = true
            state.waiting = []
        }
        state.broadcast()
    }

    private func write(to descriptor: CInt) -> End {
        while true {
            let isDone = state.withLock(waitingWhile: { $0.waiting.isEmpty && !$0.isFinishing }) { state in
                state.waiting.isEmpty && state.isFinishing
            }
            if isDone { return .drained }
            let deadline = SystemTime.monotonic() + Self.gatherNanoseconds
            let bytes = state.withLock(
                waitingWhile: { $0.waiting.count < Self.batch && !$0.isFinishing && !$0.isDiscarding },
                until: deadline
            ) { state in
                defer {
                    state.waiting = []
                    state.isWriterIdle = true
                }
                return state.waiting
            }
            // Whoever waits for room can go on while this is written.
            state.broadcast()
            do {
                try Stream.writeAll(descriptor, bytes)
            } catch {
                discard()
                return .failed(error)
            }
        }
    }
}
