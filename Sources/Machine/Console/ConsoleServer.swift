public import Linux

/// Carries a `ConsoleHub`'s output to a pseudo-terminal and a client, and their input to the guest. All of it on the
/// thread of one event loop, which is the owner's; nothing waits.
///
/// A BREAK has no byte: whoever speaks with the client calls `ConsoleHub.sendBreak` for it. Pseudo-terminals do not carry any.
public final class ConsoleServer {
    /// Why a client is no longer attached.
    public enum Detachment: Hashable, Sendable {
        /// It closed its end.
        case closed
        /// It took no output for too long while the guest waited.
        case cutOff
        /// `detach` was called.
        case released
    }

    /// One descriptor of the loop: what it is watched for, and what it cannot take now.
    private final class Peer {
        let descriptor: FileDescriptor
        let isSocket: Bool
        var watched: EventLoop.Events = []
        var isBlocked = false

        init(_ descriptor: consuming FileDescriptor, isSocket: Bool) throws(SystemError) {
            try Stream.setNonBlocking(descriptor.raw)
            self.descriptor = descriptor
            self.isSocket = isSocket
        }
    }

    private struct Client {
        let number: UInt64
        let peer: Peer
        let onDetach: (Detachment) -> Void
    }

    private static let readByteCount = 4096
    private static let writeByteCount = 16 << 10
    /// Then the loop's other descriptors have their turn: a guest that prints without end and a reader that keeps up with it
    /// do not keep the thread for themselves.
    private static let writesPerTurn = 8

    private let hub: ConsoleHub
    private let loop: EventLoop
    private var terminal: Peer?
    /// Held open, so that the pseudo-terminal never hangs up, whoever opens and closes it.
    private let slave: FileDescriptor?
    private var client: Client?
    /// The guest's input queue is full: nobody is read.
    private var isInputFull = false

    /// - Parameter terminal: the keyboard and screen of a pseudo-terminal, whose modes are set to pass bytes as they are;
    ///   `nil` for none.
    public init(_ hub: ConsoleHub, on loop: EventLoop, terminal master: consuming FileDescriptor?) throws(SystemError) {
        self.hub = hub
        self.loop = loop
        if let master {
            slave = try PseudoTerminal.openSlave(of: master.raw, isRaw: true)
            terminal = try Peer(master, isSocket: false)
        } else {
            slave = nil
        }
        try loop.watch(hub.wakeDescriptor, .readable) { [unowned self] in
            hub.clearWake()
            hub.beginRound()
            writeAll()
        }
        try loop.watch(hub.roomDescriptor, .readable) { [unowned self] in
            hub.clearRoom()
            isInputFull = false
            watchAll()
        }
        writeAll()
    }

    deinit {
        loop.unwatch(hub.wakeDescriptor)
        loop.unwatch(hub.roomDescriptor)
        if let terminal, terminal.watched != [] { loop.unwatch(terminal.descriptor.raw) }
        if let client, client.peer.watched != [] { loop.unwatch(client.peer.descriptor.raw) }
        hub.dropClient()
    }

    /// Whether somebody is attached.
    public var isAttached: Bool { client != nil }

    /// Attaches a client, which first gets what the ring holds. It detaches by closing its end.
    /// - Parameters:
    ///   - socket: a stream socket.
    ///   - onDetach: called once, on the loop's thread, when it is no longer attached.
    /// - Returns: `false`, and the socket is closed, when somebody is attached already.
    public func attach(
        _ socket: consuming FileDescriptor, onDetach: @escaping (Detachment) -> Void = { _ in }
    ) throws(SystemError) -> Bool {
        guard client == nil else { return false }
        let peer = try Peer(socket, isSocket: true)
        client = Client(number: hub.takeClient(), peer: peer, onDetach: onDetach)
        writeAll()
        return true
    }

    /// Sends the client what it can take now and lets it go: at the machine's end, or for somebody else's sake.
    public func detach() {
        writeAll()
        release(.released)
    }

    private func release(_ reason: Detachment) {
        guard let client else { return }
        if client.peer.watched != [] { loop.unwatch(client.peer.descriptor.raw) }
        self.client = nil
        hub.dropClient()
        client.onDetach(reason)
    }

    // MARK: Output

    private func writeAll() {
        if let terminal { writeTerminal(terminal) }
        if let client { write(client) }
        watchAll()
    }

    private func writeTerminal(_ peer: Peer) {
        for _ in 0..<Self.writesPerTurn {
            if peer.isBlocked { return }
            let bytes = hub.terminalBytes(limit: Self.writeByteCount)
            if bytes.isEmpty { return }
            // A pseudo-terminal fails only when it is gone; nobody misses it then.
            let count = (try? Stream.writeAvailable(peer.descriptor.raw, bytes, isSocket: false)) ?? bytes.count
            hub.terminalTook(count)
            peer.isBlocked = count < bytes.count
        }
        hub.wakeServer()
    }

    private func write(_ client: Client) {
        for _ in 0..<Self.writesPerTurn {
            guard let bytes = hub.clientBytes(client.number, limit: Self.writeByteCount) else { return release(.cutOff) }
            if bytes.isEmpty || client.peer.isBlocked { return }
            guard let count = try? Stream.writeAvailable(client.peer.descriptor.raw, bytes, isSocket: true) else {
                return release(.closed)
            }
            hub.clientTook(count)
            client.peer.isBlocked = count < bytes.count
        }
        hub.wakeServer()
    }

    // MARK: Input

    /// What a client or a person at the pseudo-terminal sent.
    private func read(_ peer: Peer) {
        guard !isInputFull else { return }
        do {
            guard let bytes = try Stream.readAvailable(peer.descriptor.raw, limit: Self.readByteCount) else { return }
            guard !bytes.isEmpty else { return hangUp(peer) }
            isInputFull = !hub.enqueue(bytes)
        } catch {
            hangUp(peer)
        }
    }

    private func hangUp(_ peer: Peer) {
        if peer === client?.peer { return release(.closed) }
        loop.unwatch(peer.descriptor.raw)
        terminal = nil
    }

    // MARK: Readiness

    private func watchAll() {
        if let terminal { watch(terminal) }
        if let client { watch(client.peer) }
    }

    private func watch(_ peer: Peer) {
        var wanted: EventLoop.Events = isInputFull ? [] : .readable
        if peer.isBlocked { wanted.insert(.writable) }
        guard wanted != peer.watched else { return }
        let descriptor = peer.descriptor.raw
        if peer.watched != [] { loop.unwatch(descriptor) }
        peer.watched = wanted
        guard wanted != [] else { return }
        // Only a lack of memory makes it fail; then this peer is deaf, and the others are not.
        try? loop.watch(descriptor, wanted) { [unowned self, unowned peer] in ready(peer) }
    }

    /// The loop does not say what for: both are tried.
    private func ready(_ peer: Peer) {
        read(peer)
        peer.isBlocked = false
        writeAll()
    }
}
