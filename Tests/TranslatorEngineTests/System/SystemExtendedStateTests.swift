import Testing
import TranslatorEngine
import VMM

@Suite("FXSAVE, XSAVE and their restores") struct SystemExtendedStateTests {
    typealias M = SystemMachine
    static let other = SystemMachine.scratch + 0x1000

    /// XRSTOR [rax], XSAVE [rbx], XSAVEOPT [rbx] and the FX forms.
    private func restore(_ m: SystemMachine, mask: UInt64 = 7) throws {
        m.context.pointee.gpr[0] = mask
        m.context.pointee.gpr[2] = 0
        m.context.pointee.gpr[3] = M.scratch
        try m.run(0x48, 0x0F, 0xAE, 0x2B)
    }
    private func save(_ m: SystemMachine, mask: UInt64 = 7) throws -> [UInt8] {
        m.context.pointee.gpr[0] = mask
        m.context.pointee.gpr[2] = 0
        m.context.pointee.gpr[3] = Self.other
        try m.run(0x48, 0x0F, 0xAE, 0x23)
        return m.memory.read(Self.other, count: 832) ?? []
    }

    /// An image with x87, SSE and AVX state that is not initial, and back to the initial state at the end: the
    /// x87 registers may be the host's own.
    private func withMachine(_ body: (SystemMachine) throws -> Void) throws {
        let m = try M()
        m.memory.store(M.scratch, 0x037F as UInt16)
        m.memory.store(M.scratch + 24, 0x1FA0 as UInt32)
        for index in 0..<256 as Range<UInt64> {
            m.memory.store(M.scratch + 160 + index, UInt8(truncatingIfNeeded: index + 1))
            m.memory.store(M.scratch + 576 + index, UInt8(truncatingIfNeeded: ~index))
        }
        m.memory.store(M.scratch + 512, 7 as UInt64)
        try restore(m)
        defer {
            m.memory.store(M.scratch + 512, 0 as UInt64)
            m.memory.store(M.scratch + 24, 0x1F80 as UInt32)
            try? restore(m)
        }
        try body(m)
    }

    @Test func `XRSTOR and XSAVE carry SSE and AVX registers and MXCSR`() throws {
        try withMachine { m in
            let image = try save(m)
            #expect(image[160..<416] == (m.memory.read(M.scratch + 160, count: 256) ?? [])[...])
            #expect(image[576..<832] == (m.memory.read(M.scratch + 576, count: 256) ?? [])[...])
            #expect(image[24..<26] == [0xA0, 0x1F])
            #expect(image[512] & 6 == 6)
            #expect(image[520..<576].allSatisfy { $0 == 0 })
        }
    }

    @Test func `XSAVE leaves what was not asked for alone`() throws {
        try withMachine { m in
            m.memory.write(Array(repeating: 0x55, count: 832), at: Self.other)
            let image = try save(m, mask: 4)
            #expect(image[0..<24].allSatisfy { $0 == 0x55 })
            #expect(image[24..<26] == [0xA0, 0x1F])
            #expect(image[160..<512].allSatisfy { $0 == 0x55 })
            #expect(image[512] == 0x55 | 4)
            #expect(image[576] == 0xFF)
        }
    }

    @Test func `components that XSTATE_BV leaves out take their initial state, MXCSR is loaded all the same`() throws {
        try withMachine { m in
            m.memory.store(M.scratch + 512, 0 as UInt64)
            try restore(m)
            let image = try save(m)
            #expect(image[160..<416].allSatisfy { $0 == 0 })
            #expect(image[576..<832].allSatisfy { $0 == 0 })
            #expect(image[24..<26] == [0xA0, 0x1F])
            // MXCSR alone does not make SSE state.
            #expect(image[512] & 6 == 0)
        }
    }

    @Test func `XRSTOR refuses bad headers, MXCSR and alignment`() throws {
        let m = try M()
        m.context.pointee.gpr[0] = 7
        m.context.pointee.gpr[3] = M.scratch
        m.memory.store(M.scratch + 24, 0x1F80 as UInt32)
        for (offset, value) in [(512, 0x8000), (520, 1 << 62), (528, 1), (24, 0xFFF0_1F80)] as [(UInt64, UInt64)] {
            let old = m.memory.load(M.scratch + offset, as: UInt64.self) ?? 0
            m.memory.store(M.scratch + offset, value)
            #expect(try m.fault(0x48, 0x0F, 0xAE, 0x2B) == .generalProtection())
            m.memory.store(M.scratch + offset, old)
        }
        m.context.pointee.gpr[3] = M.scratch + 16
        #expect(try m.fault(0x48, 0x0F, 0xAE, 0x2B) == .generalProtection())
        #expect(try m.fault(0x48, 0x0F, 0xAE, 0x23) == .generalProtection())
        m.context.pointee.gpr[3] = M.scratch + 8
        #expect(try m.fault(0x48, 0x0F, 0xAE, 0x03) == .generalProtection())
    }

    @Test func `task switched and missing CR4 bits come first`() throws {
        let m = try M()
        m.context.pointee.gpr[3] = M.scratch + 1
        m.context.pointee.cr0 |= CR0.ts
        #expect(try m.fault(0x48, 0x0F, 0xAE, 0x23) == .deviceNotAvailable)
        #expect(try m.fault(0x0F, 0xAE, 0x03) == .deviceNotAvailable)
        #expect(try m.fault(0x0F, 0xAE, 0x0B) == .deviceNotAvailable)
        m.context.pointee.cr4 &= ~CR4.osxsave
        #expect(try m.fault(0x48, 0x0F, 0xAE, 0x23) == .invalidOpcode)
        #expect(try m.fault(0x48, 0x0F, 0xAE, 0x2B) == .invalidOpcode)
    }

    @Test func `FXSAVE writes 416 bytes in 64-bit mode and FXRSTOR reads them`() throws {
        try withMachine { m in
            m.memory.write(Array(repeating: 0x55, count: 512), at: Self.other)
            m.context.pointee.gpr[3] = Self.other
            try m.run(0x48, 0x0F, 0xAE, 0x03)
            let image = m.memory.read(Self.other, count: 512) ?? []
            #expect(image[160..<416] == (m.memory.read(M.scratch + 160, count: 256) ?? [])[...])
            #expect(image[416..<512].allSatisfy { $0 == 0x55 })
            // No host address gets out.
            #expect(image[6..<24].allSatisfy { $0 == 0 })
            m.memory.store(Self.other + 160, 0x1234 as UInt64)
            try m.run(0x48, 0x0F, 0xAE, 0x0B)
            #expect(try save(m)[160..<168] == [0x34, 0x12, 0, 0, 0, 0, 0, 0])
        }
    }

    @Test func `fault in the middle of the area writes nothing`() throws {
        let m = try M()
        m.memory.write(Array(repeating: 0x55, count: 512), at: 0xFF_FE00)
        m.context.pointee.gpr[0] = 7
        m.context.pointee.gpr[3] = 0xFF_FE00
        #expect(try m.fault(0x48, 0x0F, 0xAE, 0x23)?.vector == 14)
        #expect(m.memory.read(0xFF_FE00, count: 512)?.allSatisfy { $0 == 0x55 } == true)
    }

    @Test func `line flushes check their address only`() throws {
        let m = try M(level: 3)
        m.context.pointee.gpr[0] = M.scratch
        try m.run(0x0F, 0xAE, 0x38)
        m.context.pointee.gpr[0] = 0x1000
        #expect(try m.fault(0x0F, 0xAE, 0x38) == .pageFault(0x1000, 5))
    }
}
