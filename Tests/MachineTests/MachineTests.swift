import Linux
import Synchronization
import Testing
import VMM

@testable import Machine

@Suite("Machine", .timeLimit(.minutes(1))) struct MachineTests {
    private let kernel = TemporaryFile(bzImage())
    private let terminal = Recorder()

    /// Runs a machine to its end. `meanwhile` runs on the test's thread.
    private func run(
        debugExitPort: UInt16? = nil, _ script: @escaping @Sendable (FakeCPU) throws -> Exit, meanwhile: (Machine) -> Void = { _ in }
    ) throws -> Machine.Outcome {
        let clock = try HostClock()
        defer { clock.stop() }
        let machine = try Machine(
            MachineConfiguration(kernel: kernel.path, memoryByteCount: 32 << 20, debugExitPort: debugExitPort),
            engine: FakeEngine(script), features: .translator, clock: clock, terminal: terminal)
        let outcome = Monitor<Machine.Outcome?>(nil)
        try machine.start { event in
            guard case .ended(let ended) = event else { return }
            outcome.withLock { $0 = ended }
            outcome.broadcast()
        }
        meanwhile(machine)
        let ended = outcome.withLock(waitingWhile: { $0 == nil }) { $0 }
        machine.join()
        return try #require(ended)
    }

    private static func tripleFault(_ rip: UInt64) -> Exit {
        .shutdown(ShutdownReason(rip: rip, mode: "long mode", reason: "triple fault"))
    }

    @Test func `what the guest writes to the UART reaches the terminal`() throws {
        let outcome = try run { cpu in
            cpu.print("hello".utf8)
            return .failure("enough")
        }
        #expect(outcome == .failed("guest cannot go on: enough"))
        #expect(terminal.text == "hello")
    }

    @Test func `power off ends it`() throws {
        let outcome = try run({ _ in .halt(interruptsEnabled: true) }) { $0.power.requestPowerOff() }
        #expect(outcome == .poweredOff)
    }

    @Test func `stop ends a halted guest`() throws {
        #expect(try run({ _ in .halt(interruptsEnabled: true) }) { $0.requestStop() } == .stopped)
    }

    @Test func `stop ends a busy guest`() throws {
        let outcome = try run { cpu in
            while !cpu.isStopRequested.load(ordering: .relaxed) {}
            return .stopped
        } meanwhile: {
            $0.requestStop()
        }
        #expect(outcome == .stopped)
    }

    @Test func `stop is stronger than a reset that waits`() throws {
        let boots = Atomic(0)
        let outcome = try withExtendedLifetime(boots) {
            try run { cpu in
                .halt(interruptsEnabled: true)
            } meanwhile: {
                $0.requestStop()
                $0.power.requestReset("late")
            }
        }
        #expect(outcome == .stopped)
    }

    @Test(arguments: [
        (.byte, 0x15, 0x2B), (.word, 0x100, 0x01), (.dword, 0x1234_567F, 0xFF), (.dword, 0x80, 0x01),
    ] as [(AccessWidth, UInt32, UInt8)])
    func `write to the debug exit port ends it with a status`(width: AccessWidth, value: UInt32, status: UInt8) throws {
        let outcome = try run(debugExitPort: 0xF4) { cpu in
            cpu.wiring.ports.write(0xF4, width, value)
            // How it waits for its end does not matter.
            return .halt(interruptsEnabled: false)
        }
        #expect(outcome == .exited(status))
    }

    @Test func `first of several endings counts`() throws {
        let outcome = try run(debugExitPort: 0xF4) { cpu in
            cpu.wiring.ports.write(0xF4, .byte, 1)
            cpu.wiring.ports.write(0xF4, .byte, 2)
            // A power-off through ACPI.
            cpu.wiring.ports.write(0xB008, .word, 0x3400)
            return Self.tripleFault(0)
        }
        #expect(outcome == .exited(3))
    }

    @Test func `without a debug exit port nothing ends it`() throws {
        let outcome = try run { cpu in
            cpu.wiring.ports.write(0xF4, .byte, 1)
            return .failure("alive, \(cpu.wiring.ports.read(0xF4, .byte))")
        }
        #expect(outcome == .failed("guest cannot go on: alive, 255"))
    }

    @Test(arguments: [0x20, 0x3F8, 0x3FF, 0x510, 0xCF9] as [UInt16])
    func `debug exit port of another device is refused`(port: UInt16) throws {
        let error = message { _ = try run(debugExitPort: port) { _ in .stopped } }
        #expect(
            error == "debug exit port 0x\(String(port, radix: 16)): belongs to another device: give another, as 0xf4")
    }

    @Test func `BIOS services refuse by carry and other vectors return`() throws {
        let outcome = try run { cpu in
            let memory = cpu.wiring.memory
            func handler(_ vector: UInt64) -> [UInt8] {
                let offset = UInt64(memory.load(vector * 4, as: UInt16.self) ?? 0)
                let segment = UInt64(memory.load(vector * 4 + 2, as: UInt16.self) ?? 0)
                return memory.read(segment * 16 + offset, count: 11) ?? []
            }
            let refusals = [0x10, 0x13, 0x15, 0x1A].map { handler($0) }
            let returns = [0, 8, 0x0F, 0x1B, 0x70, 0xFF].map { handler($0).first }
            // or $1 to the flags above the return address; mov $0x86, %ah; iret
            return .failure(
                "\(refusals.allSatisfy { $0 == [0x55, 0x8B, 0xEC, 0x80, 0x4E, 6, 1, 0x5D, 0xB4, 0x86, 0xCF] }) "
                    + "\(returns.allSatisfy { $0 == 0xCF })")
        }
        #expect(outcome == .failed("guest cannot go on: true true"))
    }

    @Test func `firmware configuration tells memory and CPUs`() throws {
        let outcome = try run { cpu in
            func item(_ key: UInt32, _ count: Int) -> [UInt32] {
                cpu.wiring.ports.write(0x510, .word, key)
                return (0..<count).map { _ in cpu.wiring.ports.read(0x511, .byte) }
            }
            return .failure("\(item(3, 8)) \(item(5, 2))")
        }
        #expect(outcome == .failed("guest cannot go on: [0, 0, 0, 2, 0, 0, 0, 0] [1, 0]"))
    }

    @Test func `halted guest sleeps until its interrupt`() throws {
        let outcome = try run { cpu in
            if cpu.runs.load(ordering: .relaxed) == 1 {
                let ports = cpu.wiring.ports
                // 8259A: vectors from 0x20, all but IRQ 0 masked. 8254: counter 0, mode 0, 20 ms.
                for (port, value) in [
                    (0x20, 0x11), (0x21, 0x20), (0x21, 4), (0x21, 1), (0x21, 0xFE), (0x43, 0x30), (0x40, 0x37), (0x40, 0x5D),
                ] as [(UInt16, UInt32)] {
                    ports.write(port, .byte, value)
                }
                return .halt(interruptsEnabled: true)
            }
            let vector = cpu.wiring.interrupts.acknowledge()
            return .failure("vector \(vector) after \(cpu.runs.load(ordering: .relaxed)) runs")
        }
        #expect(outcome == .failed("guest cannot go on: vector 32 after 2 runs"))
    }

    @Test func `halt without interrupts ends it with the place`() throws {
        let outcome = try run { _ in .halt(interruptsEnabled: false) }
        #expect(outcome == .failed("guest halted for good: interrupts are off at rip 0x1000200, long mode"))
    }

    @Test func `triple fault restarts until it was too often, and then says where`() throws {
        let boots = Mutex(0)
        let outcome = try run { cpu in
            boots.withLock { $0 = cpu.bootCount }
            return Self.tripleFault(0xFFFF_FFFF_8100_0000)
        }
        #expect(boots.withLock { $0 } == 4)
        #expect(
            outcome
                == .failed(
                    "guest restarted more than 3 times within 6 s: triple fault at rip 0xffffffff81000000, long mode"))
    }

    @Test func `guest's reset starts it again with fresh memory and devices`() throws {
        let seen = Mutex<[[UInt64?]]>([])
        let outcome = try run { cpu in
            let memory = cpu.wiring.memory
            // Behind the kernel, in the kernel, and the UART's scratch register.
            seen.withLock {
                $0.append([
                    memory.load(0x80_0000, as: UInt64.self), memory.load(0x100_0000, as: UInt64.self),
                    UInt64(cpu.wiring.ports.read(0x3FF, .byte)),
                ])
            }
            memory.store(0x80_0000, UInt64(1))
            memory.store(0x100_0000, UInt64(2))
            cpu.wiring.ports.write(0x3FF, .byte, 0x55)
            if cpu.bootCount == 2 { return .failure("twice") }
            return Self.tripleFault(0)
        }
        #expect(outcome == .failed("guest cannot go on: twice"))
        let both = seen.withLock { $0 }
        #expect(both.count == 2)
        #expect(both.first == both.last)
        #expect(both.first == [0, 0x0706_0504_0302_0100, 0])
    }

    @Test func `kernel that changed under a running guest ends it at the reboot`() throws {
        let path = kernel.path
        let outcome = try run { _ in
            _ = try FileDescriptor(open: path, flags: 0o1001)
            return Self.tripleFault(0)
        }
        #expect(outcome == .failed("kernel \(path): is not a kernel: give a Linux bzImage, an OpenBSD kernel, or one with a multiboot header or a PVH note"))
    }

    @Test func `unknown CPU model is refused with those that exist`() throws {
        let clock = try HostClock()
        defer { clock.stop() }
        let error = message {
            _ = try Machine(
                MachineConfiguration(kernel: kernel.path, memoryByteCount: 32 << 20, cpuModel: "pentium"),
                engine: FakeEngine { _ in .stopped }, features: .translator, clock: clock, terminal: terminal)
        }
        #expect(error.hasPrefix("CPU model 'pentium' is unknown: use one of x86-64,"))
    }
}
