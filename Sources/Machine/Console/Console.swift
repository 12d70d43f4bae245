public import Devices
import Linux
import Synchronization

/// The other end of the guest's serial line: a queue of what goes in, and the writer of what comes out.
///
/// Input waits here until the UART has room, which the guest makes by reading; the UART takes it on whatever thread
/// notices. So the reader of the terminal never waits for the guest, and `~.` works when the guest hangs.
public final class Console: SerialTerminal {
    private enum Item {
        case bytes(ArraySlice<UInt8>)
        case sendBreak
    }

    private struct Input {
        var items: [Item] = []
        var byteCount = 0
        var port: SerialPort?
        /// The reader stopped because of a full queue.
        var isReaderWaiting = false
    }

    /// Input beyond this waits where it comes from: in the terminal, the pipe or the file.
    private static let capacity = 64 << 10

    private let input = Mutex(Input())
    private let output: ConsoleOutput
    private let onRoom: @Sendable () -> Void

    /// - Parameters:
    ///   - descriptor: where output goes; borrowed.
    ///   - onRoom: called after `enqueue` returned `false`, when it may go on. Any thread.
    ///   - onOutputEnd: called once, when all output is written after `finishOutput`, or could not be.
    init(
        output descriptor: CInt, onRoom: @escaping @Sendable () -> Void,
        onOutputEnd: @escaping @Sendable (ConsoleOutput.End) -> Void
    ) throws(SystemError) {
        output = try ConsoleOutput(descriptor, onEnd: onOutputEnd)
        self.onRoom = onRoom
    }

    /// Connects the line's other end.
    func connect(_ port: SerialPort) { input.withLock { $0.port = port } }

    public func send(_ byte: UInt8) { output.send(CollectionOfOne(byte)) }

    public func roomAvailable() { feed() }

    /// Text of our own among the guest's output.
    func print(_ text: String) { output.send(Array(text.utf8)) }

    /// Takes input for the guest. `false` when the queue is full with it: `onRoom` follows.
    func enqueue(_ bytes: [UInt8]) -> Bool {
        input.withLock { input in
            input.items.append(.bytes(bytes[...]))
            input.byteCount += bytes.count
        }
        feed()
        return input.withLock { input in
            input.isReaderWaiting = input.byteCount >= Self.capacity
            return !input.isReaderWaiting
        }
    }

    /// A BREAK, in its place among the bytes.
    func enqueueBreak() {
        input.withLock { $0.items.append(.sendBreak) }
        feed()
    }

    func finishOutput() { output.finish() }
    func discardOutput() { output.discard() }

    /// Gives the UART what it takes. The lock is held over that, so that two threads cannot reorder bytes; the port's
    /// lock nests inside it, and the port calls us without its own.
    private func feed() {
        let wakesReader = input.withLock { input in
            guard let port = input.port else { return false }
            var taken = 0
            loop: while taken < input.items.count {
                switch input.items[taken] {
                case .bytes(let bytes):
                    let count = port.receive(bytes)
                    input.byteCount -= count
                    guard count == bytes.count else {
                        input.items[taken] = .bytes(bytes.dropFirst(count))
                        break loop
                    }
                case .sendBreak:
                    guard port.receiveBreak() else { break loop }
                }
                taken += 1
            }
            input.items.removeFirst(taken)
            guard input.isReaderWaiting, input.byteCount < Self.capacity / 2 else { return false }
            input.isReaderWaiting = false
            return true
        }
        if wakesReader { onRoom() }
    }
}
