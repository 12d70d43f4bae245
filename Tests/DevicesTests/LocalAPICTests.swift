import Devices
import Foundation
import Testing
import VMM

/// Register numbers as in the manual's table of x2APIC registers, SDM Vol. 3, table 12-6.
private enum R {
    static let id: UInt16 = 0x02
    static let tpr: UInt16 = 0x08
    static let ppr: UInt16 = 0x0A
    static let eoi: UInt16 = 0x0B
    static let ldr: UInt16 = 0x0D
    static let dfr: UInt16 = 0x0E
    static let svr: UInt16 = 0x0F
    static let esr: UInt16 = 0x28
    static let icr: UInt16 = 0x30
    static let icrHigh: UInt16 = 0x31
    static let timer: UInt16 = 0x32
    static let lint0: UInt16 = 0x35
    static let lint1: UInt16 = 0x36
    static let error: UInt16 = 0x37
    static let initialCount: UInt16 = 0x38
    static let currentCount: UInt16 = 0x39
    static let divide: UInt16 = 0x3E
}

/// One that software has turned on.
private func enabled(id: UInt32 = 0) -> LocalAPIC {
    var chip = LocalAPIC(id: id, isBootProcessor: id == 0)
    _ = chip.write(R.svr, 0x1FF, 0)
    return chip
}

private func fixed(_ vector: UInt8, isLevel: Bool = false) -> InterruptMessage {
    InterruptMessage(.fixed, vector: vector, destination: 0, isLevel: isLevel)
}

@Suite("Local APIC") struct LocalAPICTests {
    @Test(arguments: [
        (R.id, 0x0300_0000), (0x03, 0x0105_0014), (R.tpr, 0), (R.ppr, 0), (R.ldr, 0), (R.dfr, 0xFFFF_FFFF), (R.svr, 0xFF),
        (R.esr, 0), (R.icr, 0), (R.icrHigh, 0), (R.timer, 0x1_0000), (0x33, 0x1_0000), (0x34, 0x1_0000), (R.lint0, 0x1_0000),
        (R.lint1, 0x1_0000), (R.error, 0x1_0000), (R.initialCount, 0), (R.currentCount, 0), (R.divide, 0),
    ] as [(UInt16, UInt32)])
    func `register holds its reset value`(register: UInt16, value: UInt32) {
        var chip = LocalAPIC(id: 3, isBootProcessor: false)
        #expect(chip.read(register, 0) == value)
    }

    @Test(arguments: [
        (R.timer, 0x7_00FF), (0x33, 0x1_07FF), (0x34, 0x1_07FF), (R.lint0, 0x1_A7FF), (R.lint1, 0x1_A7FF), (R.error, 0x1_00FF),
        (R.svr, 0x11FF), (R.divide, 0xB), (R.tpr, 0xFF), (R.ldr, 0xFF00_0000), (R.dfr, 0xFFFF_FFFF), (R.icrHigh, 0xFF00_0000),
        (R.id, 0),
    ] as [(UInt16, UInt32)])
    func `register keeps the bits that it has`(register: UInt16, bits: UInt32) {
        var chip = enabled()
        _ = chip.write(register, ~0, 0)
        #expect(chip.read(register, 0) == bits)
    }

    @Test func `local vectors are masked while software has it off`() {
        var chip = enabled()
        _ = chip.write(R.lint0, 0x700, 0)
        _ = chip.write(R.svr, 0xFF, 0)
        #expect(chip.read(R.lint0, 0) == 0x1_0700)
        _ = chip.write(R.lint0, 0x700, 0)
        #expect(chip.read(R.lint0, 0) == 0x1_0700)
        _ = chip.write(R.svr, 0x1FF, 0)
        _ = chip.write(R.lint0, 0x700, 0)
        #expect(chip.read(R.lint0, 0) == 0x700)
    }

    @Test func `fixed interrupts are lost while software has it off, and those it has stay`() {
        var chip = enabled()
        _ = chip.accept(fixed(0x40))
        _ = chip.write(R.svr, 0xFF, 0)
        _ = chip.accept(fixed(0x50))
        #expect(chip.acknowledge() == 0x40)
        #expect(!chip.isInterrupting)
    }

    // MARK: Priorities

    @Test func `interrupts are taken by priority and end in that order`() {
        var chip = enabled()
        for vector in [0x31, 0x52, 0x41, 0x51] as [UInt8] { _ = chip.accept(fixed(vector)) }
        #expect(chip.acknowledge() == 0x52)
        #expect(chip.read(R.ppr, 0) == 0x50)
        // The same class has to wait.
        #expect(!chip.isInterrupting)
        _ = chip.accept(fixed(0x60))
        #expect(chip.acknowledge() == 0x60)
        _ = chip.write(R.eoi, 0, 0)
        #expect(!chip.isInterrupting)
        _ = chip.write(R.eoi, 0, 0)
        #expect(chip.acknowledge() == 0x51)
        _ = chip.write(R.eoi, 0, 0)
        #expect(chip.acknowledge() == 0x41)
    }

    @Test func `task priority holds its class and lower ones back`() {
        var chip = enabled()
        _ = chip.write(R.tpr, 0x45, 0)
        _ = chip.accept(fixed(0x4F))
        #expect(!chip.isInterrupting)
        #expect(chip.read(R.ppr, 0) == 0x45)
        _ = chip.accept(fixed(0x50))
        #expect(chip.acknowledge() == 0x50)
        #expect(chip.read(R.ppr, 0) == 0x50)
        _ = chip.write(R.eoi, 0, 0)
        _ = chip.write(R.tpr, 0x3F, 0)
        #expect(chip.acknowledge() == 0x4F)
    }

    @Test func `request that went away reads as the spurious vector and is not in service`() {
        var chip = enabled()
        _ = chip.write(R.svr, 0x1EF, 0)
        _ = chip.accept(fixed(0x40))
        _ = chip.write(R.tpr, 0x40, 0)
        #expect(chip.acknowledge() == 0xEF)
        #expect(chip.isr.isEmpty)
    }

    @Test(arguments: [0x10, 0x1F, 0x20, 0x3F, 0x40, 0x7F, 0x80, 0xC0, 0xFF] as [UInt8])
    func `every vector has its bit in the three registers`(vector: UInt8) {
        var chip = enabled()
        _ = chip.accept(fixed(vector, isLevel: true))
        let bit: UInt32 = 1 << UInt32(vector & 31)
        let number = UInt16(vector >> 5)
        #expect(chip.read(0x20 + number, 0) == bit)
        #expect(chip.read(0x18 + number, 0) == bit)
        #expect(chip.acknowledge() == vector)
        #expect(chip.read(0x20 + number, 0) == 0)
        #expect(chip.read(0x10 + number, 0) == bit)
    }

    @Test func `end of a level-triggered interrupt is told to I/O APICs unless that is turned off`() {
        var chip = enabled()
        for (isLevel, svr, expected) in [
            (true, 0x1FF, .endOfInterrupt(0x40)), (false, 0x1FF, .none), (true, 0x11FF, .none),
        ] as [(Bool, UInt32, LocalAPIC.Effect)] {
            _ = chip.write(R.svr, svr, 0)
            _ = chip.accept(fixed(0x40, isLevel: isLevel))
            _ = chip.acknowledge()
            #expect(chip.write(R.eoi, 0, 0) == expected)
        }
        #expect(chip.write(R.eoi, 0, 0) == .none)
    }

    // MARK: Errors

    @Test func `vectors below 16 are errors, shown after a write of the error status`() {
        var chip = enabled()
        _ = chip.write(R.error, 0x33, 0)
        _ = chip.accept(fixed(15))
        #expect(chip.read(R.esr, 0) == 0)
        #expect(chip.acknowledge() == 0x33)
        _ = chip.write(R.esr, 0, 0)
        #expect(chip.read(R.esr, 0) == 0x40)
        _ = chip.write(R.icr, 0x4_000F, 0)
        _ = chip.read(0x3D, 0)
        _ = chip.write(R.esr, 0, 0)
        #expect(chip.read(R.esr, 0) == 0xA0)
        _ = chip.write(R.esr, 0, 0)
        #expect(chip.read(R.esr, 0) == 0)
    }

    @Test func `error vector that is illegal itself ends there`() {
        var chip = enabled()
        _ = chip.write(R.error, 3, 0)
        _ = chip.accept(fixed(2))
        #expect(!chip.isInterrupting)
    }

    // MARK: Destinations

    @Test(arguments: [
        // Flat model, cluster model: logical id, destination, whether it is meant.
        (0xFFFF_FFFF, 0x04, 0x04, true), (0xFFFF_FFFF, 0x04, 0x0C, true), (0xFFFF_FFFF, 0x04, 0x08, false), (0xFFFF_FFFF, 0x04, 0xFF, true),
        (0x0FFF_FFFF, 0x24, 0x24, true), (0x0FFF_FFFF, 0x24, 0x2F, true), (0x0FFF_FFFF, 0x24, 0x28, false), (0x0FFF_FFFF, 0x24, 0x14, false),
        (0x0FFF_FFFF, 0x24, 0xF4, true),
    ] as [(UInt32, UInt32, UInt32, Bool)])
    func `logical destination is by the model`(model: UInt32, own: UInt32, destination: UInt32, isMeant: Bool) {
        var chip = enabled(id: 5)
        _ = chip.write(R.dfr, model, 0)
        _ = chip.write(R.ldr, own << 24, 0)
        #expect(chip.isDestination(of: .init(.fixed, vector: 0x40, destination: destination, isLogical: true)) == isMeant)
    }

    @Test(arguments: [
        (5, false, true), (4, false, false), (0xFF, false, true), (0x0000_0020, true, true), (0x0000_0010, true, false), (0x0001_0020, true, false),
        (0xFFFF_FFFF, true, true), (0xFFFF_FFFF, false, true),
    ] as [(UInt32, Bool, Bool)])
    func `x2APIC mode has 32-bit destinations and logical ids of its own`(destination: UInt32, isLogical: Bool, isMeant: Bool) throws {
        var chip = try wide(id: 5)
        #expect(chip.readWide(R.ldr, 0) == 0x20)
        var message = InterruptMessage(.fixed, vector: 0x40, destination: destination, isLogical: isLogical)
        message.isWide = destination != 0xFF
        #expect(chip.isDestination(of: message) == isMeant)
        chip.reset()
    }

    @Test func `logical id of x2APIC mode is cluster and bit`() throws {
        #expect(try wide(id: 0x123).readWide(R.ldr, 0) == 0x0012_0008)
    }

    // MARK: Sending

    @Test(arguments: [
        (0x0000_0040, .fixed, .none, false), (0x0000_0840, .fixed, .none, true), (0x0004_0040, .fixed, .itself, false),
        (0x0008_0040, .fixed, .all, false), (0x000C_0040, .fixed, .others, false), (0x0000_0400, .nmi, .none, false),
        (0x000C_4500, .initialize, .others, false), (0x0000_0608, .startUp, .none, false), (0x0000_0140, .lowestPriority, .none, false),
    ] as [(UInt32, InterruptMessage.Delivery, InterruptMessage.Shorthand, Bool)])
    func `command register sends what it says`(
        low: UInt32, delivery: InterruptMessage.Delivery, shorthand: InterruptMessage.Shorthand, isLogical: Bool
    ) {
        var chip = enabled()
        _ = chip.write(R.icrHigh, 0x0700_0000, 0)
        var expected = InterruptMessage(delivery, vector: UInt8(low & 0xFF), destination: 7, isLogical: isLogical)
        expected.shorthand = shorthand
        #expect(chip.write(R.icr, low, 0) == .send(expected))
        #expect(chip.read(R.icr, 0) == low)
    }

    /// NMI and INIT to itself and to all, INIT de-assert, external and reserved delivery.
    @Test(arguments: [0x4_0400, 0x8_0500, 0x8500, 0x700, 0x300] as [UInt32])
    func `command that nothing comes of sends nothing`(low: UInt32) {
        var chip = enabled()
        #expect(chip.write(R.icr, low, 0) == .none)
    }

    // MARK: Pins

    @Test func `LINT0 passes external interrupts when it is open for them or the APIC is off`() {
        var chip = enabled()
        #expect(!chip.passesExternal)
        _ = chip.write(R.lint0, 0x700, 0)
        #expect(chip.passesExternal)
        _ = chip.write(R.lint0, 0x1_0700, 0)
        #expect(!chip.passesExternal)
        _ = chip.write(R.lint0, 0x040, 0)
        #expect(!chip.passesExternal)
        #expect(chip.raise(.lint0) == .none)
        #expect(chip.acknowledge() == 0x40)
        #expect(chip.write(base: 0xFEE0_0100) == true)
        #expect(chip.passesExternal)
    }

    @Test func `LINT1 is NMI when it is open for it or the APIC is off`() {
        var chip = enabled()
        #expect(chip.raise(.lint1) == .none)
        _ = chip.write(R.lint1, 0x400, 0)
        #expect(chip.raise(.lint1) == .nmi)
        #expect(chip.write(base: 0xFEE0_0100) == true)
        #expect(chip.raise(.lint1) == .nmi)
        #expect(chip.raise(.lint0) == .none)
    }

    @Test func `virtual wire mode is as the MP specification has it`() {
        var chip = LocalAPIC(id: 0, isBootProcessor: true)
        chip.enterVirtualWireMode()
        #expect(chip.passesExternal)
        #expect(chip.raise(.lint1) == .nmi)
    }

    // MARK: Modes

    private func wide(id: UInt32 = 0) throws -> LocalAPIC {
        var chip = enabled(id: id)
        let isAllowed = chip.write(base: 0xFEE0_0C00)
        try #require(isAllowed)
        return chip
    }

    @Test(arguments: [
        // From xAPIC, x2APIC and disabled.
        (0x900, 0x900, true), (0x900, 0xD00, true), (0x900, 0x100, true), (0x900, 0x500, false),
        (0xD00, 0xD00, true), (0xD00, 0x900, false), (0xD00, 0x100, true), (0xD00, 0x500, false),
        (0x100, 0x100, true), (0x100, 0x900, true), (0x100, 0xD00, false), (0x100, 0x500, false),
        (0x900, 0x901, false), (0x900, 0xB00, false), (0x900, 0x100_0000_0900, false), (0x900, 0x80_0000_0900, true),
    ] as [(UInt64, UInt64, Bool)])
    func `mode changes as the manual's figure allows`(from: UInt64, to: UInt64, isAllowed: Bool) {
        var chip = LocalAPIC(id: 0, isBootProcessor: true)
        #expect(chip.write(base: 0xFEE0_0000 | from) == true)
        let before = chip
        #expect(chip.write(base: 0xFEE0_0000 ^ to) == isAllowed)
        #expect(chip.base == (isAllowed ? 0xFEE0_0000 ^ to : before.base))
        if !isAllowed { #expect(chip == before) }
    }

    @Test func `turned off it forgets all but its place`() {
        var chip = enabled()
        _ = chip.accept(fixed(0x40))
        _ = chip.write(R.tpr, 0x20, 0)
        #expect(chip.write(base: 0xFED0_0100) == true)
        #expect(!chip.isInterrupting)
        #expect(chip.write(base: 0xFED0_0900) == true)
        #expect(chip.read(R.tpr, 0) == 0)
        #expect(chip.read(R.svr, 0) == 0xFF)
        #expect(chip.page == 0xFED0_0000)
        #expect(!chip.isInterrupting)
    }

    @Test func `x2APIC registers are refused in xAPIC mode`() {
        var chip = enabled()
        for register in 0...0xFF as ClosedRange<UInt16> {
            #expect(chip.readWide(register, 0) == nil)
            #expect(chip.writeWide(register, 0, 0) == .refused)
        }
    }

    @Test func `x2APIC registers are those of the manual's table`() throws {
        var chip = try wide()
        let readable = [2, 3, 8, 0xA, 0xD, 0xF] + Array(0x10...0x28) + [0x30] + Array(0x32...0x39) + [0x3E] as [UInt16]
        let writable = [8, 0xB, 0xF, 0x28, 0x30] + Array(0x32...0x38) + [0x3E, 0x3F] as [UInt16]
        for register in 0...0xFF as ClosedRange<UInt16> {
            #expect((chip.readWide(register, 0) != nil) == readable.contains(register), "\(register)")
            #expect((chip.writeWide(register, 0, 0) != .refused) == writable.contains(register), "\(register)")
        }
    }

    @Test(arguments: [
        (R.tpr, 0x100), (R.eoi, 1), (R.svr, 0x2000), (R.svr, 0x200), (R.esr, 1), (R.timer, 0x8_0000), (R.timer, 0x100), (R.lint0, 0x2_0000),
        (R.error, 0x400), (R.divide, 4), (R.divide, 0x10), (R.icr, 0x2000), (R.icr, 0x1_0000), (R.icr, 0x10_0000), (0x3F, 0x100),
        (R.initialCount, 1 << 32), (R.timer, 1 << 32),
    ] as [(UInt16, UInt64)])
    func `reserved bits are refused in x2APIC mode`(register: UInt16, value: UInt64) throws {
        var chip = try wide()
        let before = chip
        #expect(chip.writeWide(register, value, 0) == .refused)
        #expect(chip == before)
    }

    @Test func `x2APIC mode sends to 32-bit destinations and to itself`() throws {
        var chip = try wide()
        var expected = InterruptMessage(.fixed, vector: 0x40, destination: 0x0001_0002, isLogical: true)
        expected.isWide = true
        #expect(chip.writeWide(R.icr, 0x0001_0002_0000_0840, 0) == .send(expected))
        #expect(chip.readWide(R.icr, 0) == 0x0001_0002_0000_0840)
        var own = InterruptMessage(.fixed, vector: 0x41, destination: 0)
        own.isWide = true
        own.shorthand = .itself
        #expect(chip.writeWide(0x3F, 0x41, 0) == .send(own))
    }
}

extension LocalAPIC {
    /// With 40 address bits.
    mutating func write(base: UInt64) -> Bool { writeBase(base, physicalAddressBits: 40) }
}

@Suite("Local APIC timer") struct LocalAPICTimerTests {
    private static let tick: UInt64 = 40

    private func chip(mode: UInt32, divide: UInt32 = 0xB) -> LocalAPIC {
        var chip = enabled()
        _ = chip.write(R.timer, mode << 17 | 0x50, 0)
        _ = chip.write(R.divide, divide, 0)
        return chip
    }

    @Test(arguments: [(0, 2), (1, 4), (2, 8), (3, 16), (8, 32), (9, 64), (0xA, 128), (0xB, 1)] as [(UInt32, UInt64)])
    func `count goes down at the crystal's rate divided`(code: UInt32, divisor: UInt64) {
        var chip = chip(mode: 0, divide: code)
        _ = chip.write(R.initialCount, 1000, 500)
        #expect(chip.expiry == 500 + 1000 * divisor * Self.tick)
        #expect(chip.read(R.currentCount, 500) == 1000)
        #expect(chip.read(R.currentCount, 500 + 400 * divisor * Self.tick) == 600)
        #expect(chip.read(R.currentCount, 500 + 1000 * divisor * Self.tick) == 0)
    }

    @Test func `one-shot timer fires once`() {
        var chip = chip(mode: 0)
        _ = chip.write(R.initialCount, 10, 0)
        chip.advance(10 * Self.tick - 1)
        #expect(!chip.isInterrupting)
        chip.advance(10 * Self.tick)
        #expect(chip.acknowledge() == 0x50)
        #expect(chip.expiry == nil)
        chip.advance(.max)
        #expect(!chip.isInterrupting)
    }

    @Test func `periodic timer keeps its beat when it is late`() {
        var chip = chip(mode: 1)
        _ = chip.write(R.initialCount, 25_000, 0)
        let period = 25_000 * Self.tick
        chip.advance(period)
        #expect(chip.expiry == 2 * period)
        chip.advance(5 * period + 7)
        #expect(chip.expiry == 6 * period)
        #expect(chip.read(R.currentCount, 5 * period + 12_500 * Self.tick) == 12_500)
        _ = chip.write(R.initialCount, 0, 5 * period)
        #expect(chip.expiry == nil)
    }

    @Test func `masked timer counts and does not interrupt`() {
        var chip = chip(mode: 1)
        _ = chip.write(R.timer, 0x3_0050, 0)
        _ = chip.write(R.initialCount, 1000, 0)
        chip.advance(1000 * Self.tick)
        #expect(!chip.isInterrupting)
        #expect(chip.expiry == 2000 * Self.tick)
    }

    @Test func `shortest periods do not keep the host busy`() {
        var chip = chip(mode: 1)
        _ = chip.write(R.initialCount, 1, 0)
        var firings = 0
        var now: UInt64 = 0
        while let expiry = chip.expiry, expiry < 1_000_000, firings < 1000 {
            now = expiry
            chip.advance(now)
            firings += 1
        }
        #expect(firings <= 51)
    }

    @Test func `deadline counts in ticks of the time-stamp counter`() {
        var chip = chip(mode: 2)
        chip.setDeadline(1_000_000 + 2_000_000, timeStamp: 1_000_000, frequency: 2_000_000_000, 77)
        #expect(chip.deadline == 3_000_000)
        #expect(chip.expiry == 77 + 1_000_000 + 1)
        chip.advance(77 + 1_000_001)
        #expect(chip.acknowledge() == 0x50)
        #expect(chip.deadline == 0)
        #expect(chip.expiry == nil)
    }

    @Test func `deadline that has passed fires at once, and 0 disarms`() {
        var chip = chip(mode: 2)
        chip.setDeadline(5, timeStamp: 1_000_000, frequency: 2_000_000_000, 77)
        #expect(chip.expiry == 77)
        chip.setDeadline(0, timeStamp: 1_000_000, frequency: 2_000_000_000, 77)
        #expect(chip.expiry == nil)
    }

    @Test(arguments: [UInt64.max, 1 << 63], [1, 999_999_999, 4_000_000_000_000] as [UInt64])
    func `absurd deadline is the end of time`(value: UInt64, frequency: UInt64) {
        var chip = chip(mode: 2)
        chip.setDeadline(value, timeStamp: 0, frequency: frequency, .max - 5)
        #expect(chip.expiry == .max)
    }

    @Test func `counts do nothing in deadline mode, nor deadlines in the others`() {
        var chip = chip(mode: 2)
        _ = chip.write(R.initialCount, 1000, 0)
        #expect(chip.expiry == nil)
        #expect(chip.read(R.currentCount, 0) == 0)
        var other = self.chip(mode: 0)
        other.setDeadline(1000, timeStamp: 0, frequency: 2_000_000_000, 0)
        #expect(other.expiry == nil)
        #expect(other.deadline == 0)
    }

    @Test(arguments: [(0, 2), (2, 0), (1, 2), (2, 1)] as [(UInt32, UInt32)])
    func `change between counts and deadlines disarms`(from: UInt32, to: UInt32) {
        var chip = chip(mode: from)
        _ = chip.write(R.initialCount, 1000, 0)
        chip.setDeadline(1000, timeStamp: 0, frequency: 2_000_000_000, 0)
        #expect(chip.expiry != nil)
        _ = chip.write(R.timer, to << 17 | 0x50, 0)
        #expect(chip.expiry == nil)
        #expect(chip.deadline == 0)
    }

    @Test func `new divisor counts what is left`() {
        var chip = chip(mode: 0)
        _ = chip.write(R.initialCount, 1000, 0)
        _ = chip.write(R.divide, 0, 600 * Self.tick)
        #expect(chip.expiry == 600 * Self.tick + 400 * 2 * Self.tick)
    }
}
