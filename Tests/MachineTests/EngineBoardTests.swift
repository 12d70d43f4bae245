import Devices
import Glibc
import KVMEngine
import Linux
import Testing
import TranslatorEngine
import VMM

@testable import Machine

/// What a machine has hangs on what takes its interrupts.
@Suite("Board by engine", .timeLimit(.minutes(1))) struct EngineBoardTests {
    enum Kind: CaseIterable { case translator, kvm, kvmWithoutLocalAPICs }

    private func make(_ kind: Kind) throws -> (engine: any Engine, features: EngineFeatures) {
        if kind == .translator { return (TranslatorEngine(), .translator) }
        guard access("/dev/kvm", R_OK | W_OK) == 0 else { try Test.cancel("/dev/kvm does not open here") }
        let engine = try KVMEngine(usesLocalAPICs: kind == .kvm)
        if kind == .kvm && engine.localAPICs == nil { try Test.cancel("this KVM has no local APICs without the other controllers") }
        return (engine, engine.features)
    }

    /// The capabilities of a PCI function of bus 0.
    private func capabilities(_ ports: PortBus, device: UInt32) -> [UInt8] {
        func byte(_ offset: UInt32) -> UInt8 {
            ports.write(0xCF8, .dword, 1 << 31 | device << 11 | offset & ~3)
            return UInt8(truncatingIfNeeded: ports.read(0xCFC + UInt16(offset & 3), .byte))
        }
        var found: [UInt8] = []
        var place = UInt32(byte(0x34))
        while place != 0, found.count < 48 {
            found.append(byte(place))
            place = UInt32(byte(place + 1))
        }
        return found
    }

    @Test(arguments: Kind.allCases) func `devices have messages where CPUs have local APICs`(kind: Kind) throws {
        let (engine, features) = try make(kind)
        let kernel = TemporaryFile(bzImage())
        let clock = try HostClock()
        defer { clock.stop() }
        let machine = try Machine(
            MachineConfiguration(kernel: kernel.path, memoryByteCount: 32 << 20), engine: engine, features: features, clock: clock,
            terminal: Recorder())
        let hasLocalAPICs = kind != .kvmWithoutLocalAPICs
        // MSI-X, beside virtio's own.
        let found = capabilities(machine.board.ports, device: 1)
        #expect(found.contains(9) && found.contains(0x11) == hasLocalAPICs)
        #expect((machine.board.interrupts.messages != nil) == hasLocalAPICs)
        // The I/O APIC's version.
        machine.board.mmio.write(0xFEC0_0000, .dword, 1)
        #expect(machine.board.mmio.read(0xFEC0_0010, .dword) == (hasLocalAPICs ? 0x17_0020 : 0xFFFF_FFFF))
        #expect(machine.board.interrupts.localAPICs.isEmpty == (kind != .translator))
    }

    /// Starts the local APIC's timer, masked, for 2 s, says so, and ends the machine when it has counted to 0.
    private static let timerProgram: [UInt8] = [
        0xC7, 0x05, 0xE0, 0x03, 0xE0, 0xFE, 0x0A, 0, 0, 0,  // movl $0xa, 0xfee003e0: divide by 128
        0xC7, 0x05, 0x20, 0x03, 0xE0, 0xFE, 0x40, 0, 1, 0,  // movl $0x10040, 0xfee00320
        0xC7, 0x05, 0x80, 0x03, 0xE0, 0xFE, 0x80, 0x1A, 6, 0,  // movl $400000, 0xfee00380
        0xB0, 0x61, 0xBA, 0xF8, 0x03, 0, 0, 0xEE,  // mov $'a', %al; mov $0x3f8, %edx; out %al, (%dx)
        0xA1, 0x90, 0x03, 0xE0, 0xFE, 0x85, 0xC0, 0x75, 0xF7,  // 1: mov 0xfee00390, %eax; test %eax, %eax; jnz 1b
        0xB0, 0x01, 0xE6, 0xF4, 0xF4,  // mov $1, %al; out %al, $0xf4; hlt
    ]

    @Test(arguments: [Kind.translator, .kvm]) func `local APIC's timer stands still in a pause`(kind: Kind) throws {
        let (engine, features) = try make(kind)
        guard features.countsCrystal else { try Test.cancel("this KVM's timer cannot be told how fast to count") }
        var image = pvhImage()
        image.replaceSubrange(0x1000..<0x1000 + Self.timerProgram.count, with: Self.timerProgram)
        let kernel = TemporaryFile(image), terminal = Recorder()
        let started = SystemTime.monotonic()
        let running = try RunningMachine(
            MachineConfiguration(kernel: kernel.path, memoryByteCount: 32 << 20, debugExitPort: 0xF4), engine, features: features,
            terminal: terminal)
        #expect(terminal.wait(for: "a"))
        #expect(running.pause() == true)
        let paused = SystemTime.monotonic()
        usleep(2_200_000)
        #expect(running.events == [.started, .paused])
        let unpaused = SystemTime.monotonic()
        #expect(running.pause(false) == true)
        #expect(running.end() == .exited(3))
        #expect(SystemTime.monotonic() - unpaused + (paused - started) >= 2_048_000_000)
    }

    /// Says 'a' when interrupts are open, 'm' for vector 0x43 and 'l' for 0x45. Handlers do not return: they begin to wait anew.
    private static let waitingProgram: [UInt8] = [
        0xBC, 0x00, 0x20, 0x20, 0x00,  // mov $0x202000, %esp
        0x0F, 0x01, 0x15, 0xF0, 0x00, 0x20, 0x00, 0x0F, 0x01, 0x1D, 0xF6, 0x00, 0x20, 0x00,  // lgdt 0x2000f0; lidt 0x2000f6
        0xEA, 0x1A, 0x00, 0x20, 0x00, 0x08, 0x00,  // ljmp $8, $0x20001a
        0xB0, 0xFF, 0xE6, 0x21, 0xE6, 0xA1,  // mov $0xff, %al; out %al, $0x21; out %al, $0xa1
        0xB0, 0x61,  // mov $'a', %al
        0xBA, 0xF8, 0x03, 0x00, 0x00, 0xEE, 0xBC, 0x00, 0x20, 0x20, 0x00,  // 1: mov $0x3f8, %edx; out %al, (%dx); mov $0x202000, %esp
        0xFB, 0xF4, 0xEB, 0xFD,  // sti; 2: hlt; jmp 2b
    ]
    private static let handlerOfMessages = 0x40
    private static let handlerOfLevels = 0x60
    /// mov $letter, %al; movl $0, 0xfee000b0: end of interrupt; mov $0x200022, %ecx: 1b; jmp *%ecx
    private static func handler(_ letter: UInt8) -> [UInt8] {
        [0xB0, letter, 0xC7, 0x05, 0xB0, 0x00, 0xE0, 0xFE, 0, 0, 0, 0, 0xB9, 0x22, 0x00, 0x20, 0x00, 0xFF, 0xE1]
    }

    private func waitingImage(halts: Bool) -> [UInt8] {
        var image = pvhImage()
        func put(_ bytes: [UInt8], at offset: Int) { image.replaceSubrange(0x1000 + offset..<0x1000 + offset + bytes.count, with: bytes) }
        var program = Self.waitingProgram
        if !halts { program[program.count - 3] = 0x90 }
        put(program, at: 0)
        put(Self.handler(UInt8(ascii: "m")), at: Self.handlerOfMessages)
        put(Self.handler(UInt8(ascii: "l")), at: Self.handlerOfLevels)
        // Limit and base of the GDT at 0x200100 and the IDT at 0x200200; a flat segment of code; interrupt gates.
        put([0x0F, 0, 0x00, 0x01, 0x20, 0, 0xFF, 0x07, 0x00, 0x02, 0x20, 0], at: 0xF0)
        put([0, 0, 0, 0, 0, 0, 0, 0, 0xFF, 0xFF, 0, 0, 0, 0x9A, 0xCF, 0], at: 0x100)
        for (vector, place) in [(0x43, Self.handlerOfMessages), (0x45, Self.handlerOfLevels)] {
            put([UInt8(place), 0, 8, 0, 0, 0x8E, 0x20, 0], at: 0x200 + vector * 8)
        }
        return image
    }

    @Test(arguments: [Kind.translator, .kvm], [false, true])
    func `message and level that come in a pause reach the CPU after it, and the level again after its end`(kind: Kind, halts: Bool) throws {
        let (engine, features) = try make(kind)
        let kernel = TemporaryFile(waitingImage(halts: halts)), terminal = Recorder()
        let running = try RunningMachine(
            MachineConfiguration(kernel: kernel.path, memoryByteCount: 32 << 20), engine, features: features, terminal: terminal)
        defer { running.machine.requestStop() }
        let board = running.machine.board
        let messages = try #require(board.interrupts.messages)
        let wire = board.interrupts.pciLine(slot: 2, 3)
        #expect(terminal.wait(for: "a"))
        // Pin 17's entry: a level.
        for (register, value) in [(0x33, 0), (0x32, IOAPIC.Entry.isLevel | 0x45)] as [(UInt64, UInt64)] {
            board.mmio.write(0xFEC0_0000, .dword, register)
            board.mmio.write(0xFEC0_0010, .dword, value)
        }
        #expect(running.pause() == true)
        messages.deliver(address: 0xFEE0_0000, data: 0x43)
        wire.set(true)
        messages.deliver(address: 0xFEE0_0000, data: 0x43)
        #expect(terminal.text == "a")
        #expect(running.pause(false) == true)
        #expect(terminal.wait(for: "l", count: 2))
        wire.set(false)
        #expect(terminal.wait(for: "m"))
        running.machine.requestStop()
        #expect(running.end() == .stopped)
        // Twice requested before it was taken is once.
        #expect(terminal.text.filter { $0 == "m" }.count == 1)
    }
}
