import Devices
import Testing
import TranslatorEngine
import VMM

/// The A20 gate as guests see it: by memory that shows twice (82371SB, section 2.5.6).
@Suite("A20") struct GuestAddressLineTests {
    private final class NoPower: PowerControl {
        func requestReset(_ reason: String) {}
        func requestPowerOff() {}
    }

    /// A CPU in real mode at 0000:7C00 with a keyboard controller; DS is FFFF, ES is 0.
    private func machine() throws -> (memory: GuestMemory, cpu: TranslatorCPU, a20: AddressLine20) {
        let memory = try GuestMemory(ranges: [(0, 4 << 20)])
        let policy = try CPUPolicy(model: nil, engine: .translator, tscFrequencyHz: 2_000_000_000)
        let a20 = AddressLine20()
        let pair = I8259Pair()
        let keyboard = KeyboardController(
            power: NoPower(), keyboardLine: InterruptLine(pair, 1), auxiliaryLine: InterruptLine(pair, 12), a20: a20)
        let cpu = try TranslatorCPU(
            wiring: Wiring(
                memory: memory, ports: PortBus(keyboard.claims), mmio: MMIOBus([]), interrupts: NoInterrupts(), policy: policy,
                a20: a20))
        var state = CPUState()
        state.cs = SegmentRegister(selector: 0, attributes: 0x9B, limit: 0xFFFF, base: 0)
        state.ds = SegmentRegister(selector: 0xFFFF, attributes: 0x93, limit: 0xFFFF, base: 0xFFFF0)
        state.rip = 0x7C00
        cpu.writeState(state)
        return (memory, cpu, a20)
    }

    @Test func `while it is closed the second megabyte shows the first, in the middle of a block`() throws {
        let (memory, cpu, a20) = try machine()
        memory.store(0x500, 0x11 as UInt8)
        memory.store(0x10_0500, 0x22 as UInt8)
        memory.write(
            [
                0x8A, 0x1E, 0x10, 0x05,  // mov 0x510, %bl: at 100500
                0xB0, 0xDD, 0xE6, 0x64,  // the controller's command DD, and port 92: closed
                0xB0, 0x00, 0xE6, 0x92,
                0x8A, 0x3E, 0x10, 0x05,  // mov 0x510, %bh: at 000500
                0xC6, 0x06, 0x10, 0x05, 0x33,  // movb $0x33, 0x510
                0xB0, 0x02, 0xE6, 0x92,  // open
                0x8A, 0x0E, 0x10, 0x05,  // mov 0x510, %cl
                0x26, 0x8A, 0x2E, 0x00, 0x05,  // mov %es:0x500, %ch
                0xF4,
            ], at: 0x7C00)
        #expect(try cpu.run() == .halt(interruptsEnabled: false))
        let state = cpu.readState()
        #expect(state[.rbx] & 0xFFFF == 0x1122)
        #expect(state[.rcx] & 0xFFFF == 0x3322)
        #expect(memory.load(0x10_0500, as: UInt8.self) == 0x22)
        #expect(a20.isOpen)
    }

    @Test func `either of the two keeps it open`() throws {
        let (memory, cpu, a20) = try machine()
        memory.write([0xB0, 0xDD, 0xE6, 0x64, 0xF4], at: 0x7C00)
        #expect(try cpu.run() == .halt(interruptsEnabled: false))
        #expect(a20.isOpen)
    }

    @Test func `code is fetched through it`() throws {
        let (memory, cpu, a20) = try machine()
        // lcall FFFF:0610 leads to 000600 or 100600.
        memory.write([0x9A, 0x10, 0x06, 0xFF, 0xFF, 0xF4], at: 0x7C00)
        memory.write([0xB3, 0x11, 0xCB], at: 0x600)
        memory.write([0xB3, 0x22, 0xCB], at: 0x10_0600)
        for (isOpen, expected) in [(true, 0x22), (false, 0x11), (true, 0x22)] as [(Bool, UInt64)] {
            a20.set(open: isOpen)
            cpu.context.pointee.rip = 0x7C00
            cpu.context.pointee.isHalted = false
            #expect(try cpu.run() == .halt(interruptsEnabled: false))
            #expect(cpu.readState()[.rbx] & 0xFF == expected)
        }
    }
}
