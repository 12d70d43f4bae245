import Glibc
import KVMEngine
import Linux
import Synchronization
import Testing
import VMM

/// Whether `/dev/kvm` opens at all: what `engine kvm` needs, less than what `auto` asks for.
let kvmOpens: Bool = {
    let descriptor = open("/dev/kvm", O_RDWR | O_CLOEXEC)
    if descriptor >= 0 { close(descriptor) }
    return descriptor >= 0
}()

extension Trait where Self == ConditionTrait {
    static var needsKVM: Self { .enabled(if: kvmOpens, "/dev/kvm does not open here") }
}

/// Remembers what was written, answers reads from a list.
final class Wire: PortDevice, MMIODevice {
    struct Access: Hashable {
        var offset: UInt64
        var width: AccessWidth
        var value: UInt64
    }
    private struct State {
        var written: [Access] = []
        var read: [Access] = []
        var answers: [UInt64] = []
        var onWrite: (@Sendable (UInt64) -> Void)?
    }
    private let state = Mutex(State())

    var written: [Access] { state.withLock { $0.written } }
    var values: [UInt64] { written.map(\.value) }
    var read: [Access] { state.withLock { $0.read } }
    func answer(_ values: [UInt64]) { state.withLock { $0.answers = values } }
    func onWrite(_ action: @escaping @Sendable (UInt64) -> Void) { state.withLock { $0.onWrite = action } }

    private func take(_ offset: UInt64, _ width: AccessWidth) -> UInt64 {
        state.withLock { state in
            let value = state.answers.isEmpty ? 0 : state.answers.removeFirst()
            state.read.append(Access(offset: offset, width: width, value: value))
            return value
        }
    }
    private func put(_ offset: UInt64, _ width: AccessWidth, _ value: UInt64) {
        let action = state.withLock { state in
            state.written.append(Access(offset: offset, width: width, value: value))
            return state.onWrite
        }
        action?(value)
    }

    func read(_ offset: UInt16, _ width: AccessWidth) -> UInt32 {
        UInt32(truncatingIfNeeded: take(UInt64(offset), width))
    }
    func write(_ offset: UInt16, _ width: AccessWidth, _ value: UInt32) {
        put(UInt64(offset), width, UInt64(value))
    }
    func read(_ offset: UInt64, _ width: AccessWidth) -> UInt64 { take(offset, width) }
    func write(_ offset: UInt64, _ width: AccessWidth, _ value: UInt64) { put(offset, width, value) }
}

/// An interrupt controller of one line and one vector.
final class OneLine: InterruptSource {
    let vector: UInt8 = 0x21
    private let count = Atomic<Int>(0)
    private let acknowledged = Atomic<Int>(0)
    var isPending: Bool { count.load(ordering: .sequentiallyConsistent) > 0 }
    var acknowledgements: Int { acknowledged.load(ordering: .sequentiallyConsistent) }
    func raise() { count.add(1, ordering: .sequentiallyConsistent) }
    func acknowledge() -> UInt8 {
        count.subtract(1, ordering: .sequentiallyConsistent)
        acknowledged.add(1, ordering: .sequentiallyConsistent)
        return vector
    }
}

/// A machine for programs of a few instructions. RAM from 0 to 640 KB and 1 MB from 0x100000; port 0xE9 and the
/// addresses from 0xA0000 are wires.
struct TinyGuest {
    static let codeAddress: UInt64 = 0x1000
    let memory: GuestMemory
    let port = Wire()
    let device = Wire()
    let interrupts = OneLine()
    let policy: CPUPolicy
    let cpu: any VirtualCPU

    enum Mode: CaseIterable {
        case real, protected, long
    }

    static func makeMemory() throws -> GuestMemory { try GuestMemory(ranges: [(0, 0xA0000), (0x10_0000, 0x10_0000)]) }

    /// On a kernel as if it had no local APICs: HLT ends each run. `InterruptGuest` has some.
    init(_ code: [UInt8], mode: Mode = .real) throws {
        memory = try Self.makeMemory()
        let engine = try KVMEngine(usesLocalAPICs: false)
        policy = try CPUPolicy(model: nil, engine: engine.features, tscFrequencyHz: TimeStampCounter.frequency())
        let wiring = Wiring(
            memory: memory, ports: PortBus([.init(0xE8...0xEB, port)]),
            mmio: MMIOBus([.init(0xA0000..<0xA1000, device)]), interrupts: interrupts, policy: policy)
        cpu = try engine.makeVirtualCPU(index: 0, wiring: wiring)
        memory.write(code, at: Self.codeAddress)
        try cpu.writeState(entryState(mode))
    }

    func entryState(_ mode: Mode) -> CPUState { Self.entryState(mode, memory) }

    func setHandler(_ vector: UInt8, _ code: [UInt8], at address: UInt64, mode: Mode) {
        Self.setHandler(memory, vector, code, at: address, mode: mode)
    }

    /// At `codeAddress`, with a stack at 0x8000 and flat segments; long mode with the first 4 GB mapped.
    static func entryState(_ mode: Mode, _ memory: GuestMemory) -> CPUState {
        var state = CPUState()
        state.rip = codeAddress
        state[.rsp] = 0x8000
        state.cs.selector = 0
        state.cs.base = 0
        guard mode != .real else { return state }

        // Null, 0x08 32-bit code, 0x10 data, 0x18 64-bit code.
        let descriptors: [UInt64] = [0, 0x00CF_9B00_0000_FFFF, 0x00CF_9300_0000_FFFF, 0x00AF_9B00_0000_FFFF]
        for (index, descriptor) in descriptors.enumerated() { memory.store(0x500 + UInt64(index * 8), descriptor) }
        state.gdtr = DescriptorTableRegister(base: 0x500, limit: 31)
        state.idtr = DescriptorTableRegister(base: 0x2000, limit: 0xFFF)
        let data = SegmentRegister(selector: 0x10, attributes: 0xC093, limit: ~0)
        (state.ds, state.es, state.ss, state.fs, state.gs) = (data, data, data, data, data)
        state.cs = SegmentRegister(selector: 8, attributes: 0xC09B, limit: ~0)
        state.cr0 = CR0.pe | CR0.et | CR0.ne
        guard mode == .long else { return state }

        state.cs = SegmentRegister(selector: 0x18, attributes: 0xA09B, limit: ~0)
        // PML4, PDPT, and four directories of 2 MB pages.
        memory.store(0x10_0000, UInt64(0x10_1003))
        for index: UInt64 in 0..<4 { memory.store(0x10_1000 + index * 8, 0x10_2003 + index << 12) }
        for index: UInt64 in 0..<2048 { memory.store(0x10_2000 + index * 8, index << 21 | 0x83) }
        state.cr3 = 0x10_0000
        state.cr4 = CR4.pae | CR4.osfxsr
        state.msr.efer = EFER.lme | EFER.lma
        state.cr0 |= CR0.pg
        return state
    }

    /// Puts a handler in the table of the mode: real mode's vectors, or a 64-bit gate.
    static func setHandler(_ memory: GuestMemory, _ vector: UInt8, _ code: [UInt8], at address: UInt64, mode: Mode) {
        memory.write(code, at: address)
        switch mode {
        case .real: memory.store(UInt64(vector) * 4, UInt32(address))
        case .protected:
            memory.store(0x2000 + UInt64(vector) * 8, address & 0xFFFF | 0x8 << 16 | 0x8E00 << 32)
        case .long:
            memory.store(0x2000 + UInt64(vector) * 16, address & 0xFFFF | 0x18 << 16 | 0x8E00 << 32)
            memory.store(0x2008 + UInt64(vector) * 16, UInt64(0))
        }
    }
}

/// `mode` as a user sees it, for a kernel that can run it (a page-table-based KVM may not).
func expectHalt(_ exit: Exit, interruptsEnabled: Bool = false, _ location: SourceLocation = #_sourceLocation) {
    #expect(exit == .halt(interruptsEnabled: interruptsEnabled), sourceLocation: location)
}
