import Testing
import TranslatorEngine
import VMM

/// The way from real mode through protected, long and compatibility mode and back (SDM Vol. 3, 10.9 and 10.8.5).
@Suite("Mode switches") struct GuestModeSwitchTests {
    typealias M = SystemMachine

    @Test func `real, protected, long, compatibility, 16-bit protected and real mode again`() throws {
        let m = try M(.real)
        for (index, descriptor) in [
            0, 0x00CF_9B00_0000_FFFF, 0x00CF_9300_0000_FFFF, 0x00AF_9B00_0000_FFFF, 0x0000_9B00_0000_FFFF, 0x0000_9300_0000_FFFF,
        ].enumerated() as EnumeratedSequence<[UInt64]> { m.memory.store(0x6100 + UInt64(index) * 8, descriptor) }
        m.memory.store(0x6000, 0x2F as UInt16)
        m.memory.store(0x6002, 0x6100 as UInt32)
        // Where the far jump to compatibility mode leads.
        m.memory.store(0x6010, 0x7C8C as UInt32)
        m.memory.store(0x6014, 8 as UInt16)
        m.context.pointee.cs = SegmentRegister(selector: 0, attributes: 0x9B, limit: 0xFFFF, base: 0)
        let code: [UInt8] = [
            0xFA,  // cli
            0x31, 0xC0, 0x8E, 0xD8, 0x8E, 0xD0,  // xor %ax, %ax; mov %ax, %ds; mov %ax, %ss
            0xBC, 0x00, 0x70,  // mov $0x7000, %sp
            0x0F, 0x01, 0x16, 0x00, 0x60,  // lgdt 0x6000
            0x0F, 0x20, 0xC0, 0x0C, 0x01, 0x0F, 0x22, 0xC0,  // CR0.PE
            0x66, 0xEA, 0x1F, 0x7C, 0x00, 0x00, 0x08, 0x00,  // ljmpl 0008:7c1f
            // 32 bit
            0xB8, 0x10, 0x00, 0x00, 0x00, 0x8E, 0xD8, 0x8E, 0xC0, 0x8E, 0xD0,  // DS, ES and SS
            0xBC, 0x00, 0x70, 0x00, 0x00,  // mov $0x7000, %esp
            0xC7, 0x05, 0x00, 0x50, 0x00, 0x00, 0x11, 0x11, 0x11, 0x11,  // movl $0x11111111, 0x5000
            0xB8, 0x20, 0x00, 0x00, 0x00, 0x0F, 0x22, 0xE0,  // CR4.PAE
            0xB8, 0x00, 0x10, 0x00, 0x00, 0x0F, 0x22, 0xD8,  // CR3
            0xB9, 0x80, 0x00, 0x00, 0xC0, 0x0F, 0x32, 0x0D, 0x00, 0x01, 0x00, 0x00, 0x0F, 0x30,  // EFER.LME
            0x0F, 0x20, 0xC0, 0x0D, 0x00, 0x00, 0x00, 0x80, 0x0F, 0x22, 0xC0,  // CR0.PG
            0xC7, 0x05, 0x04, 0x50, 0x00, 0x00, 0x22, 0x22, 0x22, 0x22,  // movl $0x22222222, 0x5004
            0xEA, 0x73, 0x7C, 0x00, 0x00, 0x18, 0x00,  // ljmp 0018:7c73
            // 64 bit
            0x48, 0xB8, 0x44, 0x44, 0x44, 0x44, 0x33, 0x33, 0x33, 0x33,  // movabs $0x3333333344444444, %rax
            0x48, 0x89, 0x04, 0x25, 0x08, 0x50, 0x00, 0x00,  // mov %rax, 0x5008
            0xFF, 0x2C, 0x25, 0x10, 0x60, 0x00, 0x00,  // ljmp *0x6010
            // 32 bit of long mode
            0xC7, 0x05, 0x10, 0x50, 0x00, 0x00, 0x55, 0x55, 0x55, 0x55,  // movl $0x55555555, 0x5010
            0x0F, 0x20, 0xC0, 0x25, 0xFF, 0xFF, 0xFF, 0x7F, 0x0F, 0x22, 0xC0,  // CR0.PG off
            0xB9, 0x80, 0x00, 0x00, 0xC0, 0x0F, 0x32, 0x25, 0xFF, 0xFE, 0xFF, 0xFF, 0x0F, 0x30,  // EFER.LME off
            0xEA, 0xB6, 0x7C, 0x00, 0x00, 0x20, 0x00,  // ljmp 0020:7cb6
            // 16 bit
            0xB8, 0x28, 0x00, 0x8E, 0xD8, 0x8E, 0xD0,  // DS and SS
            0xC7, 0x06, 0x14, 0x50, 0x66, 0x66,  // movw $0x6666, 0x5014
            0x0F, 0x20, 0xC0, 0x24, 0xFE, 0x0F, 0x22, 0xC0,  // CR0.PE off
            0xEA, 0xD0, 0x0C, 0x00, 0x07,  // ljmp 0700:0cd0
            // Real mode
            0xB8, 0x00, 0x05, 0x8E, 0xD8, 0x8E, 0xD0,  // mov $0x500, %ax; to DS and SS
            0xC7, 0x06, 0x16, 0x00, 0x77, 0x77,  // movw $0x7777, 0x16
            0xF4,
        ]
        m.memory.write(code, at: 0x7C00)
        for _ in 0..<3 {
            m.context.pointee.rip = 0x7C00
            m.context.pointee.cs = SegmentRegister(selector: 0, attributes: 0x9B, limit: 0xFFFF, base: 0)
            for offset in stride(from: 0x5000, to: 0x5020, by: 8) as StrideTo<UInt64> { m.memory.store(offset, 0 as UInt64) }
            let end = try m.runBlocks()
            #expect(end.vector == nil)
            #expect(end.cs == 0x700)
            #expect(m.dword(0x5000) == 0x1111_1111)
            #expect(m.dword(0x5004) == 0x2222_2222)
            #expect(m.memory.load(0x5008, as: UInt64.self) == 0x3333_3333_4444_4444)
            #expect(m.dword(0x5010) == 0x5555_5555)
            #expect(m.word(0x5014) == 0x6666)
            #expect(m.word(0x5016) == 0x7777)
            #expect(m.context.pointee.cr0 & (CR0.pe | CR0.pg) == 0)
            #expect(m.context.pointee.msr.efer & (EFER.lme | EFER.lma) == 0)
        }
    }

    /// A CPU with ROM under the reset vector, 16 bytes below 4 GB.
    private func cpuWithROM() throws -> (TranslatorCPU, GuestMemory) {
        let memory = try GuestMemory(ranges: [(0, 1 << 20)], rom: (0xFFFF_0000, 0x1_0000))
        let policy = try CPUPolicy(model: nil, engine: .translator, tscFrequencyHz: 2_000_000_000)
        let cpu = try TranslatorCPU(
            wiring: Wiring(memory: memory, ports: PortBus([]), mmio: MMIOBus([]), interrupts: NoInterrupts(), policy: policy))
        return (cpu, memory)
    }

    @Test func `the CPU starts at the reset vector`() throws {
        let (cpu, memory) = try cpuWithROM()
        memory.writeROM([0x2E, 0xA0, 0x00, 0xFF, 0xE9, 0x09, 0xFF], at: 0xFFFF_FFF0)  // mov %cs:0xff00, %al; jmp ff00
        memory.writeROM([0xEA, 0x00, 0x10, 0x00, 0x00], at: 0xFFFF_FF00)  // ljmp 0000:1000
        memory.write([0xB3, 0x77, 0xF4], at: 0x1000)  // mov $0x77, %bl; hlt
        cpu.writeState(CPUState())
        #expect(try cpu.run() == .halt(interruptsEnabled: false))
        let state = cpu.readState()
        #expect(state[.rax] & 0xFF == 0xEA)
        #expect(state[.rbx] & 0xFF == 0x77)
        #expect(state.rip == 0x1003)
        #expect(state.cs.base == 0)
    }

    @Test func `what is written to ROM goes nowhere`() throws {
        let (cpu, memory) = try cpuWithROM()
        memory.writeROM([0xE9, 0x0D, 0xFF], at: 0xFFFF_FFF0)  // jmp ff00
        memory.writeROM(
            [
                0x0F, 0x01, 0x16, 0x00, 0x20,  // lgdt 0x2000
                0x0F, 0x20, 0xC0, 0x0C, 0x01, 0x0F, 0x22, 0xC0,  // mov %cr0, %eax; or $1, %al; mov %eax, %cr0
                0x66, 0xEA, 0x00, 0x10, 0x00, 0x00, 0x08, 0x00,  // ljmpl 8:1000
            ], at: 0xFFFF_FF00)
        // Flat 32-bit segments.
        memory.write([0x17, 0x00, 0x10, 0x20, 0x00, 0x00], at: 0x2000)
        memory.store(0x2018, 0x00CF_9B00_0000_FFFF as UInt64)
        memory.store(0x2020, 0x00CF_9300_0000_FFFF as UInt64)
        memory.writeROM([0x11, 0x22, 0x33, 0x44], at: 0xFFFF_8000)
        memory.write(
            [
                0x66, 0xB8, 0x10, 0x00, 0x8E, 0xD8, 0x8E, 0xC0,  // mov $0x10, %ax; mov %ax, %ds; mov %ax, %es
                0xBB, 0x00, 0x80, 0xFF, 0xFF,  // mov $0xffff8000, %ebx
                0x8B, 0x13,  // mov (%ebx), %edx: it is in the TLB now
                0xC7, 0x03, 0xEF, 0xBE, 0xAD, 0xDE,  // movl $0xdeadbeef, (%ebx)
                0x83, 0x03, 0x01,  // addl $1, (%ebx)
                0x8B, 0x0B,  // mov (%ebx), %ecx
                0xB8, 0x01, 0x00, 0x00, 0x00,  // mov $1, %eax
                0x0F, 0xC1, 0x03,  // xadd %eax, (%ebx): reads what is there
                0x89, 0xDF, 0x83, 0xC7, 0x02, 0x8B, 0x37,  // mov %ebx, %edi; add $2, %edi; mov (%edi), %esi
                0xAA,  // stosb
                0xF4,
            ], at: 0x1000)
        cpu.writeState(CPUState())
        #expect(try cpu.run() == .halt(interruptsEnabled: false))
        let state = cpu.readState()
        #expect(state[.rdx] == 0x4433_2211 && state[.rcx] == 0x4433_2211 && state[.rax] == 0x4433_2211)
        #expect(state[.rsi] == 0x4433)
        #expect(memory.load(0xFFFF_8000, as: UInt32.self) == 0x4433_2211)
    }

    /// Linear addresses have 32 bits there (SDM Vol. 3, 3.3): what passes the last byte goes on at the first.
    @Test func `the system half's accesses over 4 GB go on at 0 outside of long mode`() throws {
        let memory = try GuestMemory(ranges: [(0, 1 << 20), (0xFFFF_0000, 0x1_0000)])
        let policy = try CPUPolicy(model: nil, engine: .translator, tscFrequencyHz: 2_000_000_000)
        let cpu = try TranslatorCPU(
            wiring: Wiring(memory: memory, ports: PortBus([]), mmio: MMIOBus([]), interrupts: NoInterrupts(), policy: policy))
        var state = CPUState()
        cpu.writeState(state)
        try cpu.store(0xFFFF_FFFE, 0x8877_6655_4433_2211, byteCount: 8, user: false)
        #expect(memory.read(0xFFFF_FFFE, count: 2) == [0x11, 0x22])
        #expect(memory.read(0, count: 7) == [0x33, 0x44, 0x55, 0x66, 0x77, 0x88, 0])
        #expect(try cpu.load(0xFFFF_FFFE, byteCount: 8, user: false) == 0x8877_6655_4433_2211)
        #expect(try cpu.load(0xFFFF_FFFE, byteCount: 4, user: false) == 0x4433_2211)

        // The last 4 MB are mapped to themselves, the first are not present: the fault is at 0, as CR2 has no more bits.
        memory.store(0x1000 + 1023 * 4, 0xFFC0_0083 as UInt32)
        state.cr3 = 0x1000
        state.cr4 = CR4.pse
        state.cr0 = CR0.pe | CR0.et | CR0.pg
        cpu.writeState(state)
        #expect(throws: GuestException.pageFault(0, 2)) { try cpu.store(0xFFFF_FFFE, 0, byteCount: 8, user: false) }
        #expect(throws: GuestException.pageFault(0, 0)) { _ = try cpu.load(0xFFFF_FFFE, byteCount: 8, user: false) }
    }
}
