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
    private enum Value: Equatable {
        case unknown
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
    private struct Check {
        var size: Int
        var write: Bool
        var operation = 0
        /// Place of the slot that was asked, `nil` for the TLB.
        var slot: Int?
        /// End of the last instruction that uses the address.
        var lastUse = 0
    }

    /// Behind a branch or a helper the scratch registers may hold host addresses.
    private static let atLabel: [Value] = (0..<16).map { $0 == 13 || $0 == 14 ? .stale : .unknown }

    /// Stand-ins for the address register are guest registers: they must have their values back.
    private func checkStandIns(_ values: [Value]) throws {
        for register in 0..<13 where values[register].isHost { throw Violation("host address in a guest register at a branch") }
    }

    private let cpu: TranslatorCPU
    private var decoder = ZydisDecoder()
    private let instruction = UnsafeMutablePointer<ZydisDecodedInstruction>.allocate(capacity: 1)
    private let operands = UnsafeMutablePointer<ZydisDecodedOperand>.allocate(capacity: 10)
    private(set) var instructionCount = 0
    private(set) var blockCount = 0
    private var entries: Set<Int> = []

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

    private struct Violation: Error {
        let what: String
        init(_ what: String) { self.what = what }
    }

    private func violation(block index: Int) -> String? {
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

    private func hex(_ value: Int) -> String { String(value, radix: 16) }

    private func text(_ position: Int) -> String {
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

    private func decode(_ position: Int, limit: Int) -> Bool {
        ZydisDecoderDecodeFull(
            &decoder, cpu.cache.memory.writableBase + position, ZyanUSize(limit), instruction, operands) & 0x8000_0000 == 0
    }

    // MARK: One block

    /// - Parameter known: places that branches behind them lead to.
    /// - Returns: the places that such branches led to.
    private func verify(_ block: Block, _ known: Set<Int>, _ position: inout Int) throws -> Set<Int> {
        let thunks = cpu.thunks.pointee
        let end = Int(block.end)
        guard block.savedEntry <= block.entry, Int(block.entry) < end, end <= cpu.cache.memory.byteCount,
            Int(block.savedEntry) >= cpu.cache.firstBlockOffset, end - Int(block.savedEntry) <= CodeCache.longestBlock
        else { throw Violation("block out of bounds") }
        var values = Self.atLabel
        var boundaries: Set<Int> = []
        var labels = known
        var backward: Set<Int> = []
        /// The state at the branches that lead to a label.
        var states: [Int: [Value]] = [:]
        func branch(to target: Int) {
            labels.insert(target)
            states[target] = states[target].map { Self.merge($0, values) } ?? values
        }
        /// TLB checks by the place of their slow path.
        var checks: [Int: Check] = [:]
        /// The check that stands behind `values[14]`.
        var current: Int?
        var compared: Int?
        var isReachable = true
        run = RunState()
        transfer = TransferState(mode: block.mode)
        /// The host's stack holds the guest's return address of a call to come, or of one that has returned.
        var hasPushed = false, hasReturned = false
        var sites: [Int: Int] = [:]
        var stubs: Set<Int> = []
        for site in Int(block.siteStart)..<Int(block.siteStart) + Int(block.siteCount) {
            let stub = Int(cpu.cache.sites[site].stub)
            guard stub > Int(block.entry), stub < end else { throw Violation("stub elsewhere") }
            sites[Int(cpu.cache.sites[site].displacement)] = site
            labels.insert(stub)
            stubs.insert(stub)
        }

        while position < end {
            boundaries.insert(position)
            let isLabel = labels.contains(position)
            if isLabel {
                if isReachable { try checkStandIns(values) }
                if let state = states[position], !known.contains(position), !stubs.contains(position) {
                    values = isReachable ? Self.merge(state, values) : state
                } else {
                    values = Self.atLabel
                }
                transfer.mode = block.mode
                transfer.checked = transfer.atLabel[position]
            } else if !isReachable, let refill = try refill(at: position, block) {
                // The site gave its slot up, and leads to the slow path behind this.
                position = refill.next
                continue
            } else if !isReachable && position != Int(block.entry) {
                throw Violation("code that nothing leads to")
            }
            isReachable = true
            if let check = checks[position], let slot = check.slot {
                guard let refill = try refill(at: position, block), refill.slot == slot, refill.write == check.write,
                    refill.size >= check.size, refill.operation == check.operation
                else { throw Violation("slot that is not refilled") }
                position = refill.next
                checks[position] = check
                checks[position]?.slot = nil
                values = Self.atLabel
                continue
            }
            guard decode(position, limit: min(15, end - position)) else { throw Violation("no instruction") }
            instructionCount += 1
            let length = Int(instruction.pointee.length)
            let next = position + length
            let wasCompared = compared
            compared = nil
            let wasRun = run.compared

            if starts(position, Self.limitCheck) {
                // cmp rsp, gs:[returnLimit]; jbe; push r13
                guard !hasPushed, !hasReturned, starts(next, [0x0F, 0x86]), starts(next + 6, [0x41, 0x55]), !values[13].isHost,
                    decode(next, limit: 6), let target = try branchTarget(next + 6), target > next + 8, target < end
                else { throw Violation("stack limit without a push") }
                branch(to: target)
                boundaries.formUnion([next, next + 6])
                position = next + 8
                hasPushed = true
                continue
            }
            if starts(position, [0x4C, 0x3B, 0x74, 0x24, 0x08]) {
                // cmp r14, [rsp + 8]; jne; ret
                guard !hasPushed, !hasReturned, starts(next, [0x0F, 0x85]), starts(next + 6, [0xC3]), !values[14].isHost,
                    decode(next, limit: 6), try branchTarget(next + 6) == thunks.returnMiss[block.mode.table]
                else { throw Violation("return without a comparison") }
                boundaries.formUnion([next, next + 6])
                position = next + 7
                isReachable = false
                continue
            }
            if starts(position, Self.emptying) {
                // mov rsp, gs:[returnBase]: all that was pushed is forgotten.
                guard !hasPushed, !hasReturned else { throw Violation("the host's stack pointer") }
                position = next
                continue
            }
            if starts(position, [0x48, 0x8D, 0x64, 0x24, 0x08]) {
                guard hasReturned else { throw Violation("the host's stack pointer") }
                hasReturned = false
                position = next
                continue
            }
            if let site = sites[next - 4], let target = try branchTarget(next) {
                try checkStandIns(values)
                if hasReturned { throw Violation("landing without a pop") }
                try verifySite(site, target, block)
                isReachable = false
                switch instruction.pointee.meta.category {
                case ZYDIS_CATEGORY_CALL:
                    guard hasPushed else { throw Violation("call without a push") }
                    (hasPushed, hasReturned, isReachable) = (false, true, true)
                    values = Self.atLabel
                    values[14] = .unknown
                case ZYDIS_CATEGORY_COND_BR: isReachable = true
                default: break
                }
                position = next
                continue
            }
            if let target = try branchTarget(next) {
                let isInside = target > position && target < end && !isEntry(target, of: block)
                try checkStandIns(values)
                switch instruction.pointee.meta.category {
                case ZYDIS_CATEGORY_CALL:
                    if target == thunks.exitHost || target == thunks.exitSaved {
                        let kind = try verifyExit(next, block)
                        if kind == .chain {
                            let site = Int(UnsafeRawPointer(cpu.cache.memory.writableBase + next).loadUnaligned(
                                fromByteOffset: ExitDescriptor.size, as: UInt32.self))
                            guard sites.values.contains(site), Int(cpu.cache.sites[site].stub) == position else {
                                throw Violation("chain exit of another site")
                            }
                            position = next + ExitDescriptor.size + 4
                        } else {
                            position = next + ExitDescriptor.size
                        }
                        isReachable = false
                    } else if target == thunks.systemCall {
                        _ = try verifyExit(next, block)
                        position = next + ExitDescriptor.size
                        values = Self.atLabel
                    } else if target == thunks.restoreVectors {
                        position = next
                    } else if let check = checks[position] {
                        try verifySlowPath(next, target, check, block)
                        position = next + MemoryDescriptor.size
                        isReachable = false
                    } else {
                        throw Violation("call elsewhere")
                    }
                    continue
                case ZYDIS_CATEGORY_UNCOND_BR:
                    isReachable = false
                    if isInside {
                        branch(to: target)
                        position = next
                    } else if target > Int(block.entry) && target < position {
                        backward.insert(target)
                        position = next
                    } else if target == thunks.indirectMiss {
                        if values[14].isHost { throw Violation("host address as a target") }
                        position = next
                    } else {
                        throw Violation("jump elsewhere")
                    }
                    continue
                default:
                    if target == thunks.indirectMiss {
                        guard values[13] == .jumpCompared, !values[14].isHost else { throw Violation("branch to the miss thunk without a look-up") }
                        values[13] = .jumpChecked
                    } else if isInside {
                        followTransfer(target)
                        if let (shift, write) = run.compared, instruction.pointee.mnemonic == ZYDIS_MNEMONIC_JNBE {
                            run.checked = (shift, write, run.pointer)
                            run.compared = nil
                        }
                        if case .difference(let write) = values[14], let size = wasCompared,
                            instruction.pointee.mnemonic == ZYDIS_MNEMONIC_JNBE
                        {
                            checks[target] = Check(size: size, write: write)
                            current = target
                            values[14] = .offset(size: size, write: write)
                        } else if case .slotDifference(let slot) = values[14], let size = wasCompared,
                            instruction.pointee.mnemonic == ZYDIS_MNEMONIC_JNBE
                        {
                            checks[target] = Check(size: size, write: try slotWrites(slot, block), slot: slot)
                            current = target
                            values[14] = .slotOffset(slot: slot, size: size)
                        } else if values[13] == .jumpCompared, instruction.pointee.mnemonic == ZYDIS_MNEMONIC_JNZ {
                            // Outside of 64-bit code a miss leaves by a way out of its own.
                            values[13] = .jumpChecked
                        }
                        branch(to: target)
                    } else {
                        throw Violation("branch elsewhere")
                    }
                    position = next
                    continue
                }
            }
            let category = instruction.pointee.meta.category
            if category == ZYDIS_CATEGORY_UNCOND_BR || category == ZYDIS_CATEGORY_CALL {
                let isCall = category == ZYDIS_CATEGORY_CALL
                guard hasPushed == isCall, !hasReturned else { throw Violation("call without a push, or a push without a call") }
                try verifyIndirect(block, values)
                (isReachable, hasReturned, hasPushed) = (isCall, isCall, false)
                values = Self.atLabel
                values[14] = .unknown
                position = next
                continue
            }
            if try verifyRun(values) {
                values[7] = .stale
                values[6] = values[6].isHost ? .stale : values[6]
                values[1] = .unknown
                position = next
                continue
            }
            try verifyKind()
            try verifyRegisters(values)
            try verifyMemory(block, values)
            try verifyTransfer()
            if instruction.pointee.mnemonic == ZYDIS_MNEMONIC_CMP, operands[0].type == ZYDIS_OPERAND_TYPE_REGISTER,
                operands[0].reg.value == ZYDIS_REGISTER_R14, isDifference(values[14]),
                operands[1].type == ZYDIS_OPERAND_TYPE_IMMEDIATE
            {
                let size = 4096 - Int(operands[1].imm.value.s)
                guard size > 0 && size <= 4096 else { throw Violation("check of \(size) bytes") }
                compared = size
            }
            if usesHost(values), let current { checks[current]?.lastUse = next }
            try followRun(block, &values)
            if wasRun != nil { run.compared = nil }
            if case .host = values[14], let current, checks[current]?.operation == 0 { checks[current]?.operation = next }
            position = next
        }
        guard !isReachable else { throw Violation("runs out of its end") }
        for label in labels where !boundaries.contains(label) { throw Violation("branch into an instruction") }
        return backward
    }

    private func isDifference(_ value: Value) -> Bool {
        switch value {
        case .difference, .slotDifference: true
        default: false
        }
    }

    /// What holds on both ways to a label.
    private static func merge(_ left: [Value], _ right: [Value]) -> [Value] {
        zip(left, right).map { $0 == $1 ? $0 : $0.isHost || $1.isHost ? .stale : .unknown }
    }

    /// Whether a slot is one of the block's table's, and for writes.
    private func slotWrites(_ slot: Int, _ block: Block) throws -> Bool {
        let first = ContextOffset.slots + block.mode.table * TLBSlots.countPerTable * TLBSlots.size
        let number = (slot - first) / TLBSlots.size
        guard slot >= first, number < TLBSlots.countPerTable, (slot - first) % TLBSlots.size == 0 else {
            throw Violation("slot of another table")
        }
        if number < 2 * TLBSlots.stackCount { return number >= TLBSlots.stackCount }
        return number - 2 * TLBSlots.stackCount >= TLBSlots.loopCount
    }

    /// The sequence for a slot that missed: its place into the scratch register, a call, a jump behind the check.
    private func refill(at position: Int, _ block: Block) throws -> (slot: Int, write: Bool, size: Int, operation: Int, next: Int)? {
        var at = position
        guard at + 16 <= Int(block.end), decode(at, limit: 15), instruction.pointee.mnemonic == ZYDIS_MNEMONIC_MOV,
            operands[0].reg.value == ZYDIS_REGISTER_R13D, operands[1].type == ZYDIS_OPERAND_TYPE_IMMEDIATE
        else { return nil }
        let slot = Int(operands[1].imm.value.u)
        let write = try slotWrites(slot, block)
        at += Int(instruction.pointee.length)
        guard decode(at, limit: 15), instruction.pointee.meta.category == ZYDIS_CATEGORY_CALL else { return nil }
        at += Int(instruction.pointee.length)
        let thunks = cpu.thunks.pointee
        guard let target = try branchTarget(at),
            let sizeClass = (0..<TLBSlots.sizeClassCount).first(where: {
                thunks.refill[Thunks.refillIndex(table: block.mode.table, writes: write, sizeClass: $0)] == target
            }), decode(at, limit: 15), instruction.pointee.meta.category == ZYDIS_CATEGORY_UNCOND_BR,
            instruction.pointee.length == 5
        else { return nil }
        at += 5
        guard let operation = try branchTarget(at) else { return nil }
        return (slot, write, 1 << sizeClass, operation, at)
    }

    /// Whether an operand's base is a checked address.
    private func usesHost(_ values: [Value]) -> Bool {
        for index in 0..<Int(instruction.pointee.operand_count) where operands[index].type == ZYDIS_OPERAND_TYPE_MEMORY {
            let base = number(operands[index].mem.base)
            if base >= 0, case .host = values[base] { return true }
        }
        // Not the address of a string run, which no check belongs to.
        if isStandIn, case .host = values[14] { return true }
        return false
    }

    // MARK: Runs of string instructions, and changes of the mode

    /// What has been found of the string run at hand.
    private struct RunState {
        /// Which register the address register was copied from.
        var pointer = 0
        var compared: (shift: Int, write: Bool)?
        var checked: (shift: Int, write: Bool, pointer: Int)?
        /// The run whose host address is in the first temporary.
        var saved: Value?
    }
    private var run = RunState()

    /// The mode that the code is in, and the one whose jump cache has been found to be in use.
    private struct TransferState {
        var mode: BlockMode
        var compared: UInt64?
        var checked: UInt64?
        var atLabel: [Int: UInt64] = [:]
    }
    private var transfer = TransferState(mode: BlockMode(rawValue: 0))

    /// REP MOVS and REP STOS on host addresses that were checked for all of their elements.
    private func verifyRun(_ values: [Value]) throws -> Bool {
        guard instruction.pointee.meta.category == ZYDIS_CATEGORY_STRINGOP,
            instruction.pointee.attributes & UInt64(ZYDIS_ATTRIB_HAS_REP) != 0, case .run(let shift, true) = values[7]
        else { return false }
        let size = Int(operands[0].size) / 8
        switch instruction.pointee.mnemonic {
        case ZYDIS_MNEMONIC_STOSB, ZYDIS_MNEMONIC_STOSW, ZYDIS_MNEMONIC_STOSD, ZYDIS_MNEMONIC_STOSQ: break
        case ZYDIS_MNEMONIC_MOVSB, ZYDIS_MNEMONIC_MOVSW, ZYDIS_MNEMONIC_MOVSD, ZYDIS_MNEMONIC_MOVSQ:
            guard case .run(let other, false) = values[6], 1 << other == size else { throw Violation("source of a run without a check") }
        default: return false
        }
        guard 1 << shift == size else { throw Violation("run of other elements than were checked") }
        return true
    }

    /// The moves and checks that lead to a run; everything else as `follow` does it.
    private func followRun(_ block: Block, _ values: inout [Value]) throws {
        let first = operands[0], second = operands[1]
        let tlb = ContextOffset.tlb + block.mode.table * TLB.entryCount * TLB.entrySize
        let isFirst14 = first.type == ZYDIS_OPERAND_TYPE_REGISTER && number(first.reg.value) == 14
        let isWide = first.size == 64
        let source = second.type == ZYDIS_OPERAND_TYPE_REGISTER ? number(second.reg.value) : -1
        let old = values[14]
        try follow(block, &values)
        switch instruction.pointee.mnemonic {
        case ZYDIS_MNEMONIC_MOV where isFirst14 && (source == 6 || source == 7):
            values[14] = isWide ? .copy(source) : .low(source)
            if isWide { run.pointer = source }
        case ZYDIS_MNEMONIC_NEG where isFirst14:
            if case .offset(1, let write) = old { values[14] = .negated(write: write) }
        case ZYDIS_MNEMONIC_ADD where isFirst14 && second.type == ZYDIS_OPERAND_TYPE_IMMEDIATE && second.imm.value.u == 4096:
            if case .negated(let write) = old { values[14] = .room(shift: 0, write: write) }
        case ZYDIS_MNEMONIC_SHR where isFirst14 && second.type == ZYDIS_OPERAND_TYPE_IMMEDIATE:
            if case .room(0, let write) = old { values[14] = .room(shift: Int(second.imm.value.u), write: write) }
        case ZYDIS_MNEMONIC_CMP where first.type == ZYDIS_OPERAND_TYPE_REGISTER && first.reg.value == ZYDIS_REGISTER_RCX && source == 14:
            if case .room(let shift, let write) = old { run.compared = (shift, write) }
        case ZYDIS_MNEMONIC_AND where isFirst14 && second.type == ZYDIS_OPERAND_TYPE_IMMEDIATE && second.imm.value.u == 4095:
            if case .low(let pointer) = old { values[14] = .inPage(pointer) }
        case ZYDIS_MNEMONIC_ADD where isFirst14 && second.type == ZYDIS_OPERAND_TYPE_MEMORY && second.mem.base == ZYDIS_REGISTER_R13:
            if case .inPage(let pointer) = old, let checked = run.checked, checked.pointer == pointer,
                Int(second.mem.disp.value) - tlb == TLB.host
            {
                values[14] = .run(shift: checked.shift, write: checked.write)
            }
            run.checked = nil
        case ZYDIS_MNEMONIC_MOV where first.type == ZYDIS_OPERAND_TYPE_MEMORY && isTemporary(first) && source >= 0:
            run.saved = values[source]
        case ZYDIS_MNEMONIC_MOV where second.type == ZYDIS_OPERAND_TYPE_MEMORY && isTemporary(second) && number(first.reg.value) >= 0:
            if let saved = run.saved, case .run = saved { values[number(first.reg.value)] = saved }
            if run.saved == .stale { values[number(first.reg.value)] = .stale }
        case ZYDIS_MNEMONIC_SUB where source == 14 && old.isHost && first.type == ZYDIS_OPERAND_TYPE_REGISTER:
            // How far the run has gone.
            values[number(first.reg.value)] = .unknown
        default: break
        }
    }

    private func isTemporary(_ operand: ZydisDecodedOperand) -> Bool {
        operand.mem.segment == ZYDIS_REGISTER_GS && operand.mem.base == ZYDIS_REGISTER_NONE && operand.mem.index == ZYDIS_REGISTER_NONE
            && Int(operand.mem.disp.value) == ContextOffset.temporary
    }
    /// The one place a host address may be kept in for a moment, and the one that may be taken from another.
    private func keepsRun(_ values: [Value]) -> Bool {
        let second = operands[1]
        guard second.type == ZYDIS_OPERAND_TYPE_REGISTER, second.reg.value == ZYDIS_REGISTER_R14, case .run = values[14] else { return false }
        switch instruction.pointee.mnemonic {
        case ZYDIS_MNEMONIC_MOV: return operands[0].type == ZYDIS_OPERAND_TYPE_MEMORY ? isTemporary(operands[0]) : isStandIn
        case ZYDIS_MNEMONIC_SUB: return operands[0].type == ZYDIS_OPERAND_TYPE_REGISTER && operands[0].reg.value == ZYDIS_REGISTER_RDI
        default: return false
        }
    }

    private func contextField(_ operand: ZydisDecodedOperand) -> Int? {
        operand.type == ZYDIS_OPERAND_TYPE_MEMORY && operand.mem.segment == ZYDIS_REGISTER_GS
            && operand.mem.base == ZYDIS_REGISTER_NONE && operand.mem.index == ZYDIS_REGISTER_NONE ? Int(operand.mem.disp.value) : nil
    }

    /// The mode is set to one whose jump cache was made for it, and to no other.
    private func verifyTransfer() throws {
        guard let field = contextField(operands[0]) else { return }
        let value = UInt64(UInt32(truncatingIfNeeded: operands[1].imm.value.u))
        if instruction.pointee.mnemonic == ZYDIS_MNEMONIC_CMP,
            field == ContextOffset.jumpCacheMode + Int(value & 3) * 8, operands[1].type == ZYDIS_OPERAND_TYPE_IMMEDIATE
        {
            transfer.compared = value
        } else if field == ContextOffset.mode && isWritten(operands[0]) {
            guard operands[1].type == ZYDIS_OPERAND_TYPE_IMMEDIATE, transfer.checked == value else {
                throw Violation("another mode without a look at its jump cache")
            }
            transfer.mode = BlockMode(rawValue: value)
        }
    }
    private func followTransfer(_ target: Int) {
        if let compared = transfer.compared {
            if instruction.pointee.mnemonic == ZYDIS_MNEMONIC_JZ { transfer.atLabel[target] = compared }
            if instruction.pointee.mnemonic == ZYDIS_MNEMONIC_JNZ { transfer.checked = compared }
            transfer.compared = nil
        }
    }

    private func isEntry(_ target: Int, of block: Block) -> Bool { target == Int(block.entry) || target == Int(block.savedEntry) }

    /// Where a relative branch leads, `nil` for anything else.
    private func branchTarget(_ next: Int) throws -> Int? {
        switch instruction.pointee.meta.category {
        case ZYDIS_CATEGORY_CALL, ZYDIS_CATEGORY_UNCOND_BR, ZYDIS_CATEGORY_COND_BR:
            guard operands[0].type == ZYDIS_OPERAND_TYPE_IMMEDIATE, operands[0].imm.is_relative != 0 else {
                return nil
            }
            guard instruction.pointee.meta.branch_type != ZYDIS_BRANCH_TYPE_FAR else { throw Violation("far branch") }
            return next + Int(operands[0].imm.value.s)
        default: return nil
        }
    }

    private func verifyExit(_ at: Int, _ block: Block) throws -> ExitDescriptor.Kind {
        let descriptor = UnsafeRawPointer(cpu.cache.memory.writableBase + at).loadUnaligned(as: ExitDescriptor.self)
        guard let kind = ExitDescriptor.Kind(rawValue: descriptor.kind), at + ExitDescriptor.size <= Int(block.end) else {
            throw Violation("exit without a descriptor")
        }
        switch kind {
        case .system: if Int(descriptor.value) >> 13 >= cpu.cache.segmentCount * SystemPool.limit { throw Violation("system instruction out of bounds") }
        case .chain: if descriptor.value < 0 || descriptor.value > 4095 { throw Violation("chain out of its page") }
        case .goto, .exception, .indirect: break
        default: throw Violation("exit of a thunk's kind")
        }
        return kind
    }

    /// `cmp rsp, gs:[returnLimit]`.
    private static let limitCheck: [UInt8] =
        [0x65, 0x48, 0x3B, 0x24, 0x25] + (0..<4).map { UInt8(truncatingIfNeeded: ContextOffset.returnLimit >> ($0 * 8)) }

    /// `mov rsp, gs:[returnBase]`.
    private static let emptying: [UInt8] =
        [0x65, 0x48, 0x8B, 0x24, 0x25] + (0..<4).map { UInt8(truncatingIfNeeded: ContextOffset.returnBase >> ($0 * 8)) }

    private func starts(_ position: Int, _ bytes: [UInt8]) -> Bool {
        position + bytes.count <= cpu.cache.memory.byteCount
            && bytes.indices.allSatisfy { cpu.cache.memory.writableBase[position + $0] == bytes[$0] }
    }

    /// A branch that the cache links: to its stub, or to the block that it is linked to.
    private func verifySite(_ number: Int, _ target: Int, _ block: Block) throws {
        let site = cpu.cache.sites[number]
        if site.target == 0 {
            guard target == Int(site.stub) else { throw Violation("branch past its stub") }
            return
        }
        let other = cpu.cache.blocks[Int(site.target)]
        guard isEntry(target, of: other) else { throw Violation("jump into the middle of a block") }
        guard other.isAlive, other.mode == transfer.mode,
            site.movesPage || other.secondPage >= 0 || other.physical >> 12 == block.physical >> 12
        else { throw Violation("link to a block that must not be linked to") }
    }

    private func verifySlowPath(_ at: Int, _ target: Int, _ check: Check, _ block: Block) throws {
        let thunks = cpu.thunks.pointee
        let isOurs = [false, true].contains {
            target == thunks.slow[Thunks.slowIndex(table: block.mode.table, writes: check.write, vectors: $0)]
        }
        guard isOurs else { throw Violation("slow path of another TLB or access") }
        let descriptor = UnsafeRawPointer(cpu.cache.memory.writableBase + at).loadUnaligned(as: MemoryDescriptor.self)
        guard at + Int(descriptor.operation) == check.operation, check.operation != 0 else {
            throw Violation("slow path that comes back elsewhere")
        }
        guard check.lastUse <= check.operation + Int(descriptor.operationLength) else {
            throw Violation("the address is used behind the operation")
        }
        guard Int(descriptor.size) == check.size, (descriptor.access & Access.write != 0) == check.write else {
            throw Violation("slow path of another size or access")
        }
        guard descriptor.size <= 128, descriptor.operationLength > 0, Int(descriptor.operationLength) <= Thunks.bounceSlotSize - 8 else {
            throw Violation("operation that the bounce buffer cannot take")
        }
        // Whole instructions, none of which depends on where it stands.
        var position = check.operation
        let end = position + Int(descriptor.operationLength)
        while position < end {
            guard decode(position, limit: end - position) else { throw Violation("operation ends inside an instruction") }
            if try branchTarget(0) != nil { throw Violation("branch in an operation") }
            position += Int(instruction.pointee.length)
        }
    }

    private func verifyIndirect(_ block: Block, _ values: [Value]) throws {
        let memory = operands[0].mem
        guard operands[0].type == ZYDIS_OPERAND_TYPE_MEMORY, memory.segment == ZYDIS_REGISTER_GS, memory.base == ZYDIS_REGISTER_NONE,
            memory.index == ZYDIS_REGISTER_R13, memory.scale == 8, values[13] == .jumpChecked,
            Int(memory.disp.value) == jumpCache(block) + 8
        else { throw Violation("indirect jump outside of the jump cache") }
    }

    private func jumpCache(_ block: Block) -> Int {
        ContextOffset.jumpCache + transfer.mode.table * JumpCache.entryCount * JumpCache.entrySize
    }

    // MARK: One instruction

    private static let extensions: Set<UInt32> = Set(
        [
            ZYDIS_ISA_EXT_BASE, ZYDIS_ISA_EXT_LONGMODE, ZYDIS_ISA_EXT_X87, ZYDIS_ISA_EXT_MMX, ZYDIS_ISA_EXT_SSE,
            ZYDIS_ISA_EXT_SSE2, ZYDIS_ISA_EXT_SSE3, ZYDIS_ISA_EXT_SSSE3, ZYDIS_ISA_EXT_SSE4, ZYDIS_ISA_EXT_AES,
            ZYDIS_ISA_EXT_PCLMULQDQ, ZYDIS_ISA_EXT_AVX, ZYDIS_ISA_EXT_AVX2, ZYDIS_ISA_EXT_AVXAES, ZYDIS_ISA_EXT_F16C,
            ZYDIS_ISA_EXT_FMA, ZYDIS_ISA_EXT_BMI1, ZYDIS_ISA_EXT_BMI2, ZYDIS_ISA_EXT_LZCNT, ZYDIS_ISA_EXT_MOVBE,
            ZYDIS_ISA_EXT_ADOX_ADCX, ZYDIS_ISA_EXT_SHA, ZYDIS_ISA_EXT_PAUSE, ZYDIS_ISA_EXT_RDRAND, ZYDIS_ISA_EXT_RDSEED,
            ZYDIS_ISA_EXT_VAES, ZYDIS_ISA_EXT_VPCLMULQDQ, ZYDIS_ISA_EXT_GFNI, ZYDIS_ISA_EXT_AMD3DNOW_PREFETCH,
        ].map(\.rawValue))

    /// Kinds that never stand in a block, whatever their operands are.
    private static let categories: Set<UInt32> = Set(
        [
            ZYDIS_CATEGORY_RET, ZYDIS_CATEGORY_SYSCALL, ZYDIS_CATEGORY_SYSRET, ZYDIS_CATEGORY_SYSTEM, ZYDIS_CATEGORY_INTERRUPT,
            ZYDIS_CATEGORY_IO, ZYDIS_CATEGORY_IOSTRINGOP, ZYDIS_CATEGORY_STRINGOP, ZYDIS_CATEGORY_XSAVE,
            ZYDIS_CATEGORY_XSAVEOPT, ZYDIS_CATEGORY_RDWRFSGS, ZYDIS_CATEGORY_SEGOP, ZYDIS_CATEGORY_PUSH, ZYDIS_CATEGORY_POP,
            ZYDIS_CATEGORY_GATHER, ZYDIS_CATEGORY_SCATTER, ZYDIS_CATEGORY_CLDEMOTE, ZYDIS_CATEGORY_UINTR,
        ].map(\.rawValue))

    private func verifyKind() throws {
        let i = instruction.pointee
        // RDTSC stands in the sequence that adds the guest's offset.
        if i.mnemonic == ZYDIS_MNEMONIC_RDTSC { return }
        if i.attributes & UInt64(ZYDIS_ATTRIB_IS_PRIVILEGED) != 0 { throw Violation("privileged instruction") }
        if Self.categories.contains(i.meta.category.rawValue) { throw Violation("instruction of a forbidden kind") }
        if !Self.extensions.contains(i.meta.isa_ext.rawValue) { throw Violation("instruction of a hidden extension") }
        switch i.mnemonic {
        case ZYDIS_MNEMONIC_CLD, ZYDIS_MNEMONIC_STD, ZYDIS_MNEMONIC_CPUID, ZYDIS_MNEMONIC_XGETBV, ZYDIS_MNEMONIC_RDPID,
            ZYDIS_MNEMONIC_RDPMC, ZYDIS_MNEMONIC_RDTSCP, ZYDIS_MNEMONIC_LAR, ZYDIS_MNEMONIC_LSL, ZYDIS_MNEMONIC_VERR,
            ZYDIS_MNEMONIC_VERW, ZYDIS_MNEMONIC_XLAT, ZYDIS_MNEMONIC_ENTER, ZYDIS_MNEMONIC_LEAVE, ZYDIS_MNEMONIC_UD0,
            ZYDIS_MNEMONIC_UD1, ZYDIS_MNEMONIC_UD2, ZYDIS_MNEMONIC_CLFLUSH, ZYDIS_MNEMONIC_FXSAVE, ZYDIS_MNEMONIC_FXRSTOR,
            ZYDIS_MNEMONIC_FXSAVE64, ZYDIS_MNEMONIC_FXRSTOR64, ZYDIS_MNEMONIC_STAC, ZYDIS_MNEMONIC_CLAC:
            throw Violation("instruction that must not be copied")
        default: break
        }
    }

    private func number(_ register: ZydisRegister) -> Int {
        let wide = ZydisRegisterGetLargestEnclosing(ZYDIS_MACHINE_MODE_LONG_64, register)
        let value = Int(wide.rawValue) - Int(ZYDIS_REGISTER_RAX.rawValue)
        return value >= 0 && value < 16 ? value : -1
    }

    private func isWritten(_ operand: ZydisDecodedOperand) -> Bool {
        operand.actions & UInt8(truncatingIfNeeded: ZYDIS_OPERAND_ACTION_MASK_WRITE.rawValue) != 0
    }
    private func isRead(_ operand: ZydisDecodedOperand) -> Bool {
        operand.actions & UInt8(truncatingIfNeeded: ZYDIS_OPERAND_ACTION_MASK_READ.rawValue) != 0
    }

    /// MOV of the address register to one that has no REX bit: the form of high-byte operands.
    private var isStandIn: Bool {
        instruction.pointee.mnemonic == ZYDIS_MNEMONIC_MOV && operands[0].type == ZYDIS_OPERAND_TYPE_REGISTER
            && operands[1].type == ZYDIS_OPERAND_TYPE_REGISTER && operands[1].reg.value == ZYDIS_REGISTER_R14
            && (operands[0].reg.value == ZYDIS_REGISTER_RDI || operands[0].reg.value == ZYDIS_REGISTER_RSI)
    }

    private func verifyRegisters(_ values: [Value]) throws {
        for index in 0..<Int(instruction.pointee.operand_count) where operands[index].type == ZYDIS_OPERAND_TYPE_REGISTER {
            let register = operands[index].reg.value
            switch ZydisRegisterGetClass(register) {
            case ZYDIS_REGCLASS_SEGMENT, ZYDIS_REGCLASS_CONTROL, ZYDIS_REGCLASS_DEBUG, ZYDIS_REGCLASS_TABLE, ZYDIS_REGCLASS_TEST,
                ZYDIS_REGCLASS_BOUND, ZYDIS_REGCLASS_TMM, ZYDIS_REGCLASS_MASK:
                throw Violation("system register")
            default: break
            }
            let number = number(register)
            if number == 4 { throw Violation("the host's stack pointer") }
            if number >= 0 && values[number].isHost && isRead(operands[index]) && !isStandIn && !keepsRun(values)
                && !(number == 7 && instruction.pointee.mnemonic == ZYDIS_MNEMONIC_SUB && keepsRun(values))
            {
                throw Violation("host address as an operand")
            }
        }
    }

    /// Fields of the context that blocks may write.
    private static let writable: [Range<Int>] = [
        0..<128, ContextOffset.rip..<ContextOffset.rip + 8, ContextOffset.ripPage..<ContextOffset.ripPage + 8, ContextOffset.lahf..<ContextOffset.lahf + 8,
        ContextOffset.gsBase..<ContextOffset.gsBase + 8, ContextOffset.kernelGSBase..<ContextOffset.kernelGSBase + 8,
        ContextOffset.fsBase..<ContextOffset.fsBase + 8, ContextOffset.mode..<ContextOffset.mode + 4,
        ContextOffset.codeSegment..<ContextOffset.codeSegment + MemoryLayout<SegmentRegister>.size,
        ContextOffset.stackSegment..<ContextOffset.stackSegment + MemoryLayout<SegmentRegister>.size,
        ContextOffset.temporary..<ContextOffset.temporary + 48, ContextOffset.systemFlags..<ContextOffset.systemFlags + 8,
    ]

    private func verifyMemory(_ block: Block, _ values: [Value]) throws {
        if instruction.pointee.mnemonic == ZYDIS_MNEMONIC_NOP { return }
        for index in 0..<Int(instruction.pointee.operand_count) where operands[index].type == ZYDIS_OPERAND_TYPE_MEMORY {
            let operand = operands[index]
            let memory = operand.mem
            let base = number(memory.base), other = number(memory.index)
            if memory.type == ZYDIS_MEMOP_TYPE_AGEN {
                if base >= 0 && values[base].isHost || other >= 0 && values[other].isHost { throw Violation("host address in LEA") }
                continue
            }
            guard memory.type == ZYDIS_MEMOP_TYPE_MEM else { throw Violation("operands of no fixed place") }
            let size = Int(operand.size) / 8
            guard size > 0 else { throw Violation("operand of unknown size") }
            let at = Int(memory.disp.value)
            if memory.segment == ZYDIS_REGISTER_GS {
                if base < 0 && other < 0 && at >= ContextOffset.slots && memory.base == ZYDIS_REGISTER_NONE {
                    if isWritten(operand) { throw Violation("write to a slot") }
                    guard size == 8, operands[0].type == ZYDIS_OPERAND_TYPE_REGISTER, operands[0].reg.value == ZYDIS_REGISTER_R14 else {
                        throw Violation("slot in another register")
                    }
                    switch instruction.pointee.mnemonic {
                    case ZYDIS_MNEMONIC_SUB: _ = try slotWrites(at, block)
                    case ZYDIS_MNEMONIC_ADD:
                        guard case .slotOffset(let slot, _) = values[14], at == slot + TLBSlots.host else {
                            throw Violation("host address of an unchecked slot")
                        }
                    default: throw Violation("slot in another instruction")
                    }
                    continue
                }
                if base < 0 && other < 0 {
                    guard memory.base == ZYDIS_REGISTER_NONE, at >= 0, at + size <= MemoryLayout<Context>.size else {
                        throw Violation("outside of the context")
                    }
                    if isWritten(operand) && !Self.writable.contains(where: { $0.lowerBound <= at && at + size <= $0.upperBound }) {
                        throw Violation("field that blocks must not write")
                    }
                    continue
                }
                if isWritten(operand) { throw Violation("write to a TLB or jump cache") }
                if memory.base == ZYDIS_REGISTER_R13 && other < 0 {
                    let tlb = ContextOffset.tlb + block.mode.table * TLB.entryCount * TLB.entrySize
                    guard values[13] == .tlbIndex, size == 8, [TLB.readTag, TLB.writeTag, TLB.host].contains(at - tlb) else {
                        throw Violation("outside of the TLB")
                    }
                    continue
                }
                if memory.index == ZYDIS_REGISTER_R13 && base < 0 && memory.scale == 8 {
                    guard values[13] == .jumpIndex, size == 8, at == jumpCache(block) else { throw Violation("outside of the jump cache") }
                    continue
                }
                throw Violation("computed address in the context")
            }
            guard memory.segment == ZYDIS_REGISTER_DS || memory.segment == ZYDIS_REGISTER_SS, other < 0, base >= 0,
                memory.base.rawValue >= ZYDIS_REGISTER_RAX.rawValue && memory.base.rawValue <= ZYDIS_REGISTER_R15.rawValue,
                case .host(let room, let write) = values[base]
            else { throw Violation("address without a check") }
            guard at >= 0 && at + size <= room else { throw Violation("\(at + size) bytes, \(room) checked") }
            if isWritten(operand) && !write { throw Violation("write with a check for reading") }
        }
    }

    /// The state behind an instruction that has passed.
    private func follow(_ block: Block, _ values: inout [Value]) throws {
        let first = operands[0], second = operands[1]
        let tlb = ContextOffset.tlb + block.mode.table * TLB.entryCount * TLB.entrySize
        func fromTLB() -> Int? {
            second.type == ZYDIS_OPERAND_TYPE_MEMORY && second.mem.base == ZYDIS_REGISTER_R13 ? Int(second.mem.disp.value) - tlb : nil
        }
        if first.type == ZYDIS_OPERAND_TYPE_REGISTER {
            switch (instruction.pointee.mnemonic, first.reg.value) {
            case (ZYDIS_MNEMONIC_AND, ZYDIS_REGISTER_R13D) where second.type == ZYDIS_OPERAND_TYPE_IMMEDIATE:
                let mask = second.imm.value.u
                values[13] = mask & ~UInt64(TLB.mask) == 0 ? .tlbIndex : .unknown
                return
            case (ZYDIS_MNEMONIC_AND, ZYDIS_REGISTER_R13)
            where second.type == ZYDIS_OPERAND_TYPE_MEMORY && Int(second.mem.disp.value) == ContextOffset.jumpMask
                && second.mem.segment == ZYDIS_REGISTER_GS:
                values[13] = .jumpIndex
                return
            case (ZYDIS_MNEMONIC_SUB, ZYDIS_REGISTER_R14)
            where second.type == ZYDIS_OPERAND_TYPE_MEMORY && second.mem.base == ZYDIS_REGISTER_NONE
                && second.mem.segment == ZYDIS_REGISTER_GS && Int(second.mem.disp.value) >= ContextOffset.slots:
                values[14] = .slotDifference(slot: Int(second.mem.disp.value))
                return
            case (ZYDIS_MNEMONIC_SUB, ZYDIS_REGISTER_R14):
                if let field = fromTLB(), field == TLB.readTag || field == TLB.writeTag {
                    values[14] = .difference(write: field == TLB.writeTag)
                    return
                }
            case (ZYDIS_MNEMONIC_ADD, ZYDIS_REGISTER_R14):
                if case .slotOffset(let slot, let size) = values[14], second.type == ZYDIS_OPERAND_TYPE_MEMORY {
                    values[14] = .host(size: size, write: try slotWrites(slot, block))
                    return
                }
                if fromTLB() == TLB.host, case .offset(let size, let write) = values[14] {
                    values[14] = .host(size: size, write: write)
                    // The slow path comes back with another value.
                    values[13] = .unknown
                    return
                }
            case (ZYDIS_MNEMONIC_CMP, ZYDIS_REGISTER_R14):
                if second.type == ZYDIS_OPERAND_TYPE_MEMORY && second.mem.index == ZYDIS_REGISTER_R13 { values[13] = .jumpCompared }
                return
            case (ZYDIS_MNEMONIC_MOV, _) where isStandIn && values[14].isHost:
                values[number(first.reg.value)] = values[14]
                return
            default: break
            }
        }
        for index in 0..<Int(instruction.pointee.operand_count)
        where operands[index].type == ZYDIS_OPERAND_TYPE_REGISTER && isWritten(operands[index]) {
            let number = number(operands[index].reg.value)
            if number >= 0 { values[number] = .unknown }
        }
    }
}
