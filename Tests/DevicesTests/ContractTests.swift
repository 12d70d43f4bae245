import Devices
import Foundation
import TestSupport
import Testing
import VMM

/// What holds for every device, whatever it is: no access traps, a state survives being saved, reset is idempotent.
@Suite("Every port device") struct ContractTests {
    /// A whole PC on a virtual clock.
    private struct PC {
        let clock: VirtualClock
        let power = PowerRecorder()
        let pic = I8259Pair()
        let pit: I8253Port
        let rtc: MC146818Port
        let serial: SerialPort
        let keyboard: KeyboardController
        let reset: ResetControl
        let bridge: PCIHostBridge
        let control: VMMCIFunction
        let acpi: ACPIPowerManagement
        let memory = try? GuestMemory(ranges: [(0, 1 << 20)])
        let firmware: FirmwareConfigurationPort
        let vga = VGAPorts()
        let debug = DebugPort { _ in }
        let exit = DebugExit { _ in }
        let bus: PortBus

        init(now: UInt64 = 0) {
            clock = VirtualClock(now: now, wall: 1_800_000_000_000_000_000)
            let pic = pic
            firmware = FirmwareConfigurationPort(
                FirmwareConfiguration(
                    memoryByteCount: 1 << 29, processors: 1, files: [.init("a", [1, 2, 3])], hasTransfers: true),
                memory: memory)
            pit = I8253Port(clock: clock, line: InterruptLine(pic, 0), isWaiting: { pic.isWaiting(0) })
            rtc = MC146818Port(clock: clock, line: InterruptLine(pic, 8))
            serial = SerialPort(line: InterruptLine(pic, 4), terminal: Sink())
            keyboard = KeyboardController(
                power: power, keyboardLine: InterruptLine(pic, 1), auxiliaryLine: InterruptLine(pic, 12))
            reset = ResetControl(power: power)
            control = VMMCIFunction(
                clock: clock, ports: 0x1000, line: InterruptLine(pic, 3), lineNumber: 3, power: power)
            bridge = PCIHostBridge(resetControl: reset, functions: [PCIAddress(device: 1): control])
            acpi = ACPIPowerManagement(clock: clock, line: InterruptLine(pic, 9), power: power)
            bus = PortBus(
                pic.claims + pit.claims + rtc.claims + serial.claims + keyboard.claims + bridge.claims + acpi.claims
                    + firmware.claims + vga.claims + debug.claims + [exit.claim(0xF4)], remainder: bridge.bus.portClaim)
        }

        var resettables: [any Resettable] { [pic, pit, rtc, serial, keyboard, reset, bridge, acpi, firmware, vga, debug] }

        /// Every port that somebody answers.
        static let ports: [UInt16] = [
            I8259Pair.ports, I8253Port.ports, MC146818Port.ports, SerialPort.ports, KeyboardController.ports,
            PCIHostBridge.ports, ACPIPowerManagement.ports, FirmwareConfigurationPort.ports, VGAPorts.ports, DebugPort.ports, [0xF4...0xF4],
            [0x1000...0x1028, 0x8000...0x8002],
        ].flatMap { $0.flatMap { Array($0) } }

        /// Random accesses, with time that passes and interrupts that are taken.
        func harass(_ count: Int, _ random: inout SplitMix64) {
            for _ in 0..<count {
                let port = Self.ports.randomElement(using: &random) ?? 0
                let width = [AccessWidth.byte, .byte, .byte, .word, .dword].randomElement(using: &random) ?? .byte
                switch UInt8.random(in: 0..<16, using: &random) {
                case 0..<8: bus.write(port, width, .random(in: 0...UInt32.max, using: &random))
                case 8..<13: _ = bus.read(port, width)
                case 13: clock.advance(by: .random(in: 0..<100_000, using: &random))
                case 14: clock.jump(by: .random(in: 0..<10_000_000_000, using: &random))
                default:
                    if pic.isPending { _ = pic.acknowledge() }
                    _ = serial.receive([1, 2, 3])
                    _ = serial.receiveBreak()
                    serial.setModemInputs(.init(rawValue: .random(in: 0...255, using: &random)))
                    acpi.pressPowerButton()
                    _ = control.request(.reboot)
                    control.synchronizeClock()
                }
            }
        }
    }

    private final class Sink: SerialTerminal {
        func send(_ byte: UInt8) {}
        func roomAvailable() {}
    }

    @Test(arguments: 1...8 as ClosedRange<UInt64>)
    func `random accesses trap nothing`(seed: UInt64) {
        var random = SplitMix64(seed: seed)
        let pc = PC(now: seed == 8 ? .max / 2 : seed * 1_000_003)
        pc.harass(5_000, &random)
    }

    @Test func `accesses in any width at any offset of each device trap nothing`() {
        let pc = PC()
        for port in PC.ports {
            for width in AccessWidth.allCases {
                for value in [0, 0xFFFF_FFFF, 0x8080_8080] as [UInt32] {
                    pc.bus.write(port, width, value)
                    #expect(UInt64(pc.bus.read(port, width)) <= width.allOnes)
                }
            }
        }
    }

    private func roundTrip<T: Codable & Equatable>(_ value: T) throws {
        let data = try JSONEncoder().encode(value)
        #expect(try JSONDecoder().decode(T.self, from: data) == value)
    }

    @Test(arguments: 11...30 as ClosedRange<UInt64>)
    func `every state survives being saved`(seed: UInt64) throws {
        var random = SplitMix64(seed: seed)
        let pc = PC()
        pc.harass(500, &random)
        try roundTrip(pc.pic.save())
        try roundTrip(pc.pit.save())
        try roundTrip(pc.rtc.save())
        try roundTrip(pc.serial.save())
        try roundTrip(pc.keyboard.save())
        try roundTrip(pc.bridge.save())
        try roundTrip(pc.control.save())
        try roundTrip(pc.acpi.save())
        try roundTrip(pc.firmware.save())
        try roundTrip(pc.vga.save())
    }

    @Test(arguments: 31...40 as ClosedRange<UInt64>)
    func `restored machine shows what the saved one does`(seed: UInt64) {
        var random = SplitMix64(seed: seed)
        let pc = PC(now: 999_999_999)
        pc.harass(500, &random)
        let other = PC(now: 5)
        other.clock.stepWall(by: Int64(pc.clock.wallClock()) - Int64(other.clock.wallClock()))
        other.pit.restore(pc.pit.save())
        other.rtc.restore(pc.rtc.save())
        other.serial.restore(pc.serial.save())
        other.keyboard.restore(pc.keyboard.save())
        other.reset.restore(pc.reset.save())
        other.control.restore(pc.control.save())
        other.bridge.restore(pc.bridge.save())
        other.acpi.restore(pc.acpi.save())
        other.firmware.restore(pc.firmware.save())
        other.vga.restore(pc.vga.save())
        other.pic.restore(pc.pic.save())
        // The timer's tick and the refresh bit depend on where in a tick the two clocks stand.
        for port in PC.ports where !(0x40...0x43).contains(port) && port != 0x61 && port != 0xB00C {
            #expect(pc.bus.read(port, .byte) == other.bus.read(port, .byte), "port \(port)")
        }
    }

    @Test(arguments: 41...44 as ClosedRange<UInt64>)
    func `forged states trap nothing`(seed: UInt64) throws {
        var random = SplitMix64(seed: seed)
        let pc = PC()
        var accepted = 0
        for _ in 0..<150 {
            pc.harass(30, &random)
            accepted += try restoreForged(pc.pic.save(), &random) { pc.pic.restore($0) }
            accepted += try restoreForged(pc.pit.save(), &random) { pc.pit.restore($0) }
            accepted += try restoreForged(pc.rtc.save(), &random) { pc.rtc.restore($0) }
            accepted += try restoreForged(pc.serial.save(), &random) { pc.serial.restore($0) }
            accepted += try restoreForged(pc.keyboard.save(), &random) { pc.keyboard.restore($0) }
            accepted += try restoreForged(pc.control.save(), &random) { pc.control.restore($0) }
            accepted += try restoreForged(pc.bridge.save(), &random) { pc.bridge.restore($0) }
            accepted += try restoreForged(pc.acpi.save(), &random) { pc.acpi.restore($0) }
            accepted += try restoreForged(pc.firmware.save(), &random) { pc.firmware.restore($0) }
            accepted += try restoreForged(pc.vga.save(), &random) { pc.vga.restore($0) }
            pc.harass(100, &random)
        }
        #expect(accepted > 200)
    }

    @Test func `memory and configuration space of a wrong length are refused`() throws {
        #expect(throws: DecodingError.self) { try JSONDecoder().decode(CMOSMemory.self, from: Data("[1,2]".utf8)) }
        let short = #"{"bytes":[0],"writable":[],"writeOneToClear":[]}"#
        #expect(throws: DecodingError.self) {
            try JSONDecoder().decode(PCIConfigurationSpace.self, from: Data(short.utf8))
        }
    }

    @Test func `second reset changes nothing`() {
        var random = SplitMix64(seed: 50)
        let pc = PC()
        pc.harass(1000, &random)
        for device in pc.resettables { device.reset() }
        let states = (pc.pic.save(), pc.pit.save(), pc.rtc.save(), pc.serial.save(), pc.acpi.save())
        for device in pc.resettables { device.reset() }
        #expect(pc.pic.save() == states.0)
        #expect(pc.pit.save() == states.1)
        #expect(pc.rtc.save() == states.2)
        #expect(pc.serial.save() == states.3)
        #expect(pc.acpi.save() == states.4)
        #expect(pc.keyboard.save() == KeyboardController.State())
        #expect(pc.reset.save() == 0)
        #expect(pc.firmware.save() == FirmwareConfigurationPort.State())
        #expect(pc.vga.save() == VGARegisters())
    }
}
