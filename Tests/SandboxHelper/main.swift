// What the tests of processes and sandboxes run: a program without threads, whose arguments are steps, done in order.
import Glibc
import Linux

let policy: SystemCallPolicy =
    .memory + .threads + .time + .randomness + .descriptors + .files + .events + .sockets + .accepting + .terminals
var sandbox = Sandbox(policy: policy)

func say(_ text: String) { try? Stream.writeAll(1, [UInt8]("\(text)\n".utf8)) }

func fail(_ step: String, _ error: any Error) -> Never {
    say("\(step) failed: \(error)")
    exit(1)
}

/// Numbers of open descriptors.
func openDescriptors() -> [CInt] { (0..<1024).filter { fcntl($0, F_GETFD) != -1 } }

/// Threads, locks, timers and events: what every role does.
func work() throws {
    let loop = try EventLoop()
    let event = try EventDescriptor()
    let timer = try TimerDescriptor()
    let signals = try SignalDescriptor([SIGUSR1])
    let box = Monitor([UInt8]())
    let (wake, clock, arrivals) = (event.raw, timer.raw, signals.raw)
    var seen: Set<String> = []
    func mark(_ name: String) {
        seen.insert(name)
        loop.unwatch(name == "event" ? wake : name == "timer" ? clock : arrivals)
        if seen.count == 3 { loop.stop() }
    }
    try loop.watch(wake, .readable) { mark("event") }
    try loop.watch(clock, .readable) { mark("timer") }
    try loop.watch(arrivals, .readable) { mark("signal") }
    timer.arm(at: SystemTime.monotonic() + 1_000_000)
    let threads = try (0..<4).map { index in
        try PosixThread("worker") {
            for round in 0..<200 {
                box.withLock { $0 += [UInt8](repeating: UInt8(truncatingIfNeeded: round), count: 4096 * (index + 1)) }
                usleep(10)
            }
        }
    }
    event.signal()
    kill(getpid(), 0)
    pthread_kill(pthread_self(), SIGUSR1)
    try loop.run()
    for thread in threads { thread.join() }
    var generator = SystemRandomNumberGenerator()
    say("worked \(box.withLock { $0.count }) \(generator.next() != 0)")
    withExtendedLifetime((event.raw, timer.raw, signals.raw)) {}
}

/// Starts this program again; 3 is its descriptor.
func again(_ steps: [String]) throws {
    let program = Program(owning: FileDescriptor(owning: dup(3)))
    var options = ChildProcess.Options(arguments: ["helper"] + steps)
    options.environment = [("LD_LIBRARY_PATH", String(cString: getenv("LD_LIBRARY_PATH")))]
    (options.input, options.output, options.error) = (.inherited, .inherited, .inherited)
    options.descriptors = [3]
    var child = try ChildProcess(program, options)
    say("child \(try child.wait())")
}

var steps = Program.arguments.dropFirst()
while let step = steps.popFirst() {
    let parts = step.split(separator: "=", maxSplits: 1).map(String.init)
    let value = parts.count > 1 ? parts[1] : ""
    do {
        switch parts[0] {
        case "exit": exit(CInt(value) ?? 0)
        case "raise":
            signal(CInt(value) ?? 0, SIG_DFL)
            raise(CInt(value) ?? 0)
        case "sleep": while true { pause() }
        case "say": say(value)
        case "describe":
            var mask = sigset_t()
            sigprocmask(SIG_BLOCK, nil, &mask)
            var ignored: [CInt] = []
            for number: CInt in 1...31 {
                var action = sigaction()
                sigaction(number, nil, &action)
                if unsafeBitCast(action.__sigaction_handler.sa_handler, to: Int.self) == 1 { ignored.append(number) }
            }
            say("arguments \(Program.arguments)")
            say("descriptors \(openDescriptors())")
            say("blocked \((1...31).filter { sigismember(&mask, CInt($0)) == 1 }) ignored \(ignored)")
            say("leader \(getsid(0) == getpid())")
            var index = 0
            while let variable = environ[index] {
                say("variable \(String(cString: variable))")
                index += 1
            }
        case "root": sandbox.root = value == "empty" ? .empty : value == "libraries" ? .libraries : .host
        case "user": sandbox.usesUserNamespace = true
        case "identity": sandbox.identity = .init(userID: uid_t(value) ?? 65534, groupID: gid_t(value) ?? 65534)
        case "become":
            // Not by the sandbox: to be somebody without rights from the start.
            guard setgroups(0, nil) == 0, setgid(gid_t(value) ?? 65534) == 0, setuid(uid_t(value) ?? 65534) == 0 else {
                throw SystemError("setuid", errno: errno)
            }
        case "bare": sandbox.namespaces = []
        case "files": sandbox.limits[.openFiles] = UInt64(value)
        case "children": sandbox.policy += .children + .programStart + .sandboxEntry
        case "allow": for name in value.split(separator: ",") { sandbox.policy += SystemCallPolicy([.init(String(name))]) }
        case "forbid":
            // A filter of its own in front, as a container has: everything but this.
            try SandboxProbe.forbid(value)
        case "pretend": setenv("LISTEN_PID", String(getpid()), 1)
        case "activation":
            var activation = ServiceActivation()
            let count = activation.descriptors.count
            var isListener = "no"
            if let first = activation.descriptors.takeFirst() { isListener = (try? UnixListener(adopting: first)) == nil ? "no" : "yes" }
            let names = ["LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"]
            let left = names.filter { (name: String) in getenv(name) != nil }
            say("activation \(activation.names) \(count) listener \(isListener) environment \(left)")
        case "list":
            guard let folder = opendir(value) else { throw SystemError("opendir", errno: errno) }
            var names: [String] = []
            while let entry = readdir(folder) {
                let name = withUnsafePointer(to: &entry.pointee.d_name) {
                    $0.withMemoryRebound(to: CChar.self, capacity: 256) { String(cString: $0) }
                }
                if name != ".", name != ".." { names.append(name) }
            }
            say("entries \(names.sorted())")
        case "duplicate":
            var count = 0
            while fcntl(1, F_DUPFD_CLOEXEC, 0) >= 0 { count += 1 }
            say("duplicates \(count) \(String(cString: strerror(errno)))")
            var limit = rlimit()
            getrlimit(__rlimit_resource_t(4), &limit)
            say("core \(limit.rlim_cur) \(limit.rlim_max)")
        case "unknown": sandbox.policy += SystemCallPolicy("no_such_call")
        case "thread": try PosixThread("other") { while true { pause() } }.detach()
        case "enter":
            for line in try sandbox.enter() { say("missing \(line)") }
            say("entered \(getuid()) \(getgid()) dumpable \(SandboxProbe.processControl(3)) privileges \(SandboxProbe.processControl(39))")
        case "probe": for finding in SandboxProbe.run(against: pid_t(value) ?? 1) { say("probe \(finding)") }
        case "work": try work()
        case "entry32": say("entry32 \(SandboxProbe.callBy32BitEntry())")
        case "x32": say("x32 \(SandboxProbe.callByX32Number())")
        case "libraries": say("libraries \(Sandbox.libraryPath)")
        case "again":
            try again(Array(steps))
            exit(0)
        case "hold":
            // A child that dies with us; the rest of the steps are its.
            let program = try Program.running()
            var options = ChildProcess.Options(arguments: ["helper"] + steps)
            options.output = .inherited
            let child = try ChildProcess(program, options)
            say("holds \(child.processID)")
            while true { pause() }
        default: say("unknown step \(step)")
        }
    } catch {
        fail(step, error)
    }
}
