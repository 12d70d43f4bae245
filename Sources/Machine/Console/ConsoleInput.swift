import Devices
import Synchronization

/// What waits to go into the guest's serial line, whoever it comes from.
///
/// Input waits here until the UART has room, which the guest makes by reading; the UART takes it on whatever thread
/// notices. So a reader of a terminal never waits for the guest.
final class ConsoleInput: Sendable {
    private enum Item {
        case bytes(ArraySlice<UInt8>)
        case sendBreak
    }

    private struct State {
        var items: [Item] = []
        var byteCount = 0
        var port: SerialPort?
        /// A reader stopped because of a full queue.
        var isReaderWaiting = false
    }

    /// Input beyond this waits where it comes from: in the terminal, the pipe or the file.
    private static let capacity = 64 << 10

    private let state = Mutex(State())
    private let onRoom: @Sendable () -> Void

    /// - Parameter onRoom: called after `enqueue` returned `false`, when it may go on. Any thread.
    init(onRoom: @escaping @Sendable () -> Void) { self.onRoom = onRoom }

    /// Connects the line's other end.
    func connect(_ port: SerialPort) { state.withLock { $0.port = port } }

    /// Takes input for the guest. `false` when the queue is full with it: `onRoom` follows.
    func enqueue(_ bytes: [UInt8]) -> Bool {
        state.withLock { state in
            state.items.append(.bytes(bytes[...]))
            state.byteCount += bytes.count
        }
        feed()
        return state.withLock { state in
            state.isReaderWaiting = state.byteCount >= Self.capacity
            return !state.isReaderWaiting
        }
    }

    /// A BREAK, in its place among the bytes.
    func enqueueBreak() {
        state.withLock { $0.items.append(.sendBreak) }
        feed()
    }

    /// Gives the UART what it takes. The lock is held over that, so that two threads cannot reorder bytes; the port's
    /// lock nests inside it, and the port calls us without its own.
    func feed() {
        let wakesReader = state.withLock { state in
            guard let port = state.port else { return false }
            var taken = 0
            loop: while taken < state.items.count {
                switch state.items[taken] {
                case .bytes(let bytes):
                    let count = port.receive(bytes)
                    state.byteCount -= count
                    guard count == bytes.count else {
                        state.items[taken] = .bytes(bytes.dropFirst(count))
                        break loop
                    }
                case .sendBreak:
                    guard port.receiveBreak() else { break loop }
                }
                taken += 1
            }
            state.items.removeFirst(taken)
            guard state.isReaderWaiting, state.byteCount < Self.capacity / 2 else { return false }
            state.isReaderWaiting = false
            return true
        }
        if wakesReader { onRoom() }
    }
}
