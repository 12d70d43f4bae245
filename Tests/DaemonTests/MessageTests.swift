import ControlProtocol
import DiskImage
import TestSupport
import Testing

@testable import Daemon

/// What the daemon's processes say to each other: it arrives as it was sent, and nothing else arrives.
@Suite("Messages", .timeLimit(.minutes(1))) struct MessageTests {
    static let setup = MachineSetup(
        name: "web", kernel: "/boot/vmlinuz", initrd: "/boot/initrd", bootDevice: .net, commandLine: "console=ttyS0", memory: 1 << 30,
        engine: "auto", cpuModel: "x86-64-v3", hasKVM: true, isVerbose: true, probes: false)
    static let small = MachineSetup(
        name: "w", kernel: "k", initrd: nil, networkROM: "/lib/rom", commandLine: nil, memory: 0, engine: "", cpuModel: nil, hasKVM: false,
        isVerbose: false, probes: true)
    static let machineCommands: [MachineCommand] = [
        .setUp(setup), .setUp(small), .shutDown, .pause, .unpause, .sendBreak, .attachConsole(client: .max, holder: "root (pid 1)"),
        .log(isVerbose: true), .disks(client: 1, .createSnapshot("monday")), .disks(client: 2, .deleteSnapshot("")),
        .disks(client: 3, .describe), .disks(client: 6, .describeTop), .ejectDisc(client: 4, isForced: true),
        .insertDisc(client: 5, [.init(name: "/a.iso", format: .raw, isReadOnly: true)], isForced: false),
    ]
    static let image = ImageSummary(
        path: "/a.qcow2", format: .qcow2, byteCount: 1 << 30, fileByteCount: 4096, hostByteCount: 8192,
        qcow2: QCOW2Info(
            version: 3, byteCount: 1 << 30, fileByteCount: 4096, clusterSize: 65536, refcountBits: 16, compression: .zlib,
            hasLazyRefcounts: false, hasExtendedL2: false, isDirty: true, isCorrupt: false,
            backing: QCOW2Backing(name: "base.raw", format: "raw"),
            snapshots: [ImageSnapshot(id: "1", name: "monday", seconds: 5, machineStateByteCount: 0, byteCount: 1 << 30)], bitmapCount: 0),
        vmdkKind: nil)
    static let machineReports: [MachineReport] = [
        .running, .restarted("triple fault"), .paused, .unpaused, .shutDownAsked(.vmmci), .shutDownAsked(.powerButton),
        .shutDownTimedOut("no"), .ended(.stopped, "bye"), .ended(.failed, ""), .consoleAttached(client: 7),
        .consoleRefused(client: 7, holder: "somebody"), .consoleHolder(nil), .consoleHolder("somebody"), .log("a line"),
        .probe("fork: Operation not permitted"), .image(client: 1, DiskReport(disk: 0, level: 1, image: image)),
        .diskDone(client: 2), .diskRefused(client: 3, .busy, "locked"),
    ]
    static let monitorCommands: [MonitorCommand] =
        [.start(run: 1, setup), .start(run: .max, small), .kill(run: 3, isForced: true)] + machineCommands.map { .tell(run: 2, $0) }
    static let monitorReports: [MonitorReport] =
        [
            .started(run: 1, pid: 4711), .exited(run: 1, .exited(3)), .exited(run: 1, .killed(signal: 11)),
            .exited(run: 1, .notStarted("no memory")), .exited(run: 1, .cutOff("garbage")), .log("x"), .probe("y"),
        ] + machineReports.map { .told(run: 9, $0) }
    static let requests: [Request] = [
        .status(nil, isRunningOnly: true), .status(.id(3), isRunningOnly: false), .start(StartRequest(.name("web"))),
        .stop(nil, isForced: true, waits: false), .wait(.name("web")), .pause(.id(1)), .unpause(.id(1)), .console(.id(1)),
        .load("/etc/more.conf"), .reload, .reset(.switches), .log(isVerbose: true), .sendBreak(.name("web")),
        .describe(.id(1)), .disks(.name("web"), .describe), .disks(.id(2), .createSnapshot("a")), .ejectDisc(.id(1), isForced: false),
        .insertDisc(.name("web"), path: "/a.iso", isForced: true),
    ]
    static let controlReports: [ControlReport] =
        [.connected(client: 1), .gone(client: 2), .log("x"), .probe("y")] + requests.map { .request(client: 5, $0) }
    static let controlCommands: [ControlCommand] = [
        .finished(client: 1), .answer(client: 1, .done), .answer(client: 1, .failed(.busy, "held by")),
        .answer(client: 1, .console(id: 1, name: "web", tty: "/dev/pts/1")),
        .answer(client: 1, .image(DiskReport(disk: 0, level: 0, image: image))),
    ]
    static let privCommands: [PrivCommand] = [.setSwitch(name: "uplink", interface: "br0", isUp: true)]
    static let privReports: [PrivReport] = [.log("no interface"), .probe("fork: refused")]

    private func check<M: Message & Hashable>(_ messages: [M]) throws {
        for message in messages {
            let packet = try message.encoded()
            #expect(try M(packet: packet, descriptorCount: message.descriptorCount) == message)
            #expect(throws: MalformedMessage.self) { try M(packet: packet, descriptorCount: message.descriptorCount + 1) }
            #expect(throws: MalformedMessage.self) { try M(packet: packet + [0], descriptorCount: message.descriptorCount) }
            for count in 0..<packet.count {
                #expect(throws: MalformedMessage.self) { try M(packet: Array(packet.prefix(count)), descriptorCount: message.descriptorCount) }
            }
        }
    }

    @Test func `every message arrives as it was sent, and no part of one`() throws {
        try check(Self.machineCommands)
        try check(Self.machineReports)
        try check(Self.monitorCommands)
        try check(Self.monitorReports)
        try check(Self.controlReports)
        try check(Self.controlCommands)
        try check(Self.privCommands)
        try check(Self.privReports)
    }

    /// - Returns: how many of the bytes were a message.
    private func mutate<M: Message & Hashable>(_ messages: [M], _ random: inout SplitMix64) throws -> Int {
        var count = 0
        for message in messages {
            let packet = try message.encoded()
            for _ in 0..<200 {
                var copy = packet
                if Bool.random(using: &random) {
                    for _ in 0..<Int.random(in: 1...4, using: &random) {
                        copy[Int.random(in: 0..<copy.count, using: &random)] = .random(in: 0...255, using: &random)
                    }
                } else {
                    copy = Array(packet.prefix(6)) + (0..<Int.random(in: 0...64, using: &random)).map { _ in .random(in: 0...255, using: &random) }
                }
                guard copy.count > 6, let read = try? M(packet: copy, descriptorCount: Int(copy[6])) else { continue }
                count += 1
                // What is taken for a message can be passed on: nothing of a stranger's is too long for the next hop.
                #expect(try M(packet: read.encoded(), descriptorCount: read.descriptorCount) == read)
            }
        }
        return count
    }

    @Test func `random and mutated bytes are refused or are a message, and never trap`() throws {
        var random = SplitMix64(seed: 4)
        #expect(try mutate(Self.machineCommands, &random) > 0)
        #expect(try mutate(Self.machineReports, &random) > 0)
        #expect(try mutate(Self.monitorCommands, &random) > 0)
        #expect(try mutate(Self.monitorReports, &random) > 0)
        #expect(try mutate(Self.controlReports, &random) > 0)
        #expect(try mutate(Self.controlCommands, &random) > 0)
        #expect(try mutate(Self.privCommands, &random) > 0)
        #expect(try mutate(Self.privReports, &random) > 0)
    }

    /// A client may send the longest packet there is; what it becomes inside must go through too, or one client's
    /// request would end the daemon.
    @Test func `the longest request and its parts fit into what is made of them`() throws {
        let room = Packet.longest - (try Request.status(.name(""), isRunningOnly: false).encoded().count)
        let request = Request.status(.name(String(repeating: "n", count: room)), isRunningOnly: false)
        #expect(try request.encoded().count == Packet.longest)
        let report = ControlReport.request(client: .max, request)
        #expect(try ControlReport(packet: report.encoded(), descriptorCount: 0) == report)
        var setup = Self.setup
        setup.commandLine = String(repeating: "c", count: room)
        let command = MonitorCommand.start(run: .max, setup)
        #expect(try MonitorCommand(packet: command.encoded(), descriptorCount: 4) == command)
        // And the answer to it.
        let refusal = Refusal(.noSuchMachine, "no vm \(String(repeating: "n", count: room)): sorry")
        #expect(try Response.failed(refusal.failure, refusal.text).encoded().count < 2048)
        #expect(throws: MalformedMessage.self) { try Request.load(String(repeating: "n", count: Packet.longest)).encoded() }
    }

    /// A report on an image comes from a process that a guest may have taken over, and goes on twice.
    @Test func `a report on an image is refused when it would not go through to the client`() throws {
        var image = Self.image
        image.path = String(repeating: "x", count: 30_000)
        let packet = try MachineReport.image(client: 1, DiskReport(disk: 0, level: 0, image: image)).encoded()
        #expect(throws: MalformedMessage.self) { try MachineReport(packet: packet, descriptorCount: 0) }
    }

    @Test(arguments: ["two\nlines", "bell\u{7}", String(repeating: "x", count: 5000), String(repeating: "😀", count: 400), "ä" + String(repeating: "😀", count: 400), ""])
    func `texts for the log arrive as one bounded line, whatever they were`(text: String) throws {
        let packet = try MonitorReport.log(text).encoded()
        guard case .log(let line) = try MonitorReport(packet: packet, descriptorCount: 0) else { Issue.record("no log"); return }
        #expect(line.utf8.count <= longestLine + 3)
        #expect(!line.unicodeScalars.contains { $0.properties.generalCategory == .control })
        #expect(line.hasPrefix(text.oneLine.prefix(200)))
    }
}
