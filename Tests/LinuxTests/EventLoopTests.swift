import Glibc
import Linux
import Synchronization
import Testing

@Suite("Event loop", .timeLimit(.minutes(1))) struct EventLoopTests {
    @Test func `event from another thread is handled`() throws {
        let loop = try EventLoop()
        let event = Shared(try EventDescriptor())
        var count = 0
        try loop.watch(event.value.raw, .readable) {
            event.value.clear()
            count += 1
            loop.stop()
        }
        let thread = try PosixThread("test") { event.value.signal() }
        try loop.run()
        thread.join()
        #expect(count == 1)
    }

    @Test(arguments: ["/dev/null", "/etc/passwd"])
    func `file that epoll refuses is always ready`(path: String) throws {
        let loop = try EventLoop()
        let file = try FileDescriptor(open: path, flags: O_RDONLY)
        var rounds = 0
        try loop.watch(file.raw, .readable) {
            rounds += 1
            if rounds == 3 { loop.stop() }
        }
        try loop.run()
        #expect(rounds == 3)
    }

    @Test func `unwatched descriptor is not handled, even in the same round`() throws {
        let loop = try EventLoop()
        let a = try EventDescriptor()
        let b = try EventDescriptor()
        a.signal()
        b.signal()
        var handled: [CInt] = []
        let (first, second) = (a.raw, b.raw)
        try loop.watch(first, .readable) {
            handled.append(first)
            loop.unwatch(second)
            loop.stop()
        }
        try loop.watch(second, .readable) {
            handled.append(second)
            loop.unwatch(first)
            loop.stop()
        }
        try loop.run()
        #expect(handled.count == 1)
        withExtendedLifetime((a.raw, b.raw)) {}
    }

    @Test func `closed end of a pipe is an event`() throws {
        var ends: [CInt] = [0, 0]
        #expect(pipe(&ends) == 0)
        close(ends[1])
        let loop = try EventLoop()
        let reader = ends[0]
        var isAtEnd = false
        try loop.watch(reader, .readable) {
            isAtEnd = (try? Stream.read(reader, limit: 16))?.isEmpty == true
            loop.stop()
        }
        try loop.run()
        close(reader)
        #expect(isAtEnd)
    }
}

/// Lets closures share a noncopyable value.
private final class Shared<Value: ~Copyable & Sendable>: Sendable {
    let value: Value
    init(_ value: consuming Value) { self.value = value }
}

@Suite("Parker", .timeLimit(.minutes(1))) struct ParkerTests {
    @Test func `wake-up before the sleep is not lost`() {
        let parker = Parker()
        parker.unpark()
        parker.park()
    }

    @Test func `no wake-up is lost when two threads take turns`() throws {
        let parkers = [Parker(), Parker()]
        let turn = Turn()
        let rounds = 20_000
        @Sendable func play(_ me: Int) {
            for _ in 0..<rounds {
                while turn.value.load(ordering: .sequentiallyConsistent) != me { parkers[me].park() }
                turn.value.store(1 - me, ordering: .sequentiallyConsistent)
                parkers[1 - me].unpark()
            }
        }
        let other = try PosixThread("player") { play(1) }
        play(0)
        other.join()
        #expect(turn.value.load(ordering: .relaxed) == 0)
    }

    private final class Turn: Sendable {
        let value = Atomic(0)
    }
}

@Suite("Files") struct RegularFileTests {
    @Test func `parts are read in any order, and short only at the end`() throws {
        let file = try RegularFile("/etc/passwd")
        let all = try file.read(at: 0, count: Int(file.byteCount))
        let tail = try file.read(at: 5, count: 1 << 20)
        let beyond = try file.read(at: 1 << 40, count: 10)
        #expect(UInt64(all.count) == file.byteCount)
        #expect(tail == Array(all.dropFirst(5)))
        #expect(beyond.isEmpty)
    }

    @Test func `FIFO is refused without waiting for a writer`() {
        let path = "/tmp/vmd-test-fifo-\(getpid())"
        mkfifo(path, 0o600)
        defer { unlink(path) }
        #expect(throws: RegularFile.Failure.notRegular("special")) { _ = try RegularFile(path) }
    }
}

@Suite("Time-stamp counter") struct TimeStampCounterTests {
    @Test func `frequency is stable within 200 parts in a million`() {
        TimeStampCounter.start()
        let first = TimeStampCounter.frequency()
        let second = TimeStampCounter.frequency()
        let difference = max(first, second) - min(first, second)
        #expect(difference < first / 5000)
        #expect(first > 100_000_000)
    }
}
