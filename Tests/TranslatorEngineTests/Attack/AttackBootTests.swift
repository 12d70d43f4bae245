import Devices
import Foundation
import Linux
import Machine
import Synchronization
import Testing
import VMM

@testable import TranslatorEngine

/// A whole Linux guest under the verifier: each block that its boot makes is read, and every so often the TLBs and jump
/// caches. Takes minutes in a debug build: `VMD_VERIFY_BOOT=test` (or `demo`, `bench`) says what the guest shall do.
@Suite struct AttackBootTests {
    private static let work = ProcessInfo.processInfo.environment["VMD_VERIFY_BOOT"]

    private final class Recorder: SerialTerminal {
        let bytes = Mutex<[UInt8]>([])
        func send(_ byte: UInt8) { bytes.withLock { $0.append(byte) } }
        func roomAvailable() {}
        var text: String { String(decoding: bytes.withLock { $0 }, as: UTF8.self) }
    }

    /// Stops its CPU often to look at it.
    ///
    /// `@unchecked Sendable`: `fortress` and `problems` are the machine thread's until `join`, and the test's from then on.
    private final class VerifyingCPU: VirtualCPU, @unchecked Sendable {
        let cpu: TranslatorCPU
        let fortress: Fortress
        var problems: [String] = []
        private let isStopRequested = Atomic<Bool>(false)
        private let isOver = Atomic<Bool>(false)

        init(_ cpu: TranslatorCPU) {
            self.cpu = cpu
            fortress = Fortress(cpu)
            Thread { [weak self] in
                while let self, !isOver.load(ordering: .relaxed) {
                    usleep(100_000)
                    cpu.stop()
                }
            }.start()
        }
        func end() { isOver.store(true, ordering: .relaxed) }

        func readState() throws -> CPUState { cpu.readState() }
        func writeState(_ state: CPUState) throws { cpu.writeState(state) }
        func stop() {
            isStopRequested.store(true, ordering: .sequentiallyConsistent)
            cpu.stop()
        }
        func interruptRequested() { cpu.interruptRequested() }
        func injectNMI() { cpu.injectNMI() }
        func run() throws -> Exit {
            while true {
                let exit = try cpu.run()
                problems += fortress.problems()
                guard exit == .stopped else { return exit }
                if isStopRequested.exchange(false, ordering: .sequentiallyConsistent) || problems.count > 20 { return .stopped }
            }
        }
    }

    private final class VerifyingEngine: Engine {
        let name = "verified translator"
        let localAPICs: (any EngineLocalAPICs)? = nil
        let cpu = Mutex<VerifyingCPU?>(nil)
        func makeVirtualCPU(index: Int, wiring: Wiring) throws -> any VirtualCPU {
            let made = VerifyingCPU(try TranslatorCPU(wiring: wiring))
            cpu.withLock { $0 = made }
            return made
        }
    }

    @Test(.enabled(if: work != nil, "VMD_VERIFY_BOOT is not set")) func `every block of a Linux guest passes the verifier`() throws {
        let guests = #filePath.dropLast("Tests/TranslatorEngineTests/Attack/AttackBootTests.swift".count) + ".build-guests"
        let clock = try HostClock()
        defer { clock.stop() }
        let terminal = Recorder(), engine = VerifyingEngine()
        let machine = try Machine(
            MachineConfiguration(
                kernel: guests + "/vmlinuz", initrd: guests + "/initramfs.cpio",
                commandLine: "console=ttyS0 vmd.run=\(Self.work ?? "demo")", memoryByteCount: 256 << 20),
            engine: engine, features: .translator, clock: clock, terminal: terminal)
        let outcome = Monitor<Machine.Outcome?>(nil)
        try machine.start { event in
            guard case .ended(let ended) = event else { return }
            outcome.withLock { $0 = ended }
            outcome.broadcast()
        }
        let ended = outcome.withLock(waitingWhile: { $0 == nil }) { $0 }
        machine.join()
        let cpu = try #require(engine.cpu.withLock { $0 })
        cpu.end()
        print(terminal.text.suffix(600))
        print("\(cpu.fortress.verifier.blockCount) blocks, \(cpu.fortress.verifier.instructionCount) host instructions read")
        #expect(ended == .poweredOff)
        #expect(cpu.problems == [])
    }
}
