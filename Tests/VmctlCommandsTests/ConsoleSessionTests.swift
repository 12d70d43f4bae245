import CLinux
import ControlProtocol
import ControlTestSupport
import Glibc
import Linux
import Synchronization
import TestSupport
import Testing

@testable import VmctlCommands

/// One at a time: they share the process's terminal guard.
@Suite("vmctl console", .serialized, .terminalTurn, .timeLimit(.minutes(1))) struct ConsoleSessionTests {
    /// A session on a thread of its own.
    private final class Session: Sendable {
        private let result = Mutex<Result<CInt, Failure>?>(nil)
        private let thread: Mutex<PosixThread?> = Mutex(nil)
        let transcript = Transcript()

        init(_ daemon: StubDaemon, _ streams: ConsoleSession.Streams) throws {
            let path = daemon.path
            let thread = try PosixThread("console") { [self] in
                let end: Result<CInt, Failure>
                do {
                    var client = try ControlClient(path: path)
                    end = .success(try AttachConsole.attach(.name("a"), &client, transcript.sink, streams))
                } catch let failure as Failure {
                    end = .failure(failure)
                } catch {
                    end = .failure(Failure("\(error)"))
                }
                result.withLock { $0 = end }
            }
            self.thread.withLock { $0 = thread }
        }

        func wait() -> Result<CInt, Failure>? {
            thread.withLock { $0.take() }?.join()
            return result.withLock { $0 }
        }
    }

    /// A daemon with one console, whose machine's side is `guest`.
    private func daemon(_ stream: CInt, wait: Response) throws -> StubDaemon {
        try StubDaemon { request in
            switch request {
            case .console: .console(.console(id: 3, name: "a", tty: "/dev/pts/7"), stream: stream)
            case .wait: .answer([wait])
            default: .answer([.done])
            }
        }
    }

    private func read(_ descriptor: CInt, until text: String) throws -> String {
        var result: [UInt8] = []
        while !String(decoding: result, as: UTF8.self).contains(text) {
            guard try Stream.wait(for: descriptor, .readable, timeoutMilliseconds: 30_000) else { break }
            let bytes = try Stream.read(descriptor, limit: 4096)
            if bytes.isEmpty { break }
            result += bytes
        }
        return String(decoding: result, as: UTF8.self)
    }

    private func localModes(_ terminal: borrowing PseudoTerminal) -> tcflag_t {
        var attributes = termios()
        tcgetattr(terminal.slave.raw, &attributes)
        return attributes.c_lflag
    }

    private static let ended = Response.ended(id: 3, name: "a", reason: "the guest switched itself off")

    @Test func `terminal is raw until it is left, and then as it was`() throws {
        let terminal = try PseudoTerminal()
        let stream = try StreamPair()
        let daemon = try daemon(stream.second.raw, wait: Self.ended)
        defer { daemon.stop() }
        let before = localModes(terminal)
        let session = try Session(
            daemon, .init(input: terminal.slave.raw, output: terminal.slave.raw, takesSignals: false))
        try Stream.writeAll(stream.first.raw, Array("login: ".utf8))
        #expect(try read(terminal.master.raw, until: "login: ").hasSuffix("login: "))
        #expect(localModes(terminal) & tcflag_t(ICANON | ECHO | ISIG) == 0)
        try Stream.writeAll(terminal.master.raw, Array("root\r~~x\r~?".utf8))
        #expect(try read(stream.first.raw, until: "x\r") == "root\r~x\r")
        #expect(try read(terminal.master.raw, until: "this list").contains("~.      leave; the machine runs on\r\n"))
        try Stream.writeAll(terminal.master.raw, Array("~#~.".utf8))
        #expect(try read(terminal.master.raw, until: "[EOT]\r\n").hasSuffix("\r\n[EOT]\r\n"))
        #expect(session.wait() == .success(0))
        #expect(localModes(terminal) == before)
        #expect(daemon.requests.map(\.request) == [.console(.name("a")), .sendBreak(.id(3))])
        #expect(session.transcript.error.hasPrefix("Connected to /dev/pts/7 (speed 115200)\nLeave with ~."))
    }

    @Test func `machine's end is told, and the terminal given back`() throws {
        let terminal = try PseudoTerminal()
        let stream = try StreamPair()
        let stub = try daemon(stream.second.raw, wait: Self.ended)
        defer { stub.stop() }
        let before = localModes(terminal)
        let session = try Session(stub, .init(input: terminal.slave.raw, output: terminal.slave.raw, takesSignals: false))
        try Stream.writeAll(stream.first.raw, Array("bye".utf8))
        #expect(try read(terminal.master.raw, until: "bye") == "bye")
        shutdown(stream.first.raw, CInt(SHUT_RDWR))
        #expect(session.wait() == .success(0))
        #expect(localModes(terminal) == before)
        #expect(session.transcript.error.hasSuffix("vmctl: vm a has ended: the guest switched itself off\n"))
    }

    @Test func `pipes carry every byte, and the end of input is not the end`() throws {
        var input = try Pipe()
        let output = try Pipe()
        let stream = try StreamPair()
        let stub = try daemon(stream.second.raw, wait: .failed(.notRunning, "x"))
        defer { stub.stop() }
        let writer = input.writingEnd ?? -1, reader = output.reader.raw
        let session = try Session(
            stub, .init(input: input.reader.raw, output: output.writingEnd ?? -1, takesSignals: false))
        try Stream.writeAll(writer, Array("~.\n~?".utf8))
        #expect(try read(stream.first.raw, until: "~?") == "~.\n~?")
        input.closeWriter()
        try Stream.writeAll(stream.first.raw, Array("still here".utf8))
        #expect(try read(reader, until: "here") == "still here")
        shutdown(stream.first.raw, CInt(SHUT_RDWR))
        #expect(session.wait() == .success(0))
        #expect(session.transcript.error == "Connected to /dev/pts/7 (speed 115200)\nvmctl: vm a has ended\n")
    }

    @Test func `output that nobody takes does not keep input or the end away`() throws {
        let terminal = try PseudoTerminal()
        let output = try Pipe()
        let stream = try StreamPair()
        let stub = try daemon(stream.second.raw, wait: Self.ended)
        defer { stub.stop() }
        let session = try Session(
            stub, .init(input: terminal.slave.raw, output: output.writingEnd ?? -1, takesSignals: false))
        // More than the pipe and the session hold.
        let guest = stream.first.raw
        try Stream.setNonBlocking(guest)
        let flood = [UInt8](repeating: 0x78, count: 16 << 10)
        var written = 0
        while written < 256 << 10, try Stream.wait(for: guest, .writable, timeoutMilliseconds: 200) {
            written += try Stream.writeAvailable(guest, flood, isSocket: true)
        }
        #expect(written >= 128 << 10)
        try Stream.writeAll(terminal.master.raw, Array("a\r".utf8))
        #expect(try Stream.wait(for: guest, .readable, timeoutMilliseconds: 5000) == true)
        try Stream.writeAll(terminal.master.raw, Array("~.".utf8))
        #expect(session.wait() == .success(0))
    }

    @Test func `daemon's end is told`() throws {
        let input = try Pipe(), output = try Pipe()
        let stream = try StreamPair()
        let stub = try daemon(stream.second.raw, wait: Self.ended)
        let session = try Session(
            stub, .init(input: input.reader.raw, output: output.writingEnd ?? -1, takesSignals: false))
        try Stream.writeAll(stream.first.raw, Array("x".utf8))
        #expect(try read(output.reader.raw, until: "x") == "x")
        stub.stop()
        shutdown(stream.first.raw, CInt(SHUT_RDWR))
        #expect(session.wait() == .failure(Failure("vmd has ended, and vm a with it")))
    }
}
