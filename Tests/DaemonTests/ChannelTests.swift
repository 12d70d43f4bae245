import ControlProtocol
import Glibc
import Linux
import Testing

@testable import Daemon

/// One at a time.
@Suite(.serialized) struct DaemonTests {}

extension DaemonTests {
    /// A channel and peers of every kind.
    @Suite("MessageChannel", .timeLimit(.minutes(1))) struct ChannelTests {
        private typealias Channel = MessageChannel<Request, Response>

        /// A channel on a loop, and the other end of its socket.
        private final class Line {
            let loop: EventLoop
            let channel: Channel
            var peer: UnixSocket?
            var messages: [Request] = []
            var ends: [String?] = []
            var rooms = 0
            /// Descriptors that came along.
            var descriptors = 0

            init(queueLimit: Int = 64, descriptorLimit: Int = .max) throws {
                loop = try EventLoop()
                let pair = try UnixSocket.pair()
                channel = try Channel(try UnixSocket(duplicating: pair.first), loop, queueLimit: queueLimit, descriptorLimit: descriptorLimit)
                peer = .some(try UnixSocket(duplicating: pair.second))
                channel.onMessage = { [unowned self] request, list in
                    messages.append(request)
                    descriptors += list.count
                }
                channel.onEnd = { [unowned self] in ends.append($0) }
                channel.onRoom = { [unowned self] in rooms += 1 }
            }

            /// Lets the loop handle what there is.
            func turn(_ count: Int = 1) throws {
                for _ in 0..<count {
                    // The last to be called stops the loop: it would wait otherwise.
                    let event = try EventDescriptor()
                    event.signal()
                    try loop.watch(event.raw, .readable) { [loop] in loop.stop() }
                    try loop.run()
                    loop.unwatch(event.raw)
                }
            }

            func send(_ bytes: [UInt8], _ descriptors: [CInt] = []) throws { _ = try peer?.send(bytes, descriptors: descriptors) }
        }

        private let request = Request.status(.name("one"), isRunningOnly: false)

        @Test func `messages arrive in order, with their descriptors, and those that are not taken are closed`() throws {
            let line = try Line()
            let marked = try MarkedFile()
            var start = StartRequest(.name("one"))
            start.kernel = "/k"
            try line.send(try request.encoded())
            try line.send(try Request.start(start).encoded(), [marked.raw])
            try line.turn(2)
            #expect(line.messages == [request, .start(start)])
            #expect(line.descriptors == 1)
            #expect(marked.descriptorCount == 1)
            #expect(line.ends.isEmpty)
        }

        @Test(arguments: [[0x00], Array("vmd".utf8), Array("vmd\u{2}".utf8) + [1, 0, 0, 0], [UInt8](repeating: 0x76, count: 70_000)])
        func `what is no message ends the channel, once, with a reason`(bytes: [UInt8]) throws {
            let line = try Line()
            try line.send(bytes)
            try line.send(try request.encoded())
            try line.turn(3)
            #expect(line.ends.count == 1)
            #expect(line.ends.first.flatMap { $0 } != nil)
            #expect(line.messages.isEmpty)
        }

        @Test func `descriptors that do not belong are closed and end it`() throws {
            let line = try Line()
            let marked = try MarkedFile()
            try line.send(try request.encoded(), [marked.raw, marked.raw, marked.raw])
            try line.turn()
            #expect(line.ends.count == 1)
            #expect(marked.descriptorCount == 1)
        }

        @Test func `a peer that goes is told of once, and what it said before is heard`() throws {
            let line = try Line()
            try line.send(try request.encoded())
            line.peer = nil
            try line.turn(3)
            #expect(line.messages == [request])
            #expect(line.ends == [nil])
            line.channel.send(.done)
            #expect(line.ends == [nil])
        }

        /// A machine that ends while a command is on its way to it.
        @Test func `last words are heard of a peer that went without reading ours`() throws {
            let line = try Line()
            line.channel.send(.done)
            try line.send(try request.encoded())
            line.peer = nil
            try line.turn(3)
            #expect(line.messages == [request])
            #expect(line.ends == [nil])
        }

        @Test func `a peer that does not read is waited for, then ends it; the order stays`() throws {
            let line = try Line(queueLimit: 64)
            var sent = 0
            while line.channel.backlog < 60, line.ends.isEmpty {
                line.channel.send(.ended(id: UInt32(sent), name: "one", reason: String(repeating: "r", count: 1000)))
                sent += 1
            }
            #expect(line.ends.isEmpty)
            var next: UInt32 = 0
            var turns = 0
            while next < sent {
                guard case .packet(let packet) = try line.peer?.receive(limit: Packet.longest) else {
                    turns += 1
                    try #require(turns < 10_000)
                    try line.turn()
                    continue
                }
                guard case .ended(let id, _, _) = try Response(packet: packet.bytes, descriptorCount: 0) else { break }
                #expect(id == next)
                next += 1
            }
            try line.turn()
            #expect(line.channel.backlog == 0 && line.rooms == 1)
            for _ in 0..<100_000 where line.ends.isEmpty { line.channel.send(.done) }
            #expect(line.ends == ["reads too slowly"])
        }

        @Test func `descriptors that wait with their message are kept, and closed with the channel`() throws {
            let line = try Line()
            let marked = try MarkedFile()
            while line.channel.backlog < 10, line.ends.isEmpty {
                line.channel.send(.console(id: 1, name: "one", tty: "/dev/pts/1"), descriptors: [marked.raw])
            }
            #expect(marked.descriptorCount == 1 + 10)
            line.channel.close()
            line.peer = nil
            #expect(marked.descriptorCount == 1)
        }

        @Test func `a peer that does not read costs so many descriptors and no more`() throws {
            let line = try Line(queueLimit: 4096, descriptorLimit: 8)
            let marked = try MarkedFile()
            let console = Response.console(id: 1, name: "one", tty: "/dev/pts/1")
            var sent = 0
            while line.channel.backlog == 0, line.ends.isEmpty {
                line.channel.send(.done)
                sent += 1
            }
            for _ in 0..<8 { line.channel.send(console, descriptors: [marked.raw]) }
            #expect(line.ends.isEmpty && marked.descriptorCount == 1 + 8)
            // What has left counts no more.
            var turns = 0
            while line.channel.backlog > 0 || sent > 0 {
                guard case .packet = try line.peer?.receive(limit: Packet.longest) else {
                    turns += 1
                    try #require(turns < 10_000)
                    try line.turn()
                    continue
                }
                sent -= 1
            }
            while line.channel.backlog == 0, line.ends.isEmpty { line.channel.send(.done) }
            for _ in 0..<8 { line.channel.send(console, descriptors: [marked.raw]) }
            #expect(line.ends.isEmpty)
            line.channel.send(.done)
            #expect(line.ends.isEmpty)
            line.channel.send(console, descriptors: [marked.raw])
            #expect(line.ends == ["reads too slowly"])
            line.channel.close()
        }

        @Test func `who floods is read a share at a time, and not at all while suspended`() throws {
            let line = try Line()
            for _ in 0..<100 { try line.send(try request.encoded()) }
            try line.turn()
            #expect((1..<100).contains(line.messages.count))
            line.channel.suspendReading()
            let count = line.messages.count
            try line.turn(3)
            #expect(line.messages.count == count)
            line.channel.resumeReading()
            try line.turn(10)
            #expect(line.messages.count == 100)
        }

        /// An event that was found before somebody else's handler suspended the channel.
        @Test func `an event that is out of date does not read for a suspended channel`() throws {
            let line = try Line()
            let event = try EventDescriptor()
            event.signal()
            // Both are ready in one round, whichever comes first: the round in which it does not come first shows nothing.
            for _ in 0..<2 {
                try line.loop.watch(event.raw, .readable) { line.channel.suspendReading() }
                try line.send(try request.encoded())
                try line.turn()
                let count = line.messages.count
                try line.turn(2)
                #expect(line.messages.count == count)
                line.channel.resumeReading()
                line.loop.unwatch(event.raw)
                try line.turn()
            }
            #expect(line.messages.count == 2)
        }

        @Test func `a suspended channel notices that its peer has gone`() throws {
            let line = try Line()
            line.channel.suspendReading()
            try line.send(try request.encoded())
            line.peer = nil
            try line.turn(3)
            #expect(line.messages == [request] && line.ends == [nil])
        }

        @Test func `last words are sent however long the peer takes`() throws {
            let line = try Line(queueLimit: 1 << 16)
            var sent = 0
            while line.channel.backlog < 500, line.ends.isEmpty {
                line.channel.send(.done)
                sent += 1
            }
            guard let peer = line.peer.take() else { return }
            let number = peer.release().release()
            nonisolated(unsafe) var received = 0
            let reader = try PosixThread("reader") {
                guard let socket = try? UnixSocket(adopting: FileDescriptor(owning: number)) else { return }
                while let arrival = try? socket.receive(limit: 65536) {
                    switch arrival {
                    case .packet: received += 1
                    case .nothing: usleep(100)
                    case .closed: return
                    }
                }
            }
            line.channel.finish()
            line.channel.close()
            reader.join()
            #expect(received == sent)
        }
    }
}

/// A file that nobody else has: its descriptors can be counted while other tests open and close theirs.
struct MarkedFile: ~Copyable {
    private let descriptor: FileDescriptor
    var raw: CInt { descriptor.raw }

    init() throws { descriptor = try FileDescriptor.memory("marked", byteCount: 0) }

    /// How many descriptors of it this process has.
    var descriptorCount: Int {
        var mine = stat()
        fstat(raw, &mine)
        return (0..<4096 as Range<CInt>).count { number in
            var status = stat()
            return fstat(number, &status) == 0 && status.st_ino == mine.st_ino && status.st_dev == mine.st_dev
        }
    }
}
