import ControlProtocol
import Glibc
import Linux
import Testing

extension GuestTests.DaemonTests {
    /// Who may do what: the rules of OpenBSD's vmd, with several users. None of them needs an entry in the user database.
    @Suite(.enabled(if: isRoot, "needs root to become other users")) struct Rights {
        /// May connect; all of these may.
        private static let clients: UInt32 = 65500
        private static let team: UInt32 = 65510
        private static let owner = TestUser(uid: 65501, gid: 65501, groups: [clients])
        private static let member = TestUser(uid: 65502, gid: 65502, groups: [team, clients])
        private static let stranger = TestUser(uid: 65503, gid: clients)
        private static let outsider = TestUser(uid: 65504, gid: 65504)

        private func daemon(_ text: String) throws -> LiveDaemon {
            let folder = try Scratch()
            chmod(folder.path, 0o755)
            return try LiveDaemon("socket owner \":\(Self.clients)\"\n" + text, folder: folder)
        }

        private func ask(_ daemon: LiveDaemon, _ user: TestUser, _ request: Request, _ descriptors: [CInt] = []) throws -> Response {
            try TestClient.connect(daemon.socketPath, as: user).ask(request, descriptors)
        }

        private func stop(_ daemon: LiveDaemon, _ user: TestUser?, _ name: String) throws -> [Response] {
            let client = try user.map { try TestClient.connect(daemon.socketPath, as: $0) } ?? daemon.client()
            return try client.list(.stop(.name(name), isForced: true, waits: true))
        }

        @Test func `the socket is of whom the configuration says, and nobody else gets through`() throws {
            let daemon = try daemon("")
            var status = stat()
            #expect(stat(daemon.socketPath, &status) == 0)
            #expect(status.st_mode & 0o7777 == 0o660 && status.st_uid == 0 && status.st_gid == Self.clients)
            #expect(throws: UnixSocket.Failure.system(SystemError("connect", errno: EACCES))) {
                try TestClient.connect(daemon.socketPath, as: Self.outsider)
            }
            for user in [Self.owner, Self.member, Self.stranger] {
                #expect(try TestClient.connect(daemon.socketPath, as: user).list(.status(nil, isRunningOnly: false)) == [])
            }
        }

        @Test func `only root may change what the daemon does`() throws {
            let daemon = try daemon(MachineText.machine("one", "halt", "owner \"\(Self.owner.uid)\""))
            try daemon.wait(for: "one", .running)
            for request in [Request.reload, .load("/etc/passwd"), .reset(.all), .reset(.vms), .reset(.switches), .log(isVerbose: true)] {
                for user in [Self.owner, Self.stranger] {
                    let answer = try ask(daemon, user, request)
                    #expect(answer.refusal == .permission && answer.text.contains("only root"), "\(request)")
                }
            }
            #expect(try daemon.machines().map(\.state) == [.running])
        }

        @Test func `a stopped machine is its owner's and the group's, a running one whoever's that started it and the group's`() throws {
            let daemon = try daemon(
                MachineText.machine("one", "halt", "disable\n owner \"\(Self.owner.uid)\"")
                    + MachineText.machine("team", "halt", "disable\n owner \"\(Self.owner.uid):\(Self.team)\"")
                    + MachineText.machine("roots", "halt", "disable"))
            let start = { (name: String) in Request.start(StartRequest(.name(name))) }
            for (user, may) in [(Self.owner, ["one", "team"]), (Self.member, ["team"]), (Self.stranger, [])] {
                for name in ["one", "team", "roots"] {
                    let answer = try ask(daemon, user, start(name))
                    #expect(answer.isStarted == may.contains(name), "\(user) \(name) \(answer)")
                    if answer.isStarted { #expect(try stop(daemon, user, name).count == 2) } else { #expect(answer.refusal == .permission) }
                    // Everybody sees everything.
                    #expect(try TestClient.connect(daemon.socketPath, as: user).list(.status(nil, isRunningOnly: false)).count == 3)
                }
            }
            // Started by root, it is root's while it runs; the group keeps its rights.
            #expect(try ask(daemon, Self.owner, start("one")).isStarted)
            for name in ["team", "roots"] { #expect(try daemon.ask(start(name)).isStarted) }
            let requests = { (name: String) -> [Request] in
                [.pause(.name(name)), .unpause(.name(name)), .wait(.name(name)), .console(.name(name)), .sendBreak(.name(name)), .stop(.name(name), isForced: true, waits: false)]
            }
            for (user, name) in [(Self.owner, "team"), (Self.owner, "roots"), (Self.stranger, "one"), (Self.member, "one"), (Self.member, "roots")] {
                for request in requests(name) { #expect(try ask(daemon, user, request).refusal == .permission, "\(user) \(request)") }
            }
            #expect(try ask(daemon, Self.member, .pause(.name("team"))).machineState == .paused)
            #expect(try ask(daemon, Self.owner, .pause(.name("one"))).machineState == .paused)
            // "All" are those that are his.
            let all = try TestClient.connect(daemon.socketPath, as: Self.owner).list(.stop(nil, isForced: true, waits: true))
            #expect(all == [.stopping(id: 1, name: "one", .killed), .ended(id: 1, name: "one", reason: "was stopped")])
            #expect(try stop(daemon, Self.member, "team").count == 2)
            #expect(try stop(daemon, nil, "roots").count == 2)
        }

        @Test func `terminals are for the owner, or for the group as well`() throws {
            let daemon = try daemon(
                MachineText.machine("one", "halt", "owner \"\(Self.owner.uid)\"") + MachineText.machine("team", "halt", "owner \"\(Self.owner.uid):\(Self.team)\""))
            let tty = UserDatabaseGroup.tty
            for (name, group, mode) in [("one", tty, 0o620 as mode_t), ("team", Self.team, 0o660)] {
                let row = try daemon.wait(for: name, .running)
                var status = stat()
                #expect(stat(try #require(row.tty), &status) == 0)
                #expect(status.st_uid == Self.owner.uid && status.st_gid == group && status.st_mode & 0o777 == mode, "\(name)")
            }
        }

        @Test func `who is not root makes instances only, of the templates and with the options that are allowed`() throws {
            let daemon = try daemon(
                MachineText.machine("base", "halt", "disable\n allow instance { owner \"\(Self.owner.uid)\", memory }")
                    + MachineText.machine("team", "halt", "disable\n allow instance { owner \":\(Self.team)\", boot }")
                    + MachineText.machine("private", "halt", "disable\n allow instance { memory }")
                    + MachineText.machine("none", "halt", "disable"))
            func instance(_ user: TestUser, _ name: String, of template: String?, _ change: (inout StartRequest) -> Void = { _ in }) throws -> Response {
                var request = StartRequest(.name(name))
                request.template = template
                change(&request)
                let kernel = try FileDescriptor(open: Paths.controlKernel, flags: O_RDONLY)
                return try ask(daemon, user, .start(request), request.kernel == nil ? [] : [kernel.raw])
            }
            // Not from nothing, even of a kernel of his own.
            #expect(try instance(Self.owner, "mine", of: nil) { $0.kernel = Paths.controlKernel }.refusal == .permission)

            #expect(try instance(Self.owner, "mine", of: "base") { $0.memory = 32 << 20 }.isStarted)
            let mine = try #require(try daemon.machine("mine"))
            #expect(mine.maxMemory == 32 << 20 && mine.owner == "\(Self.owner.uid)")
            for (option, change) in [
                ("boot", { $0.commandLine = "x" }), ("boot", { $0.kernel = Paths.controlKernel }), ("cpus", { $0.cpus = 1 }), ("disk", { $0.disks = ["/d"] }),
                ("interface", { $0.interfaceCount = 1 }), ("cdrom", { $0.cdrom = "/c" }),
            ] as [(String, (inout StartRequest) -> Void)] {
                let answer = try instance(Self.owner, "other", of: "base", change)
                #expect(answer.refusal == .permission && answer.text.contains("may not set \(option)"), "\(answer)")
            }
            for user in [Self.member, Self.stranger] { #expect(try instance(user, "other", of: "base").refusal == .permission) }
            #expect(try instance(Self.member, "ours", of: "team") { $0.commandLine = "halt now"; $0.kernel = Paths.controlKernel }.isStarted)
            #expect(try instance(Self.member, "other", of: "team") { $0.memory = 32 << 20 }.refusal == .permission)
            for template in ["private", "none"] { #expect(try instance(Self.owner, "other", of: template).refusal == .permission, "\(template)") }
            // An instance is no template, a name is taken once, and there must be one.
            #expect(try instance(Self.owner, "other", of: "mine").refusal == .permission)
            #expect(try instance(Self.owner, "mine", of: "base").refusal == .alreadyRunning)
            #expect(try instance(Self.owner, "none", of: "base").refusal == .invalid)
            #expect(try instance(Self.owner, "other", of: "nothing").refusal == .noSuchMachine)
            #expect(try stop(daemon, Self.member, "mine").first?.refusal == .permission)
            #expect(try stop(daemon, Self.owner, "mine").count == 2)
            #expect(try daemon.machine("mine") == nil)
        }
    }

    private enum UserDatabaseGroup {
        static var tty: UInt32 { (try? UserDatabase.group(named: "tty"))?.groupID ?? 0 }
    }

    /// Consoles by the control socket.
    @Suite struct Consoles {
        @Test func `what was printed is seen again, one at a time, until the machine's end`() throws {
            let daemon = try LiveDaemon(MachineText.machine("one", "tick"))
            try daemon.wait(for: "one", .running)
            do {
                let first = try ConsoleStream(daemon, "one")
                try first.read(until: "ready\n..")
                try daemon.wait("a holder") { try daemon.machine("one")?.consoleHolder != nil }
                #expect(try daemon.machine("one")?.consoleHolder?.hasSuffix("(pid \(getpid()))") == true)
                let refused = try daemon.ask(.console(.name("one")))
                #expect(refused.refusal == .busy && refused.text.contains("(pid \(getpid()))"), "\(refused)")
            }
            try daemon.wait("nobody's console") { try daemon.machine("one")?.consoleHolder == nil }
            let second = try ConsoleStream(daemon, "one")
            try second.read(until: "ready\n...")
            #expect(second.text.hasPrefix("vmmci is last\n"))
            _ = try daemon.client().list(.stop(.name("one"), isForced: true, waits: true))
            try second.readToEnd()
            #expect(try daemon.ask(.console(.name("one"))).refusal == .notRunning)
        }

        /// mov $0x3f8, %dx; 1: out %al, (%dx); inc %al; jmp 1b
        private static let counting: [UInt8] = [0x66, 0xBA, 0xF8, 0x03, 0xEE, 0xFE, 0xC0, 0xEB, 0xFB]

        @Test func `the last 64 KB are seen, without a gap, and who does not read holds nobody up`() throws {
            let scratch = try Scratch()
            let kernel = try scratch.file("counting", TinyKernel.image(code: Self.counting), mode: 0o644)
            let daemon = try LiveDaemon(MachineText.machine("one", "", kernel: kernel).replacing("16M", with: "32M") + MachineText.machine("two", "tick"))
            try daemon.wait(for: "one", .running)
            for _ in 0..<2 {
                let stream = try ConsoleStream(daemon, "one")
                while stream.bytes.count < 200_000 {
                    guard try stream.readMore() else { throw daemon.failure("the console ended behind \(stream.bytes.count) bytes") }
                }
                let first = try #require(stream.bytes.first)
                #expect(stream.bytes.enumerated().allSatisfy { $1 == UInt8(truncatingIfNeeded: Int(first) + $0) })
            }
            // Attached and not read.
            let stream = try ConsoleStream(daemon, "one")
            let other = try ConsoleStream(daemon, "two")
            try other.read(until: "ready\n...")
            #expect(try daemon.machines().map(\.state) == [.running, .running])
            #expect(try daemon.client().list(.stop(.name("one"), isForced: true, waits: true)).count == 2)
            try stream.readToEnd()
        }
    }
}
