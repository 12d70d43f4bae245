import ControlProtocol
import Glibc
import Linux
import Testing

extension GuestTests.DaemonTests {
    /// The life of machines, from start to end.
    @Suite struct Life {
        /// Runs a machine of the control kernel to where its driver answers.
        private func ready(_ daemon: LiveDaemon, _ name: String) throws {
            let stream = try ConsoleStream(daemon, name)
            try stream.read(until: "ready\n")
        }

        @Test func `a machine is started, seen, paused, unpaused and stopped`() throws {
            let daemon = try LiveDaemon(MachineText.machine("one", "") + MachineText.machine("two", "halt", "disable"))
            let one = try daemon.wait(for: "one", .running)
            #expect(one.id == 1 && one.cpus == 1 && one.maxMemory == 16 << 20 && one.restarts == 0)
            #expect(one.pid.map { ProcessList.title(of: pid_t($0)) } == "vmd: one")
            #expect(try #require(one.currentMemory) > 1 << 20)
            #expect(one.tty.map { access($0, F_OK) } == 0)
            #expect(try #require(one.startTime) > 1_700_000_000)
            let two = try #require(try daemon.machine("two"))
            #expect(two.id == 2 && two.state == .stopped && two.pid == nil && two.tty == nil)
            #expect(try daemon.client().list(.status(nil, isRunningOnly: true)).count == 1)
            #expect(try daemon.client().list(.status(.id(2), isRunningOnly: false)) == [.machine(two)])

            try ready(daemon, "one")
            for _ in 0..<2 { #expect(try daemon.ask(.pause(.name("one"))).machineState == .paused) }
            #expect(try daemon.machine("one")?.state == .paused)
            for _ in 0..<2 { #expect(try daemon.ask(.unpause(.id(1))).machineState == .running) }
            #expect(try daemon.machine("one")?.state == .running)

            let waiter = try daemon.client()
            try waiter.send(.wait(.name("one")))
            let end = Response.ended(id: 1, name: "one", reason: "shut down")
            #expect(try daemon.client().list(.stop(.name("one"), isForced: false, waits: true)) == [.stopping(id: 1, name: "one", .vmmci), end])
            #expect(try waiter.receive() == end)
            let stopped = try #require(try daemon.machine("one"))
            #expect(stopped.state == .stopped && stopped.lastEvent == "shut down")
            #expect(try daemon.ask(.stop(.name("one"), isForced: false, waits: false)).refusal == .notRunning)
            #expect(try daemon.ask(.wait(.name("one"))).refusal == .notRunning)

            #expect(try daemon.ask(.start(StartRequest(.id(2)))).isStarted)
            #expect(try daemon.ask(.start(StartRequest(.id(2)))).refusal == .alreadyRunning)
            // Its guest has switched its interrupts off: it is asked, and does not answer.
            #expect(try daemon.client().list(.stop(.id(2), isForced: false, waits: false)) == [.stopping(id: 2, name: "two", .powerButton)])
            #expect(try daemon.machine("two")?.state == .stopping)
            #expect(try daemon.client().list(.stop(.id(2), isForced: false, waits: false)) == [.stopping(id: 2, name: "two", .alreadyStopping)])
            #expect(
                try daemon.client().list(.stop(nil, isForced: true, waits: true))
                    == [.stopping(id: 2, name: "two", .killed), .ended(id: 2, name: "two", reason: "was stopped")])
            #expect(try daemon.client().list(.stop(nil, isForced: true, waits: true)) == [])
        }

        @Test func `a machine without a kernel boots by firmware, from what it is told to`() throws {
            let daemon = try LiveDaemon("vm \"bare\" {\n disable\n memory 16M\n boot device disk\n}\n")
            #expect(try daemon.ask(.start(StartRequest(.name("bare")))).isStarted)
            let console = try ConsoleStream(daemon, "bare")
            try console.read(until: "No bootable device.")
            #expect(!console.text.contains("Booting from Floppy"))
            #expect(try daemon.client().list(.stop(.name("bare"), isForced: true, waits: true)).count == 2)

            var request = StartRequest(.name("bare"))
            request.bootDevice = .net
            #expect(try daemon.ask(.start(request)).isStarted)
            try ConsoleStream(daemon, "bare").read(until: "Press Ctrl-B")
        }

        /// Whichever comes first, and whether or not the machine has stood still in between.
        @Test func `pauses and unpauses at once are all answered`() throws {
            let daemon = try LiveDaemon(MachineText.machine("one"))
            try daemon.wait(for: "one", .running)
            for _ in 0..<100 {
                let clients = try (0..<4).map { _ in try daemon.client() }
                for (index, client) in clients.enumerated() {
                    try client.send(index % 2 == 0 ? .pause(.name("one")) : .unpause(.name("one")))
                }
                for client in clients {
                    let answer = try #require(try client.receive(within: 20))
                    #expect(answer.machineState != nil || answer.refusal == .busy, "\(answer)")
                }
            }
            #expect(try daemon.ask(.unpause(.name("one"))).machineState == .running)
            #expect(try daemon.client().list(.stop(.name("one"), isForced: true, waits: true)).count == 2)
        }

        @Test func `a paused machine can be ended`() throws {
            let daemon = try LiveDaemon(MachineText.machine("one"))
            try daemon.wait(for: "one", .running)
            #expect(try daemon.ask(.pause(.name("one"))).machineState == .paused)
            #expect(try daemon.client().list(.stop(.name("one"), isForced: true, waits: true)).count == 2)
            #expect(try daemon.machine("one")?.state == .stopped)
        }

        @Test func `a guest that switches itself off is seen to`() throws {
            let daemon = try LiveDaemon(MachineText.machine("one", "off"))
            #expect(try daemon.wait(for: "one", .stopped).lastEvent == "the guest switched itself off")
            #expect(daemon.log.contains("vm one: the guest switched itself off"))
        }

        /// A packed kernel is unpacked again at each restart, in a process that may make nothing new.
        @Test(arguments: [false, true])
        func `a guest that keeps restarting is seen to, and given up`(isPacked: Bool) throws {
            let scratch = try Scratch()
            // mov $0xfe, %al; out %al, $0x64
            let kernel = try scratch.file("restarts", TinyKernel.image(code: [0xB0, 0xFE, 0xE6, 0x64, 0xF4]), mode: 0o644)
            if isPacked {
                let line = "gzip -c \(kernel) >\(kernel).gz && mv \(kernel).gz \(kernel)"
                #expect(try GuestProcess(["-c", line], input: .nothing, program: "/bin/sh").status() == 0)
            }
            let daemon = try LiveDaemon(MachineText.machine("one", "", kernel: kernel).replacing("16M", with: "32M"))
            let dead = try daemon.wait(for: "one", .crashed)
            #expect(dead.lastEvent?.contains("restarted more than 3 times") == true, "\(dead.lastEvent ?? "")")
            #expect(daemon.log.split(separator: "\n").count { $0.contains("vm one: guest restarts: ") } == 3, "\(daemon.log)")
            // It stays so.
            usleep(200_000)
            #expect(try daemon.machine("one")?.state == .crashed)
        }

        @Test func `machines that cannot be are refused with a reason`() throws {
            let scratch = try Scratch()
            let broken = try scratch.file("broken", [1, 2, 3], mode: 0o644)
            let daemon = try LiveDaemon(
                MachineText.allAtOnce + MachineText.machine("missing", "", "", kernel: "/no/such/kernel") + MachineText.machine("broken", kernel: broken)
                    + "vm \"bare\" {\n disable\n memory 16M\n}\n" + MachineText.machine("good"))
            try daemon.wait(for: "good", .running)
            #expect(try daemon.wait(for: "missing", .crashed).lastEvent?.contains("/no/such/kernel: No such file or directory") == true)
            #expect(try daemon.wait(for: "broken", .crashed).lastEvent?.contains("broken") == true)
            #expect(try daemon.ask(.start(StartRequest(.name("broken")))).refusal == .other)

            let unknown = try daemon.ask(.start(StartRequest(.name("goo"))))
            #expect(unknown.refusal == .noSuchMachine && unknown.text.contains("did you mean good?"))
            #expect(try daemon.ask(.pause(.id(77))).text.contains("no vm has id 77"))
            for name in ["", "-a", ".a", "a b", "a/b", String(repeating: "n", count: 64), "a\nb"] {
                #expect(try daemon.start(name).refusal == .invalid, "\(name)")
            }
            var request = StartRequest(.name("good"))
            request.memory = 32 << 20
            #expect(try daemon.ask(.start(request)).refusal == .alreadyRunning)
            request = StartRequest(.name("bare"))
            request.memory = 32 << 20
            #expect(try daemon.ask(.start(request)).refusal == .invalid)
            for memory in [0, 1, 1 << 20, 200 << 30, UInt64.max] {
                request = StartRequest(.name("ad-hoc"))
                request.kernel = Paths.controlKernel
                request.memory = memory
                let kernel = try FileDescriptor(open: Paths.controlKernel, flags: O_RDONLY)
                #expect(try daemon.ask(.start(request), [kernel.raw]).refusal != nil, "\(memory)")
            }
            #expect(try daemon.machines().count == 4)
        }

        @Test func `machines that are in no file vanish when they stop, and keep their ids`() throws {
            let daemon = try LiveDaemon("")
            #expect(try daemon.machines() == [])
            #expect(try daemon.start("odd").isStarted)
            #expect(try daemon.start("even").isStarted)
            #expect(try daemon.machines().map(\.name) == ["odd", "even"])
            // Sizes that are no megabytes are cut, as in a file.
            _ = try daemon.client().list(.stop(.name("odd"), isForced: true, waits: true))
            #expect(try daemon.machines().map(\.id) == [2])
            #expect(try daemon.start("third").isStarted)
            #expect(try daemon.start("odd").isStarted)
            #expect(try daemon.machines().map { "\($0.id) \($0.name)" } == ["1 odd", "2 even", "3 third"])
        }

        @Test func `staggered machines wait for their turn, and can be started or given up before`() throws {
            let names = ["a", "b", "c", "d"]
            let daemon = try LiveDaemon("staggered start parallel 1 delay 600\n" + names.map { MachineText.machine($0) }.joined())
            try daemon.wait(for: "a", .running)
            #expect(try daemon.machines().map(\.state) == [.running, .waiting, .waiting, .waiting])
            #expect(try daemon.ask(.start(StartRequest(.name("c")))).isStarted)
            #expect(try daemon.client().list(.stop(.name("b"), isForced: false, waits: true)) == [.stopping(id: 2, name: "b", .notStarted)])
            #expect(try daemon.machines().map(\.state) == [.running, .stopped, .running, .waiting])
            // A second file does not make the turns come sooner.
            #expect(try daemon.ask(.reload) == .done)
            #expect(try daemon.machines().map(\.state) == [.running, .waiting, .running, .waiting])
        }

        @Test func `what is logged can be changed`() throws {
            let daemon = try LiveDaemon("")
            #expect(!daemon.log.contains("asked for by uid"))
            #expect(try daemon.ask(.log(isVerbose: true)) == .done)
            _ = try daemon.machines()
            #expect(daemon.log.contains("status asked for by uid \(geteuid())"))
            #expect(try daemon.ask(.log(isVerbose: false)) == .done)
            let size = daemon.log.utf8.count
            _ = try daemon.machines()
            #expect(daemon.log.utf8.count == size)
        }
    }

    /// The configuration, read again; and the daemon's own end.
    @Suite struct Changes {
        @Test(arguments: [false, true]) func `a changed file counts from each machine's next start`(bySignal: Bool) throws {
            let folder = try Scratch()
            let daemon = try LiveDaemon(MachineText.allAtOnce + MachineText.machine("a") + MachineText.machine("b", "halt", "disable"), folder: folder)
            let a = try daemon.wait(for: "a", .running)
            func change(_ text: String) throws {
                _ = try folder.file("vm.conf", Array((MachineText.allAtOnce + text).utf8))
                if bySignal {
                    let count = daemon.log.components("again")
                    daemon.signal(SIGHUP)
                    try daemon.wait("another look at the file") { daemon.log.components("again") > count }
                } else {
                    #expect(try daemon.ask(.reload) == .done)
                }
            }
            let larger = MachineText.machine("a").replacing("16M", with: "32M")
            try change(larger + MachineText.machine("c") + MachineText.machine("d", "halt", "disable"))
            try daemon.wait(for: "c", .running)
            #expect(daemon.log.contains("vm a: runs on as it is"))
            #expect(try daemon.machines().map { "\($0.id) \($0.name) \($0.state) \($0.maxMemory >> 20)" } == ["1 a running 16", "3 c running 16", "4 d stopped 16"])
            #expect(try daemon.machine("a")?.pid == a.pid)
            _ = try daemon.client().list(.stop(.name("a"), isForced: true, waits: true))
            #expect(try daemon.ask(.start(StartRequest(.name("a")))).isStarted)
            #expect(try daemon.machine("a")?.maxMemory == 32 << 20)

            // Those that are in it no more go when they stop; who comes again is known.
            try change(MachineText.machine("b", "halt", "disable"))
            #expect(try daemon.machines().map { "\($0.id) \($0.name) \($0.state)" } == ["1 a running", "2 b stopped", "3 c running"])
            _ = try daemon.client().list(.stop(nil, isForced: true, waits: true))
            #expect(try daemon.machines().map(\.name) == ["b"])
            try change(larger)
            #expect(try daemon.wait(for: "a", .running).id == 1)
        }

        @Test func `a file with errors changes nothing`() throws {
            let folder = try Scratch()
            let daemon = try LiveDaemon(MachineText.machine("a"), folder: folder)
            let a = try daemon.wait(for: "a", .running)
            _ = try folder.file("vm.conf", Array("vm \"a\" {\n memry 1G\n}\nwrong\n".utf8))
            let refusal = try daemon.ask(.reload)
            #expect(refusal.refusal == .invalid && refusal.text.contains("vm.conf:2: ") && refusal.text.contains("nothing was changed"), "\(refusal)")
            daemon.signal(SIGHUP)
            try daemon.wait("an error in the log") { daemon.log.contains("reload: ") }
            #expect(try daemon.machine("a")?.pid == a.pid)
        }

        @Test(.enabled(if: geteuid() == 0, "only root gives sockets away"))
        func `the control socket is given to whom a changed file names`() throws {
            let folder = try Scratch()
            let daemon = try LiveDaemon("socket owner \":4711\"\n", folder: folder)
            func group() -> UInt32 {
                var status = stat()
                return stat(folder.path + "/vmd.sock", &status) == 0 ? status.st_gid : .max
            }
            #expect(group() == 4711)
            _ = try folder.file("vm.conf", Array("socket owner \":4712\"\n".utf8))
            #expect(try daemon.ask(.reload) == .done)
            #expect(group() == 4712)
        }

        @Test func `more files add machines, and a reset forgets all`() throws {
            let folder = try Scratch()
            let more = try folder.file("more.conf", Array(MachineText.machine("b").utf8))
            let daemon = try LiveDaemon(MachineText.allAtOnce + MachineText.machine("a"), folder: folder)
            try daemon.wait(for: "a", .running)
            #expect(try daemon.ask(.load("more.conf")).refusal == .invalid)
            #expect(try daemon.ask(.load("/no/such/file")).refusal == .invalid)
            #expect(try daemon.ask(.load(more)) == .done)
            try daemon.wait(for: "b", .running)
            #expect(try daemon.machines().map(\.name) == ["a", "b"])
            #expect(try daemon.ask(.reset(.switches)) == .done)
            #expect(try daemon.machines().count == 2)
            #expect(try daemon.ask(.reset(.vms)) == .done)
            try daemon.wait("no machine") { try daemon.machines().isEmpty }
            #expect(try daemon.ask(.reload) == .done)
            #expect(try daemon.wait(for: "a", .running).id == 1)
        }

        @Test func `the daemon's end asks the machines first`() throws {
            let daemon = try LiveDaemon(MachineText.machine("one", ""))
            let stream = try ConsoleStream(daemon, "one")
            try stream.read(until: "ready\n")
            daemon.signal(SIGTERM)
            #expect(try daemon.status() == .exited(0))
            #expect(daemon.log.contains("vm one: shut down"))
            #expect(access(daemon.socketPath, F_OK) != 0)
        }

        @Test func `a second signal ends machines that do not answer`() throws {
            let daemon = try LiveDaemon(MachineText.machine("one"))
            try daemon.wait(for: "one", .running)
            daemon.signal(SIGTERM)
            try daemon.wait(for: "one", .stopping)
            #expect(try daemon.start("more").refusal == .unavailable)
            let processes = daemon.processes().map(\.pid)
            daemon.signal(SIGTERM)
            #expect(try daemon.status() == .exited(0))
            #expect(daemon.log.contains("vm one: was killed"))
            #expect(!processes.contains(where: ProcessList.isAlive))
        }
    }
}

extension String {
    fileprivate func components(_ text: String) -> Int { ranges(of: text).count }
}

/// An attached console.
final class ConsoleStream {
    private let stream: FileDescriptor
    private(set) var bytes: [UInt8] = []

    /// - Throws: when it is refused.
    init(_ daemon: LiveDaemon, _ name: String, as user: TestUser? = nil) throws {
        let client = try user.map { try TestClient.connect(daemon.socketPath, as: $0) } ?? daemon.client()
        try client.send(.console(.name(name)))
        guard let (answer, stream) = try client.receiveWithStream(), let stream else { throw daemon.failure("no console of \(name)") }
        self.stream = FileDescriptor(owning: stream)
        guard case .console = answer else { throw daemon.failure("\(answer)") }
    }

    /// Without carriage returns: behind them line feeds would be parts of characters.
    var text: String { String(decoding: bytes.filter { $0 != 0x0D }, as: UTF8.self) }

    /// - Returns: `false` at its end.
    @discardableResult func readMore(within seconds: Double = Paths.patience) throws -> Bool {
        var entry = pollfd(fd: stream.raw, events: Int16(POLLIN), revents: 0)
        guard poll(&entry, 1, Int32(seconds * 1000)) > 0 else { throw GuestFailure(description: "console is silent behind \(text.suffix(300))") }
        let more = try Stream.read(stream.raw, limit: 65536)
        bytes += more
        return !more.isEmpty
    }

    func send(_ text: String) throws { try Stream.writeAll(stream.raw, Array(text.utf8)) }

    func read(until wanted: String) throws {
        let deadline = Clock.seconds() + Paths.patience
        while !text.contains(wanted) {
            guard Clock.seconds() < deadline else { throw GuestFailure(description: "console goes on behind \(text.suffix(300))") }
            guard try readMore() else { throw GuestFailure(description: "console ended behind \(text.suffix(300))") }
        }
    }

    func readToEnd() throws {
        let deadline = Clock.seconds() + Paths.patience
        while try readMore() {
            guard Clock.seconds() < deadline else { throw GuestFailure(description: "console does not end behind \(text.suffix(300))") }
        }
    }
}
