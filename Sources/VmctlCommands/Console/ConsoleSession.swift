import Glibc
import Linux
import Machine

/// A terminal, or pipes, and the stream of a machine's console, until one of them ends or the user leaves.
///
/// One thread. It waits for nobody: a terminal that is halted (^S) still takes `~.`, and a signal ends it always.
final class ConsoleSession {
    /// Tests bring their own terminal and leave the process's signals.
    struct Streams: Sendable {
        var input: CInt = 0
        var output: CInt = 1
        var takesSignals = true
        var isTerminal: Bool { Terminal.isTerminal(input) }
    }

    enum End: Hashable {
        /// `~.`, or the terminal has gone.
        case left
        /// The other side has closed the stream.
        case streamEnded
        case signal(CInt)
        /// Output could not be written.
        case failed(SystemError)
    }

    private static let signals: [CInt] = [SIGTERM, SIGINT, SIGHUP, SIGQUIT, SIGTSTP, SIGCONT]
    private static let shownLimit = 64 << 10
    private static let typedLimit = 4 << 10

    private let streams: Streams
    private let isTerminal: Bool
    private let loop: EventLoop
    private let stream: FileDescriptor
    private let screen: Screen
    private let sendBreak: () -> Void
    private var escapes = EscapeParser()
    /// The guest's output that is not printed yet, and input that it has not taken.
    private var shown: [UInt8] = []
    private var typed: [UInt8] = []
    private var isInputOpen = true
    /// The terminal is ours, or there is none.
    private var mayRead = true
    private var hasStreamEnded = false
    private var end: End?
    private var watched: [CInt: EventLoop.Events] = [:]

    init(_ stream: consuming FileDescriptor, _ streams: Streams, sendBreak: @escaping () -> Void) throws(SystemError) {
        self.streams = streams
        self.sendBreak = sendBreak
        isTerminal = streams.isTerminal
        try Stream.setNonBlocking(stream.raw)
        self.stream = stream
        screen = Screen(streams.output)
        loop = try EventLoop()
    }

    /// Gives the terminal back, whatever ends it.
    func run() throws -> End {
        let signals = try SignalDescriptor(streams.takesSignals ? Self.signals : [])
        let signalDescriptor = signals.raw
        try loop.watch(signalDescriptor, .readable) { [unowned self] in
            while let number = SignalDescriptor.next(in: signalDescriptor) { handleSignal(number) }
        }
        if isTerminal {
            if streams.takesSignals { UserTerminal.guardExits() }
            try UserTerminal.guardModes(of: streams.input)
        }
        defer { UserTerminal.release() }
        takeTerminal()
        update()
        while end == nil { try loop.run() }
        return end ?? .left
    }

    private func leave(_ reason: End) {
        if end == nil { end = reason }
        loop.stop()
    }

    // MARK: - Signals

    private func handleSignal(_ number: CInt) {
        switch number {
        case SIGTSTP: UserTerminal.stopJob()
        case SIGCONT: takeTerminal()
        default: leave(.signal(number))
        }
        update()
    }

    private func takeTerminal() {
        guard isTerminal else { return }
        // One that cannot be made raw is still of some use.
        mayRead = (try? UserTerminal.take(streams.input)) ?? true
    }

    // MARK: - What is ready

    private func readStream() {
        guard shown.count < Self.shownLimit, !hasStreamEnded else { return }
        do {
            guard let bytes = try Stream.readAvailable(stream.raw, limit: Self.shownLimit) else { return }
            if bytes.isEmpty { hasStreamEnded = true } else { shown += bytes }
        } catch {
            hasStreamEnded = true
        }
        writeScreen()
    }

    private func writeStream() {
        do {
            typed.removeFirst(try Stream.writeAvailable(stream.raw, typed, isSocket: true))
        } catch {
            // Nobody takes it any more; what the other side said last is read to its end.
            typed = []
        }
    }

    private func writeScreen() {
        do {
            shown.removeFirst(try screen.write(shown))
        } catch {
            leave(.failed(error))
        }
    }

    private func readInput() {
        guard let bytes = try? Stream.read(streams.input, limit: Self.typedLimit), !bytes.isEmpty else {
            isInputOpen = false
            // A person is gone with the terminal; a script may want to see what comes.
            return isTerminal ? leave(.left) : ()
        }
        for action in isTerminal ? escapes.parse(bytes) : [.send(bytes)] {
            switch action {
            case .send(let bytes): typed += bytes
            case .sendBreak: sendBreak()
            case .help:
                let help = EscapeParser.help(leaving: "leave; the machine runs on")
                shown += "\r\n\(help.replacing("\n", with: "\r\n"))".utf8
            case .leave:
                _ = try? screen.write(Array("\r\n[EOT]\r\n".utf8))
                return leave(.left)
            }
        }
        writeStream()
        writeScreen()
    }

    // MARK: - Readiness

    /// Watches what there is something to do for.
    private func update() {
        if hasStreamEnded, shown.isEmpty { leave(.streamEnded) }
        guard end == nil else { return }
        var wanted: EventLoop.Events = []
        if !hasStreamEnded, shown.count < Self.shownLimit { wanted.insert(.readable) }
        if !hasStreamEnded, !typed.isEmpty { wanted.insert(.writable) }
        watch(stream.raw, wanted) { session in
            session.readStream()
            if !session.typed.isEmpty { session.writeStream() }
        }
        watch(screen.descriptor, shown.isEmpty ? [] : .writable) { $0.writeScreen() }
        let reads = isInputOpen && mayRead && typed.count < Self.typedLimit && !hasStreamEnded
        watch(streams.input, reads ? .readable : []) { $0.readInput() }
    }

    private func watch(_ descriptor: CInt, _ wanted: EventLoop.Events, _ handler: @escaping (ConsoleSession) -> Void) {
        guard wanted != watched[descriptor] ?? [] else { return }
        if watched.removeValue(forKey: descriptor) != nil { loop.unwatch(descriptor) }
        guard wanted != [] else { return }
        do {
            try loop.watch(descriptor, wanted) { [unowned self] in
                handler(self)
                update()
            }
            watched[descriptor] = wanted
        } catch {
            leave(.failed(error))
        }
    }
}

/// Standard output, written without waiting for whoever reads it.
private final class Screen {
    /// To watch: a description of our own for a terminal, since the shell's must keep its modes.
    let descriptor: CInt
    private let own: FileDescriptor?
    /// A pipe that is ready takes so much at once (PIPE_BUF).
    private static let pipeByteCount = 4096

    init(_ output: CInt) {
        if Terminal.isTerminal(output) {
            own = try? FileDescriptor(open: "/proc/self/fd/\(output)", flags: O_WRONLY | O_NONBLOCK | O_NOCTTY)
        } else {
            own = nil
        }
        switch own {
        case .some(let opened): descriptor = opened.raw
        case .none: descriptor = output
        }
    }

    /// Whether a write returns when there is no more room.
    private var isNonBlocking: Bool {
        switch own {
        case .some: true
        case .none: false
        }
    }

    /// - Returns: how many bytes were taken.
    func write(_ bytes: [UInt8]) throws(SystemError) -> Int {
        var taken = 0
        while taken < bytes.count {
            if !isNonBlocking, try !Stream.wait(for: descriptor, .writable, timeoutMilliseconds: 0) { return taken }
            let chunk = bytes[taken..<min(bytes.count, taken + Self.pipeByteCount)]
            let count = try Stream.writeAvailable(descriptor, chunk, isSocket: false)
            if count == 0 { return taken }
            taken += count
        }
        return taken
    }
}
