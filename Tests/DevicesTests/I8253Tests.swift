import Devices
import TestSupport
import Testing
import VMM

/// The chip, tick by tick (82C54 datasheet, figures 15 to 20: a count is loaded on the clock after its write).
@Suite("8254 timer chip") struct I8253ChipTests {
    private func chip(_ control: UInt8, _ count: UInt16, counter: UInt8 = 0, at now: UInt64 = 0) -> I8253 {
        var chip = I8253()
        if counter == 2 { chip.writeControl(1, now) }
        chip.write(3, counter << 6 | control, now)
        load(&chip, count, counter: counter, at: now)
        return chip
    }

    private func load(_ chip: inout I8253, _ count: UInt16, counter: UInt8 = 0, at now: UInt64) {
        chip.write(UInt16(counter), UInt8(truncatingIfNeeded: count), now)
        chip.write(UInt16(counter), UInt8(count >> 8), now)
    }

    private func outputs(_ chip: I8253, _ range: ClosedRange<UInt64>, counter: UInt8 = 0) -> String {
        range.map { tick in
            var counter = chip[counter]
            counter.advance(to: tick)
            return counter.output(tick) ? "1" : "0"
        }.joined()
    }

    private func values(_ chip: I8253, _ range: ClosedRange<UInt64>, counter: UInt8 = 0) -> [UInt16] {
        range.map { tick in
            var counter = chip[counter]
            counter.advance(to: tick)
            return counter.value(tick)
        }
    }

    @Test func `mode 0 goes high one count after the load and goes on counting`() {
        let chip = chip(0x30, 4)
        #expect(outputs(chip, 0...7) == "00000111")
        #expect(values(chip, 1...7) == [4, 3, 2, 1, 0, 0xFFFF, 0xFFFE])
    }

    @Test func `mode 0 stops at the first byte and starts over at the second`() {
        var chip = chip(0x30, 4)
        chip.write(0, 3, 10)
        #expect(outputs(chip, 10...20) == "00000000000")
        chip.write(0, 0, 12)
        #expect(outputs(chip, 12...17) == "000011")
    }

    @Test func `mode 0 counts only while the gate is high`() {
        var chip = chip(0x30, 4, counter: 2)
        chip.writeControl(0, 3)
        #expect(values(chip, 3...6, counter: 2) == [2, 2, 2, 2])
        chip.writeControl(1, 6)
        #expect(values(chip, 6...9, counter: 2) == [2, 1, 0, 0xFFFF])
        #expect(outputs(chip, 6...9, counter: 2) == "0011")
    }

    @Test func `mode 1 starts with the gate and can be started again`() {
        var chip = chip(0x32, 3, counter: 2)
        #expect(outputs(chip, 0...9, counter: 2) == "1111111111")
        chip.writeControl(0, 10)
        chip.writeControl(1, 11)
        #expect(outputs(chip, 11...16, counter: 2) == "100011")
        chip.writeControl(0, 13)
        chip.writeControl(1, 13)
        #expect(outputs(chip, 13...18, counter: 2) == "000011")
    }

    @Test func `mode 2 is low for the last tick of each period`() {
        let chip = chip(0x34, 3)
        #expect(outputs(chip, 0...9) == "1110110110")
        #expect(values(chip, 1...7) == [3, 2, 1, 3, 2, 1, 3])
    }

    @Test func `mode 2 takes a new count at the end of the period`() {
        var chip = chip(0x34, 4)
        load(&chip, 2, at: 2)
        #expect(values(chip, 1...10) == [4, 3, 2, 1, 2, 1, 2, 1, 2, 1])
    }

    @Test func `mode 2 is high while the gate is low and starts over when it rises`() {
        var chip = chip(0x34, 4, counter: 2)
        chip.writeControl(0, 4)
        #expect(outputs(chip, 4...6, counter: 2) == "111")
        chip.writeControl(1, 6)
        #expect(outputs(chip, 6...11, counter: 2) == "111101" )
    }

    @Test(arguments: [(4, "11100110011"), (5, "11110011100"), (2, "11010101010")] as [(UInt16, String)])
    func `mode 3 divides its period in halves, the first longer by one for odd counts`(count: UInt16, wave: String) {
        #expect(outputs(chip(0x36, count), 0...10) == wave)
    }

    @Test func `mode 3 counts down by two`() {
        #expect(values(chip(0x36, 6), 1...7) == [6, 4, 2, 6, 4, 2, 6])
        #expect(values(chip(0x36, 5), 1...6) == [4, 2, 0, 4, 2, 4])
    }

    @Test func `mode 3 takes a new count at the end of the half period`() {
        var chip = chip(0x36, 8)
        load(&chip, 4, at: 2)
        // High for the old half of 4 until tick 5, then low for the new half of 2.
        #expect(outputs(chip, 0...12) == "1111100110011")
    }

    @Test func `mode 4 strobes for one tick after the count`() {
        var chip = chip(0x38, 3)
        #expect(outputs(chip, 0...7) == "11110111")
        load(&chip, 2, at: 20)
        #expect(outputs(chip, 20...25) == "111011")
    }

    @Test func `mode 5 strobes after a trigger`() {
        var chip = chip(0x3A, 3, counter: 2)
        #expect(!outputs(chip, 0...9, counter: 2).contains("0"))
        chip.writeControl(0, 9)
        chip.writeControl(1, 10)
        #expect(outputs(chip, 10...16, counter: 2) == "1111011")
    }

    @Test func `count zero is the largest`() {
        #expect(chip(0x34, 0)[0].tickPeriod == 65_536)
        #expect(chip(0x35, 0)[0].tickPeriod == 10_000)
    }

    @Test func `BCD counts in decimal`() {
        let chip = chip(0x31, 0x1000)
        #expect(values(chip, 1...3) == [0x1000, 0x0999, 0x0998])
        #expect(values(chip, 1002...1002) == [0x9999])
    }

    @Test func `access modes carry the low, the high, or both bytes`() {
        var chip = I8253()
        chip.write(3, 0x14, 0)
        chip.write(0, 0x80, 0)
        #expect(chip[0].tickPeriod == 0x80)
        #expect(chip.read(0, 1) == 0x80)
        #expect(chip.read(0, 2) == 0x7F)
        chip.write(3, 0x24, 10)
        chip.write(0, 0x80, 10)
        #expect(chip[0].tickPeriod == 0x8000)
        #expect(chip.read(0, 11) == 0x80)
        chip.write(3, 0x34, 20)
        load(&chip, 0x1234, at: 20)
        #expect(chip.read(0, 21) == 0x34)
        #expect(chip.read(0, 21) == 0x12)
    }

    @Test func `latched count stays until it is read, and a second latch does not disturb it`() {
        var chip = chip(0x34, 0x1000)
        chip.write(3, 0x00, 0x11)
        chip.write(3, 0x00, 0x21)
        #expect(chip.read(0, 0x31) == 0xF0)
        #expect(chip.read(0, 0x32) == 0x0F)
        #expect(chip.read(0, 0x41) == 0xC0)
    }

    @Test func `read-back latches status before count`() {
        var chip = chip(0x34, 0x1000)
        chip.write(3, 0xC2, 0x11)
        #expect(chip.read(0, 0x20) == 0xB4)
        #expect(chip.read(0, 0x20) == 0xF0)
        #expect(chip.read(0, 0x20) == 0x0F)
    }

    @Test func `status shows null count until the count is loaded`() {
        var chip = I8253()
        chip.write(3, 0x30, 0)
        chip.write(3, 0xE2, 0)
        #expect(chip.read(0, 0) == 0x70)
        load(&chip, 100, at: 5)
        chip.write(3, 0xE2, 5)
        #expect(chip.read(0, 5) == 0x70)
        chip.write(3, 0xE2, 6)
        #expect(chip.read(0, 6) == 0x30)
        chip.write(3, 0xE2, 106)
        #expect(chip.read(0, 106) == 0xB0)
    }

    @Test func `control port shows gate, speaker, refresh and OUT 2`() {
        var chip = chip(0x30, 50, counter: 2)
        #expect(chip.readControl(1) == 0x01)
        #expect(chip.readControl(18) == 0x11)
        #expect(chip.readControl(36) == 0x01)
        #expect(chip.readControl(51) == 0x21)
        chip.writeControl(0xFF, 52)
        #expect(chip.readControl(72) & 0xCF == 0x0F)
    }

    @Test func `edges counted in one go are those counted step by step`() {
        var random = SplitMix64(seed: 1)
        for _ in 0..<300 {
            let mode = UInt8.random(in: 0...5, using: &random)
            var stepped = chip(0x30 | mode << 1, .random(in: 2...40, using: &random))
            let whole = stepped
            if mode == 2 || mode == 3 { load(&stepped, .random(in: 2...30, using: &random), at: 5) }
            var jumped = mode == 2 || mode == 3 ? stepped : whole
            var sum: UInt64 = 0
            var rises: UInt64 = 0
            var counter = stepped[0]
            var before = counter.output(5)
            for tick in 6...200 as ClosedRange<UInt64> {
                sum += counter.edges(after: tick - 1, through: tick)
                if counter.output(tick), !before { rises += 1 }
                before = counter.output(tick)
            }
            var other = jumped[0]
            #expect(other.edges(after: 5, through: 200) == sum)
            #expect(rises == sum, "mode \(mode) \(stepped[0])")
            jumped[0] = other
        }
    }

    @Test func `next edge is where the edge is`() throws {
        var random = SplitMix64(seed: 2)
        for _ in 0..<300 {
            let mode = UInt8.random(in: 2...4, using: &random)
            var chip = chip(0x30 | mode << 1, .random(in: 2...50, using: &random))
            if mode != 4, Bool.random(using: &random) { load(&chip, .random(in: 2...50, using: &random), at: 1) }
            var counter = chip[0]
            let edge = try #require(counter.nextEdge(after: 1))
            #expect(counter.edges(after: 1, through: edge - 1) == 0, "\(chip[0])")
            #expect(counter.edges(after: edge - 1, through: edge) == 1, "\(chip[0])")
        }
    }

    @Test func `moving a state in time changes nothing that the guest sees`() {
        var chip = chip(0x34, 1000, at: 500)
        var moved = chip
        moved.shift(by: 0 &- 700)
        #expect(moved.read(0, 100) == chip.read(0, 800))
    }
}

@Suite("8254 timer port") struct I8253PortTests {
    private struct Bench {
        let clock = VirtualClock(now: 5_000_000_123)
        let lines = LineRecorder()
        let port: I8253Port
        let bus: PortBus

        init(isWaiting: @escaping @Sendable () -> Bool = { false }) {
            port = I8253Port(clock: clock, line: lines.line(0), isWaiting: isWaiting)
            bus = PortBus(port.claims)
        }

        func program(_ control: UInt8, _ count: UInt16) {
            bus.write(0x43, .byte, UInt32(control))
            bus.write(0x40, .byte, UInt32(count & 0xFF))
            bus.write(0x40, .byte, UInt32(count >> 8))
        }
    }

    @Test func `idle timer arms nothing`() {
        let bench = Bench()
        bench.bus.write(0x61, .byte, 1)
        bench.bus.write(0x43, .byte, 0xB6)
        bench.bus.write(0x42, .byte, 10)
        bench.bus.write(0x42, .byte, 0)
        #expect(bench.clock.armedCount == 0)
    }

    @Test(arguments: [(1193, 60), (0, 3600)] as [(UInt16, UInt64)])
    func `periodic ticks are exact over a long time`(count: UInt16, seconds: UInt64) {
        let bench = Bench()
        bench.program(0x34, count)
        bench.clock.advance(by: seconds * 1_000_000_000)
        let expected = Int(seconds) * 1_193_182 / (count == 0 ? 65_536 : Int(count))
        #expect(abs(bench.lines.rises(0) - expected) <= 1)
    }

    @Test func `one shot fires once and arms nothing more`() {
        let bench = Bench()
        bench.program(0x38, 11_932)
        bench.clock.advance(by: 9_990_000)
        #expect(bench.lines.rises(0) <= 1)
        let before = bench.lines.rises(0)
        bench.clock.advance(by: 20_000)
        #expect(bench.lines.rises(0) == before + 1)
        #expect(bench.clock.armedCount == 0)
    }

    @Test func `mode 0 raises the line and keeps it up until it is programmed again`() {
        let bench = Bench()
        bench.program(0x30, 1000)
        #expect(!bench.lines.level(0))
        bench.clock.advance(by: 1_000_000)
        #expect(bench.lines.level(0))
        bench.bus.write(0x43, .byte, 0x30)
        #expect(!bench.lines.level(0))
    }

    @Test func `ticks missed while the host was busy are made up for`() {
        let bench = Bench()
        bench.program(0x34, 1193)
        bench.clock.jump(by: 50_000_000)
        bench.clock.advance(by: 200_000_000)
        #expect(abs(bench.lines.rises(0) - 250) <= 1)
    }

    @Test func `ticks that the guest has not taken are made up for`() {
        let pic = I8259Pair()
        let clock = VirtualClock()
        let port = I8253Port(clock: clock, line: InterruptLine(pic, 0), isWaiting: { pic.isWaiting(0) })
        let bus = PortBus(pic.claims + port.claims)
        for (address, value) in [(0x20, 0x11), (0x21, 0x30), (0x21, 4), (0x21, 3)] as [(UInt16, UInt32)] {
            bus.write(address, .byte, value)
        }
        bus.write(0x43, .byte, 0x34)
        bus.write(0x40, .byte, 1193 & 0xFF)
        bus.write(0x40, .byte, 1193 >> 8)
        // Half of the time nobody takes interrupts.
        var ticks = 0
        for _ in 0..<20 {
            clock.advance(by: 20_000_000)
            for _ in 0..<2000 {
                clock.advance(by: 20_000)
                if pic.isPending, pic.acknowledge() == 0x30 { ticks += 1 }
            }
        }
        #expect(abs(ticks - 1200) <= 3)
    }

    @Test func `long pause brings no storm`() {
        let bench = Bench()
        bench.program(0x34, 1193)
        bench.clock.jump(by: 3_600_000_000_000)
        let before = bench.lines.rises(0)
        bench.clock.advance(by: 100_000_000)
        #expect(bench.lines.rises(0) - before <= 102)
    }

    @Test func `masked ticks are not owed`() {
        let pic = I8259Pair()
        let clock = VirtualClock()
        let port = I8253Port(clock: clock, line: InterruptLine(pic, 0), isWaiting: { pic.isWaiting(0) })
        let bus = PortBus(pic.claims + port.claims)
        for (address, value) in [(0x20, 0x11), (0x21, 0x30), (0x21, 4), (0x21, 1), (0x21, 0xFF)] as [(UInt16, UInt32)] {
            bus.write(address, .byte, value)
        }
        bus.write(0x43, .byte, 0x34)
        bus.write(0x40, .word, 0)
        bus.write(0x40, .byte, 100)
        clock.advance(by: 10_000_000_000)
        #expect(port.save().owed == 0)
    }

    @Test func `shortest period does not keep the host busy`() {
        let bench = Bench()
        bench.program(0x34, 1)
        let before = bench.lines.rises(0)
        bench.clock.advance(by: 10_000_000)
        #expect(bench.lines.rises(0) - before <= 205)
    }

    @Test func `count follows the clock`() {
        let bench = Bench()
        bench.program(0x34, 0)
        bench.clock.advance(by: 10_000_000)
        bench.bus.write(0x43, .byte, 0)
        let count = bench.bus.read(0x40, .byte) | bench.bus.read(0x40, .byte) << 8
        #expect(abs(Int(count) - (65_536 - 11_931)) <= 2)
    }

    @Test func `restored timer goes on where it was, on another host's clock`() {
        let bench = Bench()
        bench.program(0x34, 11_932)
        bench.clock.advance(by: 4_000_000)
        let saved = bench.port.save()
        let clock = VirtualClock(now: 77)
        let lines = LineRecorder()
        let port = I8253Port(clock: clock, line: lines.line(0))
        port.restore(saved)
        let before = lines.rises(0)
        clock.advance(by: 5_900_000)
        #expect(lines.rises(0) == before)
        clock.advance(by: 200_000)
        #expect(lines.rises(0) == before + 1)
    }

    @Test func `end of time is no trap`() {
        let clock = VirtualClock(now: .max - 1000)
        let lines = LineRecorder()
        let port = I8253Port(clock: clock, line: lines.line(0))
        port.writeByte(3, 0x34)
        port.writeByte(0, 0)
        port.writeByte(0, 0)
        #expect(clock.nextDeadline == .max)
    }
}
