import Devices
import Testing
import VMM

@Suite("I/O APIC") struct IOAPICTests {
    private func chip(_ entries: (Int, UInt64)...) -> IOAPIC {
        var chip = IOAPIC(id: 1)
        for (pin, entry) in entries { write(&chip, pin, entry) }
        return chip
    }

    /// - Returns: what the low half's write sends.
    @discardableResult
    private func write(_ chip: inout IOAPIC, _ pin: Int, _ entry: UInt64) -> InterruptMessage? {
        chip.selected = UInt8(0x11 + pin * 2)
        _ = chip.write(UInt32(truncatingIfNeeded: entry >> 32))
        chip.selected = UInt8(0x10 + pin * 2)
        return chip.write(UInt32(truncatingIfNeeded: entry))
    }

    private func entry(_ chip: IOAPIC, _ pin: Int) -> UInt64 {
        var chip = chip
        chip.selected = UInt8(0x10 + pin * 2)
        let low = chip.read()
        chip.selected = UInt8(0x11 + pin * 2)
        return UInt64(chip.read()) << 32 | UInt64(low)
    }

    private static let level = IOAPIC.Entry.isLevel

    @Test(arguments: [(0, 0x0100_0000), (1, 0x0017_0020), (2, 0x0100_0000), (0x10, 0x1_0000), (0x3F, 0), (0x40, 0), (0xFF, 0)] as [(UInt8, UInt32)])
    func `register holds its reset value`(index: UInt8, value: UInt32) {
        var chip = chip()
        chip.selected = index
        #expect(chip.read() == value)
    }

    @Test func `registers keep the bits that they have`() {
        var chip = chip()
        chip.selected = 0
        _ = chip.write(~0)
        #expect(chip.read() == 0x0F00_0000)
        write(&chip, 23, ~0)
        #expect(entry(chip, 23) == 0xFF00_0000_0001_AFFF)
        chip.selected = 0x40
        _ = chip.write(~0)
        #expect(chip.read() == 0)
    }

    @Test func `rising edge becomes the entry's message, once`() {
        var chip = chip((4, 0x0300_0000_0000_0934))
        #expect(chip.setPin(4, true) == InterruptMessage(.lowestPriority, vector: 0x34, destination: 3, isLogical: true))
        #expect(chip.setPin(4, true) == nil)
        #expect(chip.setPin(4, false) == nil)
        #expect(chip.setPin(4, true) != nil)
    }

    @Test func `edge on a masked pin is lost`() {
        var chip = chip((4, 0x1_0034))
        #expect(chip.setPin(4, true) == nil)
        #expect(write(&chip, 4, 0x34) == nil)
        #expect(chip.setPin(4, false) == nil)
        #expect(chip.setPin(4, true) != nil)
    }

    @Test func `level is sent once until it has ended, and again if it is still up`() {
        var chip = chip((9, Self.level | 0x40))
        let message = InterruptMessage(.fixed, vector: 0x40, destination: 0, isLevel: true)
        #expect(chip.setPin(9, true) == message)
        #expect(entry(chip, 9) == Self.level | IOAPIC.Entry.remoteIRR | 0x40)
        #expect(chip.setPin(9, false) == nil)
        #expect(chip.setPin(9, true) == nil)
        #expect(chip.endInterrupt(0x41, pin: 9) == nil)
        #expect(chip.endInterrupt(0x40, pin: 9) == message)
        #expect(chip.setPin(9, false) == nil)
        #expect(chip.endInterrupt(0x40, pin: 9) == nil)
        #expect(entry(chip, 9) == Self.level | 0x40)
    }

    @Test func `level that waits behind the mask is sent when that goes`() {
        var chip = chip((9, Self.level | 0x1_0040))
        #expect(chip.setPin(9, true) == nil)
        #expect(write(&chip, 9, Self.level | 0x40) != nil)
    }

    @Test func `turn to edge and back clears the remote IRR`() {
        var chip = chip((9, Self.level | 0x40))
        #expect(chip.setPin(9, true) != nil)
        write(&chip, 9, Self.level | 0x1_0040)
        #expect(entry(chip, 9) & IOAPIC.Entry.remoteIRR != 0)
        write(&chip, 9, 0x1_0040)
        #expect(entry(chip, 9) & IOAPIC.Entry.remoteIRR == 0)
        #expect(write(&chip, 9, Self.level | 0x40) != nil)
    }

    @Test func `pins beyond the last are nobody's`() {
        var chip = chip()
        for pin in [-1, 24, 31, 32, .max, .min] {
            #expect(chip.setPin(pin, true) == nil)
            #expect(chip.endInterrupt(0x40, pin: pin) == nil)
            #expect(chip.vector(ofPin: pin) == nil)
        }
    }

    @Test func `reset masks all pins and keeps the lines`() {
        var chip = chip((9, Self.level | 0x40))
        #expect(chip.setPin(9, true) != nil)
        chip.reset()
        #expect(entry(chip, 9) == 0x1_0000)
        #expect(write(&chip, 9, Self.level | 0x40) != nil)
    }
}

@Suite("Messages of devices") struct InterruptMessageTests {
    @Test(arguments: [
        (0xFEE0_0000, 0x40, .init(.fixed, vector: 0x40, destination: 0)),
        (0xFEE0_3004, 0x141, .init(.lowestPriority, vector: 0x41, destination: 3, isLogical: true)),
        (0xFEEF_F000, 0x442, .init(.nmi, vector: 0x42, destination: 0xFF)),
        (0xFEE0_000C, 0xC040, .init(.fixed, vector: 0x40, destination: 0, isLogical: true, isLevel: true)),
        (0xFEE0_0000, 0x8040, nil), (0xFEE0_0000, 0x340, nil), (0xFEF0_0000, 0x40, nil), (0x1_FEE0_0000, 0x40, nil), (0, 0, nil),
    ] as [(UInt64, UInt32, InterruptMessage?)])
    func `address and data say what to deliver`(address: UInt64, data: UInt32, message: InterruptMessage?) {
        #expect(InterruptMessage(address: address, data: data) == message)
    }
}
