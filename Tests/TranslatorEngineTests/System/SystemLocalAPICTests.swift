import Devices
import Testing
import TranslatorEngine
import VMM

/// A CPU with a local APIC: what of it is the engine's.
@Suite("Local APIC behind instructions") struct SystemLocalAPICTests {
    typealias M = SystemMachine

    private func machine() throws -> (machine: SystemMachine, apic: any LocalInterruptController) {
        let system = InterruptSystem(
            clock: StandingClock(), sharedLines: [],
            processors: .init(timeStampFrequency: 2_000_000_000, physicalAddressBits: 40))
        let apic = try #require(system.localAPICs.first)
        return (try M(localAPICs: system.localAPICs), apic)
    }

    private func set(_ m: SystemMachine, msr: UInt64, _ value: UInt64) {
        m.context.pointee.gpr[1] = msr
        m.context.pointee.gpr[0] = value & 0xFFFF_FFFF
        m.context.pointee.gpr[2] = value >> 32
    }

    private func read(_ m: SystemMachine, msr: UInt64) throws -> UInt64 {
        m.context.pointee.gpr[1] = msr
        try m.run(0x0F, 0x32)
        return m.context.pointee.gpr[2] << 32 | m.context.pointee.gpr[0]
    }

    private func write(_ m: SystemMachine, msr: UInt64, _ value: UInt64) throws {
        set(m, msr: msr, value)
        try m.run(0x0F, 0x30)
    }

    @Test func `its registers are read and written as model-specific ones in x2APIC mode alone`() throws {
        let (m, apic) = try machine()
        #expect(try read(m, msr: 0x1B) == 0xFEE0_0900)
        set(m, msr: 0x80F, 0x1FF)
        #expect(try m.fault(0x0F, 0x30) == .generalProtection())
        #expect(try m.fault(0x0F, 0x32) == .generalProtection())
        try write(m, msr: 0x1B, 0xFEE0_0D00)
        try write(m, msr: 0x808, 0x35)
        #expect(try read(m, msr: 0x808) == 0x35)
        #expect(apic.taskPriority == 3)
        set(m, msr: 0x808, 0x100)
        #expect(try m.fault(0x0F, 0x30) == .generalProtection())
        set(m, msr: 0x1B, 0xFEE0_0900)
        #expect(try m.fault(0x0F, 0x30) == .generalProtection())
    }

    @Test func `CR8 is the task priority's upper half`() throws {
        let (m, apic) = try machine()
        m.context.pointee.gpr[3] = 7
        try m.run(0x44, 0x0F, 0x22, 0xC3)
        #expect(apic.taskPriority == 7)
        apic.write(0x80, .dword, 0x9A)
        try m.run(0x44, 0x0F, 0x20, 0xC3)
        #expect(m.context.pointee.gpr[3] == 9)
        m.context.pointee.gpr[3] = 16
        #expect(try m.fault(0x44, 0x0F, 0x22, 0xC3) == .generalProtection())
    }

    @Test func `state holds CR8, and taking it back leaves the finer priority`() throws {
        let (m, apic) = try machine()
        apic.write(0x80, .dword, 0x9A)
        var state = m.cpu.readState()
        #expect(state.cr8 == 9)
        m.cpu.writeState(state)
        #expect(apic.read(0x80, .dword) == 0x9A)
        state.cr8 = 2
        m.cpu.writeState(state)
        #expect(apic.read(0x80, .dword) == 0x20)
    }

    @Test func `CPUID shows it while it is on`() throws {
        let (m, _) = try machine()
        func isShown() throws -> Bool {
            m.context.pointee.gpr[0] = 1
            try m.run(0x0F, 0xA2)
            return m.context.pointee.gpr[2] >> 9 & 1 != 0
        }
        #expect(try isShown())
        try write(m, msr: 0x1B, 0xFEE0_0100)
        #expect(try !isShown())
    }

    @Test func `CPU that is wired without shows none`() throws {
        let m = try M()
        m.context.pointee.gpr[0] = 1
        try m.run(0x0F, 0xA2)
        #expect(m.context.pointee.gpr[2] >> 9 & 1 == 0)
    }

    @Test func `its page lies over RAM where it is moved to, and RAM is back when it leaves`() throws {
        let (m, apic) = try machine()
        m.memory.store(M.scratch + 0x80, 0x1234_5678 as UInt32)
        #expect(try m.cpu.load(M.scratch + 0x80, byteCount: 4, user: false) == 0x1234_5678)
        try write(m, msr: 0x1B, M.scratch | 0x900)
        #expect(try m.cpu.load(M.scratch + 0x80, byteCount: 4, user: false) == 0)
        try m.cpu.store(M.scratch + 0x80, 0x40, byteCount: 4, user: false)
        #expect(apic.taskPriority == 4)
        #expect(m.memory.load(M.scratch + 0x80, as: UInt32.self) == 0x1234_5678)
        try write(m, msr: 0x1B, M.scratch | 0xD00)
        #expect(try m.cpu.load(M.scratch + 0x80, byteCount: 4, user: false) == 0x1234_5678)
    }

    @Test func `deadline is there until it has passed, and the time-stamp counter moves it`() throws {
        let (m, apic) = try machine()
        apic.write(0xF0, .dword, 0x1FF)
        apic.write(0x320, .dword, 0x4_0055)
        try write(m, msr: 0x10, 1000)
        try write(m, msr: 0x6E0, 1 << 60)
        #expect(try read(m, msr: 0x6E0) == 1 << 60)
        #expect(!apic.isPending)
        try write(m, msr: 0x10, 1 << 60)
        #expect(apic.acknowledge() == 0x55)
        #expect(try read(m, msr: 0x6E0) == 0)
    }
}

/// A clock at which nothing ever comes due.
private final class StandingClock: Clock {
    private final class NoTimer: DeviceTimer {
        func arm(at deadline: UInt64) {}
        func cancel() {}
    }

    func now() -> UInt64 { 1000 }
    func wallClock() -> UInt64 { 0 }
    func makeTimer(_ fire: @escaping @Sendable () -> Void) -> any DeviceTimer { NoTimer() }
}
