import ControlTestSupport
import Glibc
import Linux
import Testing

@testable import ControlProtocol

@Suite("Finding the socket") struct ControlSocketTests {
    @Test(arguments: [
        // given, root, user's, what exists, expected
        ("/s", false, "/u", ["/u"], "/s"),
        (nil, false, "/u", ["/u", "/run/vmd.sock"], "/u"),
        (nil, false, "/u", ["/run/vmd.sock"], "/run/vmd.sock"),
        (nil, false, "/u", [], "/u"),
        (nil, false, nil, [], "/run/vmd.sock"),
        (nil, true, "/u", ["/u"], "/run/vmd.sock"),
        ("", true, "/u", ["/u"], "/run/vmd.sock"),
    ] as [(String?, Bool, String?, [String], String)])
    func `is the given one, the user's, or the host's`(
        given: String?, isRoot: Bool, user: String?, existing: [String], expected: String
    ) {
        #expect(
            ControlSocket.choose(given: given, isRoot: isRoot, userPath: user) { existing.contains($0) } == expected)
    }

    @Test func `no socket says how to start the daemon`() {
        #expect(message("/nonexistent/vmd.sock") == "connect: /nonexistent/vmd.sock: No such file or directory: "
            + "vmd is not running: start it with `vmd -s /nonexistent/vmd.sock`")
        let system = ControlError.connecting(to: ControlSocket.systemPath, .system(SystemError("connect", errno: ECONNREFUSED)))
        #expect("\(system)" == "connect: /run/vmd.sock: Connection refused: vmd is not running any more: "
            + "start it with `systemctl start vmd`, or `vmd` as root")
    }

    @Test func `no permission says who has it`() {
        let refused = UnixSocket.Failure.system(SystemError("connect", errno: EACCES))
        // A file of root and a group: nobody's socket, but whose it is is the same question.
        #expect("\(ControlError.connecting(to: "/etc/passwd", refused))" == "connect: /etc/passwd: Permission denied: "
            + "only root may use it: become root")
        #expect("\(ControlError.connecting(to: "/nonexistent", refused))".hasSuffix("its folder is closed to you: ask its owner"))
    }

    @Test func `group that may connect is named`() throws {
        let path = "/tmp/control-client-tests-\(getpid())"
        let listener = try UnixListener(path: path, mode: 0o660)
        defer { listener.removeFile() }
        if geteuid() == 0 { chown(path, 0, 1) }
        let file = try SocketFile(path)
        let text = "\(ControlError.connecting(to: path, .system(SystemError("connect", errno: EACCES))))"
        #expect(file.isSocket && file.groupMayConnect)
        if file.group != 0 {
            #expect(text.contains("members of group \(UserDatabase.name(ofGroup: file.group)) may use it: `usermod -aG"))
        }
    }

    @Test func `other files and paths are told apart`() {
        #expect(message("/etc/passwd").hasPrefix("connect: /etc/passwd: Connection refused"))
        #expect(message("/" + String(repeating: "x", count: 200)).contains("a socket's path must have 1 to 107 bytes"))
    }

    private func message(_ path: String) -> String {
        do {
            _ = try ControlClient(path: path)
            return "connected"
        } catch {
            return "\(error)"
        }
    }
}

@Suite("Control client", .timeLimit(.minutes(1))) struct ControlClientTests {
    private func failure(_ reply: StubDaemon.Reply, _ request: Request = .reload, limit: Int? = nil) throws -> ControlError? {
        let daemon = try StubDaemon { _ in reply }
        defer { daemon.stop() }
        var client = try ControlClient(path: daemon.path)
        do {
            try client.perform(request, limit: limit)
            return nil
        } catch {
            return error
        }
    }

    @Test func `answers come in order, on one connection`() throws {
        let daemon = try StubDaemon { request in
            guard case .status = request else { return .answer([.done]) }
            return .answer([.machine(status("a")), .machine(status("b")), .end])
        }
        defer { daemon.stop() }
        var client = try ControlClient(path: daemon.path)
        for _ in 0..<3 {
            var names: [String] = []
            try client.perform(.status(nil, isRunningOnly: false)) { if case .machine(let machine) = $0 { names.append(machine.name) } }
            #expect(names == ["a", "b"])
            #expect(try client.perform(.reload) == .done)
        }
        #expect(daemon.requests.count == 6)
    }

    @Test func `descriptors go along`() throws {
        let daemon = try StubDaemon { _ in .answer([.started(id: 4, name: "a", tty: "/dev/pts/9")]) }
        defer { daemon.stop() }
        var client = try ControlClient(path: daemon.path)
        var request = StartRequest(.name("a"))
        request.kernel = "/etc/passwd"
        let file = try RegularFile("/etc/passwd").release()
        #expect(try client.perform(.start(request), descriptors: [file.raw]) == .started(id: 4, name: "a", tty: "/dev/pts/9"))
        #expect(daemon.requests.first?.descriptorCount == 1)
        #expect(throws: ControlError.self) { try client.perform(.start(request), descriptors: []) }
    }

    @Test func `console comes with its stream`() throws {
        let ends = try StreamPair()
        let stream = ends.second.raw
        let daemon = try StubDaemon { _ in .console(.console(id: 1, name: "a", tty: "t"), stream: stream) }
        defer { daemon.stop() }
        var client = try ControlClient(path: daemon.path)
        var answer = try client.answer(to: .console(.name("a")))
        guard let taken = answer.takeStream() else {
            Issue.record("no stream")
            return
        }
        try Stream.writeAll(taken.raw, Array("hi".utf8))
        #expect(try Stream.read(ends.first.raw, limit: 8) == Array("hi".utf8))
    }

    @Test func `refusal is an error with the daemon's words`() throws {
        #expect(try failure(.answer([.failed(.permission, "no")])) == .refused(.permission, "no"))
    }

    @Test func `end of the daemon is told`() throws { #expect(try failure(.hangUp) == .closed) }

    @Test func `silence has an end`() throws { #expect(try failure(.silence, limit: 1) == .timeout(seconds: 1)) }

    @Test(arguments: [
        (Request.reload, Response.end), (.reload, .started(id: 1, name: "", tty: "")), (.wait(.id(1)), .done),
        (.status(nil, isRunningOnly: false), .done), (.start(StartRequest(.id(1))), .done), (.console(.id(1)), .done),
    ])
    func `answers to other questions are not believed`(request: Request, response: Response) throws {
        #expect(try failure(.answer([response]), request) == .unexpected("an answer to another request"))
    }

    @Test func `packets that are no messages are not believed`() throws {
        #expect(try failure(.packet([1, 2, 3])) == .unexpected("not a message of vmd's"))
        #expect(try failure(.answerWithDescriptor(.done)) == .unexpected("1 descriptors, 0 belong to this message"))
        #expect(try failure(.packet([UInt8](repeating: 1, count: Packet.longest + 1))) == .unexpected("packet of more than 32768 bytes"))
    }

    @Test func `machine that does not stop is one item of a list`() throws {
        let daemon = try StubDaemon { _ in
            .answer([
                .stopping(id: 1, name: "a", .powerButton), .failed(.timeout, "a does not"), .ended(id: 2, name: "b", reason: "r"),
                .end,
            ])
        }
        defer { daemon.stop() }
        var client = try ControlClient(path: daemon.path)
        var count = 0
        try client.perform(.stop(nil, isForced: false, waits: true)) { _ in count += 1 }
        #expect(count == 3)
    }

    @Test func `request that does not fit is not sent`() throws {
        let error = try failure(.answer([.done]), .load(String(repeating: "x", count: Packet.longest)))
        guard case .tooLong = error else {
            Issue.record("\(String(describing: error))")
            return
        }
    }
}

private func status(_ name: String) -> MachineStatus {
    MachineStatus(id: 1, name: name, state: .running, cpus: 1, maxMemory: 1 << 29, owner: "root", engine: "kvm")
}
