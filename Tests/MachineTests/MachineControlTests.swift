import DiskImage
import Glibc
import Linux
import Synchronization
import TestSupport
import Testing
import VMM

@testable import Machine

/// What an owner can do with a machine, with a guest that is a Swift closure.
@Suite("Machine control", .timeLimit(.minutes(1))) struct MachineControlTests {
    private let kernel = TemporaryFile(bzImage())
    private let terminal = Recorder()

    private func start(_ script: @escaping @Sendable (FakeCPU) throws -> Exit) throws -> RunningMachine {
        try RunningMachine(
            MachineConfiguration(kernel: kernel.path, memoryByteCount: 32 << 20), FakeEngine(script), terminal: terminal)
    }

    private static let halted: @Sendable (FakeCPU) throws -> Exit = { _ in .halt(interruptsEnabled: true) }

    @Test func `pause is answered when the CPU stands still, and its end when it runs`() throws {
        let running = try start(Self.halted)
        #expect(running.pause() == true)
        #expect(running.events == [.started, .paused])
        #expect(running.pause() == true)
        #expect(running.pause(false) == true)
        #expect(running.pause(false) == true)
        #expect(running.wait(for: .unpaused))
        #expect(running.events == [.started, .paused, .unpaused])
        running.machine.requestStop()
        #expect(running.end() == .stopped)
        #expect(running.pause() == false)
    }

    @Test func `busy guest does not run in a pause`() throws {
        let turns = Counter()
        let running = try start { cpu in
            while !cpu.isStopRequested.exchange(false, ordering: .sequentiallyConsistent) {
                turns.value.wrappingAdd(1, ordering: .relaxed)
            }
            return .stopped
        }
        #expect(running.pause() == true)
        let before = turns.value.load(ordering: .relaxed)
        usleep(20_000)
        #expect(turns.value.load(ordering: .relaxed) == before)
        #expect(running.pause(false) == true)
        #expect(waitUntil { turns.value.load(ordering: .relaxed) != before })
        running.machine.requestStop()
        #expect(running.end() == .stopped)
    }

    private final class Counter: Sendable {
        let value = Atomic(0)
    }

    @Test func `paused machine can be ended`() throws {
        let running = try start(Self.halted)
        #expect(running.pause() == true)
        running.machine.requestStop()
        #expect(running.end() == .stopped)
        #expect(running.events == [.started, .paused, .ended(.stopped)])
    }

    @Test func `pauses from many threads are all answered`() throws {
        let running = try start(Self.halted)
        let answers = Counter()
        let threads = try (0..<4).map { number in
            try PosixThread("pauser") {
                for _ in 0..<200 {
                    let count: @Sendable (Bool) -> Void = { _ in answers.value.wrappingAdd(1, ordering: .relaxed) }
                    if number % 2 == 0 { running.machine.pause(count) } else { running.machine.unpause(count) }
                }
            }
        }
        for thread in threads { thread.join() }
        running.machine.requestStop()
        #expect(running.end() == .stopped)
        #expect(answers.value.load(ordering: .relaxed) == 800)
    }

    /// By the interval timer, or by a deadline of the local APIC's.
    @Test(arguments: [false, true])
    func `guest's counter and timers stand still in a pause`(hasDeadline: Bool) throws {
        let scripts = Counter()
        let running = try start { cpu in
            // Not the count of runs: one that a stop came before is none of the guest's.
            let isFirst = scripts.value.wrappingAdd(1, ordering: .relaxed).oldValue == 0
            if isFirst && hasDeadline, let apic = cpu.wiring.localAPICs.first, let frequency = cpu.wiring.policy.tscFrequencyHz {
                apic.write(0x320, .dword, 0x4_0055)
                _ = apic.writeMSR(MSRIndex.tscDeadline, frequency / 20, timeStamp: 0)
            } else if isFirst {
                // 8259A: all but IRQ 0 masked. 8254: counter 0, mode 0, 50 ms.
                for (port, value) in [
                    (0x20, 0x11), (0x21, 0x20), (0x21, 4), (0x21, 1), (0x21, 0xFE), (0x43, 0x30), (0x40, 0x0B), (0x40, 0xE9),
                ] as [(UInt16, UInt32)] {
                    cpu.wiring.ports.write(port, .byte, value)
                }
            }
            if cpu.wiring.interrupts.isPending { return .failure("tick") }
            return .halt(interruptsEnabled: true)
        }
        #expect(waitUntil { scripts.value.load(ordering: .relaxed) != 0 })
        #expect(running.pause() == true)
        let started = SystemTime.monotonic()
        usleep(150_000)
        #expect(running.events == [.started, .paused])
        #expect(running.pause(false) == true)
        #expect(running.end() == .failed("guest cannot go on: tick"))
        #expect(SystemTime.monotonic() - started > 150_000_000)
    }

    // MARK: Holding the CPU

    /// - Returns: the answer; `nil` when none comes.
    private func hold(_ running: RunningMachine) -> Bool? {
        let answer = Monitor<Bool?>(nil)
        running.machine.requests.hold { value in
            answer.withLock { $0 = value }
            answer.broadcast()
        }
        return answer.withLock(waitingWhile: { $0 == nil }, until: SystemTime.monotonic() + 10_000_000_000) { $0 }
    }

    @Test func `held CPU runs nothing, and goes on when the last lets go`() throws {
        let turns = Counter()
        let running = try start { cpu in
            while !cpu.isStopRequested.exchange(false, ordering: .sequentiallyConsistent) {
                turns.value.wrappingAdd(1, ordering: .relaxed)
            }
            return .stopped
        }
        #expect(hold(running) == true)
        #expect(hold(running) == true)
        let before = turns.value.load(ordering: .relaxed)
        running.machine.requests.release()
        usleep(20_000)
        #expect(turns.value.load(ordering: .relaxed) == before)
        // Nobody hears of it.
        #expect(running.events == [.started])
        running.machine.requests.release()
        #expect(waitUntil { turns.value.load(ordering: .relaxed) != before })
        running.machine.requestStop()
        #expect(running.end() == .stopped)
        #expect(hold(running) == false)
    }

    @Test func `pause and its end come through while the CPU is held, which stands still until it is let go`() throws {
        let turns = Counter()
        let running = try start { cpu in
            turns.value.wrappingAdd(1, ordering: .relaxed)
            return .halt(interruptsEnabled: true)
        }
        #expect(waitUntil { turns.value.load(ordering: .relaxed) != 0 })
        #expect(running.pause() == true)
        // One that stands still for a pause is held at once.
        #expect(hold(running) == true)
        #expect(running.pause(false) == true)
        let before = turns.value.load(ordering: .relaxed)
        running.machine.power.requestReset("port 0xcf9")
        usleep(20_000)
        #expect(turns.value.load(ordering: .relaxed) == before)
        running.machine.requests.release()
        #expect(waitUntil { turns.value.load(ordering: .relaxed) != before })
        running.machine.requestStop()
        #expect(running.end() == .stopped)
    }

    @Test func `machine that is to end waits for those who hold its CPU`() throws {
        let running = try start(Self.halted)
        #expect(hold(running) == true)
        running.machine.requestStop()
        usleep(20_000)
        #expect(running.events == [.started])
        running.machine.requests.release()
        #expect(running.end() == .stopped)
    }

    /// A disk whose end takes until the test lets it come.
    private final class SlowDisk: BlockImage {
        private struct State {
            var isClosing = false
            var mayClose = false
        }

        private let state = Monitor(State())
        let byteCount: UInt64 = 1 << 20
        let isReadOnly = false
        func read(into buffers: IOBuffers, at offset: UInt64) throws(ImageError) {}
        func write(_ buffers: IOBuffers, at offset: UInt64) throws(ImageError) {}
        func flush() throws(ImageError) {}
        func discard(at offset: UInt64, count: UInt64) throws(ImageError) {}
        func writeZeroes(at offset: UInt64, count: UInt64, mayDiscard: Bool) throws(ImageError) {}
        func beginTransfer(_ direction: TransferDirection, at offset: UInt64, count: UInt64) -> Extent? { nil }
        func endTransfer(_ direction: TransferDirection, _ extent: Extent) {}
        func close() throws(ImageError) {
            state.withLock { $0.isClosing = true }
            state.broadcast()
            state.withLock(waitingWhile: { !$0.mayClose }, until: SystemTime.monotonic() + 20_000_000_000) { _ in }
        }

        var isClosing: Bool { state.withLock { $0.isClosing } }
        func waitForClosing() -> Bool {
            state.withLock(waitingWhile: { !$0.isClosing }, until: SystemTime.monotonic() + 20_000_000_000) { $0.isClosing }
        }
        func letClose() {
            state.withLock { $0.mayClose = true }
            state.broadcast()
        }
    }

    @Test func `machine that was paused and closes its disks is not held any more`() throws {
        let disk = SlowDisk()
        let running = try RunningMachine(
            MachineConfiguration(kernel: kernel.path, memoryByteCount: 32 << 20, disks: [DiskSource(disk)]), FakeEngine(Self.halted),
            terminal: terminal)
        #expect(running.pause() == true)
        running.machine.requestStop()
        #expect(disk.waitForClosing())
        let answer = Monitor<Bool?>(nil)
        // One that is granted is granted on this thread.
        running.machine.requests.hold { value in answer.withLock { $0 = value } }
        #expect(answer.withLock { $0 } == nil)
        disk.letClose()
        #expect(running.end() == .stopped)
        #expect(answer.withLock { $0 } == false)
    }

    @Test func `hold of a paused machine that is to end is waited for before its disks are closed`() throws {
        let disk = SlowDisk()
        let running = try RunningMachine(
            MachineConfiguration(kernel: kernel.path, memoryByteCount: 32 << 20, disks: [DiskSource(disk)]), FakeEngine(Self.halted),
            terminal: terminal)
        #expect(running.pause() == true)
        #expect(hold(running) == true)
        running.machine.requestStop()
        usleep(20_000)
        #expect(!disk.isClosing)
        running.machine.requests.release()
        #expect(disk.waitForClosing())
        disk.letClose()
        #expect(running.end() == .stopped)
    }

    @Test func `holds and pauses from many threads are all answered`() throws {
        let running = try start(Self.halted)
        let answers = Counter()
        let threads = try (0..<4).map { number in
            try PosixThread("holder") {
                for _ in 0..<200 {
                    let count: @Sendable (Bool) -> Void = { _ in answers.value.wrappingAdd(1, ordering: .relaxed) }
                    switch number {
                    case 0: running.machine.pause(count)
                    case 1: running.machine.unpause(count)
                    default:
                        let requests = running.machine.requests
                        requests.hold { isHeld in
                            count(isHeld)
                            if isHeld { requests.release() }
                        }
                    }
                }
            }
        }
        for thread in threads { thread.join() }
        running.machine.requestStop()
        #expect(running.end() == .stopped)
        #expect(answers.value.load(ordering: .relaxed) == 800)
    }

    @Test func `guest without vmmci's driver gets the power button`() throws {
        let running = try start { cpu in
            while !cpu.isStopRequested.exchange(false, ordering: .sequentiallyConsistent) {
                // PM1 status.
                guard cpu.wiring.ports.read(0xB000, .word) & 0x100 != 0 else { continue }
                cpu.wiring.ports.write(0xB008, .word, 0x3400)
                return .halt(interruptsEnabled: false)
            }
            return .stopped
        }
        #expect(running.machine.requestShutdown() == .powerButton)
        #expect(running.end() == .poweredOff)
        #expect(running.events.contains(.shutdownRequested(.powerButton)))
    }

    @Test func `reset after a shutdown was asked for ends it`() throws {
        let running = try start(Self.halted)
        running.machine.requestShutdown()
        running.machine.power.requestReset("port 0xcf9")
        #expect(running.end() == .poweredOff)
        #expect(!running.events.contains { if case .restarted = $0 { true } else { false } })
    }

    @Test func `restart is reported with its reason`() throws {
        let running = try start { cpu in
            cpu.bootCount == 2 ? .failure("twice") : .shutdown(ShutdownReason(rip: 16, mode: "long mode", reason: "triple fault"))
        }
        #expect(running.end() == .failed("guest cannot go on: twice"))
        #expect(running.events == [
            .started, .restarted("triple fault at rip 0x10, long mode"), .ended(.failed("guest cannot go on: twice")),
        ])
    }

    @Test func `kernel can come as a descriptor, and is named as it was`() throws {
        let file = try FileDescriptor(open: kernel.path, flags: O_RDONLY)
        let opened = try OpenedFile(owning: file, name: "/elsewhere/vmlinuz")
        let configuration = MachineConfiguration(kernel: .opened(opened), memoryByteCount: 32 << 20)
        let clock = try HostClock()
        defer { clock.stop() }
        _ = try Machine(
            configuration, engine: FakeEngine(Self.halted), features: .translator, clock: clock, terminal: terminal
        ) { _ in }
        let error = message {
            _ = try OpenedFile(owning: FileDescriptor(open: "/tmp", flags: O_RDONLY), name: "/elsewhere/folder")
        }
        #expect(error == "/elsewhere/folder: is a directory, not a regular file: hand over a regular file")
        let empty = TemporaryFile([])
        let nothing = try OpenedFile(owning: try FileDescriptor(open: empty.path, flags: O_RDONLY), name: "/elsewhere/empty")
        let refused = message {
            _ = try KernelLoader(kernel: .opened(nothing), initrd: nil, commandLine: nil)
        }
        #expect(refused == "kernel /elsewhere/empty: is empty: copy it again")
    }
}
