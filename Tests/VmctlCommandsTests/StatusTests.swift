import ControlProtocol
import ControlTestSupport
import Foundation
import Testing

@testable import VmctlCommands

@Suite("vmctl status") struct StatusTests {
    @Test(arguments: [
        (0, "0B"), (1, "1B"), (1023, "1023B"), (1024, "1.0K"), (1536, "1.5K"), (1 << 20, "1.0M"), (512 << 20, "512M"),
        (1 << 30, "1.0G"), (92_379_546, "88.1M"), (99 << 20 | 1 << 19, "99.5M"), (100 << 20 | 1 << 19, "101M"), (1023 << 20, "1023M"),
        ((1 << 30) - 1, "1024M"), (128 << 30, "128G"), (10 << 30 | 1023 << 20, "11.0G"), (UInt64.max, "16.0E"), (1 << 60, "1.0E"),
    ] as [(UInt64, String)])
    func `sizes have four characters and a unit`(bytes: UInt64, text: String) {
        #expect(ScaledSize.describe(bytes) == text)
    }

    static let header = "   ID   PID VCPUS  MAXMEM  CURMEM     TTY        OWNER    STATE NAME"

    @Test func `header and rows have OpenBSD's columns`() {
        #expect(StatusTable.header == Self.header)
        #expect(StatusTable.row(machine("example")) == "    1 72118     1    1.0G   88.1M   pts/8         root  running example")
        let stopped = MachineStatus(
            id: 12, name: "web", state: .stopped, cpus: 2, maxMemory: 512 << 20, owner: "averyverylongusername:wheel", engine: "kvm")
        #expect(StatusTable.row(stopped) == "   12     -     2    512M       -       - averyverylonguse:wheel  stopped web")
        #expect(StatusTable.row(machine("a") { $0.owner = ":vmm"; $0.state = .paused }).hasSuffix("        :vmm   paused a"))
    }

    @Test(arguments: [
        (MachineStatus.State.stopped, "stopped"), (.paused, "paused"), (.waiting, "waiting"), (.stopping, "stopping"),
        (.running, "running"), (.starting, "starting"), (.crashed, "crashed"),
    ])
    func `states have their words`(state: MachineStatus.State, word: String) { #expect(state.word == word) }

    private func call(_ arguments: [String], _ responses: Response...) throws -> (call: Call, request: Request?) {
        let daemon = try StubDaemon { _ in .answer(responses) }
        defer { daemon.stop() }
        return (Call(arguments, daemon), daemon.requests.first?.request)
    }

    @Test func `one row for each machine`() throws {
        let (call, request) = try call(["status"], .machine(machine("a")), .machine(machine("b", id: 2)), .end)
        #expect(request == .status(nil, isRunningOnly: false))
        let lines = call.output.split(separator: "\n").map(String.init)
        #expect(lines == [Self.header, StatusTable.row(machine("a")), StatusTable.row(machine("b", id: 2))])
        #expect(call.status == 0)
    }

    @Test func `nothing to list is status 1`() throws {
        let (call, request) = try call(["show", "-r"], .end)
        #expect(request == .status(nil, isRunningOnly: true))
        #expect(call.output == Self.header + "\n" && call.status == 1)
    }

    @Test func `unknown machine is told`() throws {
        let (call, request) = try call(["status", "5"], .failed(.noSuchMachine, "no vm has id 5"))
        #expect(request == .status(.id(5), isRunningOnly: false))
        #expect(call.error == "vmctl: command failed: no vm has id 5\n" && call.status == 1 && call.output.isEmpty)
    }

    // MARK: JSON

    static let fields: Set<String> = [
        "id", "name", "state", "pid", "vcpus", "max_memory", "current_memory", "tty", "owner", "engine", "started", "restarts",
        "last_event", "console_holder",
    ]

    @Test func `JSON has every field, also where there is nothing to say`() throws {
        let odd = "a\"\\\n\t\u{1}\u{7F}ü🦫"
        let rows = [
            machine("a") { $0.lastEvent = odd; $0.startTime = 1_763_700_000; $0.consoleHolder = "root (pid 1)"; $0.restarts = 3 },
            MachineStatus(id: .max, name: "b", state: .crashed, cpus: 1, maxMemory: 1 << 20, owner: ":g", engine: "auto"),
        ]
        let (call, _) = try call(["status", "-j"], .machine(rows[0]), .machine(rows[1]), .end)
        let parsed = try JSONSerialization.jsonObject(with: Data(call.output.utf8)) as? [[String: Any]]
        let objects = try #require(parsed)
        #expect(objects.map { Set($0.keys) } == [Self.fields, Self.fields])
        #expect(objects[0]["last_event"] as? String == odd)
        #expect(objects[0]["current_memory"] as? UInt64 == 92_379_546)
        #expect(objects[0]["started"] as? UInt64 == 1_763_700_000)
        #expect(objects[0]["tty"] as? String == "/dev/pts/8")
        #expect(objects[1]["pid"] is NSNull && objects[1]["tty"] is NSNull)
        #expect(objects[1]["id"] as? UInt32 == .max)
        #expect(objects[1]["state"] as? String == "crashed")
    }

    @Test func `JSON of nothing is an empty list`() throws {
        let (call, _) = try call(["status", "-j", "-r"], .end)
        #expect(call.output == "[]\n" && call.status == 0)
    }
}
