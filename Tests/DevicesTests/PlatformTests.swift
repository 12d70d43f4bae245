import Devices
import Testing
import VMM

@Suite("Keyboard controller") struct KeyboardControllerTests {
    private struct Bench {
        let power = PowerRecorder()
        let lines = LineRecorder()
        let controller: KeyboardController
        let bus: PortBus

        init() {
            controller = KeyboardController(power: power, keyboardLine: lines.line(1), auxiliaryLine: lines.line(12))
            bus = PortBus(controller.claims)
        }

        func command(_ value: UInt32) -> UInt32 {
            bus.write(0x64, .byte, value)
            return bus.read(0x60, .byte)
        }
    }

    @Test func `nothing to read and always ready after power-on`() {
        #expect(Bench().bus.read(0x64, .byte) & 0x03 == 0)
    }

    @Test(arguments: [(0xAA, 0x55), (0xAB, 0x00), (0xA9, 0x02), (0x20, 0x34), (0xD0, 0x03)] as [(UInt32, UInt32)])
    func `command is answered`(command: UInt32, answer: UInt32) {
        let bench = Bench()
        bench.bus.write(0x64, .byte, command)
        #expect(bench.bus.read(0x64, .byte) & 0x09 == 0x09)
        #expect(bench.bus.read(0x60, .byte) == answer)
        #expect(bench.bus.read(0x64, .byte) & 0x01 == 0)
    }

    @Test(arguments: [0xFE, 0xF0, 0xFC] as [UInt32])
    func `pulse of the reset line resets`(command: UInt32) {
        let bench = Bench()
        bench.bus.write(0x64, .byte, command)
        #expect(bench.power.resets == 1)
    }

    @Test func `pulse of no line does nothing`() {
        let bench = Bench()
        bench.bus.write(0x64, .byte, 0xFF)
        #expect(bench.power.resets == 0)
    }

    @Test func `output port holds A20 and resets`() {
        let bench = Bench()
        bench.bus.write(0x64, .byte, 0xD1)
        bench.bus.write(0x60, .byte, 0xDD)
        #expect(bench.command(0xD0) & 0x03 == 0x01)
        bench.bus.write(0x64, .byte, 0xD1)
        bench.bus.write(0x60, .byte, 0xDE)
        #expect(bench.power.resets == 1)
    }

    @Test func `missing keyboard answers with a time-out and an interrupt if wanted`() {
        let bench = Bench()
        bench.bus.write(0x60, .byte, 0xF2)
        #expect(bench.bus.read(0x64, .byte) & 0x41 == 0x41)
        #expect(!bench.lines.level(1))
        #expect(bench.bus.read(0x60, .byte) == 0xFE)
        bench.bus.write(0x64, .byte, 0x60)
        bench.bus.write(0x60, .byte, 0x65)
        bench.bus.write(0x60, .byte, 0xFF)
        #expect(bench.lines.level(1))
        _ = bench.bus.read(0x60, .byte)
        #expect(!bench.lines.level(1))
    }

    @Test func `looking for a mouse finds none`() {
        let bench = Bench()
        bench.bus.write(0x64, .byte, 0xD3)
        bench.bus.write(0x60, .byte, 0x5A)
        #expect(bench.bus.read(0x64, .byte) & 0x21 == 0x01)
        _ = bench.bus.read(0x60, .byte)
        bench.bus.write(0x64, .byte, 0xD4)
        bench.bus.write(0x60, .byte, 0xFF)
        #expect(bench.bus.read(0x64, .byte) & 0x61 == 0x61)
    }

    @Test func `port 0x92 shows A20 and resets when its bit rises`() {
        let bench = Bench()
        #expect(bench.bus.read(0x92, .byte) == 0x02)
        bench.bus.write(0x92, .byte, 0x00)
        #expect(bench.bus.read(0x92, .byte) == 0x00)
        bench.bus.write(0x92, .byte, 0x03)
        bench.bus.write(0x92, .byte, 0x03)
        #expect(bench.power.resets == 1)
    }
}

@Suite("PCI host bridge and reset control") struct PCIHostBridgeTests {
    private struct Bench {
        let power = PowerRecorder()
        let bridge: PCIHostBridge
        let bus: PortBus

        init() {
            bridge = PCIHostBridge(
                resetControl: ResetControl(power: power), functions: [PCIAddress(device: 3): Card()])
            bus = PortBus(bridge.claims)
        }

        func select(bus number: UInt32 = 0, device: UInt32, function: UInt32 = 0, register: UInt32) {
            bus.write(0xCF8, .dword, 0x8000_0000 | number << 16 | device << 11 | function << 8 | register)
        }
    }

    @Test func `probe for mechanism 1 succeeds and for mechanism 2 fails`() {
        let bench = Bench()
        bench.bus.write(0xCFB, .byte, 0x01)
        bench.bus.write(0xCF8, .dword, 0x8000_0000)
        #expect(bench.bus.read(0xCF8, .dword) == 0x8000_0000)
        bench.bus.write(0xCFB, .byte, 0)
        bench.bus.write(0xCF8, .byte, 0)
        bench.bus.write(0xCFA, .byte, 0)
        #expect(bench.bus.read(0xCF8, .byte) != 0)
        #expect(bench.power.resets == 0)
    }

    @Test func `slot 0 is the host bridge`() {
        let bench = Bench()
        bench.select(device: 0, register: 0)
        #expect(bench.bus.read(0xCFC, .dword) == 0x0666_0B5D)
        bench.select(device: 0, register: 8)
        #expect(bench.bus.read(0xCFC, .dword) == 0x0600_0000)
    }

    @Test func `absent functions and buses read ones`() {
        let bench = Bench()
        let absent: [(UInt32, UInt32, UInt32)] = [(0, 1, 0), (0, 0, 1), (0, 31, 7), (1, 0, 0), (255, 3, 0)]
        for (number, device, function) in absent {
            bench.select(bus: number, device: device, function: function, register: 0)
            #expect(bench.bus.read(0xCFC, .dword) == 0xFFFF_FFFF)
            bench.bus.write(0xCFC, .dword, 0)
        }
        bench.bus.write(0xCF8, .dword, 0)
        #expect(bench.bus.read(0xCFC, .word) == 0xFFFF)
    }

    @Test func `bytes and words reach the register's parts`() {
        let bench = Bench()
        bench.select(device: 3, register: 0x2C)
        #expect(bench.bus.read(0xCFC, .word) == 0x0B5D)
        #expect(bench.bus.read(0xCFE, .word) == 0x0004)
        #expect(bench.bus.read(0xCFD, .byte) == 0x0B)
        #expect(bench.bus.read(0xCFD, .dword) == 0xFF00_040B)
        bench.select(device: 3, register: 0x3C)
        bench.bus.write(0xCFC, .byte, 0x0B)
        bench.bus.write(0xCFD, .byte, 0x55)
        #expect(bench.bus.read(0xCFC, .dword) == 0x0000_000B)
    }

    @Test func `address register keeps the bits that exist`() {
        let bench = Bench()
        bench.bus.write(0xCF8, .dword, 0xFFFF_FFFF)
        #expect(bench.bus.read(0xCF8, .dword) == 0x80FF_FFFC)
    }

    @Test func `base address can be sized and moved`() {
        let bench = Bench()
        bench.select(device: 3, register: 0x10)
        bench.bus.write(0xCFC, .dword, 0xFFFF_FFFF)
        #expect(bench.bus.read(0xCFC, .dword) == 0xFFFF_F001)
        bench.bus.write(0xCFC, .dword, 0x0000_1000)
        #expect(bench.bus.read(0xCFC, .dword) == 0x0000_1001)
    }

    @Test func `status bits are cleared by writing ones`() {
        var space = PCIConfigurationSpace(vendor: 1, device: 2, classCode: 0)
        space.set(PCIConfigurationSpace.Register.status, 0x2010 as UInt16)
        space.write(4, .dword, 0x2000_0000)
        #expect(space.read(6, .word) == 0x0010)
    }

    @Test func `accesses at the end of configuration space read ones behind it`() {
        let space = PCIConfigurationSpace(vendor: 1, device: 2, classCode: 0)
        #expect(space.read(0xFE, .dword) == 0xFFFF_0000)
    }

    @Test func `reset register resets when its bit rises, by byte only`() {
        let bench = Bench()
        bench.bus.write(0xCF9, .byte, 0x02)
        #expect(bench.power.resets == 0)
        bench.bus.write(0xCF9, .byte, 0x06)
        bench.bus.write(0xCF9, .byte, 0x06)
        #expect(bench.power.resets == 1)
        #expect(bench.bus.read(0xCF9, .byte) == 0x06)
        bench.bus.write(0xCF8, .dword, 0x0000_0600)
        #expect(bench.power.resets == 1)
    }
}

@Suite("ACPI registers") struct ACPIPowerManagementTests {
    private struct Bench {
        let clock = VirtualClock(now: 7)
        let lines = LineRecorder()
        let power = PowerRecorder()
        let port: ACPIPowerManagement
        let bus: PortBus

        init(timerBits: UInt8 = 24) {
            port = ACPIPowerManagement(clock: clock, line: lines.line(9), power: power, timerBits: timerBits)
            bus = PortBus(port.claims)
        }
    }

    @Test func `power button interrupts when it is enabled, until it is cleared`() {
        let bench = Bench()
        bench.port.pressPowerButton()
        #expect(!bench.lines.level(9))
        #expect(bench.bus.read(0xB000, .word) == 0x0100)
        bench.bus.write(0xB002, .word, 0x0100)
        #expect(bench.lines.level(9))
        bench.bus.write(0xB000, .word, 0x0001)
        #expect(bench.lines.level(9))
        bench.bus.write(0xB000, .word, 0x0100)
        #expect(!bench.lines.level(9))
        #expect(bench.bus.read(0xB000, .dword) == 0x0100_0000)
    }

    @Test func `SLP_EN with the type of S5 switches off`() {
        let bench = Bench()
        bench.bus.write(0xB008, .word, 0x1400)
        #expect(bench.power.powerOffs == 0)
        bench.bus.write(0xB008, .word, 0x3400)
        #expect(bench.power.powerOffs == 1)
        #expect(bench.bus.read(0xB008, .word) == 0x1401)
    }

    @Test func `other sleep types do nothing`() {
        let bench = Bench()
        for type in [0, 1, 2, 3, 4, 6, 7] as [UInt32] { bench.bus.write(0xB008, .word, 0x2000 | type << 10) }
        #expect(bench.power.powerOffs == 0)
    }

    @Test func `ACPI is always enabled`() {
        let bench = Bench()
        bench.bus.write(0xB008, .word, 0)
        #expect(bench.bus.read(0xB008, .word) == 1)
    }

    @Test(arguments: [(24, 0x00FF_FFFF), (32, 0xFFFF_FFFF)] as [(UInt8, UInt64)])
    func `timer counts at its frequency and wraps at its width`(bits: UInt8, mask: UInt64) {
        let bench = Bench(timerBits: bits)
        let start = UInt64(bench.bus.read(0xB00C, .dword))
        bench.clock.advance(by: 2000 * 1_000_000_000)
        #expect((UInt64(bench.bus.read(0xB00C, .dword)) &- start) & mask == 2000 * 3_579_545 & mask)
        #expect(bench.bus.read(0xB00E, .word) == bench.bus.read(0xB00C, .dword) >> 16)
    }

    @Test func `timer interrupts at half its range when that is enabled`() {
        let bench = Bench()
        #expect(bench.clock.armedCount == 0)
        bench.bus.write(0xB000, .word, 0xFFFF)
        bench.bus.write(0xB002, .word, 1)
        bench.clock.advance(by: 2_343_000_000)
        #expect(!bench.lines.level(9))
        bench.clock.advance(by: 1_000_000)
        #expect(bench.lines.level(9))
        bench.bus.write(0xB000, .word, 1)
        bench.clock.advance(by: 2_344_000_000)
        #expect(bench.lines.rises(9) == 2)
    }

    @Test func `restored timer goes on where it was`() {
        let bench = Bench()
        bench.clock.advance(by: 123_456_789)
        let value = bench.bus.read(0xB00C, .dword)
        let saved = bench.port.save()
        let other = Bench()
        other.clock.advance(by: 42_000_000_000)
        other.port.restore(saved)
        #expect(other.bus.read(0xB00C, .dword) == value)
    }

    @Test func `ports between the blocks are nobody's`() {
        let bench = Bench()
        #expect(bench.bus.read(0xB004, .dword) == 0xFFFF_FFFF)
        #expect(bench.bus.read(0xB00A, .word) == 0xFFFF)
    }
}
