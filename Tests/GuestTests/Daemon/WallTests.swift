import CLinux
import ControlProtocol
import Glibc
import Linux
import Testing

extension GuestTests.DaemonTests {
    /// What each role can do when its program is somebody else's: nearly nothing. Every role tries by itself
    /// (`SandboxProbe`), in the daemon as users have it.
    @Suite struct Walls {
        /// What is not refused outright, and why that must be or does no harm. Everything else is "Operation not
        /// permitted".
        static let allowed: [String: [String: String]] = [
            "control": [:],
            "priv": [:],
            // Streams for consoles: a call with a wrong address gets that far.
            "vm": ["socketpair": "Bad address"],
            // vmm starts processes of this program, which enter their own sandbox behind it: what they call, it may call.
            // Its root holds the libraries alone, it has no rights, and what it starts can only be narrower.
            "vmm": [
                "socketpair": "Bad address", "open /": "succeeded",
                "open /etc/passwd": "No such file or directory", "open /etc/shadow": "No such file or directory",
                "open /proc/self/status": "No such file or directory", "open /dev/null": "No such file or directory",
                "create /created": "Read-only file system", "create /tmp/vmd-probe": "No such file or directory",
                "create /dev/shm/vmd-probe": "No such file or directory", "mkdir": "Read-only file system",
                "readlink": "Invalid argument",
                // A machine's process gives up what it has of namespaces, users and mounts.
                "unshare user": "succeeded", "unshare mount": "succeeded", "mount": "Invalid argument",
                "umount2": "No such file or directory", "pivot_root": "No such file or directory",
                "setresuid 0": "Invalid argument", "capset": "Invalid argument", "seccomp": "Invalid argument",
                "prctl dumpable": "Invalid argument",
                // It makes the guest's memory and the translator's code.
                "memfd_create": "succeeded", "mmap executable": "succeeded", "mprotect executable": "succeeded",
                // And the rings of its disks, which then take reads and writes only.
                "io_uring_setup": "succeeded",
            ],
        ]

        /// Before Linux 6.12 nothing keeps vmm from signalling other processes of the same user: its filter, which its
        /// children inherit, cannot know their numbers. Root's daemon has a user for its roles alone.
        static let allowedOfUserWithoutScope = ["tgkill": "succeeded"]

        /// What the roles said: by role, what they tried and how it went; and what the host does not give.
        private static func probe(_ wrapper: [String], _ folder: Scratch) throws -> (findings: [String: [(name: String, outcome: String)]], missing: [String]) {
            // A kernel that everybody can read.
            let kernel = try folder.file("kernel", try File.bytes(Paths.controlKernel), mode: 0o644)
            let daemon = try LiveDaemon(MachineText.machine("one", kernel: kernel), folder: folder) {
                $0.arguments = ["--probe"]
                $0.wrapper = wrapper
            }
            try daemon.wait(for: "one", .running)
            // The last of what each tries.
            try daemon.wait("four probes") { Role.all.allSatisfy { daemon.log.contains("probe \($0): clone network: ") } }
            var findings: [String: [(name: String, outcome: String)]] = [:]
            for line in daemon.log.split(separator: "\n") where line.contains(" probe ") {
                let parts = line.split(separator: ":", maxSplits: 1)[1].dropFirst(" probe ".count).split(separator: ":").map { $0.drop { $0 == " " } }
                guard parts.count == 3 else { continue }
                findings[String(parts[0]), default: []].append((String(parts[1]), String(parts[2])))
            }
            return (findings, daemon.log.split(separator: "\n").filter { $0.contains("without ") }.map(String.init))
        }

        private enum Role { static let all = ["control", "priv", "vmm", "vm"] }

        private func check(_ wrapper: [String], _ folder: Scratch, of user: Bool) throws {
            let (findings, missing) = try Self.probe(wrapper, folder)
            let hasScope = !missing.contains { $0.contains("signal scope") }
            guard missing.allSatisfy({ $0.contains("signal scope") }) else {
                // The filter alone holds there, which SandboxTests look at.
                try Test.cancel("this host does not give all walls: \(missing)")
            }
            for role in Role.all {
                let tried = findings[role] ?? []
                #expect(tried.count > 100, "\(role)")
                for (name, outcome) in tried {
                    let known = Self.allowed[role]?[name] ?? (user && role == "vmm" && !hasScope ? Self.allowedOfUserWithoutScope[name] : nil)
                    #expect(outcome == known ?? "Operation not permitted", "\(role): \(name)")
                }
            }
        }

        @Test func `no role can do what it has no use for`() throws { try check([], Scratch(), of: !GuestTests.DaemonTests.isRoot) }

        @Test(.enabled(if: GuestTests.DaemonTests.isRoot, "needs root to become another user"))
        func `nor when the daemon is an ordinary user's`() throws {
            let folder = try Scratch()
            chmod(folder.path, 0o777)
            try check(["/usr/bin/setpriv", "--reuid=65501", "--regid=65500", "--clear-groups"], folder, of: true)
        }
    }

    /// A machine's process that has come into wrong hands, and one that just dies.
    @Suite struct Broken {
        @Test(arguments: [SIGSEGV, SIGKILL])
        func `a machine that dies takes nobody along and leaves nothing behind`(signal: CInt) throws {
            let daemon = try LiveDaemon(MachineText.machine("one") + MachineText.machine("two"))
            let one = try daemon.wait(for: "one", .running)
            let two = try daemon.wait(for: "two", .running)
            let before = daemon.holdings()
            let tty = try #require(one.tty)
            let terminal = File.identity(tty)
            #expect(terminal != nil)
            kill(pid_t(try #require(one.pid)), signal)
            let dead = try daemon.wait(for: "one", .crashed)
            #expect(dead.lastEvent == "its process was killed by signal \(signal)")
            #expect(dead.pid == nil && dead.tty == nil)
            #expect(try daemon.machine("two") == two.with(memoryOf: daemon.machine("two")))
            // Somebody else's may have its number by now.
            #expect(File.identity(tty) != terminal)
            #expect(!daemon.processes().contains { $0.title == "vmd: one" })

            #expect(try daemon.ask(.start(StartRequest(.name("one")))).isStarted)
            #expect(try daemon.wait(for: "one", .running).id == one.id)
            try daemon.wait("what it held before: \(daemon.holdings()) instead of \(before)") { daemon.holdings() == before }
        }

        /// The socket of a machine's process, as the process itself has it: what is sent here, vmm takes for its word.
        private func socket(of name: String, _ daemon: LiveDaemon) throws -> UnixSocket {
            try Self.steal(3, of: try daemon.process(name))
        }

        static func steal(_ number: CInt, of process: pid_t) throws -> UnixSocket {
            let pidfd = syscall3(434, Int(process), 0, 0)  // pidfd_open
            guard pidfd >= 0 else { throw GuestFailure(description: "pidfd_open: \(errno)") }
            let owned = FileDescriptor(owning: CInt(pidfd))
            let taken = syscall3(438, Int(owned.raw), Int(number), 0)  // pidfd_getfd
            guard taken >= 0 else { try Test.cancel("this host lets nobody take descriptors of others: \(errno)") }
            return try UnixSocket(adopting: FileDescriptor(owning: CInt(taken)))
        }

        /// A packet of the daemon's own.
        static func packet(kind: UInt8, _ fields: [UInt8] = [], descriptors: UInt8 = 0) -> [UInt8] {
            Array("vmd".utf8) + [Packet.version, kind, 0, descriptors, 0] + fields
        }

        @Test(.enabled(if: GuestTests.DaemonTests.isRoot, "needs root to take a process's descriptors"), arguments: [
            [0xFF], Array("vmd".utf8), packet(kind: 99), packet(kind: 1, [1]),
            // A text with an end of a line in it, for the log.
            packet(kind: 11, [3, 0, 0x61, 0x0A, 0x62]),
            // A descriptor that is not there.
            packet(kind: 8, [1, 0, 0, 0], descriptors: 1),
            [UInt8](repeating: 0, count: 100_000),
        ])
        func `a machine that says what no machine says is cut off`(packet: [UInt8]) throws {
            let daemon = try LiveDaemon(MachineText.machine("one") + MachineText.machine("two"))
            try daemon.wait(for: "one", .running)
            let two = try daemon.wait(for: "two", .running)
            #expect(try socket(of: "one", daemon).send(packet))
            let dead = try daemon.wait(for: "one", .crashed)
            #expect(dead.lastEvent?.hasPrefix("its process was killed for a wrong message") == true, "\(dead.lastEvent ?? "")")
            #expect(try daemon.machine("two")?.pid == two.pid)
        }

        @Test(.enabled(if: GuestTests.DaemonTests.isRoot, "needs root to take a process's descriptors"))
        func `a machine that floods vmm is cut off, and others are served meanwhile`() throws {
            let daemon = try LiveDaemon(MachineText.machine("one") + MachineText.machine("two"))
            try daemon.wait(for: "one", .running)
            try daemon.wait(for: "two", .running)
            let socket = try socket(of: "one", daemon)
            let line = Self.packet(kind: 11, [200, 0] + [UInt8](repeating: 0x61, count: 200))
            let deadline = Clock.seconds() + Paths.patience
            var answers = 0
            while Clock.seconds() < deadline {
                do {
                    if try socket.send(line) { continue }
                } catch {
                    break
                }
                // It does not read any more: time for somebody else.
                #expect(try daemon.machine("two")?.state == .running)
                answers += 1
                usleep(5000)
            }
            #expect(answers > 3)
            #expect(try daemon.wait(for: "one", .crashed).lastEvent == "its process was killed for a wrong message: too many messages")
            // Far from what it had to say.
            #expect(daemon.log.utf8.count < 4 << 20)
        }

        /// To control, the parent is a peer with root's credentials: it must not be able to pass for a client.
        @Test(.enabled(if: GuestTests.DaemonTests.isRoot, "needs root to take a process's descriptors"))
        func `control cannot make root of its own socket`() throws {
            let daemon = try LiveDaemon(MachineText.machine("one"))
            try daemon.wait(for: "one", .running)
            let socket = try Self.steal(3, of: try daemon.process("control"))
            let client: [UInt8] = [0xFF, 0xFF, 0xFF, 0]
            #expect(try socket.send(Self.packet(kind: 1, client, descriptors: 1), descriptors: [socket.raw]))
            // "reset vms", which only root may ask for.
            #expect(try socket.send(Self.packet(kind: 2, client + [10, 0, 2])))
            try daemon.wait("a warning") { daemon.log.contains("names a client without a socket of ours") }
            #expect(try daemon.machine("one")?.state == .running)
        }

        @Test(.enabled(if: GuestTests.DaemonTests.isRoot, "needs root to take a process's descriptors"), arguments: ["control", "vmm", "priv"])
        func `a role that dies or lies ends the daemon, and nothing is left`(role: String) throws {
            for lies in [false, true] {
                let daemon = try LiveDaemon(MachineText.machine("one"))
                try daemon.wait(for: "one", .running)
                let processes = daemon.processes().map(\.pid)
                if lies {
                    #expect(try Self.steal(3, of: try daemon.process(role)).send([1, 2, 3]))
                } else {
                    kill(try daemon.process(role), SIGKILL)
                }
                #expect(try daemon.status() == .exited(1))
                #expect(daemon.log.contains("\(role) \(lies ? "said what it may not" : "has ended")"), "\(daemon.log)")
                try gone(processes)
                #expect(access(daemon.socketPath, F_OK) != 0)
            }
        }

        @Test func `a daemon that is killed leaves no process behind, and another takes its place`() throws {
            let folder = try Scratch()
            let daemon = try LiveDaemon(MachineText.machine("one"), folder: folder)
            try daemon.wait(for: "one", .running)
            let processes = daemon.processes().map(\.pid)
            #expect(processes.count == 4)
            daemon.signal(SIGKILL)
            _ = try daemon.status()
            try gone(processes)
            #expect(access(daemon.socketPath, F_OK) == 0)
            let next = try LiveDaemon(MachineText.machine("one"), folder: folder)
            try next.wait(for: "one", .running)
        }

        private func gone(_ processes: [pid_t]) throws {
            let deadline = Clock.seconds() + Paths.patience
            while processes.contains(where: ProcessList.isAlive) {
                guard Clock.seconds() < deadline else { throw GuestFailure(description: "processes stay: \(processes)") }
                usleep(2000)
            }
        }
    }
}

extension MachineStatus {
    /// The same but for the memory, which changes by itself.
    fileprivate func with(memoryOf other: MachineStatus?) -> MachineStatus {
        var copy = self
        copy.currentMemory = other?.currentMemory
        return copy
    }
}

extension File {
    /// Which file has that name now, and since when; `nil` when none has.
    fileprivate static func identity(_ path: String) -> [Int]? {
        var status = stat()
        guard stat(path, &status) == 0 else { return nil }
        return [Int(status.st_ino), status.st_ctim.tv_sec, status.st_ctim.tv_nsec]
    }
}

/// A call that Swift does not import.
func syscall3(_ number: Int, _ first: Int, _ second: Int, _ third: Int) -> Int {
    clinux_syscall(number, UInt(bitPattern: first), UInt(bitPattern: second), UInt(bitPattern: third), 0, 0, 0)
}
