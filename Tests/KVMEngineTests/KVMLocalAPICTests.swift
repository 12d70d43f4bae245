import Devices
import Glibc
import KVMEngine
import Linux
import Synchronization
import Testing
import VMM

/// What KVM alone does: the CPU's local APIC is part of its state, and it halts in the kernel.
@Suite("KVM: local APIC", .needsKVM, .serialized, .timeLimit(.minutes(1))) struct KVMLocalAPICTests {
    @Test func `state holds the local APIC, and a timer goes on from it`() throws {
        let guest = try InterruptGuest(.kvm)
        guest.setHandler(0x40)
        _ = try guest.run {
            $0.enterX2APIC()
            $0.wrmsr(0x808, 0x20)
            $0.wrmsr(0x83E, 0xA)
            $0.wrmsr(0x832, 0x40)
            $0.wrmsr(0x838, 0xFFFF_FFF0)
            $0.end()
        }
        let first = try guest.cpu.readState()
        let apic = try #require(first.localAPIC)
        #expect(apic.base == 0xFEE0_0D00)
        #expect(apic[0x320] == 0x40 && apic[0x380] == 0xFFFF_FFF0 && apic[0x80] == 0x20 && first.cr8 == 2)
        #expect(apic[0x390] > 0 && apic[0x390] <= 0xFFFF_FFF0)
        // Another life in between.
        try guest.cpu.writeState(CPUState())
        #expect(try guest.cpu.readState().localAPIC?[0x380] == 0)
        try guest.cpu.writeState(first)
        let second = try #require(try guest.cpu.readState().localAPIC)
        #expect(second[0x390] > 0 && second[0x390] <= apic[0x390])
        #expect(second.base == apic.base && second[0x350] == apic[0x350] && second[0xF0] == 0x1FF)
    }

    @Test func `deadline is part of the state`() throws {
        let guest = try InterruptGuest(.kvm)
        _ = try guest.run {
            $0.enterX2APIC()
            $0.wrmsr(0x832, 2 << 17 | 0x42)
            $0.wrmsr(MSRIndex.tscDeadline, 1 << 60)
            $0.end()
        }
        let state = try guest.cpu.readState()
        #expect(state.localAPIC?.deadline == 1 << 60)
        try guest.cpu.writeState(CPUState())
        #expect(try guest.cpu.readState().localAPIC?.deadline == 0)
        try guest.cpu.writeState(state)
        #expect(try guest.cpu.readState().localAPIC == state.localAPIC)
    }

    @Test func `halt that nothing ends is seen when somebody looks`() throws {
        let guest = try InterruptGuest(.kvm)
        try guest.start {
            $0.raw(0xFA)
            $0.sleep()
        }
        let cpu = guest.cpu
        var exit: Exit?
        try withThread { isOver in
            while !isOver() {
                cpu.interruptRequested()
                usleep(2000)
            }
        } during: {
            exit = try cpu.run()
        }
        #expect(exit == .halt(interruptsEnabled: false))
        #expect(try cpu.readState().isHalted)
        // A CPU that sleeps with interrupts on is left alone, until it is stopped.
        try guest.start {
            $0.raw(0xFB)
            $0.sleep()
        }
        try withThread { isOver in
            for _ in 0..<50 where !isOver() {
                cpu.interruptRequested()
                usleep(1000)
            }
            cpu.stop()
        } during: {
            exit = try cpu.run()
        }
        #expect(exit == .stopped)
        // And a new state ends the halt.
        #expect(try guest.run { $0.end() } == [])
    }

    @Test func `halted CPU whose state was written takes what waits at the 8259 pair`() throws {
        let guest = try InterruptGuest(.kvm)
        let wire = guest.system.line(4)
        guest.openPair()
        guest.setHandler(0x24) { $0.raw(0xB0, 0x20, 0xE6, 0x20) }
        try guest.start {
            $0.raw(0xFB)
            $0.sleep()
        }
        let cpu = guest.cpu
        var exit: Exit?
        try withThread { _ in
            usleep(20_000)
            cpu.stop()
        } during: {
            exit = try cpu.run()
        }
        #expect(exit == .stopped)
        let state = try cpu.readState()
        try #require(state.isHalted)
        wire.set(true)
        try cpu.writeState(state)
        #expect(try guest.goOn(until: 1) == [0x24])
    }

    @Test func `kernel without local APICs leaves the 8259 pair alone`() throws {
        let engine = try KVMEngine(usesLocalAPICs: false)
        #expect(engine.localAPICs == nil)
        #expect(engine.features.emulated == [])
        let guest = try TinyGuest([0xF4])
        #expect(!guest.policy.features.contains(.apic))
        #expect(try guest.cpu.readState().localAPIC == nil)
    }
}
