package import ControlProtocol
import Glibc
import Linux
import Synchronization

/// A daemon's side of the control socket, which answers what a test tells it to: a real peer on a real socket.
package final class StubDaemon: Sendable {
    /// What happens on a request.
    package enum Reply: Sendable {
        case answer([Response])
        /// A console's answer with a duplicate of this stream.
        case console(Response, stream: CInt)
        /// A packet as it is.
        case packet([UInt8])
        /// An answer that a descriptor comes along with.
        case answerWithDescriptor(Response)
        case hangUp
        case silence
    }

    private final class Peer: Sendable {
        private let socket: Mutex<UnixSocket?>
        init(_ socket: consuming UnixSocket) { self.socket = Mutex(socket) }
        func take() -> UnixSocket? { socket.withLock { $0.take() } }
    }

    package let path: String
    private let isStopped: Stop
    private let acceptor: PosixThread

    private final class Stop: Sendable {
        let flag = Atomic(false)
    }

    private final class Record: Sendable {
        let requests = Mutex<[(Request, Int)]>([])
    }
    private let record: Record

    /// Serves a socket in a folder of its own until it is stopped.
    package init(_ reply: @escaping @Sendable (Request) -> Reply) throws {
        let folder = "/tmp/stub-vmd-\(getpid())-\(UInt32.random(in: 0 ... .max))"
        guard mkdir(folder, 0o700) == 0 else { throw SystemError("mkdir", errno: errno) }
        path = folder + "/vmd.sock"
        let listener = try UnixListener(path: path, mode: 0o600)
        let stop = Stop(), record = Record()
        isStopped = stop
        self.record = record
        let box = Listener(listener)
        acceptor = try PosixThread("stub-vmd") {
            guard let listener = box.take() else { return }
            while !stop.flag.load(ordering: .relaxed) {
                guard (try? Stream.wait(for: listener.raw, .readable, timeoutMilliseconds: 20)) == true,
                    let socket = try? listener.accept()
                else { continue }
                let peer = Peer(socket)
                let thread = try? PosixThread("stub-client") { Self.serve(peer, stop, record, reply) }
                thread?.detach()
            }
            listener.removeFile()
            rmdir(folder)
        }
    }

    private final class Listener: Sendable {
        private let listener: Mutex<UnixListener?>
        init(_ listener: consuming UnixListener) { self.listener = Mutex(listener) }
        func take() -> UnixListener? { listener.withLock { $0.take() } }
    }

    /// Ends it; clients that are connected see the end.
    package func stop() {
        isStopped.flag.store(true, ordering: .relaxed)
        acceptor.join()
    }

    /// What was asked so far, and how many descriptors came along.
    package var requests: [(request: Request, descriptorCount: Int)] {
        record.requests.withLock { $0.map { (request: $0.0, descriptorCount: $0.1) } }
    }

    private static func serve(_ peer: Peer, _ stop: Stop, _ record: Record, _ reply: (Request) -> Reply) {
        guard let socket = peer.take() else { return }
        while !stop.flag.load(ordering: .relaxed) {
            guard (try? Stream.wait(for: socket.raw, .readable, timeoutMilliseconds: 20)) == true else { continue }
            guard let arrival = try? socket.receive(limit: Packet.longest) else { return }
            guard case .packet(let packet) = arrival,
                let request = try? Request(packet: packet.bytes, descriptorCount: packet.descriptors.count)
            else { return }
            record.requests.withLock { $0.append((request, packet.descriptors.count)) }
            switch reply(request) {
            case .answer(let responses):
                for response in responses { _ = try? socket.send(response.encoded()) }
            case .console(let response, let stream):
                _ = try? socket.send(response.encoded(), descriptors: [stream])
            case .packet(let bytes): _ = try? socket.send(bytes)
            case .answerWithDescriptor(let response):
                guard let null = try? FileDescriptor(open: "/dev/null", flags: O_RDONLY) else { return }
                _ = try? socket.send(response.encoded(), descriptors: [null.raw])
            case .hangUp: return
            case .silence: break
            }
        }
    }
}
