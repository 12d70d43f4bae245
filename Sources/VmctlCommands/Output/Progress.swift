import DiskImage
import Linux
import Machine
import Synchronization

/// How far long work is: a line of a terminal that is written again and again, and wiped in the end.
final class Progress: Sendable {
    private struct State {
        var fraction = -1
        var deadline: UInt64 = 0
        var isShown = false
        var signal: CInt?
    }

    private static let width = 40
    private static let pause: UInt64 = 200_000_000
    private let output: Output
    private let title: String
    private let state = Mutex(State())
    private let nextSignal: @Sendable () -> CInt?

    /// - Parameter title: the file's name, or another short word.
    init(_ title: String, _ output: Output) {
        self.title = UserTerminal.oneLine(title)
        self.output = output
        nextSignal = output.watchSignals()
        // What takes no time needs no line.
        state.withLock { $0.deadline = SystemTime.monotonic() &+ Self.pause }
    }

    /// Any thread, as often as it likes.
    @Sendable func update(_ done: UInt64, _ total: UInt64) {
        guard output.showsProgress, total > 0 else { return }
        let fraction = Int(min(1, Double(done) / Double(total)) * 100)
        state.withLock { state in
            let now = SystemTime.monotonic()
            guard fraction != state.fraction, now >= state.deadline else { return }
            (state.fraction, state.deadline, state.isShown) = (fraction, now &+ Self.pause, true)
            let filled = fraction * Self.width / 100
            let bar = String(repeating: "#", count: filled) + String(repeating: ".", count: Self.width - filled)
            let percent = String(repeating: " ", count: fraction < 10 ? 2 : fraction < 100 ? 1 : 0) + "\(fraction)"
            output.error("\r[\(bar)] \(percent)% \(title.suffix(30))")
        }
    }

    /// Whether a signal says that it is to end.
    @Sendable func isCancelled() -> Bool {
        state.withLock { state in
            if state.signal == nil { state.signal = nextSignal() }
            return state.signal != nil
        }
    }

    /// `update`, for work on an image that can be ended at any time.
    /// - Throws: when a signal says that it is to end.
    func tell(_ done: UInt64, _ total: UInt64, _ file: String) throws(ImageError) {
        update(done, total)
        if isCancelled() { throw ImageError(.refused, file, "was interrupted") }
    }

    /// Wipes the line.
    func finish() {
        state.withLock { state in
            if state.isShown { output.error("\r" + String(repeating: " ", count: Self.width + 40) + "\r") }
            state.isShown = false
        }
    }

    /// Does the work, and tells what ended it.
    func run<T>(_ body: (Progress) throws -> T) throws -> T {
        defer { finish() }
        do {
            return try body(self)
        } catch {
            if let signal = state.withLock({ $0.signal }) { throw Interrupted(signal: signal) }
            throw error
        }
    }
}
