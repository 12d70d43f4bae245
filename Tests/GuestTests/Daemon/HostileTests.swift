import ControlProtocol
import Glibc
import Linux
import TestSupport
import Testing

extension GuestTests.DaemonTests {
    /// Clients that mean no good, on a daemon with running machines.
    @Suite(.enabled(if: isRoot, "needs root to become other users")) struct Hostile {
        private static let user = TestUser(uid: 65503, gid: 65500)
        /// Longer with VMD_FUZZ_SECONDS.
        private static let seconds = getenv("VMD_FUZZ_SECONDS").flatMap { Double(String(cString: $0)) } ?? 3
        private static let cycles = getenv("VMD_CYCLES").flatMap { Int(String(cString: $0)) } ?? 40

        /// Two machines run, and go on running whatever happens.
        private func withDaemon(_ body: (LiveDaemon) throws -> Void) throws {
            let folder = try Scratch()
            chmod(folder.path, 0o755)
            let daemon = try LiveDaemon(
                "socket owner \":\(Self.user.gid)\"\n" + MachineText.machine("one", "tick") + MachineText.machine("two"), folder: folder)
            let pids = try ["one", "two"].map { try daemon.wait(for: $0, .running).pid }
            let before = daemon.holdings()
            try body(daemon)
            #expect(try daemon.machines().map(\.state) == [.running, .running])
            #expect(try daemon.machines().map(\.pid) == pids)
            try daemon.wait("the end of what clients held: \(daemon.holdings()) instead of \(before)") { daemon.holdings() == before }
        }

        private func connect(_ daemon: LiveDaemon) throws -> TestClient { try TestClient.connect(daemon.socketPath, as: Self.user) }

        @Test func `packets that are no requests are refused, and whoever sends them is cut off`() throws {
            try withDaemon { daemon in
                let good = try Request.status(nil, isRunningOnly: false).encoded()
                var packets: [[UInt8]] = (1..<good.count).map { Array(good.prefix($0)) }
                packets += [good + [0], [0xFF], [UInt8](repeating: 0, count: 40_000), Array("vmd\u{2}".utf8) + good.dropFirst(4)]
                packets += [Array(good.prefix(4)) + [200, 0, 0, 0], Array(good.prefix(6)) + [1] + good.dropFirst(7)]
                for packet in packets {
                    let client = try connect(daemon)
                    try client.send(packet: packet)
                    #expect(try client.receive()?.refusal == .malformed, "\(packet.prefix(20))")
                    #expect(try client.receive() == nil)
                }
                // An empty packet looks like the end.
                #expect(daemon.log.contains("is cut off"))
            }
        }

        /// A request of the greatest length, and an answer that would be longer: neither may end anything but itself.
        @Test func `the longest requests are answered`() throws {
            try withDaemon { daemon in
                let overhead = try Request.status(.name(""), isRunningOnly: false).encoded().count
                for count in [64, 30_000, Packet.longest - overhead - 1, Packet.longest - overhead] {
                    let name = String(repeating: "x", count: count)
                    for request in [Request.status(.name(name), isRunningOnly: false), .start(StartRequest(.name(String(name.dropLast(100))))), .load(name.dropLast(8) + "")] {
                        let answer = try connect(daemon).ask(request)
                        #expect(answer.refusal != nil && answer.text.utf8.count < 2000)
                    }
                }
                let strange = try connect(daemon).ask(.pause(.name("a\u{1B}[2J\nb")))
                #expect(!strange.text.contains("\u{1B}") && !strange.text.contains("\n"))
            }
        }

        @Test func `random and mutated requests harm nobody`() throws {
            try withDaemon { daemon in
                var random = SplitMix64(seed: UInt64(Self.seconds))
                var start = StartRequest(.name("one"))
                start.disks = ["/a", "raw:/b"]
                start.interfaces = [.local, .onSwitch("uplink")]
                start.template = "two"
                start.memory = 1 << 24
                let requests: [Request] = [
                    .status(nil, isRunningOnly: false), .status(.name("one"), isRunningOnly: true), .start(start), .start(StartRequest(.id(1))),
                    .stop(nil, isForced: true, waits: true), .stop(.name("two"), isForced: true, waits: false), .wait(.name("one")), .pause(.id(1)),
                    .unpause(.id(2)), .console(.name("one")), .load("/etc/vm.conf"), .reload, .reset(.all), .log(isVerbose: true),
                    .describe(.name("one")), .disks(.name("one"), .createSnapshot("x")), .disks(.id(2), .describe), .ejectDisc(.id(1), isForced: true),
                    .insertDisc(.name("two"), path: "/etc/hosts", isForced: false),
                ]
                let packets = try requests.map { try $0.encoded() }
                var clients: [TestClient] = []
                var sent = 0, looks = 0
                let end = Clock.seconds() + Self.seconds
                while Clock.seconds() < end {
                    if clients.count < 32 { clients.append(try connect(daemon)) }
                    let index = Int.random(in: 0..<clients.count, using: &random)
                    var packet = packets.randomElement(using: &random) ?? []
                    switch Int.random(in: 0..<4, using: &random) {
                    case 0: packet = (0..<Int.random(in: 1...300, using: &random)).map { _ in .random(in: 0...255, using: &random) }
                    case 1: packet = Array(packet.prefix(Int.random(in: 1...packet.count, using: &random)))
                    case 2:
                        for _ in 0..<Int.random(in: 1...3, using: &random) {
                            packet[Int.random(in: 0..<packet.count, using: &random)] = .random(in: 0...255, using: &random)
                        }
                    default: break
                    }
                    // Most do not wait for an answer; many have been cut off already.
                    let isTaken = (try? clients[index].sendAtOnce(packet)) ?? false
                    sent += 1
                    if !isTaken || Int.random(in: 0..<8, using: &random) == 0 { clients.remove(at: index) }
                    if sent % 2000 == 0 {
                        #expect(try daemon.machines().map(\.state) == [.running, .running])
                        looks += 1
                    }
                }
                #expect(sent > 1000)
                print("daemon: \(sent) random and mutated messages, \(looks) looks at the machines meanwhile")
            }
        }

        @Test func `a thousand connections at once leave others served`() throws {
            ResourceLimits.raiseOpenFiles()
            try withDaemon { daemon in
                var clients: [TestClient] = []
                let path = daemon.socketPath
                for _ in 0..<10 { clients += try Self.user.run { try (0..<100).map { _ in try TestClient(path) } } }
                // All of them ask at once.
                for client in clients { _ = try? client.sendAtOnce(try Request.status(nil, isRunningOnly: false).encoded()) }
                #expect(try daemon.machines().count == 2)
                var served = 0, refused = 0
                for client in clients {
                    switch try client.receive() {
                    case .machine: served += 1
                    case .failed(.unavailable, let text):
                        #expect(text.contains("try again"))
                        refused += 1
                    case let other: Issue.record("\(String(describing: other))")
                    }
                }
                // Of one user who is not root.
                #expect(served == 128 && refused == 872)
                #expect(try daemon.machines().count == 2)
            }
        }

        @Test func `clients that do not read, or close one half, hold nobody up`() throws {
            try withDaemon { daemon in
                let status = try Request.status(nil, isRunningOnly: false).encoded()
                let clients = try (0..<20).map { _ in try connect(daemon) }
                for client in clients {
                    var count = 0
                    while try client.sendAtOnce(status), count < 20_000 { count += 1 }
                }
                #expect(try daemon.machines().count == 2)
                let halves = try (0..<3).flatMap { how in
                    try (0..<5).map { _ in
                        let client = try connect(daemon)
                        try client.send(packet: status)
                        shutdown(client.raw, CInt(how))
                        return client
                    }
                }
                #expect(try daemon.machines().count == 2)
                // None of them makes control spin.
                let control = try daemon.process("control")
                let before = try ProcessList.ticks(of: control)
                usleep(500_000)
                #expect(try ProcessList.ticks(of: control) - before < 20)
                #expect(try daemon.machines().count == 2)
                withExtendedLifetime((clients, halves)) {}
            }
        }

        /// More answers than any queue between the processes holds.
        @Test func `long lists for many at once do not drown anybody`() throws {
            let text = (0..<400).map { MachineText.machine("m\($0)", "halt", "disable") }.joined()
            let daemon = try LiveDaemon(MachineText.machine("one") + text)
            try daemon.wait(for: "one", .running)
            let clients = try (0..<60).map { _ in try daemon.client() }
            for client in clients { try client.send(.status(nil, isRunningOnly: false)) }
            for client in clients.dropFirst(30) {
                var rows = 0
                while let answer = try client.receive(), answer != .end { rows += 1 }
                #expect(rows == 401)
            }
            // The others have not read yet, and get all the same.
            #expect(try daemon.machines().count == 401)
            for client in clients.prefix(30) {
                var rows = 0
                while let answer = try client.receive(), answer != .end { rows += 1 }
                #expect(rows == 401)
            }
        }

        @Test func `descriptors that do not belong are closed, and are no kernels`() throws {
            try withDaemon { daemon in
                let status = try Request.status(nil, isRunningOnly: false).encoded()
                for count in 1...4 {
                    let client = try connect(daemon)
                    try client.send(packet: Array(status.prefix(6)) + [UInt8(count)] + status.dropFirst(7), [CInt](repeating: 0, count: count))
                    #expect(try client.receive()?.refusal == .malformed)
                }
                let pipe = try Pipe()
                let file = try daemon.folder.file("file", [1])
                var kernels = FileDescriptorList()
                kernels.append(try FileDescriptor(duplicating: pipe.reader.raw))
                kernels.append(try FileDescriptor(open: "/", flags: O_RDONLY))
                kernels.append(try FileDescriptor(open: file, flags: O_WRONLY))
                kernels.append(try FileDescriptor(open: "/dev/zero", flags: O_RDWR))
                kernels.append(try FileDescriptor(open: file, flags: 0x20_0000))  // O_PATH
                kernels.append(try UnixSocket(connectingTo: daemon.socketPath).release())
                for (name, descriptor) in zip(["pipe", "directory", "writer", "device", "path", "socket"], kernels.numbers) {
                    var request = StartRequest(.name("odd-\(name)"))
                    request.kernel = name
                    let answer = try daemon.ask(.start(request), [descriptor])
                    #expect(answer.refusal != nil, "\(name): \(answer)")
                }
                try daemon.wait("two machines") { try daemon.machines().count == 2 }
            }
        }

        @Test func `starting and stopping leaves nothing behind`() throws {
            try withDaemon { daemon in
                for cycle in 0..<Self.cycles {
                    let name = "cycle-\(cycle % 3)"
                    let answer = try daemon.start(name)
                    #expect(answer.isStarted)
                    let answers = try daemon.client().list(.stop(.name(name), isForced: true, waits: true))
                    #expect(answers.count == 2)
                }
            }
        }
    }
}

extension TestClient {
    /// - Returns: `false` when it would have to wait.
    fileprivate func sendAtOnce(_ packet: [UInt8]) throws -> Bool {
        let count = Glibc.send(raw, packet, packet.count, CInt(MSG_NOSIGNAL))
        if count == packet.count { return true }
        if errno == EAGAIN { return false }
        throw SystemError("send", errno: errno)
    }
}

extension ProcessList {
    /// Processor time in ticks.
    static func ticks(of pid: pid_t) throws -> Int {
        let fields = try File.text("/proc/\(pid)/stat").split(separator: ")").last?.split(separator: " ") ?? []
        return fields[11...12].compactMap { Int($0) }.reduce(0, +)
    }
}
