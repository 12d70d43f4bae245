import CLinux
import Foundation
import Testing
import VMM

@testable import TranslatorEngine

/// Signals in translated code that no guest can cause end the machine with a line that says so; those that it can cause
/// are its exceptions.
@Suite struct HostFaultTests {
    /// `mov rax, [data + 4096]`, with that page's host memory as a test likes it.
    private func exit(_ spoil: (TestMachine) -> Void) throws -> Exit {
        let machine = try TestMachine.small()
        var code = GuestCode()
        code.load(.rbx, TestMachine.data + 4096)
        code.label("load")
        code.emit(0x48, 0x8B, 0x03)  // mov rax, [rbx]
        code.done()
        machine.load(code)
        spoil(machine)
        machine.context.pointee.rip = code.base
        let exit = try machine.cpu.run()
        #expect(machine.context.pointee.rip == code.address(of: "load"))
        return exit
    }

    private func text(_ exit: Exit) -> String {
        if case .failure(let text) = exit { text } else { "no failure but \(exit)" }
    }

    @Test func `page fault of the host in translated code ends the machine`() throws {
        var place: UInt = 0
        let exit = try exit { machine in
            let page = machine.memory.hostBase + Int(TestMachine.dataPhysical) + 4096
            place = UInt(bitPattern: page)
            mprotect(page, 4096, PROT_NONE)
        }
        let address = "0x" + String(place, radix: 16)
        #expect(text(exit) == "translated code raised host trap 14 on host address \(address) (at guest rip 0x40000a, long mode): this is a bug in vmd's translator")
    }

    /// A file that is too short is what SIGBUS looks like everywhere else too.
    @Test func `host that cannot back guest RAM ends the machine`() throws {
        let exit = try exit { machine in ftruncate(machine.memory.fileDescriptor, off_t(TestMachine.dataPhysical) + 4096) }
        #expect(text(exit) == "the host has no memory left for guest RAM (at guest rip 0x40000a, long mode)")
    }

    @Test func `machine whose memory came back goes on`() throws {
        let machine = try TestMachine.small()
        var code = GuestCode()
        code.load(.rbx, TestMachine.data)
        code.emit(0x48, 0x8B, 0x03)  // mov rax, [rbx]
        code.done()
        machine.load(code)
        machine.setData(0, 0x1234)
        let page = machine.memory.hostBase + Int(TestMachine.dataPhysical)
        mprotect(page, 4096, PROT_NONE)
        #expect(throws: TestMachine.UnexpectedExit.self) { try machine.run(from: code.base) }
        mprotect(page, 4096, PROT_READ | PROT_WRITE)
        #expect(try machine.run(from: machine.context.pointee.rip).vector == Outcome.done)
        #expect(machine[.rax] == 0x1234)
    }

    /// Vectors, error codes and places of what a guest may cause, with the same registers as far as they go.
    @Test(arguments: [
        ("not canonical", [0x48, 0x8B, 0x03], 13), ("not canonical, stack", [0x48, 0x8B, 0x45, 0x00], 12),
        ("not canonical, push", [0x48, 0x8D, 0x65, 0x00, 0x50], 12), ("misaligned", [0x0F, 0x28, 0x41, 0x08], 13),
        ("division", [0xF7, 0xF2], 0), ("x87", [0xD9, 0x29, 0xD9, 0xE8, 0xD8, 0x71, 0x20, 0x9B], 16),
        ("SSE", [0x0F, 0xAE, 0x51, 0x10, 0x0F, 0x5E, 0x41, 0x20], 19),
    ] as [(String, [UInt8], Int)])
    func `signals that a guest may cause are its exceptions`(name: String, bytes: [UInt8], vector: Int) throws {
        let machine = try TestMachine.small()
        machine[.rbx] = 0x8000_0000_0000_0000
        machine[.rbp] = 0x8000_0000_0000_0000
        machine[.rcx] = TestMachine.data
        machine[.rdx] = 0
        machine.setData(0, 0x340)  // FCW with nothing masked
        machine.setData(0x10, 0)  // MXCSR with nothing masked
        var code = GuestCode()
        for byte in bytes { code.emit(byte) }
        code.done()
        let outcome = try machine.run(code)
        #expect(outcome.vector == vector, "\(name): \(outcome)")
        #expect(outcome.errorCode == 0)
    }

    @Test func `thread's gs base is its own again behind a run`() throws {
        let machine = try TestMachine.small()
        let before = clinux_get_gs_base()
        var code = GuestCode()
        code.done()
        try machine.run(code)
        #expect(clinux_get_gs_base() == before)
        #expect(before == 0)
    }
}
