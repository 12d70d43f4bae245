import ControlProtocol
import Linux

/// A socket on which one side's messages arrive and the other side's leave, on an event loop's thread.
///
/// What does not leave at once waits in a queue, with duplicates of its descriptors; a peer that lets the queue grow
/// over its bound, or sends what is no message, ends the channel.
final class MessageChannel<Incoming: Message, Outgoing: Message> {
    /// A message, and the descriptors that came with it: those that are not taken are closed.
    var onMessage: (Incoming, inout FileDescriptorList) -> Void = { _, _ in }
    /// The peer has gone (`nil`), or this says why it is not listened to any more. Once.
    var onEnd: (String?) -> Void = { _ in }
    /// The peer has taken all that waited for it.
    var onRoom: () -> Void = {}
    /// Packets that wait for the peer. Who makes messages of others' stops listening to those while this is high.
    var backlog: Int { queue.count }

    private struct Waiting {
        let packet: [UInt8]
        let descriptors: [CInt]
    }

    private let loop: EventLoop
    private let queueLimit: Int
    private let descriptorLimit: Int
    private var socket: UnixSocket?
    private var queue: [Waiting] = []
    /// Of all that wait.
    private var descriptorCount = 0
    private var isReading = true
    private var watched: EventLoop.Events?
    private var hasEnded = false

    /// Number of packets that one turn of the loop reads at most, so that no peer keeps it.
    private static var packetsPerTurn: Int { 32 }

    /// - Parameters:
    ///   - queueLimit: packets that may wait for a slow peer.
    ///   - descriptorLimit: descriptors that may wait, beside those of a first message.
    init(
        _ socket: consuming UnixSocket, _ loop: EventLoop, queueLimit: Int = 4096, descriptorLimit: Int = .max
    ) throws(SystemError) {
        self.socket = .some(socket)
        self.loop = loop
        self.queueLimit = queueLimit
        self.descriptorLimit = descriptorLimit
        try watch()
    }

    deinit { close() }

    // MARK: - Sending

    /// Sends a message; the descriptors are borrowed.
    func send(_ message: Outgoing, descriptors: [CInt] = []) {
        guard !hasEnded, socket != nil else { return }
        let packet: [UInt8]
        do {
            packet = try message.encoded()
        } catch {
            // A text of ours is too long: the peer is told nothing rather than half of it.
            return end("\(error)")
        }
        guard queue.isEmpty else { return wait(packet, descriptors) }
        do {
            if try socket?.send(packet, descriptors: descriptors) == false { wait(packet, descriptors) }
        } catch {
            end(nil)
        }
    }

    private func wait(_ packet: [UInt8], _ descriptors: [CInt]) {
        guard queue.count < queueLimit, descriptorCount == 0 || descriptors.count <= descriptorLimit - descriptorCount else {
            return end("reads too slowly")
        }
        var copies: [CInt] = []
        for number in descriptors {
            guard let copy = try? FileDescriptor(duplicating: number) else {
                for copy in copies { _ = FileDescriptor(owning: copy) }
                return end("no descriptors left")
            }
            copies.append(copy.release())
        }
        queue.append(Waiting(packet: packet, descriptors: copies))
        descriptorCount += copies.count
        rewatch()
    }

    private func flush() {
        guard !queue.isEmpty else { return }
        var count = 0
        defer { rewatch() }
        do {
            while count < queue.count,
                try socket?.send(queue[count].packet, descriptors: queue[count].descriptors) == true
            {
                for number in queue[count].descriptors { _ = FileDescriptor(owning: number) }
                descriptorCount -= queue[count].descriptors.count
                count += 1
            }
        } catch {
            queue.removeFirst(count)
            return end(nil)
        }
        queue.removeFirst(count)
        if queue.isEmpty { onRoom() }
    }

    // MARK: - Receiving

    func suspendReading() {
        isReading = false
        rewatch()
    }

    func resumeReading() {
        isReading = true
        rewatch()
    }

    /// Reads what has arrived, also from a peer that has gone.
    func drain() {
        isReading = true
        while socket != nil, receive() {}
    }

    private func isReady() {
        if !queue.isEmpty {
            flush()
        } else if !isReading, let number = socket?.raw, Stream.hasHungUp(number) {
            // The peer has gone, which epoll tells whether it was asked or not: what it left is read to the end.
            isReading = true
        }
        var count = 0
        while isReading, socket != nil, count < Self.packetsPerTurn, receive() { count += 1 }
    }

    /// - Returns: whether there was a packet.
    private func receive() -> Bool {
        let arrival: UnixSocket.Arrival
        do {
            guard let found = try socket?.receive(limit: Incoming.longestPacket, descriptorLimit: Incoming.mostDescriptors) else {
                return false
            }
            arrival = found
        } catch {
            if case .system = error { end(nil) } else { end("\(error)") }
            return false
        }
        switch consume arrival {
        case .nothing: return false
        case .closed:
            end(nil)
            return false
        case .packet(var packet):
            let message: Incoming
            do {
                message = try Incoming(packet: packet.bytes, descriptorCount: packet.descriptors.count)
            } catch {
                end("\(error)")
                return false
            }
            onMessage(message, &packet.descriptors)
            return true
        }
    }

    // MARK: - The end

    private func end(_ reason: String?) {
        guard !hasEnded else { return }
        hasEnded = true
        isReading = false
        onEnd(reason)
    }

    /// Closes behind a last word, if the peer takes it at once.
    func close(saying message: Outgoing) {
        if queue.isEmpty, let packet = try? message.encoded() { _ = try? socket?.send(packet, descriptors: []) }
        close()
    }

    /// Sends what waits, however long the peer takes for it: at a process's end.
    func finish() {
        while !queue.isEmpty, let number = socket?.raw {
            guard Stream.waitUntilWritable(number) else { return }
            flush()
            if hasEnded { return }
        }
    }

    func close() {
        if let number = socket?.raw, watched != nil { loop.unwatch(number) }
        watched = nil
        for waiting in queue { for number in waiting.descriptors { _ = FileDescriptor(owning: number) } }
        queue = []
        descriptorCount = 0
        hasEnded = true
        socket = nil
    }

    // MARK: - The event loop

    private func watch() throws(SystemError) {
        guard let number = socket?.raw else { return }
        var events: EventLoop.Events = []
        if isReading { events.insert(.readable) }
        if !queue.isEmpty { events.insert(.writable) }
        try loop.watch(number, events) { [unowned self] in isReady() }
        watched = events
    }

    private func rewatch() {
        guard let number = socket?.raw, !hasEnded else { return }
        var events: EventLoop.Events = []
        if isReading { events.insert(.readable) }
        if !queue.isEmpty { events.insert(.writable) }
        guard events != watched else { return }
        if watched != nil { loop.unwatch(number) }
        watched = nil
        do { try watch() } catch { end("\(error)") }
    }
}
