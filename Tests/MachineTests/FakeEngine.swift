import Synchronization
import VMM

@testable import Machine

/// An engine whose guest is a Swift closure: it sees the machine's ports and memory as a guest would, and says how
/// each run ends.
final class FakeEngine: Engine {
    let name = "fake"
    let localAPICs: (any EngineLocalAPICs)? = nil
    private let script: @Sendable (FakeCPU) throws -> Exit

    init(_ script: @escaping @Sendable (FakeCPU) throws -> Exit) { self.script = script }

    func makeVirtualCPU(index: Int, wiring: Wiring) throws -> any VirtualCPU { FakeCPU(wiring, script) }
}

final class FakeCPU: VirtualCPU {
    let wiring: Wiring
    /// How often `run` was called, this call included, over all boots.
    let runs = Atomic(0)
    /// How often a state was written: once a boot.
    let boots = Atomic(0)
    let isStopRequested = Atomic(false)
    private let state = Mutex(CPUState())
    private let script: @Sendable (FakeCPU) throws -> Exit

    init(_ wiring: Wiring, _ script: @escaping @Sendable (FakeCPU) throws -> Exit) {
        self.wiring = wiring
        self.script = script
    }

    func readState() throws -> CPUState { state.withLock { $0 } }
    func writeState(_ state: CPUState) throws {
        boots.wrappingAdd(1, ordering: .relaxed)
        self.state.withLock { $0 = state }
    }
    func run() throws -> Exit {
        runs.wrappingAdd(1, ordering: .relaxed)
        if isStopRequested.exchange(false, ordering: .sequentiallyConsistent) { return .stopped }
        return try script(self)
    }
    func stop() { isStopRequested.store(true, ordering: .sequentiallyConsistent) }
    func interruptRequested() {}
    func injectNMI() {}

    var bootCount: Int { boots.load(ordering: .relaxed) }

    /// What a driver does before it reads: FIFOs on, DTR and RTS raised.
    func openSerial() {
        wiring.ports.write(0x3FA, .byte, 1)
        wiring.ports.write(0x3FC, .byte, 3)
    }

    /// What a driver does to print: bytes to the UART.
    func print(_ bytes: some Sequence<UInt8>) {
        for byte in bytes { wiring.ports.write(0x3F8, .byte, UInt32(byte)) }
    }

    /// A byte that the UART has received, or `nil`.
    func readSerial() -> UInt8? {
        // LSR.DR
        guard wiring.ports.read(0x3FD, .byte) & 1 != 0 else { return nil }
        return UInt8(truncatingIfNeeded: wiring.ports.read(0x3F8, .byte))
    }
}
