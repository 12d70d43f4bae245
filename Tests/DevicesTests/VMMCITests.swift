import Devices
import Foundation
import Testing
import VMM

@Suite("vmmci") struct VMMCITests {
    private struct Bench {
        let clock = VirtualClock(now: 1_000, wall: 1_800_000_000_123_456_789)
        let lines = LineRecorder()
        let power = PowerRecorder()
        let events = Lock<[VMMCIFunction.Event]>([])
        let device: VMMCIFunction

        init() {
            let events = events
            device = VMMCIFunction(clock: clock, ports: 0x1000, line: lines.line(3), lineNumber: 3, power: power) { event in
                events { $0.append(event) }
            }
        }

        func read(_ offset: UInt64, _ width: AccessWidth = .dword) -> UInt64 { device.read(0, offset, width) }
        func write(_ offset: UInt64, _ value: UInt64, _ width: AccessWidth = .dword) {
            device.write(0, offset, width, value)
        }

        /// What a driver does to begin.
        func start(features: UInt64 = 7) {
            write(0x12, 0, .byte)
            write(0x12, 3, .byte)
            write(0x04, features)
            write(0x12, 7, .byte)
        }
    }

    private static let second: UInt64 = 1_000_000_000

    @Test func `configuration space says what it is and where`() {
        let device = Bench().device
        #expect(device.readConfiguration(0x00, .dword) == 0x0777_0B5D)
        #expect(device.readConfiguration(0x08, .dword) == 0x0780_0000)
        #expect(device.readConfiguration(0x2C, .dword) == 0xFFFF_0B5D)
        #expect(device.readConfiguration(0x10, .dword) == 0x1001)
        #expect(device.readConfiguration(0x04, .word) == 1)
        #expect(device.readConfiguration(0x3C, .word) == 0x0103)
    }

    @Test func `features are offered and those that exist are taken`() {
        let bench = Bench()
        #expect(bench.read(0) == 7)
        bench.write(4, 0xFFFF_FFFD)
        #expect(bench.read(4) == 5)
        // No queue is there.
        bench.write(0x0E, 0, .word)
        #expect(bench.read(0x0C, .word) == 0)
        #expect(bench.read(0x28) == 0xFFFF_FFFF)
    }

    @Test func `time is read when its first byte is, and stays until then`() {
        let bench = Bench()
        #expect(bench.read(0x18) == 1_800_000_000)
        bench.clock.advance(by: 5 * Self.second)
        #expect(bench.read(0x1C) == 0)
        #expect(bench.read(0x20) == 123_456)
        #expect(bench.read(0x24) == 0)
        // A byte at a time, as Linux's drivers read.
        let bytes = (0..<8).map { bench.read(0x18 + $0, .byte) << ($0 * 8) }
        #expect(bytes.reduce(0, |) == 1_800_000_005)
    }

    @Test func `request is refused until a driver answers`() {
        let bench = Bench()
        #expect(!bench.device.request(.reboot))
        bench.start(features: 1)
        #expect(!bench.device.answersCommands)
        #expect(!bench.device.request(.reboot))
        #expect(!bench.device.synchronizeClock())
        #expect(!bench.lines.level(3))
        bench.start()
        #expect(bench.device.answersCommands)
        #expect(bench.device.request(.reboot))
    }

    @Test func `request interrupts until the ISR is read`() {
        let bench = Bench()
        bench.start()
        #expect(bench.device.request(.reboot))
        #expect(bench.lines.level(3))
        #expect(bench.device.readConfiguration(6, .word) & 8 != 0)
        #expect(bench.read(0x14) == 2)
        #expect(bench.lines.level(3))
        #expect(bench.read(0x13, .byte) == 2)
        #expect(!bench.lines.level(3))
        #expect(bench.read(0x13, .byte) == 0)
        #expect(bench.device.readConfiguration(6, .word) & 8 == 0)
    }

    @Test func `INTx disable keeps the line down`() {
        let bench = Bench()
        bench.start()
        bench.device.writeConfiguration(4, .word, 0x401)
        #expect(bench.device.request(.reboot))
        #expect(!bench.lines.level(3))
        bench.device.writeConfiguration(4, .word, 1)
        #expect(bench.lines.level(3))
    }

    @Test func `guest that does not acknowledge times out after 3 s`() {
        let bench = Bench()
        bench.start()
        #expect(bench.device.request(.reboot))
        bench.clock.advance(by: 3 * Self.second - 1)
        #expect(bench.events { $0 } == [])
        bench.clock.advance(by: 1)
        #expect(bench.events { $0 } == [.timedOut(wasAcknowledged: false)])
        #expect(bench.clock.armedCount == 0)
        // Asking again asks again.
        _ = bench.read(0x13, .byte)
        #expect(bench.device.request(.reboot))
        #expect(bench.lines.level(3))
    }

    @Test(arguments: [[AccessWidth.dword], [.word, .word], [.byte, .byte, .byte, .byte]])
    func `guest that acknowledges has 120 s, however often it says so`(widths: [AccessWidth]) {
        let bench = Bench()
        bench.start()
        #expect(bench.device.request(.reboot))
        bench.clock.advance(by: 2 * Self.second)
        func acknowledge() {
            var offset: UInt64 = 0x14
            for width in widths {
                bench.write(offset, 2 >> ((offset - 0x14) * 8), width)
                offset += UInt64(width.rawValue)
            }
        }
        acknowledge()
        #expect(bench.events { $0 } == [.acknowledged])
        bench.clock.advance(by: 119 * Self.second)
        acknowledge()
        #expect(bench.events { $0 } == [.acknowledged])
        bench.clock.advance(by: 1 * Self.second)
        #expect(bench.events { $0 } == [.acknowledged, .timedOut(wasAcknowledged: true)])
    }

    @Test func `acknowledging something else is no acknowledgement`() {
        let bench = Bench()
        bench.start()
        #expect(bench.device.request(.reboot))
        for value: UInt64 in [0, 1, 3, 4, 0xFFFF_FFFF] { bench.write(0x14, value) }
        #expect(bench.events { $0 } == [])
        #expect(bench.read(0x14) == 2)
    }

    @Test func `guest that switches itself off has 3 s`() {
        let bench = Bench()
        bench.start()
        bench.write(0x14, 1)
        #expect(bench.events { $0 } == [.shutsDown])
        #expect(bench.device.isSwitchingOff)
        bench.clock.advance(by: 2 * Self.second)
        bench.write(0x14, 1)
        #expect(bench.power.powerOffs == 0)
        bench.clock.advance(by: 1 * Self.second)
        #expect(bench.power.powerOffs == 1)
        #expect(bench.events { $0 } == [.shutsDown])
    }

    @Test func `clock synchronisation waits for its acknowledgement and then can be asked for again`() {
        let bench = Bench()
        bench.start()
        #expect(bench.device.synchronizeClock())
        #expect(bench.read(0x14) == 3)
        #expect(bench.read(0x13, .byte) == 2)
        #expect(bench.device.synchronizeClock())
        #expect(!bench.lines.level(3))
        bench.write(0x14, 3)
        #expect(bench.read(0x14) == 0)
        #expect(bench.device.synchronizeClock())
        #expect(bench.lines.level(3))
        #expect(bench.events { $0 } == [])
        #expect(bench.clock.armedCount == 0)
    }

    @Test func `shutdown is stronger than clock synchronisation`() {
        let bench = Bench()
        bench.start()
        #expect(bench.device.synchronizeClock())
        #expect(bench.device.request(.reboot))
        #expect(bench.read(0x14) == 2)
        #expect(!bench.device.synchronizeClock())
        #expect(bench.read(0x14) == 2)
    }

    @Test func `driver's reset lets go of the line and of the request`() {
        let bench = Bench()
        bench.start()
        #expect(bench.device.request(.reboot))
        bench.write(0x12, 0, .byte)
        #expect(!bench.lines.level(3))
        #expect(bench.read(0x14) == 0)
        #expect(!bench.device.answersCommands)
        // What was asked for is still not done.
        bench.clock.advance(by: 3 * Self.second)
        #expect(bench.events { $0 } == [.timedOut(wasAcknowledged: false)])
    }

    @Test func `reset forgets everything`() {
        let bench = Bench()
        let fresh = bench.device.save()
        bench.start()
        #expect(bench.device.request(.reboot))
        bench.device.writeConfiguration(0x10, .dword, 0x8000)
        bench.device.reset()
        #expect(bench.device.save() == fresh)
        #expect(!bench.lines.level(3))
        #expect(bench.clock.armedCount == 0)
    }

    @Test func `restored device goes on where it was`() throws {
        let bench = Bench()
        bench.start()
        #expect(bench.device.request(.reboot))
        bench.clock.advance(by: 1 * Self.second)
        let data = try JSONEncoder().encode(bench.device.save())
        let other = Bench()
        other.clock.advance(by: 77 * Self.second)
        other.device.restore(try JSONDecoder().decode(VMMCIFunction.State.self, from: data))
        #expect(other.lines.level(3))
        #expect(other.read(0x14) == 2)
        other.clock.advance(by: 2 * Self.second - 1)
        #expect(other.events { $0 } == [])
        other.clock.advance(by: 1)
        #expect(other.events { $0 } == [.timedOut(wasAcknowledged: false)])
    }
}
