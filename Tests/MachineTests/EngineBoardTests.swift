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
}
