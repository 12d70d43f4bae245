import CZydis
import VMM

@testable import TranslatorEngine

/// The walk through one block: its branches, its checks, and what is known at each label.
extension EmittedCodeVerifier {
    /// - Parameter known: places that branches behind them lead to.
    /// - Returns: the places that such branches led to.
    func verify(_ block: Block, _ known: Set<Int>, _ position: inout Int) throws -> Set<Int> {
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
                    decode(next, limit: 6), let target = try branchTarget(next + 6),
                    target == thunks.returnMiss[block.mode.table] || target > next && target < end && returnMisses(target, block)
                else { throw Violation("return without a comparison") }
                if target > next { branch(to: target) }
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
                    } else if target == thunks.restoreVectors || target == thunks.beginWideState && target != 0 {
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
                    } else if target == thunks.indirectMiss || returnMisses(position - Self.branchNote.count - 4, block) {
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
}
