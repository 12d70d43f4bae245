import Foundation
import Linux
import Testing
import VMM

@testable import Machine

/// vmmci as a guest's driver sees it: the kernel of `Guests/control`, in this process; on the translator, but where an engine is named.
@Suite("Control kernel", .timeLimit(.minutes(1))) struct ControlKernelTests {
    private static let kernel = URL(fileURLWithPath: #filePath).deletingLastPathComponent().deletingLastPathComponent()
        .deletingLastPathComponent().appending(path: ".build-guests/control/kernel").path
    private static var isThere: Bool { FileManager.default.fileExists(atPath: kernel) }

    private let terminal = Recorder()

    private func start(_ words: String, on choice: EngineChoice = .translator) throws -> RunningMachine {
        let (engine, features) = try choice.makeForTest()
        return try RunningMachine(
            MachineConfiguration(kernel: Self.kernel, commandLine: words, memoryByteCount: 16 << 20), engine, features: features,
            terminal: terminal)
    }

    @Test(.enabled(if: isThere, "needs `make control`"))
    func `guest finds the device and reboots when asked, which ends it`() throws {
        let running = try start("")
        #expect(terminal.wait(for: "ready\n"))
        #expect(running.machine.requestShutdown() == .controlDevice)
        #expect(running.end() == .poweredOff)
        #expect(
            terminal.text == """
                vmmci is last
                class=0x078000
                subsystem=0xffff0b5d
                size=0x00001000
                base=0x2000
                line=0x05
                level=0x1
                features=0x7
                status=0x7
                ready
                command=0x2
                rebooting

                """)
        #expect(
            running.events == [
                .started, .shutdownRequested(.controlDevice), .shutdownAcknowledged, .ended(.poweredOff),
            ])
    }

    @Test(.enabled(if: isThere, "needs `make control`"), arguments: ["bytes", "moved", "bytes moved"])
    func `drivers differ`(words: String) throws {
        let running = try start(words)
        #expect(terminal.wait(for: "ready\n"))
        #expect(terminal.text.contains(words.contains("moved") ? "base=0x8000" : "base=0x2000"))
        #expect(running.machine.requestShutdown() == .controlDevice)
        #expect(running.end() == .poweredOff)
        #expect(running.events.contains(.shutdownAcknowledged))
    }

    @Test(.enabled(if: isThere, "needs `make control`"))
    func `guest that does not acknowledge times out and is left alone`() throws {
        let running = try start("deaf")
        #expect(terminal.wait(for: "ready\n"))
        running.machine.requestShutdown()
        #expect(terminal.wait(for: "command=0x2\n"))
        #expect(running.wait(for: .shutdownTimedOut(.controlDevice, wasAcknowledged: false)))
        running.machine.requestStop()
        #expect(running.end() == .stopped)
    }

    @Test(.enabled(if: isThere, "needs `make control`"))
    func `guest without the driver, and one that cannot acknowledge, get the power button`() throws {
        let running = try start("bare")
        #expect(terminal.wait(for: "ready\n"))
        #expect(running.machine.requestShutdown() == .powerButton)
        running.machine.requestStop()
        #expect(running.end() == .stopped)
    }

    @Test(.enabled(if: isThere, "needs `make control`"))
    func `guest that says that it switches itself off is switched off`() throws {
        let running = try start("off")
        #expect(running.end() == .poweredOff)
        #expect(terminal.text.hasSuffix("going\n"))
        #expect(running.events == [.started, .shutdownAcknowledged, .ended(.poweredOff)])
    }

    @Test(.enabled(if: isThere, "needs `make control`"))
    func `guest sets its clock after a pause, and its timer went on where it was`() throws {
        let running = try start("tick")
        #expect(terminal.wait(for: "ready\n"))
        #expect(terminal.wait(for: ".", count: 3))
        #expect(running.pause() == true)
        let printed = terminal.text
        usleep(200_000)
        #expect(terminal.text == printed)
        #expect(running.pause(false) == true)
        #expect(terminal.wait(for: "command=0x3\n"))
        #expect(terminal.wait(for: "clock set\n"))
        let dots = terminal.text.split(separator: ".", omittingEmptySubsequences: false).count
        #expect(terminal.wait(for: ".", count: dots + 2))
        let line = try #require(terminal.text.split(separator: "\n").first { $0.contains("seconds=0x") })
        let seconds = try #require(line.split(separator: "x").last.flatMap { UInt64($0, radix: 16) })
        #expect((Int64(seconds) - Int64(SystemTime.wallClock() / 1_000_000_000)).magnitude < 30)
        running.machine.requestShutdown()
        #expect(running.end() == .poweredOff)
    }

    @Test(.enabled(if: isThere, "needs `make control`"), arguments: [EngineChoice.translator, .kvm])
    func `halted guest is paused, goes on and ends as any other`(choice: EngineChoice) throws {
        let running = try start("halt", on: choice)
        #expect(running.pause() == true)
        #expect(running.pause(false) == true)
        running.machine.requestStop()
        #expect(running.end() == .stopped)
    }
}
