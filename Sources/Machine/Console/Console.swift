public import Devices
import Linux

/// The other end of the guest's serial line in the foreground: a queue of what goes in, and the writer of what comes out.
/// `~.` works when the guest hangs, since the reader of the terminal never waits for it.
public final class Console: SerialTerminal {
    private let input: ConsoleInput
    private let output: ConsoleOutput

    /// - Parameters:
    ///   - descriptor: where output goes; borrowed.
    ///   - onRoom: called after `enqueue` returned `false`, when it may go on. Any thread.
    ///   - onOutputEnd: called once, when all output is written after `finishOutput`, or could not be.
    init(
        output descriptor: CInt, onRoom: @escaping @Sendable () -> Void,
        onOutputEnd: @escaping @Sendable (ConsoleOutput.End) -> Void
    ) throws(SystemError) {
        output = try ConsoleOutput(descriptor, onEnd: onOutputEnd)
        input = ConsoleInput(onRoom: onRoom)
    }

    /// Connects the line's other end.
    func connect(_ port: SerialPort) { input.connect(port) }

    public func send(_ byte: UInt8) { output.send(CollectionOfOne(byte)) }

    public func roomAvailable() { input.feed() }

    /// Text of our own among the guest's output.
    func print(_ text: String) { output.send(Array(text.utf8)) }

    /// Takes input for the guest. `false` when the queue is full with it: `onRoom` follows.
    func enqueue(_ bytes: [UInt8]) -> Bool { input.enqueue(bytes) }

    /// A BREAK, in its place among the bytes.
    func enqueueBreak() { input.enqueueBreak() }

    func finishOutput() { output.finish() }
    func discardOutput() { output.discard() }
}
