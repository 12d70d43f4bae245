import ControlProtocol
import Linux

/// The process that listens on the control socket. It holds the clients' connections and nothing else: it reads what
/// they send, checks that it is a request, and passes it on. Who they are and what they may do is the parent's matter.
final class ControlRole {
    /// So many connections at once; more are told to come again.
    static let mostConnections = 512
    /// Of one user, unless it is root, so that no user can take all.
    static let mostConnectionsOfUser = 128
    /// Who connects and asks nothing is cut off.
    static let idleNanoseconds = UInt64.seconds(30)
    /// Packets of one answer that may wait for a slow client: a row for each machine there can be.
    private static let longestAnswer = 1 << 17

    private typealias Connection = MessageChannel<Request, Response>

    private struct Client {
        let connection: Connection
        let uid: UInt32
        /// Its request is with the parent; the next one waits in the socket.
        var isBusy = false
        var idle: Deadlines.Token?
    }

    private let loop: EventLoop
    private let deadlines: Deadlines
    private let listener: UnixListener
    private let parent: MessageChannel<ControlCommand, ControlReport>
    private var clients: [UInt32: Client] = [:]
    private var lastClient: UInt32 = 0
    private var isAccepting = false

    /// Nobody is let in while the parent is so many reports behind.
    private static let mostBacklog = 256
    /// How long nobody is let in when there are no descriptors or there is no memory for them.
    private static let restNanoseconds: UInt64 = 100_000_000

    init(
        loop: EventLoop, listener: consuming UnixListener, parent: MessageChannel<ControlCommand, ControlReport>
    ) throws(SystemError) {
        self.loop = loop
        self.listener = listener
        self.parent = parent
        deadlines = try Deadlines(loop)
        try resumeAccepting()
        parent.onRoom = { [unowned self] in try? resumeAccepting() }
        parent.onMessage = { [unowned self] in handle($0, &$1) }
        parent.onEnd = { [unowned self] _ in self.loop.stop() }
    }

    // MARK: - Clients

    private func accept() {
        // Not for ever: the parent's answers wait meanwhile.
        for _ in 0..<64 {
            guard parent.backlog < Self.mostBacklog else { return suspendAccepting() }
            do {
                guard let socket = try listener.accept() else { return }
                try admit(socket)
            } catch {
                parent.send(.log("cannot take a client: \(error)"))
                // It stays in the listener's queue, which would wake us at once.
                suspendAccepting()
                deadlines.schedule(after: Self.restNanoseconds) { [unowned self] in try? resumeAccepting() }
                return
            }
        }
    }

    private func suspendAccepting() {
        guard isAccepting else { return }
        isAccepting = false
        loop.unwatch(listener.raw)
    }

    private func resumeAccepting() throws(SystemError) {
        guard !isAccepting else { return }
        try loop.watch(listener.raw, .readable) { [unowned self] in accept() }
        isAccepting = true
    }

    private func admit(_ socket: consuming UnixSocket) throws(SystemError) {
        let uid = try socket.peerCredentials().userID
        let ofUser = clients.values.count { $0.uid == uid }
        guard clients.count < Self.mostConnections, uid == 0 || ofUser < Self.mostConnectionsOfUser else {
            let refusal = Response.failed(.unavailable, "vmd serves \(clients.count) clients already: try again")
            if let packet = try? refusal.encoded() { _ = try? socket.send(packet, descriptors: []) }
            return
        }
        // Numbers come again after four thousand million clients; the parent has forgotten the first by then.
        repeat { lastClient &+= 1 } while clients[lastClient] != nil
        let client = lastClient
        let number = socket.raw
        let connection = try Connection(socket, loop, queueLimit: Self.longestAnswer)
        parent.send(.connected(client: client), descriptors: [number])
        connection.onMessage = { [unowned self] request, descriptors in pass(request, &descriptors, from: client) }
        connection.onEnd = { [unowned self] reason in drop(client, reason) }
        connection.onRoom = { [unowned self] in listen(to: client) }
        clients[client] = Client(connection: connection, uid: uid)
        expectRequest(client)
    }

    private func expectRequest(_ client: UInt32) {
        clients[client]?.idle = deadlines.schedule(after: Self.idleNanoseconds) { [unowned self] in
            drop(client, "asked nothing for \(Self.idleNanoseconds / .seconds(1)) s")
        }
    }

    private func pass(_ request: Request, _ descriptors: inout FileDescriptorList, from client: UInt32) {
        guard clients[client]?.isBusy == false else { return }
        clients[client]?.isBusy = true
        deadlines.cancel(clients[client]?.idle)
        clients[client]?.idle = nil
        clients[client]?.connection.suspendReading()
        parent.send(.request(client: client, request), descriptors: descriptors.numbers)
    }

    private func drop(_ client: UInt32, _ reason: String?) {
        guard let gone = clients.removeValue(forKey: client) else { return }
        deadlines.cancel(gone.idle)
        if let reason {
            parent.send(.log("client \(client) of uid \(gone.uid) is cut off: \(reason)"))
            gone.connection.close(saying: .failed(.malformed, reason))
        } else {
            gone.connection.close()
        }
        parent.send(.gone(client: client))
    }

    // MARK: - The parent's answers

    private func handle(_ command: ControlCommand, _ descriptors: inout FileDescriptorList) {
        switch command {
        case .answer(let client, let response):
            clients[client]?.connection.send(response, descriptors: descriptors.numbers)
        case .finished(let client):
            guard clients[client]?.isBusy == true else { return }
            clients[client]?.isBusy = false
            expectRequest(client)
            listen(to: client)
        }
    }

    /// Its next request is taken when it has read the answer to the last: who does not read cannot make us keep more
    /// than one answer.
    private func listen(to client: UInt32) {
        guard let known = clients[client], !known.isBusy, known.connection.backlog == 0 else { return }
        known.connection.resumeReading()
    }
}
