import Linux

/// Things to be done later, on an event loop's thread.
final class Deadlines {
    /// Names one of them, to take it back.
    struct Token: Hashable {
        fileprivate let number: UInt64
    }

    private struct Entry {
        let number: UInt64
        let time: UInt64
        let action: () -> Void
    }

    private let timer: TimerDescriptor
    private var entries: [Entry] = []
    private var nextNumber: UInt64 = 0

    init(_ loop: EventLoop) throws(SystemError) {
        timer = try TimerDescriptor(waits: false)
        try loop.watch(timer.raw, .readable) { [unowned self] in fire() }
    }

    /// - Parameter time: nanoseconds of CLOCK_MONOTONIC.
    @discardableResult
    func schedule(at time: UInt64, _ action: @escaping () -> Void) -> Token {
        nextNumber += 1
        entries.append(Entry(number: nextNumber, time: time, action: action))
        arm()
        return Token(number: nextNumber)
    }

    @discardableResult
    func schedule(after nanoseconds: UInt64, _ action: @escaping () -> Void) -> Token {
        schedule(at: SystemTime.monotonic() + nanoseconds, action)
    }

    func cancel(_ token: Token?) {
        guard let token else { return }
        entries.removeAll { $0.number == token.number }
        arm()
    }

    private func arm() { timer.arm(at: entries.map(\.time).min()) }

    private func fire() {
        timer.wait()
        let now = SystemTime.monotonic()
        // One after the other: an action may cancel the next.
        while let index = entries.indices.min(by: { entries[$0].time < entries[$1].time }), entries[index].time <= now {
            entries.remove(at: index).action()
        }
        arm()
    }
}

extension UInt64 {
    /// Seconds as nanoseconds.
    static func seconds(_ count: UInt64) -> UInt64 { count * 1_000_000_000 }
}
