import Devices
import Foundation
import TestSupport
import Testing
import VMM

@Suite("MC146818 clock") struct MC146818Tests {
    /// Monday, 2 March 2026, 13:07:09 UTC.
    private static let start: UInt64 = 1_772_456_829 * second
    private static let second: UInt64 = 1_000_000_000

    private struct Bench {
        let clock: VirtualClock
        let lines = LineRecorder()
        let port: MC146818Port
        let bus: PortBus

        init(wall: UInt64 = MC146818Tests.start, memory: CMOSMemory = CMOSMemory()) {
            clock = VirtualClock(now: 123_456_789, wall: wall)
            port = MC146818Port(clock: clock, line: lines.line(8), memory: memory)
            bus = PortBus(port.claims)
        }

        subscript(_ index: UInt8) -> UInt8 {
            get {
                bus.write(0x70, .byte, UInt32(index))
                return UInt8(bus.read(0x71, .byte))
            }
            nonmutating set {
                bus.write(0x70, .byte, UInt32(index))
                bus.write(0x71, .byte, UInt32(newValue))
            }
        }

        var time: [UInt8] { [0x32, 9, 8, 7, 4, 2, 0].map { self[$0] } }
    }

    @Test(arguments: [(4_999, 0), (5_001, 1), (-4_999, 0), (-5_001, 1)] as [(Int64, Int)])
    func `step of the host's time by more than 5 s is noticed at the next look`(milliseconds: Int64, count: Int) {
        let clock = VirtualClock(wall: Self.start)
        let steps = Lock(0)
        let port = MC146818Port(clock: clock, line: LineRecorder().line(8)) { steps { $0 += 1 } }
        clock.advance(by: 3600 * Self.second)
        _ = port.readByte(1)
        #expect(steps { $0 } == 0)
        clock.stepWall(by: milliseconds * 1_000_000)
        #expect(clock.armedCount == 0)
        #expect(steps { $0 } == 0)
        _ = port.readByte(1)
        _ = port.readByte(1)
        #expect(steps { $0 } == count)
    }

    @Test func `time is the host's in BCD and 24 hours`() {
        let bench = Bench()
        #expect(bench.time == [0x20, 0x26, 0x03, 0x02, 0x13, 0x07, 0x09])
        #expect(bench[6] == 2)
        #expect(bench[0x0D] == 0x80)
        #expect(bench[0x0A] == 0x26)
        #expect(bench[0x0B] == 0x02)
    }

    @Test func `binary and 12-hour formats`() {
        let bench = Bench()
        bench[0x0B] = 0x06
        #expect(bench.time == [20, 26, 3, 2, 13, 7, 9])
        bench[0x0B] = 0x04
        #expect(bench[4] == 0x81)
        bench[0x0B] = 0x00
        #expect(bench[4] == 0x81)
    }

    @Test(arguments: [(0, 0x12), (1, 0x01), (11, 0x11), (12, 0x92), (23, 0x91)] as [(UInt64, UInt8)])
    func `12-hour clock at the turn of the day`(hour: UInt64, expected: UInt8) {
        let bench = Bench(wall: hour * 3600 * Self.second)
        bench[0x0B] = 0x00
        #expect(bench[4] == expected)
    }

    @Test func `calendar agrees with the host's over four centuries`() {
        var calendar = Calendar(identifier: .gregorian)
        calendar.timeZone = .gmt
        var random = SplitMix64(seed: 3)
        for _ in 0..<500 {
            let seconds = Int64.random(in: 0..<13_000_000_000, using: &random)
            let time = CivilTime(secondsSince1970: seconds)
            let parts = calendar.dateComponents(
                [.year, .month, .day, .hour, .minute, .second, .weekday],
                from: Date(timeIntervalSince1970: Double(seconds)))
            #expect(time.year == Int64(parts.year ?? 0) && time.month == Int64(parts.month ?? 0))
            #expect(time.day == Int64(parts.day ?? 0) && time.hour == Int64(parts.hour ?? -1))
            #expect(time.weekday + 1 == Int64(parts.weekday ?? 0))
            #expect(time.secondsSince1970 == seconds)
        }
    }

    @Test(arguments: [Int64.min, -62_135_596_801, -1, 0, 951_782_400, 253_402_300_799, 253_402_300_800, .max])
    func `times beyond the calendar stay at its ends`(seconds: Int64) {
        let time = CivilTime(secondsSince1970: seconds)
        #expect((1...9999).contains(time.year))
        #expect(time.secondsSince1970 == min(max(seconds, -62_135_596_800), 253_402_300_799))
    }

    @Test func `update in progress announces the change of the second`() {
        let bench = Bench()
        bench.clock.advance(by: 900_000_000)
        #expect(bench[0x0A] == 0x26)
        bench.clock.advance(by: 98_500_000)
        #expect(bench[0x0A] == 0xA6)
        #expect(bench[0] == 0x09)
        bench.clock.advance(by: 1_500_000)
        #expect(bench[0x0A] == 0x26)
        #expect(bench[0] == 0x10)
    }

    @Test func `SET holds the time and lets it be written`() {
        let bench = Bench()
        bench[0x0B] = 0x82
        bench.clock.advance(by: 5 * Self.second)
        #expect(bench[0] == 0x09)
        for (index, value) in [(0, 0x58), (2, 0x59), (4, 0x23), (7, 0x28), (8, 0x02), (9, 0x00), (0x32, 0x20)] {
            bench[UInt8(index)] = UInt8(value)
        }
        bench[0x0B] = 0x02
        #expect(bench.time == [0x20, 0x00, 0x02, 0x28, 0x23, 0x59, 0x58])
        bench.clock.advance(by: 2 * Self.second)
        #expect(bench.time == [0x20, 0x00, 0x02, 0x29, 0x00, 0x00, 0x00])
        #expect(bench[6] == 3)
    }

    @Test func `writes take effect without SET as well`() {
        let bench = Bench()
        bench[9] = 0x30
        #expect(bench.time == [0x20, 0x30, 0x03, 0x02, 0x13, 0x07, 0x09])
        bench.clock.advance(by: Self.second)
        #expect(bench[0] == 0x10)
    }

    @Test func `divider let go makes the next second come after half of one`() {
        let bench = Bench()
        bench.clock.advance(by: 123_000_000)
        // As Linux sets the clock.
        bench[0x0B] = 0x82
        bench[0x0A] = 0x76
        bench[0] = 0x30
        bench[0x0B] = 0x02
        bench.clock.advance(by: 3 * Self.second)
        #expect(bench[0] == 0x30)
        bench[0x0A] = 0x26
        bench.clock.advance(by: 499_000_000)
        #expect(bench[0] == 0x30)
        bench.clock.advance(by: 2_000_000)
        #expect(bench[0] == 0x31)
    }

    @Test func `guest's clock follows the host's when that is set`() {
        let bench = Bench()
        bench[4] = 0x10
        bench.clock.stepWall(by: 3600 * Int64(Self.second))
        #expect(bench[4] == 0x11)
        bench.clock.stepWall(by: -7200 * Int64(Self.second))
        #expect(bench[4] == 0x09)
    }

    @Test(arguments: [(3, 8192), (6, 1024), (10, 64), (15, 2), (1, 256), (2, 128)] as [(UInt8, Int)])
    func `periodic interrupt comes at its rate`(rate: UInt8, hertz: Int) {
        let bench = Bench()
        bench[0x0A] = 0x20 | rate
        bench[0x0B] = 0x42
        var count = 0
        let end = bench.clock.now() + 3 * Self.second
        var deadlines = 0
        while let deadline = bench.clock.nextDeadline, deadline <= end, deadlines < 100_000 {
            deadlines += 1
            bench.clock.advance(to: deadline)
            if bench.lines.level(8), bench[0x0C] & 0xC0 == 0xC0, !bench.lines.level(8) { count += 1 }
        }
        #expect(abs(count - 3 * hertz) <= 1)
    }

    @Test func `interrupt stays until register C is read, and nothing is armed meanwhile`() {
        let bench = Bench()
        bench[0x0B] = 0x42
        bench.clock.advance(by: 10 * Self.second)
        #expect(bench.lines.rises(8) == 1)
        #expect(bench.clock.armedCount == 0)
        #expect(bench[0x0C] & 0xC0 == 0xC0)
        #expect(bench[0x0C] == 0)
        #expect(bench.clock.armedCount == 1)
    }

    @Test func `flags are there for those who poll`() {
        let bench = Bench()
        #expect(bench[0x0C] == 0)
        bench.clock.advance(by: Self.second)
        #expect(bench[0x0C] & 0xF0 == 0x50)
        #expect(bench.clock.armedCount == 0)
    }

    @Test func `update interrupt comes with each second`() {
        let bench = Bench()
        bench[0x0A] = 0x20
        bench[0x0B] = 0x12
        for second in 1...5 as ClosedRange<UInt8> {
            bench.clock.advance(by: Self.second)
            #expect(bench[0x0C] == 0x90)
            #expect(bench[0] == (0x09 + second > 0x09 ? 0x10 + second - 1 : 0x09))
        }
        #expect(bench.lines.rises(8) == 5)
    }

    @Test func `SET clears the update interrupt enable`() {
        let bench = Bench()
        bench[0x0B] = 0x12
        bench[0x0B] = 0x92
        #expect(bench[0x0B] == 0x82)
    }

    @Test(
        arguments: [
            // Alarm hours, minutes, seconds; seconds until it rings from 13:07:09.
            (0x13, 0x07, 0x10, 1), (0x13, 0x08, 0x00, 51), (0x13, 0x07, 0x09, 86_400), (0x13, 0x07, 0x08, 86_399),
            (0xFF, 0xFF, 0xFF, 1), (0xFF, 0xFF, 0x00, 51), (0xC0, 0x00, 0x00, 3171), (0x00, 0x00, 0x00, 39_171),
        ] as [(UInt8, UInt8, UInt8, UInt64)])
    func `alarm rings at its time`(hours: UInt8, minutes: UInt8, seconds: UInt8, wait: UInt64) {
        let bench = Bench()
        bench[5] = hours
        bench[3] = minutes
        bench[1] = seconds
        bench[0x0B] = 0x22
        bench.clock.advance(by: wait * Self.second - 1)
        #expect(!bench.lines.level(8))
        bench.clock.advance(by: 1)
        #expect(bench.lines.level(8))
        #expect(bench[0x0C] & 0xA0 == 0xA0)
    }

    @Test func `alarm that matches no time never rings`() {
        let bench = Bench()
        bench[5] = 0x25
        bench[0x0B] = 0x22
        #expect(bench.clock.armedCount == 0)
    }

    @Test func `alarm rings in 12-hour format`() {
        let bench = Bench()
        bench[0x0B] = 0x00
        bench[5] = 0x82
        bench[3] = 0x00
        bench[1] = 0x00
        bench[0x0B] = 0x20
        bench.clock.advance(by: 3171 * Self.second)
        #expect(bench.lines.level(8))
    }

    @Test func `alarm rings soon after the host's clock is set past it`() {
        let bench = Bench()
        bench[5] = 0x23
        bench[3] = 0x00
        bench[1] = 0x00
        bench[0x0B] = 0x22
        bench.clock.stepWall(by: 36_000 * Int64(Self.second))
        bench.clock.advance(by: 60 * Self.second)
        #expect(bench.lines.level(8))
    }

    @Test func `host's clock set back stops no interrupt`() {
        let bench = Bench()
        bench[0x0B] = 0x12
        bench.clock.stepWall(by: -86_400 * Int64(Self.second))
        bench.clock.advance(by: 3 * Self.second)
        #expect(bench.lines.level(8))
    }

    @Test func `memory keeps what is written and knows the machine's size`() {
        var memory = CMOSMemory()
        memory.setMemory(base: 0xA0000, below4G: 0xC000_0000, above4G: 0x1_4000_0000)
        let bench = Bench(memory: memory)
        #expect(bench[0x15] == 0x80 && bench[0x16] == 0x02)
        #expect(bench[0x17] == 0xFF && bench[0x18] == 0xFF)
        #expect(bench[0x34] == 0x00 && bench[0x35] == 0xBF)
        #expect(bench[0x5B] == 0x00 && bench[0x5C] == 0x40 && bench[0x5D] == 0x01)
        bench[0x7F] = 0x5A
        #expect(bench[0x7F] == 0x5A)
        #expect(bench[0xFF] == 0x5A)
    }

    @Test func `reset keeps time and memory and stops interrupts`() {
        let bench = Bench()
        bench[9] = 0x30
        bench[0x40] = 1
        bench[0x0B] = 0x72
        bench.clock.advance(by: Self.second)
        bench.port.reset()
        #expect(!bench.lines.level(8))
        #expect(bench[0x0B] == 0x02)
        #expect(bench[9] == 0x30)
        #expect(bench[0x40] == 1)
    }
}
