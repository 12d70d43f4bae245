import Foundation
import LoopShapes
import Synchronization
import Testing
import VMM

@testable import TranslatorEngine

/// An interrupt reaches every endless loop, however it is made. How soon is `Benchmarks/Latency`'s to measure.
@Suite struct GuestLatencyTests {
    /// 128 MB mapped one to one, as the loops want it, with the handlers of `TestMachine`.
    private static func machine(_ shape: LoopShape) throws -> TestMachine {
        let machine = try TestMachine(ramByteCount: 128 << 20, codeByteCount: 4 << 20)
        let second: UInt64 = 0x7_0000
        // Two-megabyte pages for the low addresses; the kernel's half is there already.
        machine.memory.store(TestMachine.pageTables, second | 3)
        machine.memory.store(second, second + 0x1000 | 3)
        for index in 0..<64 as Range<UInt64> { machine.memory.store(second + 0x1000 + index * 8, index << 21 | 0x83) }
        machine.memory.store(TestMachine.gdt + 0x18, 0x00CF_9B00_0000_FFFF as UInt64)
        machine.memory.store(TestMachine.gdt + 0x20, 0x00CF_9300_0000_FFFF as UInt64)
        machine.memory.write(shape.code, at: GuestCode.start)
        // UD2 is passed over.
        let handler: UInt64 = 0x6_0000
        machine.memory.write([0x48, 0x83, 0x04, 0x24, 2, 0x48, 0xCF], at: handler)
        machine.setHandler(6, TestMachine.kernelBase + handler)
        let c = machine.context
        let data = SegmentRegister(selector: 0x20, attributes: 0xC093, limit: 0xFFFF_FFFF)
        if shape.isNarrow { c.pointee.cs = SegmentRegister(selector: 0x18, attributes: 0xC09B, limit: 0xFFFF_FFFF) }
        c.pointee.ss = data
        c.pointee.ds = data
        c.pointee.es = data
        c.pointee.rflags = RFLAGS.if
        machine.cpu.modeChanged()
        machine[.rsp] = 0x50_0000
        return machine
    }

    @Test(arguments: LoopShape.all.indices) func `an interrupt reaches any endless loop, and a stop too`(index: Int) throws {
        let shape = LoopShape.all[index]
        let machine = try Self.machine(shape)
        machine.watch(seconds: 30)
        let cpu = machine.cpu, interrupts = machine.interrupts
        machine.context.pointee.rip = GuestCode.start
        Thread {
            usleep(5000)
            cpu.stop()
        }.start()
        #expect(try cpu.run() == .stopped, "\(shape.name)")
        Thread {
            usleep(5000)
            interrupts.raise(0x30)
            cpu.interruptRequested()
        }.start()
        let outcome = try machine.run(from: machine.context.pointee.rip)
        #expect(outcome.vector == 0x30, "\(shape.name): \(outcome)")
        #expect(interrupts.taken.load(ordering: .relaxed) == 1)
    }
}
