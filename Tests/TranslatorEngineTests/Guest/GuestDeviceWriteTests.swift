import Foundation
import Synchronization
import Testing
import VMM

@testable import TranslatorEngine

/// Devices that write into code: what a guest runs behind a serializing instruction or an interrupt is what they wrote.
@Suite struct GuestDeviceWriteTests {
    /// Writes memory when a port is written to, as a device does that copies by itself.
    private final class Copier: PortDevice {
        let memory = Mutex<GuestMemory?>(nil)
        /// What to write, and where, by the value that the guest writes.
        let jobs = Mutex<[UInt32: (address: UInt64, bytes: [UInt8])]>([:])
        func read(_ offset: UInt16, _ width: AccessWidth) -> UInt32 { 0 }
        func write(_ offset: UInt16, _ width: AccessWidth, _ value: UInt32) {
            guard let job = jobs.withLock({ $0[value] }) else { return }
            memory.withLock { _ = $0?.write(job.bytes, at: job.address) }
        }
    }

    private static func machine() throws -> (TestMachine, Copier) {
        let copier = Copier()
        let machine = try TestMachine.small(ports: [PortBus.Claim(0x40...0x40, copier)])
        copier.memory.withLock { $0 = machine.memory }
        return (machine, copier)
    }

    /// Calls a function, lets the device write, and calls it again, many times.
    @Test(arguments: [0, 0x800, 0xFFD, 0x1000]) func `a write by a device changes code that has run`(offset: Int) throws {
        let (machine, copier) = try Self.machine()
        let fortress = Fortress(machine)
        var code = GuestCode()
        code.load(.rcx, 100)
        code.emit(0xBA, 0x40, 0, 0, 0)  // mov edx, 0x40
        code.label("loop")
        code.emit(0x89, 0xC8, 0x83, 0xE0, 1)  // mov eax, ecx; and eax, 1
        code.emit(0xEE)  // out dx, al
        code.call("function")
        code.emit(0x48, 0x01, 0xC3)  // add rbx, rax
        code.emit(0x48, 0xFF, 0xC9)
        code.jump(if: 5, "loop")
        code.done()
        code.pad(to: 0x100 + offset)
        code.label("function")
        code.emit(0xB8, 7, 0, 0, 0, 0xC3)  // mov eax, imm32; ret
        let place = TestMachine.codePhysical + UInt64(0x100 + offset) + 1
        copier.jobs.withLock { $0 = [0: (place, [1, 0]), 1: (place, [0, 1])] }
        machine[.rbx] = 0
        #expect(try machine.run(code).vector == Outcome.done)
        #expect(machine[.rbx] == 50 * 1 + 50 * 0x100)
        fortress.checkAll()
    }

    @Test func `a write by a device into the block that runs is seen behind the port write`() throws {
        let (machine, copier) = try Self.machine()
        var code = GuestCode()
        code.load(.rcx, 20)
        code.emit(0xBA, 0x40, 0, 0, 0)
        code.label("loop")
        code.emit(0x88, 0xC8)  // mov al, cl
        code.emit(0xEE)
        code.label("patched")
        code.emit(0xB8, 0, 0, 0, 0)  // mov eax, imm32
        code.emit(0x48, 0x01, 0xC3)
        code.emit(0x48, 0xFF, 0xC9)
        code.jump(if: 5, "loop")
        code.done()
        let place = TestMachine.codePhysical + (code.address(of: "patched") - code.base) + 1
        copier.jobs.withLock { jobs in for value in 1...20 as ClosedRange<UInt32> { jobs[value] = (place, [UInt8(value)]) } }
        machine[.rbx] = 0
        #expect(try machine.run(code).vector == Outcome.done)
        #expect(machine[.rbx] == 210)
    }

    @Test func `a copy over several pages changes the code in each`() throws {
        let (machine, copier) = try Self.machine()
        var code = GuestCode()
        code.emit(0xBA, 0x40, 0, 0, 0)
        code.call("one")
        code.call("two")
        code.emit(0x31, 0xC0, 0xEE)  // xor eax, eax; out dx, al
        code.call("one")
        code.call("two")
        code.done()
        code.pad(to: 0x1000)
        code.label("one")
        code.emit(0x48, 0x83, 0xC3, 1, 0xC3)  // add rbx, 1; ret
        code.pad(to: 0x2000)
        code.label("two")
        code.emit(0x48, 0x83, 0xC3, 1, 0xC3)
        var new = [UInt8](repeating: 0x90, count: 0x1800)
        new.replaceSubrange(0..<5, with: [0x48, 0x83, 0xC3, 0x10, 0xC3])
        new.replaceSubrange(0x1000..<0x1005, with: [0x48, 0x83, 0xC3, 0x10, 0xC3])
        let bytes = new
        copier.jobs.withLock { $0 = [0: (TestMachine.codePhysical + 0x1000, bytes)] }
        machine[.rbx] = 0
        #expect(try machine.run(code).vector == Outcome.done)
        #expect(machine[.rbx] == 0x22)
    }

    /// A device's thread writes code and then says so in memory; the guest waits for that, serializes, and calls.
    @Test func `code that another thread writes is run behind a serializing instruction`() throws {
        let (machine, _) = try Self.machine()
        let fortress = Fortress(machine)
        var code = GuestCode()
        code.load(.rsi, TestMachine.data)
        code.load(.rcx, 300)
        code.label("loop")
        code.emit(0x48, 0x89, 0x0E)  // mov [rsi], rcx: the wish
        code.label("wait")
        code.emit(0x48, 0x39, 0x4E, 8)  // cmp [rsi + 8], rcx
        code.jump(if: 5, "wait")
        code.emit(0x51, 0x53, 0x0F, 0xA2, 0x5B, 0x59)  // push rcx; push rbx; cpuid; pop rbx; pop rcx
        code.emit(0xEB, 0)
        code.call("function")
        code.emit(0x39, 0xC8)  // cmp eax, ecx
        code.emit(0x0F, 0x94, 0xC0, 0x0F, 0xB6, 0xC0)  // sete al; movzx eax, al
        code.emit(0x48, 0x01, 0xC3)  // add rbx, rax
        code.emit(0x48, 0xFF, 0xC9)
        code.jump(if: 5, "loop")
        code.done()
        code.pad(to: 0x100)
        code.label("function")
        code.emit(0xB8, 0, 0, 0, 0, 0xC3)
        machine.load(code)
        machine.cpu.writeState(machine.cpu.readState())
        let memory = machine.memory
        let isOver = Flag(), hasEnded = Flag()
        defer { isOver.raise() }
        Thread {
            var last: UInt64 = 0
            while !isOver.isRaised {
                let wish = memory.load(TestMachine.dataPhysical, as: UInt64.self) ?? 0
                if wish == last { continue }
                last = wish
                memory.store(TestMachine.codePhysical + 0x101, UInt32(truncatingIfNeeded: wish))
                memory.store(TestMachine.dataPhysical + 8, wish)
            }
            hasEnded.raise()
        }.start()
        machine[.rbx] = 0
        let outcome = try machine.run(from: code.base)
        isOver.raise()
        hasEnded.wait()
        #expect(outcome.vector == Outcome.done, "\(outcome)")
        #expect(machine[.rbx] == 300)
        fortress.checkAll()
    }
}
