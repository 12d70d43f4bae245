import CZydis
import VMM

@testable import TranslatorEngine

/// Proves of emitted blocks, by reading their host code, what the isolation claim says of them.
///
/// Each instruction is disassembled and followed with a small abstract state of the registers that may hold host
/// addresses. A block passes when
/// - each memory operand is a field of the context that blocks may use, an entry of this mode's TLB or jump cache
///   behind a masked index, one of this table's slots, or lies inside the bytes that a check before it has found good,
///   for reading or writing, by the TLB or by one slot;
/// - no host address gets into a guest register, the context or guest memory;
/// - each direct branch goes forward inside the block, from behind the block back to an instruction of it where no host
///   address counts (the copies of runs), to a thunk, or, where the cache knows of it as a `Site`, to the entry of the
///   living block of the same mode that it is linked to (of the same page, unless the site says otherwise); each indirect
///   one through a compared entry of the jump cache;
/// - the host's stack is used in three sequences only: a call pushes the guest's return address after a look at the
///   limit, its landing drops it, and a return compares it first;
/// - no instruction is of a kind that must not be copied: those that reach the kernel, the host's stack, segments,
///   system registers or protection keys, that have operands of no fixed place, or whose extension is hidden;
/// - what the slow path of each check says (size, access, place and length of the operation) is what the code does.
final class EmittedCodeVerifier {
    /// What is known of a host register.
    enum Value: Equatable {
        case unknown
        /// At most so much.
        case bounded(Int)
        /// An offset of an entry in the TLB.
        case tlbIndex
        /// A jump cache index; looked up; found equal.
        case jumpIndex, jumpCompared, jumpChecked
        /// An address less the tag of its TLB entry; the same, known to be an offset that `size` bytes fit behind.
        case difference(write: Bool)
        case offset(size: Int, write: Bool)
        /// The same by the tag of the slot at a place in the context.
        case slotDifference(slot: Int)
        case slotOffset(slot: Int, size: Int)
        /// The host address of so many bytes of guest memory (or of the bounce buffer).
        case host(size: Int, write: Bool)
        /// A copy of a pointer register (6 or 7); its low half; its offset in the page.
        case copy(Int), low(Int), inPage(Int)
        /// For a run of elements of 2^shift bytes: the room behind the pointer negated, in bytes, in elements.
        case negated(write: Bool), room(shift: Int, write: Bool)
        /// The host address of rcx such elements in one page.
        case run(shift: Int, write: Bool)
        /// Perhaps a host address that is no longer good for anything.
        case stale

        var isHost: Bool {
            switch self {
            case .host, .run, .stale: true
            default: false
            }
        }
    }

    /// A TLB check of the block at hand.
    struct Check {
        var size: Int
        var write: Bool
        var operation = 0
        /// Place of the slot that was asked, `nil` for the TLB.
        var slot: Int?
        /// End of the last instruction that uses the address.
        var lastUse = 0
    }

    /// Behind a branch or a helper the scratch registers may hold host addresses.
    static let atLabel: [Value] = (0..<16).map { $0 == 13 || $0 == 14 ? .stale : .unknown }

    /// Stand-ins for the address register are guest registers: they must have their values back.
    func checkStandIns(_ values: [Value]) throws {
        for register in 0..<13 where values[register].isHost { throw Violation("host address in a guest register at a branch") }
    }

    let cpu: TranslatorCPU
    var decoder = ZydisDecoder()
    let instruction = UnsafeMutablePointer<ZydisDecodedInstruction>.allocate(capacity: 1)
    let operands = UnsafeMutablePointer<ZydisDecodedOperand>.allocate(capacity: 10)
    var instructionCount = 0
    var blockCount = 0
    var entries: Set<Int> = []

    init(_ cpu: TranslatorCPU) {
        self.cpu = cpu
        ZydisDecoderInit(&decoder, ZYDIS_MACHINE_MODE_LONG_64, ZYDIS_STACK_WIDTH_64)
    }
    deinit {
        instruction.deallocate()
        operands.deallocate()
    }

    /// What is wrong with the blocks from an index on; empty when all is well.
    /// `first` has an index for each segment of the cache, or none.
    func violations(from first: [Int] = []) -> [String] {
        var result: [String] = []
        for segment in 0..<cpu.cache.segmentCount {
            let blocks = cpu.cache.blocks(inSegment: segment)
            for index in blocks where first.isEmpty || index >= first[segment] {
                if let violation = violation(block: index) { result.append(violation) }
                if result.count > 20 { return result }
            }
        }
        return result
    }

    struct Violation: Error {
        let what: String
        init(_ what: String) { self.what = what }
    }

    func violation(block index: Int) -> String? {
        let block = cpu.cache.blocks[index]
        blockCount += 1
        var position = Int(block.savedEntry)
        do {
            // Labels that branches further behind lead to are known the second time.
            var labels: Set<Int> = []
            while true {
                position = Int(block.savedEntry)
                let found = try verify(block, labels, &position)
                if found.isSubset(of: labels) { return nil }
                labels.formUnion(found)
            }
        } catch {
            let what = (error as? Violation)?.what ?? "\(error)"
            let base = cpu.cache.memory.writableBase
            let bytes = (0..<15).map { hex(Int(base[position + $0])) }.joined(separator: " ")
            return "block \(index) mode \(block.mode.rawValue) at \(hex(Int(block.physical))): \(what) at +\(position - Int(block.savedEntry)): \(text(position)) (\(bytes))"
        }
    }

    func hex(_ value: Int) -> String { String(value, radix: 16) }

    func text(_ position: Int) -> String {
        var formatter = ZydisFormatter()
        ZydisFormatterInit(&formatter, ZYDIS_FORMATTER_STYLE_INTEL)
        guard decode(position, limit: 15) else { return "?" }
        return withUnsafeTemporaryAllocation(of: CChar.self, capacity: 128) { buffer in
            guard let base = buffer.baseAddress else { return "" }
            let status = ZydisFormatterFormatInstruction(
                &formatter, instruction, operands, instruction.pointee.operand_count_visible, base, 128, UInt64(position), nil)
            return status & 0x8000_0000 == 0 ? String(cString: base) : "?"
        }
    }

    func decode(_ position: Int, limit: Int) -> Bool {
        ZydisDecoderDecodeFull(
            &decoder, cpu.cache.memory.writableBase + position, ZyanUSize(limit), instruction, operands) & 0x8000_0000 == 0
    }

    /// What has been found of the string run at hand.
    struct RunState {
        /// Which register the address register was copied from.
        var pointer = 0
        var compared: (shift: Int, write: Bool)?
        var checked: (shift: Int, write: Bool, pointer: Int)?
        /// The run whose host address is in the first temporary.
        var saved: Value?
    }
    var run = RunState()

    /// The mode that the code is in, and the one whose jump cache has been found to be in use.
    struct TransferState {
        var mode: BlockMode
        var compared: UInt64?
        var checked: UInt64?
        var atLabel: [Int: UInt64] = [:]
    }
    var transfer = TransferState(mode: BlockMode(rawValue: 0))
}
