import CZydis

/// What one instruction means to a run of accesses.
struct RunRole {
    /// Whether a run may go over it: it leaves the address register alone.
    var isPlain = false
    /// Its memory operand, if it has one that a run may hold: base, index (-1 for none), scale and displacement.
    var hasAccess = false
    var base = -1
    var index = -1
    var scale: UInt8 = 0
    var displacement = 0
    var size = 0
    var writes = false
    /// Guest general registers that it writes.
    var written: UInt32 = 0
    /// A register that it leaves with no more than a small number, -1 for none, and that number.
    var bounded = -1
    var bound = 0
    /// Only if the register had no more than a byte before: it changes the lowest.
    var keepsUpper = false
    /// Names none of the registers that lie in the context.
    var isUndisplaced = true
    /// The one of them that only moves by a known distance, -1 for none, and that distance.
    var moved = -1
    var distance = 0

    func isSameAddress(_ other: RunRole) -> Bool {
        base == other.base && index == other.index && scale == other.scale
    }
    /// What is known of small numbers in registers behind it.
    func follow(_ bounds: inout [16 of Int]) {
        let before = bounded >= 0 ? bounds[bounded] : -1
        for register in 0..<16 where written & (1 << UInt32(register)) != 0 { bounds[register] = -1 }
        if bounded >= 0 && (!keepsUpper || before >= 0 && before < 256) { bounds[bounded] = bound }
    }
    func writes(_ register: Int) -> Bool { register >= 0 && written & (1 << UInt32(register)) != 0 }
}

/// Neighbouring accesses at known distances from one another: one check is made for all of them, at the first
/// instruction; then the address register holds a host address until the last.
///
/// When the check fails (the end of the page, a page that is not there, device memory, code), a copy of the run behind
/// the block checks each access by itself: so faults are as precise as without runs.
///
/// A run may begin in front of its first access, where fewer flags are live: the check needs none there.
///
/// Accesses with an index join a run without one when the index is a small number that was made inside the run (a
/// comparison's result, a few bits): the check is for all that they may reach.
struct AccessRun {
    var first: Int
    var last: Int
    /// The instruction whose operand names the registers.
    var operand: Int
    /// From the base register's value at `first`, less the index: the lowest byte, and how many from there.
    var low: Int
    var byteCount: Int
    var writes: Bool
    // Filled when the block is emitted.
    var slot = 0
    var displacement: UnsafeMutablePointer<UInt8>?
    var start: UnsafeMutablePointer<UInt8>?
    var end: UnsafeMutablePointer<UInt8>?
    var stateAtStart = (flagsInHost: false, flagsSaved: false, vectorsReady: false, wideStateReady: false)
    var stateAtEnd = (flagsInHost: false, flagsSaved: false)
    var liveAtEnd: UInt32 = 0
}

extension BlockWorkspace {
    /// Longest reach of a run.
    static let runByteLimit = 256

    /// Finds the runs of the block's first `count` instructions, which have their live flags already.
    /// - Returns: how many are in `runs`.
    func planRuns(count: Int) -> Int {
        for index in 0..<count {
            roles[index] = role(instructions[index], decoded + index, operands + index * Decoder.operandLimit)
        }
        var found = 0
        var free = 0
        var at = 0
        while at < count {
            guard roles[at].hasAccess else {
                at += 1
                continue
            }
            let lead = roles[at]
            var run = AccessRun(
                first: at, last: at, operand: at, low: lead.displacement, byteCount: lead.size, writes: lead.writes)
            var shift = 0
            var next = at
            var bounds: [16 of Int] = .init(repeating: -1)
            while true {
                // What the instruction just taken does to the registers of the address.
                if roles[next].writes(lead.index) { break }
                if roles[next].writes(lead.base) {
                    if roles[next].moved != lead.base { break }
                    shift += roles[next].distance
                }
                roles[next].follow(&bounds)
                next += 1
                guard next < count, roles[next].isPlain, abs(shift) < Self.runByteLimit * 4 else { break }
                let role = roles[next]
                guard role.hasAccess else { continue }
                var reach = role.size
                if !role.isSameAddress(lead) {
                    guard lead.index < 0, role.base == lead.base, role.isUndisplaced, role.index >= 0 && role.index < 13,
                        bounds[role.index] >= 0
                    else { break }
                    reach += bounds[role.index] * Int(role.scale)
                }
                let low = min(run.low, role.displacement + shift)
                let high = max(run.low + run.byteCount, role.displacement + shift + reach)
                guard high - low <= Self.runByteLimit else { break }
                run.low = low
                run.byteCount = high - low
                run.writes = run.writes || role.writes
                run.last = next
            }
            // Where the flags are dead, a little earlier.
            var earlier = at
            while instructions[earlier].flagsLive != 0 && earlier > free && at - earlier < 4 {
                let role = roles[earlier - 1]
                guard role.isPlain && !role.hasAccess && !role.writes(lead.base) && !role.writes(lead.index) else { break }
                earlier -= 1
            }
            if instructions[earlier].flagsLive == 0 { run.first = earlier }
            at = run.last + 1
            if run.first == run.last { continue }
            runs[found] = run
            found += 1
            free = at
        }
        return found
    }

    private func role(
        _ instruction: Instruction, _ decoded: UnsafePointer<ZydisDecodedInstruction>,
        _ operands: UnsafePointer<ZydisDecodedOperand>
    ) -> RunRole {
        var role = RunRole()
        switch instruction.kind {
        case .nothing:
            role.isPlain = true
            return role
        case .generic, .lea, .push, .pop: break
        default: return role
        }
        var memory = -1
        var hasHighByte = false
        for index in 0..<Int(decoded.pointee.operand_count) {
            let operand = operands + index
            if operand.pointee.type == ZYDIS_OPERAND_TYPE_MEMORY {
                memory = index
                continue
            }
            guard operand.pointee.type == ZYDIS_OPERAND_TYPE_REGISTER else { continue }
            let number = Operand.general(operand.pointee.reg.value)
            if number < 0 { continue }
            let isHigh = Operand.isHighByte(operand.pointee.reg.value)
            if RegisterMap.isDisplaced(number) { role.isUndisplaced = false }
            if operand.pointee.actions & UInt8(truncatingIfNeeded: ZYDIS_OPERAND_ACTION_MASK_WRITE.rawValue) != 0 {
                role.written |= 1 << UInt32(isHigh ? number - 4 : number)
            }
            hasHighByte = hasHighByte || isHigh
        }
        // Beside AH...BH the address has to move to another register.
        if hasHighByte && memory >= 0 { return RunRole() }
        switch instruction.kind {
        case .push, .pop:
            guard decoded.pointee.operand_width == 64 else { return RunRole() }
            let isPush = instruction.kind == .push
            switch operands.pointee.type {
            case ZYDIS_OPERAND_TYPE_REGISTER:
                if !isPush && Operand.general(operands.pointee.reg.value) == 4 { return RunRole() }
            case ZYDIS_OPERAND_TYPE_IMMEDIATE: break
            default: return RunRole()
            }
            role.hasAccess = true
            role.base = 4
            role.displacement = isPush ? -8 : 0
            role.size = 8
            role.writes = isPush
            role.written |= 1 << 4
            role.moved = 4
            role.distance = isPush ? -8 : 8
        case .lea:
            let target = Operand.general(operands.pointee.reg.value)
            let address = operands[1].mem
            let base = Operand.general(address.base)
            // Other forms work in the address register.
            guard BlockBuilder.isDirect(operands), base < 13 else { return RunRole() }
            if operands.pointee.size == 64 && base == target && address.index == ZYDIS_REGISTER_NONE && !Operand.is32Bit(address.base) {
                setMove(&role, target, address.disp.has_displacement != 0 ? Int(address.disp.value) : 0)
            }
        default:
            if memory >= 0 { return withAccess(role, operands + memory, decoded) }
            noteBound(&role, decoded, operands)
            // ADD and SUB of a constant.
            if decoded.pointee.encoding == ZYDIS_INSTRUCTION_ENCODING_LEGACY && decoded.pointee.opcode_map == ZYDIS_OPCODE_MAP_DEFAULT,
                decoded.pointee.opcode == 0x83 || decoded.pointee.opcode == 0x81, operands.pointee.size == 64,
                operands[1].type == ZYDIS_OPERAND_TYPE_IMMEDIATE
            {
                let digit = decoded.pointee.raw.modrm.reg
                let value = Int(truncatingIfNeeded: operands[1].imm.value.s)
                if digit == 0 { setMove(&role, Operand.general(operands.pointee.reg.value), value) }
                if digit == 5 { setMove(&role, Operand.general(operands.pointee.reg.value), 0 &- value) }
            }
        }
        role.isPlain = true
        return role
    }

    /// A register made zero, the bits of one that a mask leaves, and what a SETcc makes of one that has no more than a byte.
    private func noteBound(
        _ role: inout RunRole, _ decoded: UnsafePointer<ZydisDecodedInstruction>, _ operands: UnsafePointer<ZydisDecodedOperand>
    ) {
        guard decoded.pointee.encoding == ZYDIS_INSTRUCTION_ENCODING_LEGACY, operands[0].type == ZYDIS_OPERAND_TYPE_REGISTER else { return }
        let register = Operand.general(operands[0].reg.value)
        guard register >= 0, !Operand.isHighByte(operands[0].reg.value) else { return }
        if decoded.pointee.meta.category == ZYDIS_CATEGORY_SETCC {
            (role.bounded, role.bound, role.keepsUpper) = (register, 1, true)
        } else if operands[0].size >= 32 {
            if decoded.pointee.mnemonic == ZYDIS_MNEMONIC_XOR, operands[1].type == ZYDIS_OPERAND_TYPE_REGISTER,
                operands[1].reg.value == operands[0].reg.value
            {
                (role.bounded, role.bound) = (register, 0)
            } else if decoded.pointee.mnemonic == ZYDIS_MNEMONIC_AND, operands[1].type == ZYDIS_OPERAND_TYPE_IMMEDIATE,
                operands[1].imm.value.u < 256
            {
                (role.bounded, role.bound) = (register, Int(operands[1].imm.value.u))
            }
        }
    }

    private func setMove(_ role: inout RunRole, _ register: Int, _ distance: Int) {
        guard abs(distance) < Self.runByteLimit * 4 else { return }
        role.moved = register
        role.distance = distance
    }

    /// The role of a copied instruction with a memory operand.
    private func withAccess(
        _ plain: RunRole, _ operand: UnsafePointer<ZydisDecodedOperand>, _ decoded: UnsafePointer<ZydisDecodedInstruction>
    ) -> RunRole {
        let memory = operand.pointee.mem
        let displacement = memory.disp.has_displacement != 0 ? Int(memory.disp.value) : 0
        let size = Int(operand.pointee.size) / 8
        guard memory.type == ZYDIS_MEMOP_TYPE_MEM, memory.segment != ZYDIS_REGISTER_FS && memory.segment != ZYDIS_REGISTER_GS,
            memory.base != ZYDIS_REGISTER_RIP && memory.base != ZYDIS_REGISTER_EIP,
            !Operand.is32Bit(memory.base), !Operand.is32Bit(memory.index), Operand.general(memory.base) >= 0,
            // The environment and state of the x87 are changed behind their store.
            size > 0, size <= 64, AccessMask(decoded, operand) == nil, decoded.pointee.meta.isa_ext != ZYDIS_ISA_EXT_X87 || size <= 8,
            abs(displacement) < 1 << 24
        else { return RunRole() }
        var role = plain
        role.isPlain = true
        role.hasAccess = true
        role.base = Operand.general(memory.base)
        role.index = Operand.general(memory.index)
        role.scale = memory.scale
        role.displacement = displacement
        role.size = size
        role.writes = operand.pointee.actions & UInt8(truncatingIfNeeded: ZYDIS_OPERAND_ACTION_MASK_WRITE.rawValue) != 0
        return role
    }
}

extension BlockBuilder {
    /// The check of a run, in front of its first instruction.
    mutating func beginRun(_ number: Int) {
        var run = work.runs[number]
        let lead = work.roles[run.operand]
        clobberFlags()
        var memory = ZydisDecodedOperandMem()
        if work.instructions[run.operand].kind == .generic {
            let operands = work.operands + run.operand * Decoder.operandLimit
            for index in 0..<Int(work.decoded[run.operand].operand_count)
            where operands[index].type == ZYDIS_OPERAND_TYPE_MEMORY && operands[index].mem.type == ZYDIS_MEMOP_TYPE_MEM {
                memory = operands[index].mem
            }
        } else {
            memory.base = ZYDIS_REGISTER_RSP
        }
        memory.disp.has_displacement = 1
        memory.disp.value = ZyanI64(run.low)
        emitAddress(memory, withSegment: false)
        // Only the stack's: one look-up for several accesses costs little.
        run.slot =
            lead.base == 4 && lead.index < 0
            ? TLBSlots.stack(table: mode.table, writes: run.writes, distance: run.low) : 0
        run.displacement =
            run.slot == 0
            ? code.checkTLB(table: mode.table, writes: run.writes, size: run.byteCount, hasBMI2: hasBMI2)
            : code.checkSlot(run.slot, size: run.byteCount, mayRetire: false, hasBMI2: hasBMI2)
        forgetKept()
        run.start = code.cursor
        run.stateAtStart = (flagsInHost, flagsSaved, vectorsReady, wideStateReady)
        isHeld = true
        runHasIndex = lead.index >= 0
        heldOffset = 0 - run.low
        work.runs[number] = run
    }

    /// Behind each instruction of a run: its base register may have moved.
    /// - Parameter liveBehind: the flags that are live behind the instruction.
    mutating func followRun(_ number: Int, instruction: Int, liveBehind: UInt32) {
        let role = work.roles[instruction]
        if role.moved >= 0 && role.moved == work.roles[work.runs[number].operand].base { heldOffset += role.distance }
        guard instruction == work.runs[number].last else { return }
        isHeld = false
        // The copy comes back here too.
        forgetKept()
        work.runs[number].end = code.cursor
        work.runs[number].stateAtEnd = (flagsInHost, flagsSaved)
        work.runs[number].liveAtEnd = liveBehind
    }

    /// Begins the copy of a run whose check failed: the caller emits its instructions again, then calls `endRunCopy`.
    mutating func beginRunCopy(_ number: Int) {
        let run = work.runs[number]
        guard let displacement = run.displacement, let start = run.start else { return }
        code.bind(displacement)
        forgetKept()
        if run.slot != 0 { refillSlot(run.slot, size: run.byteCount, writes: run.writes, to: start) }
        (flagsInHost, flagsSaved, vectorsReady, wideStateReady) = run.stateAtStart
    }

    /// Goes back into the block, with the flags where it expects them.
    mutating func endRunCopy(_ number: Int) {
        let run = work.runs[number]
        guard let end = run.end else { return }
        if run.liveAtEnd != 0 {
            live = run.liveAtEnd
            if run.stateAtEnd.flagsSaved { putFlagsAway() }
            if run.stateAtEnd.flagsInHost { needFlags() }
        }
        code.jumpTo(end)
    }
}
