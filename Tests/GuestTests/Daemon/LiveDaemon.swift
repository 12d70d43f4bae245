import ControlProtocol
import Glibc
import Linux
import Testing

extension GuestTests {
    /// The release build of vmd as a daemon, in a folder of the test's own. What the suites say to it goes over its
    /// control socket, packet by packet, so that they can also say what vmctl never would.
    @Suite(.timeLimit(.minutes(5))) struct DaemonTests {
        static let isRoot = geteuid() == 0
    }
}

/// A daemon in the foreground, with its log in a file: a pipe that nobody reads would hold it up.
final class LiveDaemon {
    let folder: Scratch
    let socketPath: String
    let pid: pid_t
    private var child: ChildProcess
    private let logPath: String

    /// How it is started, where that is not as usual.
    struct Setup {
        var arguments: [String] = []
        var environment: [(name: String, value: String)] = []
        var descriptors: [CInt] = []
        /// A program that runs vmd, and its arguments: setpriv(1) for one.
        var wrapper: [String] = []
        /// `nil`: whatever place vmd chooses by itself.
        var socket: String? = "vmd.sock"
        var names = (configuration: "vm.conf", passesConfiguration: true)
        var waitsForSocket = true
    }

    /// - Parameter configuration: the vm.conf.
    init(_ configuration: String, folder: Scratch? = nil, _ change: (inout Setup) -> Void = { _ in }) throws {
        var setup = Setup()
        change(&setup)
        let folder = try folder ?? Scratch()
        self.folder = folder
        let path = try folder.file(setup.names.configuration, Array(configuration.utf8), mode: 0o644)
        logPath = try folder.file("log", mode: 0o666)
        socketPath = "\(folder.path)/\(setup.socket ?? "vmd.sock")"
        let log = try FileDescriptor(open: logPath, flags: O_WRONLY | O_APPEND)
        var words = ["vmd", "-d"] + setup.arguments
        if setup.names.passesConfiguration { words += ["-f", path] }
        if setup.socket != nil { words += ["-s", socketPath] }
        var options = ChildProcess.Options(arguments: setup.wrapper + words)
        if !setup.wrapper.isEmpty { options.arguments = setup.wrapper + [Paths.vmd] + words.dropFirst() }
        options.environment = setup.environment
        options.descriptors = setup.descriptors
        options.output = .descriptor(log.raw)
        options.error = .descriptor(log.raw)
        // Threads of the test runner come and go.
        options.diesWithParent = false
        child = try ChildProcess(try Program(path: setup.wrapper.first ?? Paths.vmd), options)
        pid = child.processID
        if setup.waitsForSocket { try wait("a socket") { (try? TestClient(socketPath)) != nil } }
    }

    var log: String { (try? File.text(logPath)) ?? "" }

    /// Looks again and again until something is so.
    func wait(_ what: String, within seconds: Double = Paths.patience, until isSo: () throws -> Bool) throws {
        let deadline = Clock.seconds() + seconds
        while try !isSo() {
            if let status = try child.poll() { throw failure("\(status), before there was \(what)") }
            guard Clock.seconds() < deadline else { throw failure("no \(what) within \(seconds) s") }
            usleep(2000)
        }
    }

    func failure(_ what: String) -> GuestFailure { GuestFailure(description: "vmd: \(what)\n\(log.suffix(3000))") }

    func signal(_ number: CInt) { child.signal(number) }

    /// Waits for the end.
    func status(within seconds: Double = Paths.patience) throws -> ChildProcess.ExitStatus {
        let deadline = Clock.seconds() + seconds
        while Clock.seconds() < deadline {
            if let status = try child.poll() { return status }
            usleep(2000)
        }
        throw failure("did not end within \(seconds) s")
    }

    var isRunning: Bool { (try? child.poll()) == .some(nil) }

    func client() throws -> TestClient { try TestClient(socketPath) }

    /// One request on a connection of its own.
    @discardableResult
    func ask(_ request: Request, _ descriptors: [CInt] = [], within seconds: Double = Paths.patience) throws -> Response {
        try client().ask(request, descriptors, within: seconds)
    }

    // MARK: Machines

    func machines() throws -> [MachineStatus] {
        try client().list(.status(nil, isRunningOnly: false)).compactMap { if case .machine(let row) = $0 { row } else { nil } }
    }

    func machine(_ name: String) throws -> MachineStatus? { try machines().first { $0.name == name } }

    @discardableResult
    func wait(for name: String, _ state: MachineStatus.State) throws -> MachineStatus {
        var found: MachineStatus?
        try wait("\(name) that is \(state)") {
            found = try machine(name)
            return found?.state == state
        }
        return try #require(found)
    }

    /// Starts a machine that is in no file, of the control kernel.
    @discardableResult
    func start(_ name: String, _ words: String = "halt") throws -> Response {
        var request = StartRequest(.name(name))
        request.kernel = Paths.controlKernel
        request.commandLine = words
        request.memory = 16 << 20
        let kernel = try FileDescriptor(open: Paths.controlKernel, flags: O_RDONLY)
        return try ask(.start(request), [kernel.raw])
    }

    // MARK: What it has of the host

    /// The processes of its roles and machines, by what ps(1) calls them.
    func processes() -> [(pid: pid_t, title: String)] {
        var found: [(pid_t, String)] = []
        var parents = [pid]
        while let parent = parents.popLast() {
            for child in ProcessList.children(of: parent) {
                parents.append(child)
                found.append((child, ProcessList.title(of: child)))
            }
        }
        return found
    }

    func process(_ title: String) throws -> pid_t {
        guard let found = processes().first(where: { $0.title == "vmd: \(title)" }) else { throw failure("no process \(title)") }
        return found.pid
    }

    /// What could be left behind: processes, descriptors of the roles, mounts. A terminal lasts as long as somebody has a
    /// descriptor of it; how many the host has, others change too.
    func holdings() -> [String: Int] {
        var found = ["processes": processes().count]
        for (pid, title) in processes() + [(pid, "parent")] where !title.contains("vm") || title == "vmd: vmm" {
            found["descriptors of \(title)"] = File.paths("/proc/\(pid)/fd/*").count
        }
        found["mounts"] = (try? File.text("/proc/mounts"))?.split(separator: "\n").count
        return found
    }
}

/// /proc, read.
enum ProcessList {
    static func children(of pid: pid_t) -> [pid_t] {
        let text = (try? File.text("/proc/\(pid)/task/\(pid)/children")) ?? ""
        return text.split(separator: " ").compactMap { pid_t($0) }
    }

    /// Not a zombie either: who reaps orphans may take its time.
    static func isAlive(_ pid: pid_t) -> Bool { kill(pid, 0) == 0 && !title(of: pid).isEmpty }

    static func title(of pid: pid_t) -> String {
        String((try? File.text("/proc/\(pid)/cmdline"))?.prefix { $0 != "\0" } ?? "")
    }
}

/// Lines of a vm.conf.
enum MachineText {
    /// Otherwise those that come later wait for 30 s.
    static let allAtOnce = "staggered start parallel 100 delay 1\n"

    /// A machine of the control kernel.
    static func machine(_ name: String, _ words: String = "halt", _ options: String = "", kernel: String = Paths.controlKernel) -> String {
        "vm \"\(name)\" {\n memory 16M\n boot \"\(kernel)\"\n cmdline \"\(words)\"\n \(options)\n}\n"
    }
}

extension Paths {
    static let controlKernel = guests + "/control/kernel"
}
