import Glibc
import KVMEngine
import Synchronization
import Testing
import VMM

@Suite("KVM: tiny guests", .needsKVM, .serialized) struct KVMRunTests {
    // mov al, 0x41; out 0xE9, al; hlt
    static let hello: [UInt8] = [0xB0, 0x41, 0xE6, 0xE9, 0xF4]

    @Test(arguments: TinyGuest.Mode.allCases)
    func `port write reaches the device and HLT exits`(mode: TinyGuest.Mode) throws {
        let guest = try TinyGuest(Self.hello, mode: mode)
        expectHalt(try guest.cpu.run())
        #expect(guest.port.written == [.init(offset: 1, width: .byte, value: 0x41)])
        #expect(try guest.cpu.readState().rip == TinyGuest.codeAddress + 5)
    }

    @Test func `widths of port accesses are the instruction's`() throws {
        // mov eax, 0x11223344; out 0xE8, eax; out 0xE8, ax; out 0xE8, al; in eax, 0xE8; in ax, 0xE8; in al, 0xE8; hlt
        let guest = try TinyGuest(
            [
                0xB8, 0x44, 0x33, 0x22, 0x11, 0xE7, 0xE8, 0x66, 0xE7, 0xE8, 0xE6, 0xE8, 0xE5, 0xE8, 0x66, 0xE5, 0xE8,
                0xE4, 0xE8, 0xF4,
            ], mode: .long)
        guest.port.answer([0x8182_8384, 0x9192, 0xA1])
        expectHalt(try guest.cpu.run())
        #expect(
            guest.port.written == [
                .init(offset: 0, width: .dword, value: 0x1122_3344), .init(offset: 0, width: .word, value: 0x3344),
                .init(offset: 0, width: .byte, value: 0x44),
            ])
        #expect(guest.port.read.map(\.width) == [.dword, .word, .byte])
        #expect(try guest.cpu.readState()[.rax] == 0x8182_91A1)
    }

    @Test(arguments: [TinyGuest.Mode.real, .long])
    func `string output sends every item in order`(mode: TinyGuest.Mode) throws {
        // mov si, 0x3000; mov cx, 300; mov dx, 0xE9; cld; rep outsb; hlt (with the mode's operand size)
        let code: [UInt8] =
            mode == .real
            ? [0xBE, 0x00, 0x30, 0xB9, 0x2C, 0x01, 0xBA, 0xE9, 0x00, 0xFC, 0xF3, 0x6E, 0xF4]
            : [0xBE, 0, 0x30, 0, 0, 0xB9, 0x2C, 0x01, 0, 0, 0xBA, 0xE9, 0, 0, 0, 0xFC, 0xF3, 0x6E, 0xF4]
        let guest = try TinyGuest(code, mode: mode)
        let bytes = (0..<300).map { UInt8(truncatingIfNeeded: $0 * 7) }
        guest.memory.write(bytes, at: 0x3000)
        expectHalt(try guest.cpu.run())
        #expect(guest.port.values == bytes.map(UInt64.init))
    }

    @Test func `string input fills memory with every item in order`() throws {
        // mov di, 0x3000; mov cx, 20; mov dx, 0xE8; cld; rep insw; hlt
        let guest = try TinyGuest([0xBF, 0x00, 0x30, 0xB9, 20, 0, 0xBA, 0xE8, 0x00, 0xFC, 0xF3, 0x6D, 0xF4])
        guest.port.answer((1...20).map { $0 * 0x101 })
        expectHalt(try guest.cpu.run())
        for index in 0..<20 {
            #expect(guest.memory.load(0x3000 + UInt64(index * 2), as: UInt16.self) == UInt16((index + 1) * 0x101))
        }
        #expect(try guest.cpu.readState()[.rcx] == 0)
    }

    @Test func `memory outside RAM goes to the device and what nobody claims reads all ones`() throws {
        // mov ax, 0xA000; mov ds, ax; mov byte [4], 0x5A; mov ax, [8]; out 0xE8, ax; mov ax, [0x2000]
        // out 0xE8, ax; hlt
        let guest = try TinyGuest([
            0xB8, 0x00, 0xA0, 0x8E, 0xD8, 0xC6, 0x06, 0x04, 0x00, 0x5A, 0xA1, 0x08, 0x00, 0xE7, 0xE8, 0xA1, 0x00, 0x20,
            0xE7, 0xE8, 0xF4,
        ])
        guest.device.answer([0xBEEF])
        expectHalt(try guest.cpu.run())
        #expect(guest.device.written == [.init(offset: 4, width: .byte, value: 0x5A)])
        #expect(guest.device.read == [.init(offset: 8, width: .word, value: 0xBEEF)])
        #expect(guest.port.values == [0xBEEF, 0xFFFF])
    }

    @Test func `ROM is executed and read, and what is written to it goes nowhere`() throws {
        let memory = try GuestMemory(ranges: [(0, 0xA0000)], rom: (0xFFFF_0000, 0x1_0000))
        let engine = try KVMEngine(usesLocalAPICs: false)
        let cpu = try engine.makeVirtualCPU(
            index: 0,
            wiring: Wiring(
                memory: memory, ports: PortBus([]), mmio: MMIOBus([]), interrupts: OneLine(),
                policy: try CPUPolicy(model: nil, engine: engine.features, tscFrequencyHz: nil)))
        memory.writeROM([0xE9, 0x0D, 0xFF], at: 0xFFFF_FFF0)  // jmp ff00
        memory.writeROM([0x11, 0x22], at: 0xFFFF_FE00)
        memory.writeROM(
            [
                0x2E, 0xC6, 0x06, 0x00, 0xFE, 0x55,  // movb $0x55, %cs:0xfe00
                0x2E, 0xA1, 0x00, 0xFE, 0xF4,  // mov %cs:0xfe00, %ax; hlt
            ], at: 0xFFFF_FF00)
        try cpu.writeState(CPUState())
        #expect(try cpu.run() == .halt(interruptsEnabled: false))
        #expect(try cpu.readState()[.rax] & 0xFFFF == 0x2211)
        #expect(memory.read(0xFFFF_FE00, count: 2) == [0x11, 0x22])
    }

    @Test func `quadword memory access arrives whole`() throws {
        // mov rbx, 0xA0010; mov rax, 0x1122334455667788; mov [rbx], rax; mov rcx, [rbx]; hlt
        let guest = try TinyGuest(
            [
                0x48, 0xC7, 0xC3, 0x10, 0x00, 0x0A, 0x00, 0x48, 0xB8, 0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11,
                0x48, 0x89, 0x03, 0x48, 0x8B, 0x0B, 0xF4,
            ], mode: .long)
        guest.device.answer([0x0102_0304_0506_0708])
        expectHalt(try guest.cpu.run())
        #expect(guest.device.written == [.init(offset: 0x10, width: .qword, value: 0x1122_3344_5566_7788)])
        #expect(try guest.cpu.readState()[.rcx] == 0x0102_0304_0506_0708)
    }

    @Test func `halted CPU stays halted until an interrupt it accepts`() throws {
        // sti; hlt; mov al, 2; out 0xE9, al; cli; hlt       handler: mov al, 1; out 0xE9, al; iret
        let guest = try TinyGuest([0xFB, 0xF4, 0xB0, 0x02, 0xE6, 0xE9, 0xFA, 0xF4])
        guest.setHandler(guest.interrupts.vector, [0xB0, 0x01, 0xE6, 0xE9, 0xCF], at: 0x4000, mode: .real)
        for _ in 0..<3 { expectHalt(try guest.cpu.run(), interruptsEnabled: true) }
        #expect(guest.port.values == [])
        #expect(try guest.cpu.readState().isHalted)
        guest.interrupts.raise()
        expectHalt(try guest.cpu.run())
        #expect(guest.port.values == [1, 2])
        // Interrupts are off now: nothing wakes it.
        guest.interrupts.raise()
        expectHalt(try guest.cpu.run())
        #expect(guest.port.values == [1, 2])
        #expect(guest.interrupts.acknowledgements == 1)
    }

    @Test(arguments: [TinyGuest.Mode.real, .long])
    func `interrupt waits for the window that STI opens`(mode: TinyGuest.Mode) throws {
        // mov bl, 0; mov al, 1; out 0xE9, al; sti; again: test bl, bl; jz again; cli; mov al, 3; out 0xE9, al; hlt
        // handler: mov al, 2; out 0xE9, al; mov bl, 1; iret
        let code: [UInt8] = [
            0xB3, 0, 0xB0, 1, 0xE6, 0xE9, 0xFB, 0x84, 0xDB, 0x74, 0xFC, 0xFA, 0xB0, 3, 0xE6, 0xE9, 0xF4,
        ]
        let guest = try TinyGuest(code, mode: mode)
        let back: [UInt8] = mode == .long ? [0x48, 0xCF] : [0xCF]
        guest.setHandler(guest.interrupts.vector, [0xB0, 0x02, 0xE6, 0xE9, 0xB3, 0x01] + back, at: 0x4000, mode: mode)
        guest.interrupts.raise()
        expectHalt(try guest.cpu.run())
        #expect(guest.port.values == [1, 2, 3])
    }

    @Test func `interrupt raised by a device in a port write is taken next`() throws {
        // sti; out 0xE9, al; nop; hlt
        let guest = try TinyGuest([0xFB, 0xE6, 0xE9, 0x90, 0xFA, 0xF4])
        guest.setHandler(guest.interrupts.vector, [0xB0, 0x77, 0xE6, 0xE8, 0xCF], at: 0x4000, mode: .real)
        let (interrupts, cpu) = (guest.interrupts, guest.cpu)
        guest.port.onWrite { value in
            guard value != 0x77 else { return }
            interrupts.raise()
            cpu.interruptRequested()
        }
        expectHalt(try guest.cpu.run())
        #expect(guest.port.values == [0, 0x77])
    }

    @Test func `NMI wakes a CPU that halted with interrupts off`() throws {
        // cli; hlt; mov al, 2; out 0xE9, al; hlt
        let guest = try TinyGuest([0xFA, 0xF4, 0xB0, 0x02, 0xE6, 0xE9, 0xF4])
        guest.setHandler(2, [0xB0, 0x01, 0xE6, 0xE9, 0xCF], at: 0x4000, mode: .real)
        expectHalt(try guest.cpu.run())
        guest.cpu.injectNMI()
        expectHalt(try guest.cpu.run())
        #expect(guest.port.values == [1, 2])
    }

    @Test func `stop before run ends the next run once`() throws {
        let guest = try TinyGuest(Self.hello)
        guest.cpu.stop()
        guest.cpu.stop()
        #expect(try guest.cpu.run() == .stopped)
        #expect(guest.port.values == [])
        expectHalt(try guest.cpu.run())
        #expect(guest.port.values == [0x41])
    }

    @Test func `stop from a device finishes the instruction that it interrupts`() throws {
        // in al, 0xE9; hlt
        let guest = try TinyGuest([0xE6, 0xE9, 0xE4, 0xE9, 0xF4])
        let cpu = guest.cpu
        guest.port.answer([0x99])
        guest.port.onWrite { _ in cpu.stop() }
        #expect(try guest.cpu.run() == .stopped)
        #expect(try guest.cpu.readState().rip == TinyGuest.codeAddress + 2)
        expectHalt(try guest.cpu.run())
        #expect(try guest.cpu.readState()[.rax] & 0xFF == 0x99)
    }

    @Test(.timeLimit(.minutes(1)))
    func `no stop request of another thread is lost`() throws {
        // jmp $
        let guest = try TinyGuest([0xEB, 0xFE], mode: .long)
        let cpu = guest.cpu
        let rounds = 300
        let asked = Atomic<Int>(0)
        try withThread { isOver in
            for round in 1...rounds {
                while asked.load(ordering: .sequentiallyConsistent) < round, !isOver() { sched_yield() }
                // Lands before, in and after the entry.
                for _ in 0..<(round % 50) * 40 { _ = asked.load(ordering: .relaxed) }
                cpu.stop()
            }
        } during: {
            for _ in 0..<rounds {
                asked.add(1, ordering: .sequentiallyConsistent)
                let exit = try cpu.run()
                #expect(exit == .stopped)
            }
        }
        #expect(try cpu.readState().rip == TinyGuest.codeAddress)
    }

    @Test(.timeLimit(.minutes(1)))
    func `no interrupt of another thread is lost`() throws {
        // sti; jmp $       handler: out 0xE9, al; iretq
        let guest = try TinyGuest([0xFB, 0xEB, 0xFE], mode: .long)
        guest.setHandler(guest.interrupts.vector, [0xE6, 0xE9, 0x48, 0xCF], at: 0x4000, mode: .long)
        let (cpu, interrupts) = (guest.cpu, guest.interrupts)
        let taken = Atomic<Int>(0)
        let rounds = 300
        guest.port.onWrite { _ in taken.add(1, ordering: .sequentiallyConsistent) }
        try withThread { isOver in
            for round in 1...rounds {
                interrupts.raise()
                cpu.interruptRequested()
                while taken.load(ordering: .sequentiallyConsistent) < round, !isOver() { sched_yield() }
            }
            cpu.stop()
        } during: {
            let exit = try cpu.run()
                #expect(exit == .stopped)
        }
        #expect(taken.load(ordering: .sequentiallyConsistent) == rounds)
    }

    @Test(arguments: [(TinyGuest.Mode.protected, "protected mode"), (.long, "long mode")])
    func `triple fault is a shutdown that says where`(mode: TinyGuest.Mode, name: String) throws {
        // ud2 without a handler
        let guest = try TinyGuest([0x90, 0x0F, 0x0B], mode: mode)
        let exit = try guest.cpu.run()
        guard case .shutdown(let reason) = exit else {
            Issue.record("\(exit)")
            return
        }
        #expect(reason.reason == "triple fault")
        // AMD's CPUs reset their state at a shutdown (APM Vol. 2, 15.14.3), so the place is not always known.
        #expect(reason.mode == name || reason.mode == "real mode")
        // And the CPU runs again after a reset.
        guest.memory.write(Self.hello, at: TinyGuest.codeAddress)
        try guest.cpu.writeState(guest.entryState(mode))
        expectHalt(try guest.cpu.run())
        #expect(guest.port.values == [0x41])
    }
}

/// Runs `body` on a thread of its own while `work` runs on this one, and waits for both.
/// - Parameter body: gets a function that says whether the work is over, for whatever it waits for.
func withThread(_ body: @escaping @Sendable (_ isOver: () -> Bool) -> Void, during work: () throws -> Void) throws {
    final class Box: Sendable {
        let isOver = Atomic(false)
        let body: @Sendable (_ isOver: () -> Bool) -> Void
        init(_ body: @escaping @Sendable (_ isOver: () -> Bool) -> Void) { self.body = body }
        func run() { body { isOver.load(ordering: .sequentiallyConsistent) } }
    }
    var thread = pthread_t()
    let shared = Box(body)
    let box = Unmanaged.passRetained(shared)
    let result = pthread_create(
        &thread, nil,
        { argument in
            if let argument { Unmanaged<Box>.fromOpaque(argument).takeRetainedValue().run() }
            return nil
        }, box.toOpaque())
    try #require(result == 0)
    defer {
        shared.isOver.store(true, ordering: .sequentiallyConsistent)
        pthread_join(thread, nil)
    }
    try work()
}
