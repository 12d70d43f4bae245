import CLinux
import Glibc

/// A program that can be run whatever becomes of its path: a descriptor of its file.
public struct Program: ~Copyable, Sendable {
    let descriptor: FileDescriptor
    /// Borrowed, to hand it to a child that has to run it too.
    public var raw: CInt { descriptor.raw }

    /// The program that runs now. An update that replaces the file does not change it.
    /// - Throws: ENOENT where /proc is missing; a sandboxed process is handed the descriptor instead.
    public static func running() throws(SystemError) -> Program { try Program(path: "/proc/self/exe") }

    public init(path: String) throws(SystemError) {
        descriptor = try FileDescriptor(open: path, flags: 0x20_0000)  // O_PATH: enough to run it
    }

    /// Takes over a descriptor that was handed down.
    public init(owning descriptor: consuming FileDescriptor) { self.descriptor = descriptor }
}

extension Program {
    /// The arguments that this process was started with. Not `CommandLine.arguments`: Swift reads those from
    /// /proc/self/cmdline, and finds none where the root is empty.
    public static var arguments: [String] {
        var result: [String] = []
        while let argument = clinux_argument(CInt(clamping: result.count)) { result.append(String(cString: argument)) }
        return result
    }
}

/// A running child. Who drops it before it has ended kills and reaps it, so no process outlives its owner and no zombie
/// stays behind.
public struct ChildProcess: ~Copyable, Sendable {
    public let processID: pid_t
    private let descriptor: FileDescriptor
    private var status: ExitStatus?

    /// The pidfd, borrowed, for `EventLoop.watch`: readable once the child has ended.
    public var raw: CInt { descriptor.raw }

    /// How a process ended.
    public enum ExitStatus: Hashable, Sendable, CustomStringConvertible {
        case exited(CInt)
        case killed(signal: CInt)

        public var description: String {
            switch self {
            case .exited(let code): "exited with \(code)"
            case .killed(let signal): "killed by signal \(signal) (\(String(cString: strsignal(signal))))"
            }
        }
    }

    /// What becomes a standard stream of the child.
    public enum Stream: Sendable {
        /// /dev/null, opened here: a process with an empty root has none, but inherits the one it has.
        case null
        case inherited
        /// Borrowed until the child has been started.
        case descriptor(CInt)
    }

    /// How to start it.
    public struct Options: Sendable {
        /// The first is what `ps` shows.
        public var arguments: [String]
        /// All there is: nothing is inherited.
        public var environment: [(name: String, value: String)] = []
        public var input = Stream.null
        public var output = Stream.null
        public var error = Stream.inherited
        /// Borrowed; they become 3, 4, 5 and so on, in this order. The child gets no others.
        public var descriptors: [CInt] = []
        /// It becomes the leader of a session and process group, away from the terminal's signals.
        public var startsSession = false
        /// It gets SIGKILL when the *thread* that started it ends (prctl(2), PR_SET_PDEATHSIG): start it on one that
        /// lasts as long as the process. Changes of credentials clear this; `Sandbox.enter` sets it again.
        public var diesWithParent = true

        public init(arguments: [String]) { self.arguments = arguments }
    }

    /// Runs the program; returns once it does.
    ///
    /// The child begins with default dispositions and no blocked signal. Between fork and exec only C runs
    /// (StartProgram.c).
    /// - Throws: what failed here (clone: EAGAIN for the limit of processes, ENOMEM; pipe2, open: EMFILE) or in the
    ///   child before the program ran: dup3 (EBADF), close_range (ENOSYS before Linux 5.9), execveat (EACCES, ENOENT
    ///   when the interpreter is not there, ENOEXEC).
    public init(_ program: borrowing Program, _ options: Options) throws(SystemError) {
        let started = try Self.start(program, options)
        processID = started.pid
        descriptor = FileDescriptor(owning: started.pidfd)
    }

    private static func start(
        _ program: borrowing Program, _ options: Options
    ) throws(SystemError) -> (pid: pid_t, pidfd: CInt) {
        var pipe = try Pipe()
        let needsNull = [options.input, options.output, options.error].contains { if case .null = $0 { true } else { false } }
        var nullNumber: CInt = -1
        var null: FileDescriptor?
        if needsNull {
            let opened = try FileDescriptor(open: "/dev/null", flags: O_RDWR)
            nullNumber = opened.raw
            null = consume opened
        }
        defer { _ = null.take() }
        func number(_ stream: Stream, _ own: CInt) -> CInt {
            switch stream {
            case .null: nullNumber
            case .inherited: own
            case .descriptor(let number): number
            }
        }
        let standard = (number(options.input, 0), number(options.output, 1), number(options.error, 2))

        var pidfd: CInt = -1
        let (programNumber, report) = (program.raw, pipe.writingEnd ?? -1)
        let environment = options.environment.map { "\($0.name)=\($0.value)" }
        let pid: pid_t = try Self.withCStrings(options.arguments) { arguments throws(SystemError) in
            try Self.withCStrings(environment) { environment throws(SystemError) in
                try retrying("clone") {
                    options.descriptors.withUnsafeBufferPointer { descriptors in
                        var request = clinux_start_request(
                            program: programNumber, argv: arguments, environment: environment, standard: standard,
                            descriptors: descriptors.baseAddress, descriptor_count: CInt(clamping: descriptors.count),
                            new_session: options.startsSession ? 1 : 0,
                            dies_with_parent: options.diesWithParent ? 1 : 0)
                        return clinux_start(&request, report, &pidfd)
                    }
                }
            }
        }
        // Our copy of the writing end must be gone, or the pipe never ends.
        pipe.closeWriter()
        if let failure = Self.failure(from: pipe.reader.raw) {
            var code: CInt = 0
            clinux_reap(pidfd, 1, &code)
            close(pidfd)
            throw SystemError(String(cString: clinux_start_step_name(failure.step)), errno: failure.code)
        }
        return (pid, pidfd)
    }

    /// Lets it go on when this goes out of scope: it is somebody else's from now on.
    public consuming func forget() {
        status = .exited(0)
    }

    deinit {
        guard status == nil else { return }
        var code: CInt = 0
        _ = Self.send(SIGKILL, to: descriptor.raw)
        clinux_reap(descriptor.raw, 1, &code)
    }

    /// How it ended, or `nil` while it runs. Reaps it.
    public mutating func poll() throws(SystemError) -> ExitStatus? { try reap(block: false) }

    /// Waits for its end.
    public mutating func wait() throws(SystemError) -> ExitStatus {
        while true { if let status = try reap(block: true) { return status } }
    }

    /// Sends a signal to this process and to no other that got its number since.
    /// - Returns: `false` when it has ended already.
    @discardableResult public borrowing func signal(_ number: CInt) -> Bool {
        status == nil && Self.send(number, to: descriptor.raw)
    }

    private static func send(_ signal: CInt, to pidfd: CInt) -> Bool {
        clinux_syscall(Int(SYS_pidfd_send_signal), UInt(bitPattern: Int(pidfd)), UInt(signal), 0, 0, 0, 0) == 0
    }

    private mutating func reap(block: Bool) throws(SystemError) -> ExitStatus? {
        if let status { return status }
        let number = descriptor.raw
        var code: CInt = 0
        switch try retrying("waitid", { clinux_reap(number, block ? 1 : 0, &code) }) {
        case 1: status = .exited(code)
        case 2: status = .killed(signal: code)
        default: break
        }
        return status
    }

    /// What the child wrote before its end, or `nil` when the program runs: exec closed the pipe.
    private static func failure(from pipe: CInt) -> clinux_start_failure? {
        var failure = clinux_start_failure()
        let size = MemoryLayout<clinux_start_failure>.size
        let count = try? retrying("read") { read(pipe, &failure, size) }
        return count == size ? failure : nil
    }

    /// A NULL-terminated array of C strings, as exec takes them.
    private static func withCStrings<Result>(
        _ strings: [String], _ body: (UnsafePointer<UnsafeMutablePointer<CChar>?>) throws(SystemError) -> Result
    ) throws(SystemError) -> Result {
        var pointers: [UnsafeMutablePointer<CChar>?] = strings.map { strdup($0) }
        pointers.append(nil)
        defer { for pointer in pointers { free(pointer) } }
        // The array lives to the end of the call; a closure would hide the type of what is thrown.
        let copy = UnsafeMutablePointer<UnsafeMutablePointer<CChar>?>.allocate(capacity: pointers.count)
        defer { copy.deallocate() }
        copy.initialize(from: pointers, count: pointers.count)
        return try body(copy)
    }
}
