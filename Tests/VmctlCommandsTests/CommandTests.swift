import ControlProtocol
import ControlTestSupport
import Testing

@testable import VmctlCommands

/// What is asked of the daemon, and what its answers look like: the texts are OpenBSD's.
@Suite("Commands", .timeLimit(.minutes(1))) struct CommandTests {
    private func call(_ arguments: [String], _ responses: Response...) throws -> (call: Call, requests: [Request]) {
        let daemon = try StubDaemon { _ in .answer(responses) }
        defer { daemon.stop() }
        return (Call(arguments, daemon), daemon.requests.map(\.request))
    }

    // MARK: start

    @Test func `start sends every option, with absolute paths`() throws {
        let daemon = try StubDaemon { _ in .answer([.started(id: 7, name: "a", tty: "/dev/pts/8")]) }
        defer { daemon.stop() }
        let call = Call(
            [
                "start", "-B", "cdrom", "-b", "/etc/../etc/passwd", "-d", "/etc/group", "-d", "raw:/etc/./passwd", "-i", "3", "-L",
                "-m", "1G", "a", "-n", "uplink", "-p", "2", "-r", "/etc/group", "-t", "base", "--initrd", "/etc/group", "--cmdline",
                "-x y", "--engine", "kvm", "--cpu", "host",
            ], daemon)
        var expected = StartRequest(.name("a"))
        expected.bootDevice = .cdrom
        expected.kernel = "/etc/passwd"
        expected.disks = ["/etc/group", "raw:/etc/passwd"]
        expected.interfaceCount = 3
        expected.interfaces = [.local, .onSwitch("uplink")]
        expected.memory = 1 << 30
        expected.cpus = 2
        expected.cdrom = "/etc/group"
        expected.template = "base"
        expected.initrd = "/etc/group"
        expected.commandLine = "-x y"
        expected.engine = "kvm"
        expected.cpuModel = "host"
        #expect(daemon.requests.map(\.request) == [.start(expected)])
        #expect(daemon.requests.map(\.descriptorCount) == [2])
        #expect(call.error == "vmctl: started vm 7 successfully, tty /dev/pts/8\n" && call.status == 0)
    }

    @Test(arguments: [
        (["start", "a"], ""), (["start", "3"], ""),
        // Options that change how a machine boots do not make one.
        (["start", "-B", "net", "a"], ""), (["start", "--cmdline", "x", "a"], ""), (["start", "-t", "b", "-m", "1G", "a"], ""),
        (["start", "-b", "/etc/passwd", "a"], "vmctl: starting without disks\nvmctl: starting without network interfaces\n"),
        (["start", "-d", "/etc/passwd", "a"], "vmctl: starting without network interfaces\n"),
        (["start", "-r", "/etc/passwd", "-L", "a"], "vmctl: starting without disks\n"),
        (["start", "-d/etc/passwd", "-L", "-m1047553K", "a"], "vmctl: memory size rounded to 1023M\n"),
    ])
    func `start warns of what is missing`(arguments: [String], warnings: String) throws {
        let (call, _) = try call(arguments, .started(id: 1, name: "a", tty: "/dev/pts/1"))
        #expect(call.error == warnings + "vmctl: started vm 1 successfully, tty /dev/pts/1\n")
    }

    @Test func `start's refusal is told`() throws {
        let (call, requests) = try call(["star", "7"], .failed(.noSuchMachine, "no vm has id 7"))
        #expect(call.error == "vmctl: start vm command failed: no vm has id 7\n" && call.status == 1)
        #expect(requests == [.start(StartRequest(.id(7)))])
    }

    // MARK: stop and wait

    @Test(arguments: [
        (["stop", "a"], [Response.stopping(id: 1, name: "a", .vmmci), .end], "stopping vm a: requested to shutdown vm 1\n", 0),
        (["stop", "1"], [.stopping(id: 1, name: "a", .powerButton), .end], "stopping vm: requested to shutdown vm 1\n", 0),
        (["stop", "-v", "a"], [.stopping(id: 1, name: "a", .powerButton), .end],
            "stopping vm a: requested to shutdown vm 1\nvmctl: vm a: its power button was pressed, since its guest has no vmmci driver\n", 0),
        (["stop", "-f", "a"], [.stopping(id: 1, name: "a", .killed), .end], "stopping vm a: forced to terminate vm 1\n", 0),
        (["stop", "a", "-w"], [.stopping(id: 1, name: "a", .vmmci), .ended(id: 1, name: "a", reason: "r"), .end],
            "stopping vm a: terminated vm 1\n", 0),
        (["stop", "-fw", "a"], [.stopping(id: 1, name: "a", .killed), .ended(id: 1, name: "a", reason: "r"), .end],
            "stopping vm a: terminated vm 1\n", 0),
        (["stop", "-w", "a"], [.stopping(id: 1, name: "a", .powerButton), .failed(.timeout, "vm a: too slow"), .end],
            "stopping vm a: failed: vm a: too slow\n", 1),
        (["stop", "a"], [.failed(.noSuchMachine, "no vm a: did you mean b?")],
            "stopping vm a: vm not found\nvmctl: no vm a: did you mean b?\n", 1),
        (["stop", "a"], [.failed(.notRunning, "vm a is not running")],
            "stopping vm a: cannot stop vm that is not running\nvmctl: vm a is not running\n", 1),
        (["stop", "a"], [.failed(.permission, "no")], "stopping vm a: failed: no\n", 1),
        (["stop", "a"], [.stopping(id: 1, name: "a", .notStarted), .end],
            "stopping vm a: vm 1 had not begun to start, and will not\n", 0),
        (["stop", "-a"], [.stopping(id: 1, name: "a", .vmmci), .stopping(id: 2, name: "b", .powerButton), .end],
            "stopping vm a: requested to shutdown vm 1\nstopping vm b: requested to shutdown vm 2\n", 0),
        (["stop", "-aw"],
            [
                .stopping(id: 1, name: "a", .vmmci), .stopping(id: 2, name: "b", .vmmci), .ended(id: 2, name: "b", reason: ""),
                .failed(.timeout, "vm a: too slow"), .end,
            ], "stopping vm b: terminated vm 2\nvmctl: vm a: too slow\n", 1),
        (["stop", "-a"], [.end], "", 0),
        (["wait", "a"], [.ended(id: 4, name: "a", reason: "r")], "waiting for vm a: terminated vm 4\n", 0),
        (["wait", "4"], [.ended(id: 4, name: "a", reason: "r")], "waiting for vm: terminated vm 4\n", 0),
        (["wait", "-v", "a"], [.ended(id: 4, name: "a", reason: "r")], "waiting for vm a: terminated vm 4\nvmctl: vm a: r\n", 0),
        (["wait", "a"], [.failed(.notRunning, "no")], "waiting for vm a: failed: no\n", 1),
    ] as [([String], [Response], String, CInt)])
    func `ends of machines are told as on OpenBSD`(arguments: [String], answers: [Response], text: String, status: CInt) throws {
        let daemon = try StubDaemon { _ in .answer(answers) }
        defer { daemon.stop() }
        let call = Call(arguments, daemon)
        #expect(call.error == text)
        #expect(call.status == status)
    }

    @Test func `stop asks for what its options say`() throws {
        #expect(try call(["stop", "-fw", "a"], .end).requests == [.stop(.name("a"), isForced: true, waits: true)])
        #expect(try call(["stop", "-a"], .end).requests == [.stop(nil, isForced: false, waits: false)])
    }

    @Test func `daemon that goes leaves a whole line`() throws {
        let daemon = try StubDaemon { _ in .hangUp }
        defer { daemon.stop() }
        let call = Call(["stop", "-w", "a"], daemon)
        #expect(call.error == "stopping vm a: failed: pipe closed: vmd has ended: its log says why\n" && call.status == 1)
    }

    // MARK: the others

    @Test(arguments: ["pause", "unpause"])
    func `pause tells the number`(verb: String) throws {
        let (call, requests) = try call([verb, "a"], .machine(machine("a", id: 9)))
        #expect(call.error == "vmctl: \(verb)d vm 9 successfully\n" && call.status == 0)
        #expect(requests == [verb == "pause" ? .pause(.name("a")) : .unpause(.name("a"))])
        let refusal = try StubDaemon { _ in .answer([.failed(.notRunning, "no")]) }
        defer { refusal.stop() }
        #expect(Call([verb, "a"], refusal).error == "vmctl: \(verb) vm command failed: no\n")
    }

    @Test(arguments: [
        (["reload"], Request.reload), (["reset"], .reset(.all)), (["reset", "ALL"], .reset(.all)), (["reset", "Vms"], .reset(.vms)),
        (["reset", "switches"], .reset(.switches)), (["log", "b"], .log(isVerbose: false)), (["log", "VERB"], .log(isVerbose: true)),
        (["load", "/etc/../etc/passwd"], .load("/etc/passwd")),
    ])
    func `orders are given in silence`(arguments: [String], request: Request) throws {
        let (good, requests) = try call(arguments, .done)
        #expect(good.status == 0 && good.error.isEmpty && good.output.isEmpty)
        #expect(requests == [request])
        let (bad, _) = try call(arguments, .failed(.permission, "only root may"))
        #expect(bad.status == 1 && bad.error == "vmctl: command failed: only root may\n")
    }

    @Test func `console that is not there is told`() throws {
        #expect(try call(["console", "a"], .failed(.noSuchMachine, "no vm a")).call.error == "vmctl: console not found: no vm a\n")
        #expect(try call(["console", "a"], .failed(.busy, "held by b")).call.error == "vmctl: command failed: held by b\n")
    }

    @Test func `unexpected answers are told`() throws {
        let (call, _) = try call(["reload"], .end)
        #expect(call.error == "vmctl: unexpected response received from vmd: an answer to another request\n" && call.status == 1)
    }
}
