public import Devices
import Linux
import Synchronization

/// The other end of the guest's serial line in a daemon: what the guest prints is kept, the last 64 KB of it, for a
/// pseudo-terminal and for at most one client; what those two send goes to the guest.
///
/// The guest prints into one ring, in which each reader has a place:
/// - The pseudo-terminal never holds the guest up. When it is not read and falls back by more than the ring holds, the
///   oldest bytes are lost to it.
/// - A client loses nothing. While it is behind by the whole ring, the guest waits, as it does for a slow foreground
///   console; but when it then takes nothing for 5 s, it is cut off and the guest goes on.
///
/// `ConsoleServer` does the reading and writing, on its owner's event loop. Nothing here allocates as the guest prints,
/// once the ring is full.
public final class ConsoleHub: SerialTerminal {
    /// A client's place in the output.
    struct Client: Equatable {
        let number: UInt64
        var position: UInt64
    }

    private struct State {
        var ring = OutputRing()
        var terminalPosition: UInt64 = 0
        var client: Client?
        var clientCount: UInt64 = 0
        /// The server has looked at everything and waits to be woken.
        var isServerIdle = true
        var unseen = 0
        /// Nobody holds the guest up any more.
        var isUnwaited = false
    }

    static let stallNanoseconds: UInt64 = 5_000_000_000
    /// Output is gathered for up to 2 ms, below what a person notices, so that a guest that prints byte by byte costs few
    /// system calls,
    private static let gatherNanoseconds: UInt64 = 2_000_000
    /// or until there is enough for a write of its own.
    private static let batch = 4096

    private let state = Monitor(State())
    private let wake: TimerDescriptor
    private let room: Mailbox<Void>
    private let input: ConsoleInput
    private let stall: UInt64

    /// - Parameter stallNanoseconds: how long a client that takes nothing may hold the guest up.
    init(stallNanoseconds: UInt64) throws(MachineError) {
        do {
            wake = try TimerDescriptor(waits: false)
            let room = try Mailbox<Void>()
            self.room = room
            input = ConsoleInput { room.post(()) }
        } catch {
            throw MachineError("console: \(error): raise the limit on open files")
        }
        stall = stallNanoseconds
    }

    public convenience init() throws(MachineError) { try self.init(stallNanoseconds: Self.stallNanoseconds) }

    /// Connects the line's other end: what was sent before waits for that.
    public func connect(_ port: SerialPort) { input.connect(port) }

    // MARK: The guest's side

    public func send(_ byte: UInt8) {
        while true {
            let (isTaken, deadline, client) = state.withLock { state -> (Bool, UInt64?, Client?) in
                guard !Self.isClientFull(state) else { return (false, nil, state.client) }
                state.ring.append(byte)
                state.unseen += 1
                if state.isServerIdle {
                    state.isServerIdle = false
                    return (true, SystemTime.monotonic() &+ Self.gatherNanoseconds, nil)
                }
                return (true, state.unseen == Self.batch ? 1 : nil, nil)
            }
            if let deadline { wake.arm(at: deadline) }
            if isTaken { return }
            if let client { wait(for: client) }
        }
    }

    public func roomAvailable() { input.feed() }

    private static func isClientFull(_ state: State) -> Bool {
        guard let client = state.client, !state.isUnwaited else { return false }
        return state.ring.end - client.position >= OutputRing.capacity
    }

    /// Until the client has taken something, or is gone for having taken nothing for too long.
    /// - Parameter full: what it was when there was no room. Read again here it could be one that has taken everything since,
    ///   and who waits for whom then?
    private func wait(for full: Client) {
        func isStuck(_ state: State) -> Bool { state.client == full && !state.isUnwaited }
        wakeServer()
        let isCutOff = state.withLock(waitingWhile: isStuck, until: SystemTime.monotonic() &+ stall) { state in
            guard isStuck(state) else { return false }
            state.client = nil
            return true
        }
        if isCutOff { wakeServer() }
    }

    /// The guest waits for no client from now on, since it is to end; a client that is behind loses output. Any thread.
    public func stopWaiting() {
        state.withLock { $0.isUnwaited = true }
        state.broadcast()
    }

    // MARK: The server's side, on the thread of its event loop

    /// Readable when there is something to look at.
    var wakeDescriptor: CInt { wake.raw }
    /// Readable when the guest has room for input again.
    var roomDescriptor: CInt { room.descriptor }

    func wakeServer() { wake.arm(at: 1) }
    func clearWake() { wake.wait() }
    func clearRoom() { _ = room.takeAll() }

    /// The server begins to look at the output: what comes from now on wakes it again.
    func beginRound() {
        state.withLock { state in
            state.isServerIdle = true
            state.unseen = 0
        }
    }

    func takeClient() -> UInt64 {
        state.withLock { state in
            state.clientCount += 1
            state.client = Client(number: state.clientCount, position: state.ring.start)
            return state.clientCount
        }
    }

    /// The client is gone, or nobody is to wait for it any more.
    func dropClient() {
        state.withLock { $0.client = nil }
        state.broadcast()
    }

    /// `nil` when the client has been cut off.
    func clientBytes(_ number: UInt64, limit: Int) -> [UInt8]? {
        state.withLock { state in
            guard let client = state.client, client.number == number else { return nil }
            // Behind the ring only when the guest waits no more.
            let position = max(client.position, state.ring.start)
            state.client?.position = position
            return state.ring.bytes(from: position, limit: limit)
        }
    }

    func clientTook(_ count: Int) {
        state.withLock { $0.client?.position += UInt64(count) }
        state.broadcast()
    }

    func terminalBytes(limit: Int) -> [UInt8] {
        state.withLock { state in
            state.terminalPosition = max(state.terminalPosition, state.ring.start)
            return state.ring.bytes(from: state.terminalPosition, limit: limit)
        }
    }

    func terminalTook(_ count: Int) { state.withLock { $0.terminalPosition += UInt64(count) } }

    /// Takes input for the guest. `false` when the queue is full with it: `roomDescriptor` becomes readable later.
    func enqueue(_ bytes: [UInt8]) -> Bool { input.enqueue(bytes) }

    /// A BREAK, in its place among the input. Any thread.
    public func sendBreak() { input.enqueueBreak() }
}
