import CLinux
import Glibc
import Linux
import Synchronization
import TestSupport
import Testing
import VMM

@testable import Machine

extension PseudoTerminal {
    /// The modes that say who sees what is typed.
    fileprivate var localModes: tcflag_t {
        var attributes = termios()
        tcgetattr(slave.raw, &attributes)
        return attributes.c_lflag
    }
}

private func pipeEnds() throws -> (read: CInt, write: CInt) {
    var ends: [CInt] = [0, 0]
    try #require(pipe(&ends) == 0)
    return (ends[0], ends[1])
}

/// Reads until so many bytes came, or the end.
private func readAll(_ descriptor: CInt, count: Int = .max) -> [UInt8] {
    var result: [UInt8] = []
    while result.count < count, let bytes = try? Stream.read(descriptor, limit: min(65536, count - result.count)),
        !bytes.isEmpty
    {
        result += bytes
    }
    return result
}

/// A guest that prints a prompt, sends back what it receives, and fails on a zero byte. It polls, as a driver without interrupts
/// does.
private let echo: @Sendable (FakeCPU) throws -> Exit = { cpu in
    cpu.openSerial()
    cpu.print(">".utf8)
    while !cpu.isStopRequested.load(ordering: .relaxed) {
        guard let byte = cpu.readSerial() else {
            sched_yield()
            continue
        }
        if byte == 0 { return .failure("zero") }
        cpu.print([byte])
    }
    return .stopped
}

/// One at a time: they share the process's terminal guard.
@Suite("Foreground", .serialized, .terminalTurn, .timeLimit(.minutes(1))) struct ForegroundTests {
    private let kernel = TemporaryFile(bzImage())

    /// Starts a session on a thread; the result is its status.
    private func start(
        input: CInt, output: CInt, _ script: @escaping @Sendable (FakeCPU) throws -> Exit
    ) throws -> Session {
        let session = Session()
        let configuration = MachineConfiguration(kernel: kernel.path, memoryByteCount: 32 << 20)
        let thread = try PosixThread("session") {
            do {
                let foreground = try Foreground(
                    configuration, FakeEngine(script), .translator,
                    .init(input: input, output: output, takesSignals: false)
                ) { _ in }
                session.end(try foreground.run(try SignalDescriptor([])))
            } catch {
                session.end(-1)
            }
        }
        session.thread.withLock { $0 = thread }
        return session
    }

    private final class Session: Sendable {
        private let status = Monitor<CInt?>(nil)
        let thread = Mutex<PosixThread?>(nil)

        func end(_ value: CInt) {
            status.withLock { $0 = value }
            status.broadcast()
        }

        /// Waits for the end.
        func wait() -> CInt? {
            let value = status.withLock(waitingWhile: { $0 == nil }) { $0 }
            thread.withLock { thread in
                thread?.join()
                thread = nil
            }
            return value
        }
    }

    private static let echoScript = echo

    @Test func `terminal is raw while the guest runs and as before afterwards`() throws {
        let terminal = try PseudoTerminal()
        let before = terminal.localModes
        #expect(before & tcflag_t(ECHO) != 0)
        let session = try start(input: terminal.slave.raw, output: terminal.slave.raw, Self.echoScript)
        #expect(readAll(terminal.master.raw, count: 1) == [0x3E])
        try Stream.writeAll(terminal.master.raw, Array("x".utf8))
        #expect(readAll(terminal.master.raw, count: 1) == Array("x".utf8))
        #expect(terminal.localModes & tcflag_t(ECHO | ICANON | ISIG) == 0)
        try Stream.writeAll(terminal.master.raw, Array("\r~.".utf8))
        #expect(session.wait() == 0)
        #expect(terminal.localModes == before)
    }

    @Test func `control C and every other byte of a terminal reach the guest`() throws {
        let terminal = try PseudoTerminal()
        let session = try start(input: terminal.slave.raw, output: terminal.slave.raw, Self.echoScript)
        #expect(readAll(terminal.master.raw, count: 1) == [0x3E])
        let bytes = (1...255).map { UInt8($0) }
        try Stream.writeAll(terminal.master.raw, bytes)
        #expect(readAll(terminal.master.raw, count: 255) == bytes)
        try Stream.writeAll(terminal.master.raw, Array("\r~.".utf8))
        #expect(session.wait() == 0)
    }

    @Test func `terminal is restored when the guest fails`() throws {
        let terminal = try PseudoTerminal()
        let before = terminal.localModes
        let session = try start(input: terminal.slave.raw, output: terminal.slave.raw) { _ in .failure("test") }
        #expect(session.wait() == 1)
        #expect(terminal.localModes == before)
    }

    @Test func `help is printed for the user alone`() throws {
        let terminal = try PseudoTerminal()
        let session = try start(input: terminal.slave.raw, output: terminal.slave.raw, Self.echoScript)
        #expect(readAll(terminal.master.raw, count: 1) == [0x3E])
        try Stream.writeAll(terminal.master.raw, Array("~?~.".utf8))
        #expect(session.wait() == 0)
        let text = String(decoding: readAll(terminal.master.raw, count: 60), as: UTF8.self)
        #expect(text.hasPrefix("\r\nThe escape sequences, at the start of a line:\r\n~.  "))
    }

    @Test func `~. leaves a guest that does not read`() throws {
        let terminal = try PseudoTerminal()
        let session = try start(input: terminal.slave.raw, output: terminal.slave.raw) { _ in .halt(interruptsEnabled: true) }
        try Stream.writeAll(terminal.master.raw, Array("abcdefghijklmnopqrstuvwxyz\r~.".utf8))
        #expect(session.wait() == 0)
    }

    @Test func `BREAK reaches the UART`() throws {
        let terminal = try PseudoTerminal()
        let session = try start(input: terminal.slave.raw, output: terminal.slave.raw) { cpu in
            cpu.openSerial()
            cpu.print(">".utf8)
            // LSR.BI
            while cpu.wiring.ports.read(0x3FD, .byte) & 0x10 == 0 {
                if cpu.isStopRequested.load(ordering: .relaxed) { return .stopped }
                sched_yield()
            }
            cpu.print("break".utf8)
            return .halt(interruptsEnabled: true)
        }
        #expect(readAll(terminal.master.raw, count: 1) == [0x3E])
        try Stream.writeAll(terminal.master.raw, Array("~#".utf8))
        #expect(readAll(terminal.master.raw, count: 5) == Array("break".utf8))
        try Stream.writeAll(terminal.master.raw, Array("~.".utf8))
        #expect(session.wait() == 0)
    }

    @Test func `256 KB pasted through a terminal lose no byte`() throws {
        let terminal = try PseudoTerminal()
        let session = try start(input: terminal.slave.raw, output: terminal.slave.raw, Self.echoScript)
        #expect(readAll(terminal.master.raw, count: 1) == [0x3E])
        // No tildes: those are for the user.
        let bytes = (0..<256 << 10).map { UInt8(33 + $0 % 93) }
        let master = terminal.master.raw
        let writer = try PosixThread("typist") { try? Stream.writeAll(master, bytes) }
        #expect(readAll(terminal.master.raw, count: bytes.count) == bytes)
        writer.join()
        try Stream.writeAll(terminal.master.raw, Array("\r~.".utf8))
        #expect(session.wait() == 0)
    }

    @Test func `256 KB through pipes lose no byte, tildes included`() throws {
        let (input, feed) = try pipeEnds()
        let (result, output) = try pipeEnds()
        defer { for descriptor in [input, result, output] { close(descriptor) } }
        let session = try start(input: input, output: output, Self.echoScript)
        #expect(readAll(result, count: 1) == [0x3E])
        let bytes = Array("~.\n~.".utf8) + (0..<256 << 10).map { UInt8(1 + $0 % 255) }
        let writer = try PosixThread("feeder") {
            try? Stream.writeAll(feed, bytes + [0])
            close(feed)
        }
        #expect(readAll(result, count: bytes.count) == bytes)
        writer.join()
        // The guest fails on the zero byte.
        #expect(session.wait() == 1)
    }

    @Test func `file as input is read to its end, and the guest goes on`() throws {
        let file = TemporaryFile(Array("some text".utf8))
        let input = open(file.path, O_RDONLY)
        let (result, output) = try pipeEnds()
        defer { for descriptor in [input, result, output] { close(descriptor) } }
        let count = Mutex(0)
        let session = try start(input: input, output: output) { cpu in
            cpu.openSerial()
            while true {
                guard let byte = cpu.readSerial() else {
                    sched_yield()
                    continue
                }
                cpu.print([byte])
                let all = count.withLock { count in
                    count += 1
                    return count == 9
                }
                if all { break }
            }
            cpu.print("!".utf8)
            return .failure("done")
        }
        #expect(readAll(result, count: 10) == Array("some text!".utf8))
        #expect(session.wait() == 1)
    }

    @Test func `no input at all is no reason to end`() throws {
        let input = open("/dev/null", O_RDONLY)
        let (result, output) = try pipeEnds()
        defer { for descriptor in [input, result, output] { close(descriptor) } }
        let session = try start(input: input, output: output) { cpu in
            usleep(20_000)
            cpu.print("alive".utf8)
            return .failure("done")
        }
        #expect(readAll(result, count: 5) == Array("alive".utf8))
        #expect(session.wait() == 1)
    }

    @Test func `output for a slow reader is complete although the guest has ended`() throws {
        let (result, output) = try pipeEnds()
        let input = open("/dev/null", O_RDONLY)
        defer { for descriptor in [input, result] { close(descriptor) } }
        let session = try start(input: input, output: output) { cpu in
            for index in 0..<200_000 { cpu.print([UInt8(truncatingIfNeeded: index)]) }
            return .failure("done")
        }
        usleep(100_000)
        let bytes = readAll(result, count: 200_000)
        #expect(bytes == (0..<200_000).map { UInt8(truncatingIfNeeded: $0) })
        #expect(session.wait() == 1)
        close(output)
    }

    @Test func `closed pipe ends the machine with status 1`() throws {
        signal(SIGPIPE, SIG_IGN)
        let (result, output) = try pipeEnds()
        let input = open("/dev/null", O_RDONLY)
        defer { for descriptor in [input, output] { close(descriptor) } }
        close(result)
        let session = try start(input: input, output: output) { cpu in
            while !cpu.isStopRequested.load(ordering: .relaxed) { cpu.print("y\n".utf8) }
            return .stopped
        }
        #expect(session.wait() == 1)
    }

    @Test func `stuck reader does not keep the user from leaving`() throws {
        let terminal = try PseudoTerminal()
        let session = try start(input: terminal.slave.raw, output: terminal.slave.raw) { cpu in
            while !cpu.isStopRequested.load(ordering: .relaxed) { cpu.print("more\r\n".utf8) }
            return .stopped
        }
        usleep(100_000)
        try Stream.writeAll(terminal.master.raw, Array("~.".utf8))
        #expect(session.wait() == 0)
    }
}
