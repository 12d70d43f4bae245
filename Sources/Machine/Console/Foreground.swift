import Glibc
import Linux
import VMM

/// Runs one machine on the terminal (or pipes, or files) that the process was started with, until the guest, the
/// user or a signal ends it.
///
/// The calling thread reads input and takes signals, "console" writes output, "vcpu0" runs the guest, "timer" its
/// clocks. Nothing but the second may wait for the terminal, and nothing waits for that one for long.
public final class Foreground {
    /// The streams, and whether the process's signals are ours: tests bring their own terminal and leave the signals.
    public struct Streams: Sendable {
        public let input: CInt
        public let output: CInt
        public let takesSignals: Bool
        public init(input: CInt = 0, output: CInt = 1, takesSignals: Bool = true) {
            self.input = input
            self.output = output
            self.takesSignals = takesSignals
        }
    }

    private enum Message: Sendable {
        case machineEnded(Machine.Outcome)
        case outputEnded(ConsoleOutput.End)
        case inputHasRoom
    }

    /// After a signal or `~.`, output that nobody reads is waited for this long.
    private static let graceNanoseconds: UInt64 = 1_000_000_000
    private static let readByteCount = 4096

    private let streams: Streams
    private let isTerminal: Bool
    private let log: @Sendable (String) -> Void
    private let loop: EventLoop
    private let mailbox: Mailbox<Message>
    private let console: Console
    private let clock: HostClock
    private let machine: Machine
    private var escapes = EscapeParser()
    private var isWatchingInput = false
    private var isInputOpen = true
    private var hasMachineEnded = false
    private var hasOutputEnded = false
    private var isLeaving = false
    private var status: CInt = 0
    private var complaint: String?

    /// Runs a machine to its end and returns the exit status: 0 after the guest's power-off or `~.`, the guest's own
    /// after its write to the debug exit port, 128+n after signal n, 1 after an error, which has been printed.
    public static func run(
        _ configuration: MachineConfiguration, engine: EngineChoice, streams: Streams = Streams(),
        isVerbose: Bool = false
    ) -> CInt {
        do {
            // Before any thread starts: threads inherit what is blocked.
            let signals = try SignalDescriptor(streams.takesSignals ? handledSignals : [])
            UserTerminal.guardExits()
            let (engine, features) = try engine.make()
            var configuration = configuration
            configuration.logsFirmware = isVerbose
            let session = try Foreground(configuration, engine, features, streams) { text in
                if isVerbose { UserTerminal.say(text) }
            }
            return try session.run(signals)
        } catch {
            UserTerminal.release()
            UserTerminal.say("\(error)")
            return 1
        }
    }

    /// Builds the machine; the terminal is not touched yet.
    init(
        _ configuration: MachineConfiguration, _ engine: any Engine, _ features: EngineFeatures, _ streams: Streams,
        _ log: @escaping @Sendable (String) -> Void
    ) throws {
        self.streams = streams
        self.log = log
        isTerminal = Terminal.isTerminal(streams.input)
        loop = try EventLoop()
        let mailbox = try Mailbox<Message>()
        self.mailbox = mailbox
        console = try Console(
            output: streams.output, onRoom: { mailbox.post(.inputHasRoom) },
            onOutputEnd: { mailbox.post(.outputEnded($0)) })
        clock = try HostClock()
        machine = try Machine(
            configuration, engine: engine, features: features, clock: clock, terminal: console, log: log)
        console.connect(machine.serialPort)
    }

    /// Runs it; see the other `run`.
    func run(_ signals: borrowing SignalDescriptor) throws -> CInt {
        try loop.watch(mailbox.descriptor, .readable) { [unowned self] in
            for message in mailbox.takeAll() { handle(message) }
        }
        let signalDescriptor = signals.raw
        try loop.watch(signalDescriptor, .readable) { [unowned self] in
            while let number = SignalDescriptor.next(in: signalDescriptor) { handleSignal(number) }
        }
        if isTerminal { try UserTerminal.guardModes(of: streams.input) }
        takeTerminal()
        try machine.start { [mailbox] event in
            if case .ended(let outcome) = event { mailbox.post(.machineEnded(outcome)) }
        }
        try loop.run()

        UserTerminal.release()
        if hasMachineEnded { machine.join() }
        clock.stop()
        if let complaint { UserTerminal.say(complaint) }
        return status
    }

    // MARK: - Events

    private func handle(_ message: Message) {
        switch message {
        case .inputHasRoom:
            resumeInput()
        case .machineEnded(let outcome):
            hasMachineEnded = true
            if !isLeaving, complaint == nil {
                switch outcome {
                case .failed(let reason):
                    status = 1
                    complaint = reason
                case .exited(let code): status = CInt(code)
                case .poweredOff, .stopped: break
                }
            }
            stopInput()
            console.finishOutput()
            stopWhenDone()
        case .outputEnded(let end):
            hasOutputEnded = true
            if case .failed(let error) = end, !isLeaving {
                status = 1
                complaint = "console output: \(error.reason)"
                machine.requestStop()
            }
            stopWhenDone()
        }
    }

    private func stopWhenDone() {
        if hasMachineEnded, hasOutputEnded { loop.stop() }
    }

    /// Ends the machine and then the loop, with `status`. The second time it does not wait.
    private func leave(_ status: CInt) {
        guard !isLeaving else { return loop.stop() }
        isLeaving = true
        self.status = status
        complaint = nil
        stopInput()
        machine.requestStop()
        do {
            let timer = try TimerDescriptor()
            timer.arm(at: SystemTime.monotonic() + Self.graceNanoseconds)
            let descriptor = timer.release()
            try loop.watch(descriptor, .readable) { [unowned self] in
                console.discardOutput()
                loop.stop()
            }
        } catch {
            loop.stop()
        }
    }

    // MARK: - Signals

    private static let handledSignals: [CInt] = [SIGTERM, SIGINT, SIGHUP, SIGQUIT, SIGTSTP, SIGCONT]

    private func handleSignal(_ number: CInt) {
        switch number {
        case SIGTSTP:
            UserTerminal.stopJob()
        case SIGCONT:
            takeTerminal()
        default:
            leave(128 + number)
        }
    }

    /// Takes the terminal if this is the foreground job: at the start, and when a stopped job goes on. In the
    /// background it stays with the shell, and is not read, which would stop the job.
    private func takeTerminal() {
        guard isTerminal else { return resumeInput() }
        do {
            guard try UserTerminal.take(streams.input) else { return pauseInput() }
        } catch {
            log("terminal: \(error)")
        }
        resumeInput()
    }

    // MARK: - Input

    private func resumeInput() {
        guard isInputOpen, !isWatchingInput else { return }
        do {
            try loop.watch(streams.input, .readable) { [unowned self] in readInput() }
            isWatchingInput = true
        } catch {
            log("console input: \(error)")
        }
    }

    private func pauseInput() {
        loop.unwatch(streams.input)
        isWatchingInput = false
    }

    /// Input has ended, or what it says no longer matters. The guest goes on.
    private func stopInput() {
        isInputOpen = false
        pauseInput()
    }

    private func readInput() {
        guard let bytes = try? Stream.read(streams.input, limit: Self.readByteCount), !bytes.isEmpty else {
            return stopInput()
        }
        // Escapes are for people; a file or a script means every byte.
        let actions = isTerminal ? escapes.parse(bytes) : [.send(bytes)]
        var hasRoom = true
        for action in actions {
            switch action {
            case .send(let bytes): hasRoom = console.enqueue(bytes)
            case .sendBreak: console.enqueueBreak()
            case .help: console.print("\r\n" + EscapeParser.help(leaving: "end the machine and leave").replacing("\n", with: "\r\n"))
            case .leave:
                console.print("\r\n[EOT]\r\n")
                return leave(0)
            }
        }
        if !hasRoom { pauseInput() }
    }
}
