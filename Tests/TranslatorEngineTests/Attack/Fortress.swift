import CLinux
import Foundation
import Testing
import VMM

@testable import TranslatorEngine

/// A `TestMachine` for guests that mean harm, and what must hold of the host's side whatever they do.
///
/// Guest RAM, the context and both views of the code have inaccessible pages on both sides; behind those stand
/// canaries.
final class Fortress {
    let cpu: TranslatorCPU
    let verifier: EmittedCodeVerifier
    private var memory: GuestMemory { cpu.memory }
    private var context: UnsafeMutablePointer<Context> { cpu.context }
    private var canaries: [UnsafeMutableRawPointer] = []
    private let thunkBytes: [UInt8]
    private let fixedFields: [UInt64]
    private static let canaryByteCount = 4 * 4096
    /// Blocks already read by the verifier, which does not read them again.
    private var verified: [Int] = []
    private var evictions = 0
    /// The CPU and its tables in the low half megabyte as they were.
    private let initialState: CPUState
    private let initialTables: [UInt8]

    convenience init(_ machine: TestMachine) { self.init(machine.cpu) }

    init(_ cpu: TranslatorCPU) {
        self.cpu = cpu
        verifier = EmittedCodeVerifier(cpu)
        initialState = cpu.readState()
        initialTables = cpu.memory.read(0, count: Int(TestMachine.free)) ?? []
        thunkBytes = Self.thunks(cpu)
        fixedFields = Self.fields(cpu)
        let code = cpu.cache.memory
        let regions: [(UnsafeMutableRawPointer, Int)] = [
            (cpu.memory.hostBase, Int(cpu.memory.byteCount)), (UnsafeMutableRawPointer(cpu.context), ContextOffset.end),
            (UnsafeMutableRawPointer(code.writableBase), code.byteCount),
            (UnsafeMutableRawPointer(bitPattern: UInt(code.executableBase)) ?? UnsafeMutableRawPointer(code.writableBase), code.byteCount),
        ]
        let guardByteCount = 1 << 20
        for (base, count) in regions {
            let end = base + (count + 4095) / 4096 * 4096
            for (place, step) in [(base - guardByteCount - Self.canaryByteCount, -Self.canaryByteCount), (end + guardByteCount, Self.canaryByteCount)] {
                // Where something else lies already, the canary stands behind that.
                var distance = 0
                var canary = Self.canary(at: place)
                while canary == nil && distance < Self.canaryDistance {
                    // Other tests' guests have gigabytes of addresses each.
                    distance += 1 + distance / 64
                    canary = Self.canary(at: place + distance * step)
                }
                if let canary { canaries.append(canary) } else { Issue.record("no place for a canary beside \(base)") }
            }
        }
    }
    /// How far away a canary may stand, in canaries.
    private static let canaryDistance = 1 << 20

    private static func canary(at place: UnsafeMutableRawPointer) -> UnsafeMutableRawPointer? {
        // MAP_FIXED_NOREPLACE
        let got = mmap(place, canaryByteCount, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | 0x100000, -1, 0)
        guard let got, got != MAP_FAILED else { return nil }
        guard got == place else {
            munmap(got, canaryByteCount)
            return nil
        }
        memset(got, 0xC5, canaryByteCount)
        return got
    }

    deinit { for canary in canaries { munmap(canary, Self.canaryByteCount) } }

    private static func thunks(_ cpu: TranslatorCPU) -> [UInt8] {
        var bytes = Array(UnsafeBufferPointer(start: cpu.cache.memory.writableBase, count: cpu.cache.firstBlockOffset))
        // The one place that is rewritten.
        for index in 0..<Thunks.bounceSlotSize { bytes[cpu.thunks.pointee.bounceSlot + index] = 0xCC }
        return bytes
    }

    private static func fields(_ cpu: TranslatorCPU) -> [UInt64] {
        let c = cpu.context
        return [c.pointee.owner, c.pointee.codeBase, c.pointee.codeEnd, c.pointee.signalExit, c.pointee.signalReason, UInt64(c.pointee.hostMXCSR), c.pointee.returnBase]
    }

    /// CPU and tables as they were, for the next guest.
    func reset() {
        memory.write(initialTables, at: 0)
        cpu.writeState(initialState)
    }

    /// Everything that must hold between runs.
    func check(_ what: @autoclosure () -> String = "", sourceLocation: SourceLocation = #_sourceLocation) {
        let wrong = problems()
        if !wrong.isEmpty { Issue.record("\(what()): \(wrong.joined(separator: "\n"))", sourceLocation: sourceLocation) }
    }

    /// What does not hold.
    func problems() -> [String] {
        var wrong: [String] = []
        for canary in canaries {
            let words = canary.assumingMemoryBound(to: UInt64.self)
            if (0..<Self.canaryByteCount / 8).contains(where: { words[$0] != 0xC5C5_C5C5_C5C5_C5C5 }) { wrong.append("a canary has died") }
        }
        if context.pointee.hostPageFaults != 0 { wrong.append("\(context.pointee.hostPageFaults) page faults of the host") }
        if Self.thunks(cpu) != thunkBytes { wrong.append("thunks have changed") }
        if Self.fields(cpu) != fixedFields { wrong.append("fixed fields of the context have changed") }
        let slack = UnsafeRawPointer(context)
        if (MemoryLayout<Context>.size..<ContextOffset.tlb).contains(where: { slack.load(fromByteOffset: $0, as: UInt8.self) != 0 }) {
            wrong.append("memory between the context and the TLB has changed")
        }
        wrong += tables()
        if cpu.cache.evictionCount != evictions { verified = [] }
        evictions = cpu.cache.evictionCount
        wrong += verifier.violations(from: verified)
        // Links change in blocks that were read before: now and then all are read again.
        verified = (0..<cpu.cache.segmentCount).map { cpu.cache.blocks(inSegment: $0).upperBound }
        return wrong
    }

    /// Reads every block again.
    func checkAll(_ what: @autoclosure () -> String = "", sourceLocation: SourceLocation = #_sourceLocation) {
        verified = []
        check(what(), sourceLocation: sourceLocation)
    }

    /// The TLBs lead to guest RAM, and to pages of code only for reading; the jump caches lead to entries of blocks.
    private func tables() -> [String] {
        var wrong: [String] = []
        let ram = UInt64(UInt(bitPattern: memory.hostBase))
        for slot in 0..<TLB.tableCount * TLB.entryCount {
            let entry = cpu.tlb.entries[slot]
            let index = slot % TLB.entryCount
            let missing = TLB.missingTag(index)
            for tag in [entry.readTag, entry.writeTag] where tag != missing {
                if tag & 0xFFF != 0 || TLBState.index(tag) != index { wrong.append("TLB tag \(String(tag, radix: 16)) in the wrong place") }
                if entry.host < ram || entry.host & 0xFFF != ram & 0xFFF || entry.host - ram > memory.byteCount - 4096 {
                    wrong.append("TLB entry outside of RAM")
                } else if tag == entry.writeTag && tag != entry.readTag {
                    wrong.append("TLB entry for writing alone")
                }
            }
            if entry.writeTag != missing, entry.host >= ram, cpu.cache.hasCode(page: Int((entry.host - ram) >> 12)) {
                wrong.append("page \(String((entry.host - ram) >> 12, radix: 16)) of code can be written")
            }
        }
        let code = cpu.cache.memory.executableBase
        let never = code + UInt64(cpu.thunks.pointee.neverHit)
        for slot in 0..<TLB.tableCount * JumpCache.entryCount {
            let entry = cpu.tlb.jumps[slot]
            if entry.host == never && entry.linear == JumpCache.never { continue }
            let index = cpu.cache.find(codeOffset: Int(truncatingIfNeeded: entry.host &- code))
            if entry.host < code || index == 0 || !cpu.cache.blocks[index].isAlive
                || entry.host - code != UInt64(cpu.cache.blocks[index].savedEntry)
                || cpu.cache.blocks[index].mode.table != slot / JumpCache.entryCount
                // The place says of itself that the hole is near.
                || cpu.cache.blocks[index].mode.rawValue & ~BlockMode.nearHole != cpu.context.pointee.jumpCacheMode[slot / JumpCache.entryCount]
            {
                wrong.append("jump cache entry that leads to no block")
            }
        }
        return Array(wrong.prefix(10))
    }
}
