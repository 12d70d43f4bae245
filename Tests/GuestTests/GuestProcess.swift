import Glibc

/// What went wrong while driving a guest, with the end of what it printed: without that nobody can tell why.
struct GuestFailure: Error, CustomStringConvertible {
    let description: String
}

/// A `vmctl` as a user has it: on a terminal of its own, or with files and pipes in a terminal's place.
///
/// One thread drives it. Input waits in a queue and is written while output is read, so neither side can block the
/// other for good, and every wait has a deadline.
final class GuestProcess {
    enum Input {
        /// A pseudo-terminal for all three streams.
        case terminal
        case pipe
        case nothing
        case file(String)
    }

    let pid: pid_t
    /// Standard output; on a terminal, standard error too. Carriage returns are left out, here and in `errors`: how
    /// many there are depends on how many terminals a line has passed.
    private(set) var output: [UInt8] = []
    private(set) var errors: [UInt8] = []

    private var input: CInt = -1
    private var outputSource: CInt = -1
    private var errorSource: CInt = -1
    /// The terminal's other end, held open so that its modes can be read after the process is gone.
    private var slave: CInt = -1
    private var queue: ArraySlice<UInt8> = []
    private var closesInput = false
    /// Output before this was matched by a `wait(for:)`.
    private var matched = 0
    private var waitStatus: CInt?
    private var commands = 0

    init(_ arguments: [String], input kind: Input = .pipe, program: String = Paths.vmctl) throws {
        var actions = posix_spawn_file_actions_t()
        posix_spawn_file_actions_init(&actions)
        var attributes = posix_spawnattr_t()
        posix_spawnattr_init(&attributes)
        defer {
            posix_spawn_file_actions_destroy(&actions)
            posix_spawnattr_destroy(&attributes)
        }
        // The test's own threads may have signals blocked, which a child would inherit.
        var flags = Int(POSIX_SPAWN_SETSIGMASK)
        var signals = sigset_t()
        sigemptyset(&signals)
        posix_spawnattr_setsigmask(&attributes, &signals)
        var childEnds: [CInt] = []
        defer { for end in childEnds { close(end) } }

        func makePipe() throws -> (read: CInt, write: CInt) {
            var ends: [CInt] = [-1, -1]
            guard pipe(&ends) == 0 else { throw GuestFailure(description: "pipe: \(errno)") }
            for end in ends { _ = fcntl(end, F_SETFD, FD_CLOEXEC) }
            return (ends[0], ends[1])
        }
        switch kind {
        case .terminal:
            // posix_openpt(3) and its kin are hidden from Swift; these are what they do.
            let master = open("/dev/ptmx", O_RDWR | O_NOCTTY | O_CLOEXEC)
            var lock: CInt = 0
            var number: CInt = 0
            guard master >= 0, ioctl(master, PTY.setLock, &lock) == 0, ioctl(master, PTY.getNumber, &number) == 0 else {
                throw GuestFailure(description: "no pseudo-terminal: \(errno)")
            }
            let name = "/dev/pts/\(number)"
            slave = open(name, O_RDWR | O_NOCTTY | O_CLOEXEC)
            // In a new session the first terminal opened becomes the controlling one.
            flags |= POSIX_SPAWN_SETSID_FLAG
            posix_spawn_file_actions_addopen(&actions, 0, name, O_RDWR, 0)
            posix_spawn_file_actions_adddup2(&actions, 0, 1)
            posix_spawn_file_actions_adddup2(&actions, 0, 2)
            input = master
            outputSource = master
        case .pipe:
            let (read, write) = try makePipe()
            childEnds.append(read)
            posix_spawn_file_actions_adddup2(&actions, read, 0)
            input = write
        case .nothing:
            posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0)
        case .file(let path):
            posix_spawn_file_actions_addopen(&actions, 0, path, O_RDONLY, 0)
        }
        if outputSource < 0 {
            let (out, outEnd) = try makePipe()
            let (err, errEnd) = try makePipe()
            childEnds += [outEnd, errEnd]
            posix_spawn_file_actions_adddup2(&actions, outEnd, 1)
            posix_spawn_file_actions_adddup2(&actions, errEnd, 2)
            outputSource = out
            errorSource = err
        }
        for end in [input, outputSource, errorSource] where end >= 0 {
            _ = fcntl(end, F_SETFL, fcntl(end, F_GETFL) | O_NONBLOCK)
        }

        posix_spawnattr_setflags(&attributes, Int16(flags))
        var vector: [UnsafeMutablePointer<CChar>?] = ([program] + arguments).map { strdup($0) } + [nil]
        defer { for argument in vector { free(argument) } }
        var child = pid_t()
        let error = posix_spawn(&child, program, &actions, &attributes, &vector, environ)
        guard error == 0 else {
            throw GuestFailure(description: "\(program): \(String(cString: strerror(error))): make build guests")
        }
        pid = child
    }

    deinit {
        if waitStatus == nil {
            kill(pid, SIGKILL)
            var status: CInt = 0
            waitpid(pid, &status, 0)
        }
        for end in Set([input, outputSource, errorSource, slave]) where end >= 0 { close(end) }
    }

    var text: String { String(decoding: output, as: UTF8.self) }
    var errorText: String { String(decoding: errors, as: UTF8.self) }

    // MARK: - To the guest

    func send(_ text: String) { queue += Array(text.utf8) }
    func send(_ bytes: [UInt8]) { queue += bytes }

    /// Ends the input once all of it is written.
    func endInput() { closesInput = true }

    func signal(_ number: CInt) { kill(pid, number) }

    /// Runs a line in the guest's shell and returns what it printed. The numbers around it are computed by the shell,
    /// so the echo of the typed line is not mistaken for output.
    func shell(_ line: String, within seconds: Double = Paths.patience) throws -> String {
        commands += 1
        send("echo b$((\(commands))); \(line); echo e$((\(commands)))\n")
        _ = try wait(for: "b\(commands)\n", within: seconds)
        let printed = try wait(for: "e\(commands)\n", within: seconds)
        return String(printed.dropLast("e\(commands)\n".count))
    }

    // MARK: - From the guest

    /// Waits until the guest has printed `text`, and returns everything since the last match, `text` included.
    func wait(for text: String, within seconds: Double = Paths.patience) throws -> String {
        let wanted = Array(text.utf8)
        var searched = matched
        let start = matched
        try pump(within: seconds, until: "\"\(text)\"") {
            while searched + wanted.count <= output.count {
                if output[searched..<searched + wanted.count].elementsEqual(wanted) {
                    matched = searched + wanted.count
                    return true
                }
                searched += 1
            }
            return waitStatus != nil && outputSource < 0 ? nil : false
        }
        return String(decoding: output[start..<matched], as: UTF8.self)
    }

    /// Waits for the end: the exit status, or 128+n as a shell gives it when signal n killed the process.
    func status(within seconds: Double = Paths.patience) throws -> CInt {
        try pump(within: seconds, until: "the end") { waitStatus != nil }
        let status = waitStatus ?? 0
        return status & 0x7F == 0 ? status >> 8 & 0xFF : 128 + status & 0x7F
    }

    /// Lets it run on for a while.
    func idle(_ seconds: Double) throws {
        let end = Clock.seconds() + seconds
        try pump(within: seconds + 1, until: "the end of \(seconds) s") {
            Clock.seconds() >= end ? true : waitStatus == nil ? false : nil
        }
    }

    // MARK: - About the process

    /// Processor time used so far, in seconds.
    func processorTime() throws -> Double {
        // Fields 14 and 15, counted behind the name, which may hold anything.
        let fields = try File.text("/proc/\(pid)/stat").split(separator: ")").last?.split(separator: " ") ?? []
        guard fields.count > 12, let user = Double(fields[11]), let system = Double(fields[12]) else {
            throw GuestFailure(description: "/proc/\(pid)/stat makes no sense")
        }
        return (user + system) / Double(sysconf(CInt(_SC_CLK_TCK)))
    }

    /// The modes of its terminal.
    func terminalModes() -> termios {
        var modes = termios()
        tcgetattr(slave, &modes)
        return modes
    }

    // MARK: - The pump

    /// Moves bytes both ways until `isDone` says `true`. `nil` means that it never will.
    private func pump(within seconds: Double, until what: String, _ isDone: () -> Bool?) throws {
        let deadline = Clock.seconds() + seconds
        while true {
            // Drained before the look, so that a process's last words count.
            reap()
            transfer()
            guard let done = isDone() else { throw failure("ended before \(what)") }
            if done { return }
            guard Clock.seconds() < deadline else { throw failure("did not come to \(what) within \(seconds) s") }
            var polls: [pollfd] = []
            for source in [outputSource, errorSource] where source >= 0 {
                polls.append(pollfd(fd: source, events: Int16(POLLIN), revents: 0))
            }
            if !queue.isEmpty, input >= 0 { polls.append(pollfd(fd: input, events: Int16(POLLOUT), revents: 0)) }
            poll(&polls, nfds_t(polls.count), 10)
        }
    }

    private func reap() {
        guard waitStatus == nil else { return }
        var status: CInt = 0
        if waitpid(pid, &status, WNOHANG) == pid { waitStatus = status }
    }

    private func transfer() {
        while !queue.isEmpty, input >= 0 {
            let count = queue.withUnsafeBytes { write(input, $0.baseAddress, min($0.count, 4096)) }
            if count <= 0 { break }
            queue.removeFirst(count)
        }
        if queue.isEmpty, closesInput, input >= 0, input != outputSource {
            close(input)
            input = -1
        }
        Self.drain(&outputSource, into: &output, keepsOpen: slave >= 0)
        Self.drain(&errorSource, into: &errors, keepsOpen: false)
    }

    private static func drain(_ source: inout CInt, into bytes: inout [UInt8], keepsOpen: Bool) {
        var buffer = [UInt8](repeating: 0, count: 65536)
        while source >= 0 {
            let count = read(source, &buffer, buffer.count)
            if count > 0 {
                bytes += buffer[..<count].lazy.filter { $0 != 0x0D }
            } else if count == 0, !keepsOpen {
                close(source)
                source = -1
            } else {
                return
            }
        }
    }

    private func failure(_ what: String) -> GuestFailure {
        let tail = String(decoding: output.suffix(1500), as: UTF8.self)
        let complaints = errors.isEmpty ? "" : "\nstandard error: \(errorText)"
        return GuestFailure(description: "vmctl \(what)\nits last output: \(tail)\(complaints)")
    }
}

/// asm-generic/ioctls.h, which Swift does not import: TIOCSPTLCK and TIOCGPTN.
private enum PTY {
    static let setLock: UInt = 0x4004_5431
    static let getNumber: UInt = 0x8004_5430
}

/// glibc's POSIX_SPAWN_SETSID, which its header hides from strict POSIX and Swift does not import.
private let POSIX_SPAWN_SETSID_FLAG = 0x80
