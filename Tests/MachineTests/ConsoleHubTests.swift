import Devices
import Glibc
import Linux
import Synchronization
import TestSupport
import Testing
import VMM

@testable import Machine

@Suite("Output ring") struct OutputRingTests {
    @Test(arguments: [0, 1, 65_535, 65_536, 65_537, 100_000, 200_001])
    func `holds the last 64 KB, each byte under its number`(count: Int) {
        var ring = OutputRing()
        for index in 0..<count { ring.append(UInt8(truncatingIfNeeded: index &* 31 >> 3)) }
        func expected(_ range: Range<Int>) -> [UInt8] { range.map { UInt8(truncatingIfNeeded: $0 &* 31 >> 3) } }
        let start = max(0, count - 65_536)
        #expect(ring.start == UInt64(start))
        #expect(ring.end == UInt64(count))
        #expect(ring.bytes(from: 0, limit: .max) == expected(start..<count))
        let middle = (start + count) / 2
        let end = min(count, middle + 1000)
        #expect(ring.bytes(from: UInt64(middle), limit: 1000) == expected(middle..<end))
        #expect(ring.bytes(from: UInt64(count), limit: 10) == [])
    }
}

private final class NoLines: InterruptController {
    func setLine(_ number: UInt8, _ asserted: Bool) {}
}

@Suite("Console hub", .timeLimit(.minutes(1))) struct ConsoleHubTests {
    /// A hub with its server on a loop of its own, and a serial port whose guest is the test.
    private final class Bench: Sendable {
        let hub: ConsoleHub
        let port: SerialPort
        private let commands: Mailbox<@Sendable (ConsoleServer, EventLoop) -> Void>
        private let thread = Mutex<PosixThread?>(nil)
        let detached = Monitor<[ConsoleServer.Detachment]>([])

        init(terminal master: consuming FileDescriptor? = nil, stall: UInt64 = ConsoleHub.stallNanoseconds) throws {
            hub = try ConsoleHub(stallNanoseconds: stall)
            port = SerialPort(line: InterruptLine(NoLines(), 4), terminal: hub)
            hub.connect(port)
            commands = try Mailbox()
            let number = master.take()?.release() ?? -1
            let started = try PosixThread("server") { [hub, commands] in
                do {
                    let loop = try EventLoop()
                    let master = number < 0 ? nil : FileDescriptor(owning: number)
                    let server = try ConsoleServer(hub, on: loop, terminal: master)
                    try loop.watch(commands.descriptor, .readable) {
                        for command in commands.takeAll() { command(server, loop) }
                    }
                    try loop.run()
                } catch {
                    Issue.record("\(error)")
                }
            }
            thread.withLock { $0 = started }
        }

        func perform(_ command: @escaping @Sendable (ConsoleServer, EventLoop) -> Void) { commands.post(command) }

        /// Attaches the other end of a socket pair, which is returned. `nil` when it was refused.
        func attach() throws -> CInt? {
            var ends: [CInt] = [0, 0]
            try #require(socketpair(AF_UNIX, CInt(SOCK_STREAM.rawValue), 0, &ends) == 0)
            let theirs = ends[1]
            let answer = Monitor<Bool?>(nil)
            perform { [detached] server, _ in
                let isAttached = try? server.attach(FileDescriptor(owning: theirs)) { reason in
                    detached.withLock { $0.append(reason) }
                    detached.broadcast()
                }
                answer.withLock { $0 = isAttached ?? false }
                answer.broadcast()
            }
            if answer.withLock(waitingWhile: { $0 == nil }, { $0 }) == true { return ends[0] }
            close(ends[0])
            return nil
        }

        func waitForDetachment() -> ConsoleServer.Detachment? {
            detached.withLock(waitingWhile: { $0.isEmpty }, until: SystemTime.monotonic() + 10_000_000_000) { $0.last }
        }

        func end() {
            perform { _, loop in loop.stop() }
            thread.withLock { thread in
                thread?.join()
                thread = nil
            }
        }

        func print(_ bytes: some Sequence<UInt8>) { for byte in bytes { hub.send(byte) } }

        /// A byte that the guest's UART receives, waiting for it.
        func receive() -> UInt8 {
            guard waitUntil({ port.readByte(5) & 1 != 0 }) else {
                Issue.record("nothing arrives at the UART")
                return 0
            }
            return port.readByte(0)
        }
    }

    private static func read(_ descriptor: CInt, count: Int) -> [UInt8] {
        var result: [UInt8] = []
        while result.count < count, (try? Stream.wait(for: descriptor, .readable, timeoutMilliseconds: 30_000)) == true,
            let bytes = try? Stream.read(descriptor, limit: count - result.count), !bytes.isEmpty
        {
            result += bytes
        }
        return result
    }

    @Test func `client gets what was printed before, then what is printed`() throws {
        let bench = try Bench()
        bench.print("before ".utf8)
        let client = try #require(try bench.attach())
        #expect(Self.read(client, count: 7) == Array("before ".utf8))
        bench.print("after".utf8)
        #expect(Self.read(client, count: 5) == Array("after".utf8))
        close(client)
        bench.end()
    }

    @Test func `client gets the last 64 KB`() throws {
        let bench = try Bench()
        bench.print((0..<200_000).map { UInt8(truncatingIfNeeded: $0 / 64) })
        let client = try #require(try bench.attach())
        #expect(Self.read(client, count: 65_536) == (200_000 - 65_536..<200_000).map { UInt8(truncatingIfNeeded: $0 / 64) })
        close(client)
        bench.end()
    }

    @Test func `second client is refused until the first is gone`() throws {
        let bench = try Bench()
        let first = try #require(try bench.attach())
        #expect(try bench.attach() == nil)
        close(first)
        #expect(bench.waitForDetachment() == .closed)
        let second = try #require(try bench.attach())
        bench.print("x".utf8)
        #expect(Self.read(second, count: 1) == Array("x".utf8))
        close(second)
        bench.end()
    }

    @Test func `input of client and terminal goes to the guest, BREAK in its place`() throws {
        let terminal = try PseudoTerminal()
        let slave = dup(terminal.slave.raw)
        let bench = try Bench(terminal: FileDescriptor(owning: dup(terminal.master.raw)))
        let client = try #require(try bench.attach())
        #expect(write(client, "a", 1) == 1)
        #expect(bench.receive() == UInt8(ascii: "a"))
        #expect(write(slave, "b", 1) == 1)
        #expect(bench.receive() == UInt8(ascii: "b"))
        bench.hub.sendBreak()
        // LSR.BI
        #expect(bench.port.readByte(5) & 0x10 != 0)
        close(client)
        close(slave)
        bench.end()
    }

    @Test func `more input than the queue holds waits in the socket and is not lost`() throws {
        let bench = try Bench()
        let client = try #require(try bench.attach())
        let count = 300_000
        let writer = try PosixThread("writer") {
            try? Stream.writeAll(client, (0..<count).map { UInt8(truncatingIfNeeded: $0 / 3) })
        }
        var wrong = 0
        for index in 0..<count where bench.receive() != UInt8(truncatingIfNeeded: index / 3) { wrong += 1 }
        #expect(wrong == 0)
        writer.join()
        close(client)
        bench.end()
    }

    @Test func `slow client loses nothing`() throws {
        let bench = try Bench()
        let client = try #require(try bench.attach())
        let count = 2_000_000
        let printer = try PosixThread("guest") { bench.print((0..<count).lazy.map { UInt8(truncatingIfNeeded: $0 / 7) }) }
        var position = 0
        var wrong = 0
        while position < count {
            let bytes = Self.read(client, count: min(50_000, count - position))
            guard !bytes.isEmpty else { break }
            for (index, byte) in bytes.enumerated() where byte != UInt8(truncatingIfNeeded: (position + index) / 7) {
                wrong += 1
            }
            position += bytes.count
            usleep(1000)
        }
        #expect(position == count)
        #expect(wrong == 0)
        printer.join()
        close(client)
        bench.end()
    }

    @Test func `client that takes nothing is cut off and the guest goes on`() throws {
        let bench = try Bench(stall: 100_000_000)
        let client = try #require(try bench.attach())
        bench.print(repeatElement(UInt8(ascii: "x"), count: 2_000_000))
        #expect(bench.waitForDetachment() == .cutOff)
        // What it was sent before is still there, and then the end.
        var end = 0
        while let bytes = try? Stream.read(client, limit: 65_536), !bytes.isEmpty { end += bytes.count }
        #expect(end < 2_000_000)
        close(client)
        let next = try #require(try bench.attach())
        #expect(Self.read(next, count: 65_536) == Array(repeating: UInt8(ascii: "x"), count: 65_536))
        close(next)
        bench.end()
    }

    /// The guest comes to a full ring just as the client takes the last of it: neither may then wait for the other.
    @Test func `client that keeps up is never cut off`() throws {
        let bench = try Bench(stall: 300_000_000)
        let byteCount = OutputRing.capacity + 1
        for _ in 0..<40 {
            bench.print(repeatElement(UInt8(ascii: "x"), count: byteCount))
            let client = try #require(try bench.attach())
            let printer = try PosixThread("guest") { bench.print(repeatElement(UInt8(ascii: "y"), count: 1000)) }
            #expect(Self.read(client, count: OutputRing.capacity + 1000).count == OutputRing.capacity + 1000)
            printer.join()
            close(client)
            #expect(bench.waitForDetachment() == .closed)
            bench.detached.withLock { $0 = [] }
        }
        bench.end()
    }

    @Test func `guest that is to end does not wait for its client`() throws {
        let bench = try Bench()
        let client = try #require(try bench.attach())
        let printer = try PosixThread("guest") { bench.print(repeatElement(UInt8(ascii: "x"), count: 3_000_000)) }
        usleep(50_000)
        bench.hub.stopWaiting()
        printer.join()
        bench.perform { server, _ in server.detach() }
        #expect(bench.waitForDetachment() == .released)
        close(client)
        bench.end()
    }

    @Test func `client that goes away while the guest waits for it lets it go on`() throws {
        let bench = try Bench()
        let client = try #require(try bench.attach())
        let printer = try PosixThread("guest") { bench.print(repeatElement(UInt8(ascii: "x"), count: 2_000_000)) }
        usleep(50_000)
        close(client)
        printer.join()
        #expect(bench.waitForDetachment() == .closed)
        bench.end()
    }

    @Test func `terminal that nobody reads never holds the guest up`() throws {
        let terminal = try PseudoTerminal()
        let slave = dup(terminal.slave.raw)
        let bench = try Bench(terminal: FileDescriptor(owning: dup(terminal.master.raw)))
        bench.print("first".utf8)
        #expect(Self.read(slave, count: 5) == Array("first".utf8))
        bench.print(repeatElement(UInt8(ascii: "y"), count: 1_000_000))
        bench.print("last".utf8)
        // The oldest are lost, not the newest.
        var seen: [UInt8] = []
        while !seen.suffix(4).elementsEqual("last".utf8) {
            let next = Self.read(slave, count: 1)
            try #require(!next.isEmpty, "silent behind \(seen.count) bytes")
            seen += next
        }
        #expect(seen.count < 300_000)
        close(slave)
        bench.end()
    }

    @Test func `terminal that is closed and opened again goes on, and does not echo`() throws {
        let terminal = try PseudoTerminal()
        let bench = try Bench(terminal: FileDescriptor(owning: dup(terminal.master.raw)))
        let master = terminal.master.raw
        for text in ["one", "two"] {
            let slave = try PseudoTerminal.openSlave(of: master).release()
            bench.print(text.utf8)
            #expect(Self.read(slave, count: 3) == Array(text.utf8))
            #expect(write(slave, "k", 1) == 1)
            #expect(bench.receive() == UInt8(ascii: "k"))
            close(slave)
        }
        usleep(20_000)
        #expect(bench.port.readByte(5) & 1 == 0)
        bench.end()
    }

    @Test func `detaching sends what is there`() throws {
        let bench = try Bench()
        let client = try #require(try bench.attach())
        bench.print("the end".utf8)
        bench.perform { server, _ in server.detach() }
        #expect(Self.read(client, count: 100) == Array("the end".utf8))
        #expect(bench.waitForDetachment() == .released)
        close(client)
        bench.end()
    }
}
