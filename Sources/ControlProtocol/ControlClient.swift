import Glibc
import Linux

/// A connection to the daemon, for one request after the other.
///
/// Finds the socket, connects, sends requests with their descriptors, and checks what arrives: only messages of this
/// version that answer the request get through. Calls block, with a limit where the daemon has no reason to be slow.
/// Not for several threads at once; further connections are cheap.
///
/// ```swift
/// var client = try ControlClient()
/// try client.perform(.status(nil, isRunningOnly: true)) { answer in
///     if case .machine(let machine) = answer { print(machine.name, machine.state) }
/// }
///
/// var request = StartRequest(.name("web"))
/// request.kernel = "/boot/vmlinuz"
/// let kernel = try RegularFile("/boot/vmlinuz").release()
/// if case .started(let id, _, let tty) = try client.perform(.start(request), descriptors: [kernel.raw]) {
///     print("machine \(id) has its console at \(tty)")
/// }
/// ```
public struct ControlClient: ~Copyable {
    /// Where the daemon was found.
    public let path: String
    private let socket: UnixSocket

    /// Connects.
    /// - Parameter path: of the socket; `nil` for the usual places (`ControlSocket.find`).
    /// - Throws: `ControlError.connect`, which says what to do.
    public init(path: String? = nil) throws(ControlError) {
        let path = ControlSocket.find(given: path)
        do {
            socket = try UnixSocket(connectingTo: path)
        } catch {
            throw .connecting(to: path, error)
        }
        self.path = path
    }

    /// An answer, and the descriptor that came along with it.
    public struct Answer: ~Copyable {
        public let response: Response
        private var stream: FileDescriptor?

        init(_ response: Response, _ stream: consuming FileDescriptor?) {
            self.response = response
            self.stream = stream
        }

        /// A console's stream, once.
        public mutating func takeStream() -> FileDescriptor? { stream.take() }
    }

    /// Asks for something that has one answer.
    /// - Parameters:
    ///   - descriptors: borrowed; those that the request names, in its order.
    ///   - limit: seconds to wait, in place of the request's own.
    /// - Throws: `ControlError`; `refused` when the daemon's answer is `failed`.
    @discardableResult
    public mutating func perform(
        _ request: Request, descriptors: [CInt] = [], limit: Int? = nil
    ) throws(ControlError) -> Response {
        try answer(to: request, descriptors: descriptors, limit: limit).response
    }

    /// The same, for requests whose answer brings a descriptor.
    public mutating func answer(
        to request: Request, descriptors: [CInt] = [], limit: Int? = nil
    ) throws(ControlError) -> Answer {
        try send(request, descriptors)
        let answer = try receive(request, limit: limit ?? request.patience)
        if case .failed(let failure, let text) = answer.response { throw .refused(failure, text) }
        guard request.isEnded(by: answer.response) else { throw .unexpected("a list") }
        return answer
    }

    /// Asks for something that has a list of answers, and hands out each as it comes, but not `end`.
    ///
    /// A `failed` in a list that goes on (a machine that `stop` waits for in vain) is handed out too.
    /// - Throws: `ControlError`; `refused` when the request as a whole is; and what `body` throws: the rest of the list
    ///   is then not read, and the connection of no use any more.
    public mutating func perform(_ request: Request, _ body: (Response) throws -> Void) throws {
        try send(request, [])
        while true {
            let response = try receive(request, limit: request.patience).response
            let isLast = request.isEnded(by: response)
            if isLast, case .failed(let failure, let text) = response { throw ControlError.refused(failure, text) }
            if response == .end { return }
            try body(response)
            if isLast { return }
        }
    }

    // MARK: - Packets

    /// A daemon that takes nothing for so long does not live.
    private static let sendMilliseconds = 15_000

    private func send(_ request: Request, _ descriptors: [CInt]) throws(ControlError) {
        let packet: [UInt8]
        do { packet = try request.encoded() } catch { throw .tooLong(error.description) }
        guard descriptors.count == request.descriptorCount else {
            throw .tooLong("\(descriptors.count) descriptors, \(request.descriptorCount) belong to this request")
        }
        do {
            while try !socket.send(packet, descriptors: descriptors) {
                guard try Stream.wait(for: socket.raw, .writable, timeoutMilliseconds: Self.sendMilliseconds) else {
                    throw ControlError.timeout(seconds: Self.sendMilliseconds / 1000)
                }
            }
        } catch let error as ControlError {
            throw error
        } catch let error as SystemError {
            // What it said before it hung up is still to be read: a refusal, most likely.
            if error.isBrokenPipe { return }
            throw .system(error)
        } catch {
            throw .unexpected("\(error)")
        }
    }

    private func receive(_ request: Request, limit: Int?) throws(ControlError) -> Answer {
        do {
            guard try Stream.wait(for: socket.raw, .readable, timeoutMilliseconds: limit.map { $0 * 1000 }) else {
                throw ControlError.timeout(seconds: limit ?? 0)
            }
            let arrival = try socket.receive(limit: Packet.longest, descriptorLimit: Packet.mostDescriptors)
            switch consume arrival {
            case .nothing: throw ControlError.unexpected("nothing")
            case .closed: throw ControlError.closed
            case .packet(var packet):
                let response = try Response(packet: packet.bytes, descriptorCount: packet.descriptors.count)
                guard request.allows(response) else { throw ControlError.unexpected("an answer to another request") }
                return Answer(response, packet.descriptors.takeFirst())
            }
        } catch let error as ControlError {
            throw error
        } catch let error as MalformedMessage {
            throw .unexpected(error.description)
        } catch let error as SystemError {
            throw .system(error)
        } catch UnixSocket.ReceiveFailure.system(let error) where error.isReset {
            throw .closed
        } catch {
            throw .unexpected("\(error)")
        }
    }
}

extension SystemError {
    fileprivate var isBrokenPipe: Bool { errno == EPIPE || isReset }
    fileprivate var isReset: Bool { errno == ECONNRESET }
}
