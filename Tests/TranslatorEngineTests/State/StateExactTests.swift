import Foundation
import Synchronization
import TestSupport
import Testing
import VMM

@testable import TranslatorEngine

/// Wherever a guest is stopped, its state is all there is of it: saved, loaded into a fresh engine and gone on with, it
/// does what it would have done without the stop.
@Suite struct StateExactTests {
    /// A device that raises what is written to it: 1 an interrupt, 2 an NMI. Its state is the request.
    private final class StatePort: PortDevice {
        let interrupts: TestInterrupts
        let cpu = Mutex<TranslatorCPU?>(nil)
        init(_ interrupts: TestInterrupts) { self.interrupts = interrupts }
        func read(_ offset: UInt16, _ width: AccessWidth) -> UInt32 { 0 }
        func write(_ offset: UInt16, _ width: AccessWidth, _ value: UInt32) {
            let cpu = cpu.withLock { $0 }
            if value == 1 {
                interrupts.raise(0x30)
                cpu?.interruptRequested()
            } else {
                cpu?.injectNMI()
            }
        }
    }

    /// A machine in which the program is loaded, but for what a saved state brings.
    private static func machine() throws -> (TestMachine, StatePort) {
        let interrupts = TestInterrupts()
        let port = StatePort(interrupts)
        let machine = try TestMachine(
            ports: [PortBus.Claim(0x40...0x40, port)], codeByteCount: 4 << 20, interrupts: interrupts)
        port.cpu.withLock { $0 = machine.cpu }
        return (machine, port)
    }

    private static func load(_ machine: TestMachine, breakpoints: Bool) {
        machine.map(GuestCode.start, to: TestMachine.codePhysical, count: 1, [.writable])
        machine.map(TestMachine.data, to: TestMachine.dataPhysical, count: 8, [.writable])
        machine.map(TestMachine.stack - 8192, to: 0x30_0000, count: 2, [.writable])
        machine.load(StateProgram.code)
        let entry = machine.entryAddress(StateProgram.faulting)
        machine.memory.store(entry, machine.entry(StateProgram.faulting) & ~1)
        machine.memory.store(StateProgram.entryPointer, TestMachine.kernelBase + entry)
        for (selector, value) in StateProgram.descriptors { machine.memory.store(TestMachine.gdt + selector, value) }
        for (vector, offset) in StateProgram.handlers { machine.setHandler(vector, GuestCode.start + offset) }
        // Far jumps of 32-bit code name 0x10, so the whole of the table has to be there.
        machine[.rsp] = TestMachine.stack
        machine.context.pointee.rip = GuestCode.start
        machine.context.pointee.msr.tscOffset = 0x1234_5678
        machine.context.pointee.msr.tscAux = 77
        machine.context.pointee.dr[0] = StateProgram.breakpoints.code
        machine.context.pointee.dr[3] = StateProgram.breakpoints.data
        if breakpoints {
            machine.context.pointee.dr7 = StateProgram.dr7
            machine.cpu.debugChanged()
        }
        machine.context.pointee.cr8 = 5
    }

    private struct Result {
        var state: CPUState
        var memory: [UInt8]
    }

    private static func result(_ machine: TestMachine) throws -> Result {
        Result(state: machine.cpu.readState(), memory: try #require(machine.memory.read(0, count: Int(machine.memory.byteCount))))
    }

    /// To the HLT of the last handler.
    private static func straight(breakpoints: Bool) throws -> Result {
        let (machine, _) = try machine()
        load(machine, breakpoints: breakpoints)
        machine.watch(seconds: 60)
        let exit = try machine.cpu.run()
        #expect(exit == .halt(interruptsEnabled: false))
        return try result(machine)
    }

    private static func difference(_ one: Result, _ other: Result) -> String {
        var text: [String] = []
        if one.state != other.state { text.append("\(one.state)\n\(other.state)") }
        let places = one.memory.indices.filter { one.memory[$0] != other.memory[$0] }
        if !places.isEmpty {
            text.append("memory at \(places.prefix(20).map { String($0, radix: 16) }), \(places.count) bytes")
        }
        return text.joined(separator: "\n")
    }

    @Test(arguments: [false, true]) func `the program does what it is meant to do`(breakpoints: Bool) throws {
        let (machine, _) = try Self.machine()
        Self.load(machine, breakpoints: breakpoints)
        machine.watch(seconds: 60)
        #expect(try machine.cpu.run() == .halt(interruptsEnabled: false))
        #expect(machine.context.pointee.rip == TestMachine.kernelBase + TestMachine.handlers + 0x81)
        #expect(machine.data(0x98) == 60, "page faults")
        #expect(machine.data(0xA8) == 60, "interrupts")
        #expect(machine.data(0xB0) == 120, "NMIs")
        let debugged: UInt64 = breakpoints ? 60 * (50 + 25) : 0
        #expect(machine.data(0xB8) == 60 * 10 + debugged, "single steps and breakpoints")
        #expect(machine.data(0x90) == 60 * 40, "32-bit loop")
        #expect(machine.data(0xC8) & 0xFFFF == 60 * 25, "16-bit loop")
    }

    @Test func `two runs give the same`() throws {
        let one = try Self.straight(breakpoints: true), other = try Self.straight(breakpoints: true)
        #expect(one.state == other.state && one.memory == other.memory, "\(Self.difference(one, other))")
    }

    /// Stops after so many microseconds each time, some of them chosen by the seed.
    @Test(arguments: 1...8 as ClosedRange<UInt64>) func `stopped, saved and restored at random times it gives the same`(seed: UInt64) throws {
        let breakpoints = seed > 5
        let expected = try Self.straight(breakpoints: breakpoints)
        var random = SiliconRandom(seed: seed)
        var (machine, port) = try Self.machine()
        Self.load(machine, breakpoints: breakpoints)
        var stops = 0
        var kinds: Set<String> = []
        while true {
            let cpu = machine.cpu
            // With breakpoints the program takes longer.
            let delay = UInt32(random.below(random.percent(30) ? 3000 : 300)) * (breakpoints ? 4 : 1)
            let isOver = Flag()
            let stopper = Thread {
                usleep(delay)
                cpu.stop()
                isOver.raise()
            }
            stopper.start()
            let exit = try cpu.run()
            isOver.wait()
            if exit != .stopped {
                #expect(exit == .halt(interruptsEnabled: false))
                break
            }
            stops += 1
            try #require(stops < 100_000)
            let state = cpu.readState()
            if state.interruptShadow { kinds.insert("shadow") }
            if state.nmiBlocked { kinds.insert("NMI blocked") }
            if state.nmiPending { kinds.insert("NMI pending") }
            if state.cs.selector == 0x18 { kinds.insert("32-bit") }
            if state.cs.selector == 0x50 { kinds.insert("16-bit") }
            if state.rflags & RFLAGS.tf != 0 { kinds.insert("TF") }
            let data = try JSONEncoder().encode(state)
            let decoded = try JSONDecoder().decode(CPUState.self, from: data)
            #expect(decoded == state)
            let bytes = try #require(machine.memory.read(0, count: Int(machine.memory.byteCount)))
            let pending = machine.interrupts.isPending
            // A device's thread may not speak to the old CPU any more.
            port.cpu.withLock { $0 = nil }
            (machine, port) = try Self.machine()
            machine.memory.write(bytes, at: 0)
            machine.cpu.writeState(decoded)
            #expect(machine.cpu.readState() == decoded)
            if pending { machine.interrupts.raise(0x30) }
        }
        let got = try Self.result(machine)
        #expect(got.state == expected.state && got.memory == expected.memory, "after \(stops) stops (\(kinds)): \(Self.difference(expected, got))")
        #expect(stops > 5)
    }
}

/// Raised once, by another thread.
final class Flag: Sendable {
    private let state = Atomic<Bool>(false)
    var isRaised: Bool { state.load(ordering: .sequentiallyConsistent) }
    func raise() { state.store(true, ordering: .sequentiallyConsistent) }
    func wait() { #expect(waitUntil { isRaised }) }
}
