import CZydis

/// Segments outside of 64-bit code: what accesses and branches are checked against, and 16-bit stacks.
///
/// In flat 32-bit code only fs, gs and cs overrides come here; under `BlockMode.segmented` everything does.
extension BlockBuilder {
    var isSegmented: Bool { mode.has(BlockMode.segmented) }

    // MARK: Data

    /// The next access goes through a segment.
    mutating func chooseSegment(_ register: ZydisRegister) {
        let number: Int
        switch register {
        case ZYDIS_REGISTER_ES: number = 0
        case ZYDIS_REGISTER_CS: number = 1
        case ZYDIS_REGISTER_SS: number = 2
        case ZYDIS_REGISTER_FS: number = 4
        case ZYDIS_REGISTER_GS: number = 5
        default: number = 3
        }
        chooseSegment(number: number)
    }
    @inline(__always) mutating func chooseSegment(number: Int) {
        if isSegmented || number == 1 || number >= 4 { pendingSegment = number }
    }
    /// The next access is the stack's.
    @inline(__always) mutating func chooseStack() {
        if isSegmented { pendingSegment = 2 }
    }

    /// Checks the effective address in the address register against the pending segment and makes it a linear one.
    /// Clobbers flags and the scratch register.
    mutating func checkSegment(size: Int, writes: Bool) {
        let view = ContextOffset.segments + pendingSegment * SegmentView.size
        let high = view + (writes ? ContextOffset.viewWriteHigh : ContextOffset.viewReadHigh)
        let vector: UInt8 = pendingSegment == 2 ? 12 : 13
        if size > 1 {
            code.lea(scratch, base: address, Int32(size - 1))
            code.arithmeticContext(.cmp, scratch, high)
        } else {
            code.arithmeticContext(.cmp, address, high)
        }
        addSegmentFault(code.jump(if: Condition.greater), vector)
        if mode.has(BlockMode.expandDown) {
            code.arithmeticContext(.cmp, address, view + ContextOffset.viewLow)
            addSegmentFault(code.jump(if: Condition.less), vector)
        }
        code.arithmeticContext32(.add, address, view + ContextOffset.viewBase)
        pendingSegment = -1
    }

    private mutating func addSegmentFault(
        _ displacement: UnsafeMutablePointer<UInt8>, _ vector: UInt8, countWidth: Int = 0
    ) {
        work.segmentFaults[segmentFaultCount] = SegmentFault(
            displacement: displacement, vector: vector, guest: here, countWidth: countWidth)
        segmentFaultCount += 1
    }

    /// The ways out for what was forbidden. All have the flags in the context.
    mutating func emitSegmentFaults() {
        for index in 0..<segmentFaultCount {
            let fault = work.segmentFaults[index]
            code.bind(fault.displacement)
            switch fault.countWidth {
            case 16: code.lea16(HostRegister.rcx, base: HostRegister.rcx, 1)
            case 32: code.lea(HostRegister.rcx, base: HostRegister.rcx, 1, wide: false)
            default: break
            }
            code.call(to: origin + thunks.pointee.exitSaved)
            code.exitDescriptor(
                .exception, flagsInHost: false, vector: fault.vector, value: Int32(truncatingIfNeeded: fault.guest))
        }
    }

    // MARK: Stack

    /// A 16-bit stack pointer: the address wraps at 64 KB, the register's upper part stays.
    mutating func moveSmallStack(_ destination: Int, from source: Int, _ distance: Int) {
        if destination == RegisterMap.guestStack {
            code.lea16(destination, base: source, Int32(truncatingIfNeeded: distance))
        } else {
            code.lea(destination, base: source, Int32(truncatingIfNeeded: distance), wide: false)
            code.zeroExtend16(destination)
        }
    }
    /// LEAVE: from the frame pointer, with the width of the stack.
    mutating func moveFrame(_ destination: Int, _ distance: Int) {
        if mode.has(BlockMode.smallStack) { return moveSmallStack(destination, from: HostRegister.rbp, distance) }
        code.lea(destination, base: HostRegister.rbp, Int32(truncatingIfNeeded: distance), wide: false)
    }

    // MARK: Copies

    /// Whether the operand-size prefix changes the instruction's operands, rather than being part of its opcode or
    /// nothing.
    func takesOperandSize(_ instruction: UnsafePointer<ZydisDecodedInstruction>) -> Bool {
        let opcode = instruction.pointee.opcode
        switch instruction.pointee.opcode_map {
        case ZYDIS_OPCODE_MAP_DEFAULT: return true
        case ZYDIS_OPCODE_MAP_0F:
            switch opcode {
            case 0x40...0x4F, 0xA3...0xA5, 0xAB...0xAD, 0xAF, 0xB1, 0xB3, 0xB6...0xB8, 0xBA...0xBF, 0xC1, 0xC8...0xCF: return true
            // RDRAND and RDSEED
            case 0xC7: return instruction.pointee.raw.modrm.mod == 3
            default: return false
            }
        // MOVBE and CRC32
        case ZYDIS_OPCODE_MAP_0F38: return opcode == 0xF0 || opcode == 0xF1
        default: return false
        }
    }

    // MARK: Branches

    /// Whether an instruction is a near branch for `branch` to make: its target is checked or cut to 16 bits, or CX
    /// counts.
    @inline(__always)
    static func needsBranchCheck(
        _ kind: InstructionKind, _ instruction: UnsafePointer<ZydisDecodedInstruction>, _ mode: BlockMode
    ) -> Bool {
        guard mode.codeSize != 0 else { return false }
        switch kind {
        case .call, .jump, .callIndirect, .jumpIndirect, .ret, .conditional:
            return mode.has(BlockMode.segmented) || instruction.pointee.operand_width == 16
        case .counted:
            return mode.has(BlockMode.segmented) || instruction.pointee.operand_width == 16
                || instruction.pointee.address_width == 16
        default: return false
        }
    }
    /// Whether a direct target is where the page offset says: not if its upper half may be cut, or if it may lie
    /// outside of the segment.
    static func isPlainTarget(_ mode: BlockMode, operandWidth: UInt8) -> Bool {
        mode.codeSize == 0 || !mode.has(BlockMode.partialPage) && (operandWidth != 16 || mode.codeSize == 2)
    }

    /// A near branch with a target that may be cut or forbidden; `kind` is that of a branch.
    mutating func branch(
        _ kind: InstructionKind, _ instruction: UnsafePointer<ZydisDecodedInstruction>,
        _ operands: UnsafePointer<ZydisDecodedOperand>, taken: Int, fallThrough: Int, liveTaken: UInt32, liveFallThrough: UInt32
    ) {
        switch kind {
        case .call:
            if canChain(taken) {
                pushReturnAddress()
                live = liveTaken
                directExit(to: taken, isBackward: taken <= here)
                return
            }
            clobberFlags()
            loadTarget(taken)
            checkTarget()
            pushReturnAddress()
            loadTarget(taken)
            lookUp(isCall: false)
        case .jump:
            live = liveTaken
            exit(to: taken)
        case .callIndirect, .jumpIndirect:
            loadTarget(operands)
            clobberFlags()
            checkTarget()
            if kind == .callIndirect {
                code.storeContext(ContextOffset.temporary, address)
                pushReturnAddress()
                code.loadContext(address, ContextOffset.temporary)
            }
            lookUp(isCall: false)
        case .ret:
            let extra = operands.pointee.type == ZYDIS_OPERAND_TYPE_IMMEDIATE ? Int(operands.pointee.imm.value.u & 0xFFFF) : 0
            clobberFlags()
            moveStack(address, 0)
            chooseStack()
            beginAccess(size: pointerSize, access: Access.read | Access.stack)
            loadFromAddress(address, size: pointerSize)
            endAccess()
            checkTarget()
            moveStack(RegisterMap.guestStack, pointerSize + extra)
            lookUp(isCall: false)
        case .conditional:
            needFlags()
            let toTaken = code.jump(if: instruction.pointee.opcode & 15)
            let state = (flagsInHost, flagsSaved)
            live = liveFallThrough
            directExit(to: fallThrough, isBackward: false)
            code.bind(toTaken)
            (flagsInHost, flagsSaved) = state
            live = liveTaken
            exit(to: taken)
        case .counted:
            counted(
                opcode: instruction.pointee.opcode, taken: taken, fallThrough: fallThrough, liveTaken: liveTaken,
                liveFallThrough: liveFallThrough)
        default: break
        }
    }

    private func canChain(_ target: Int) -> Bool {
        !isIsolated && target >= 0 && target < 4096 && Self.isPlainTarget(mode, operandWidth: operandWidth)
    }

    /// A direct target's instruction pointer into the address register. Needs no flags.
    private mutating func loadTarget(_ target: Int) {
        loadCodeAddress(address, target)
        if operandWidth == 16 { code.zeroExtend16(address) }
    }
    /// Cuts the target in the address register to the operand size.
    mutating func cutTarget() {
        if operandWidth == 16 { code.zeroExtend16(address) } else { code.move32(address, address) }
    }
    /// #GP when the target in the address register is beyond the limit of CS (SDM Vol. 2, JMP). Clobbers flags.
    private mutating func checkTarget(countWidth: Int = 0) {
        guard isSegmented else { return }
        code.arithmeticContext(.cmp, address, ContextOffset.csLimit)
        addSegmentFault(code.jump(if: Condition.above), 13, countWidth: countWidth)
    }

    /// Goes on at a direct target.
    private mutating func exit(to target: Int, countWidth: Int = 0) {
        if canChain(target) { return directExit(to: target, isBackward: target <= here) }
        putFlagsAway()
        flagsInHost = false
        loadTarget(target)
        checkTarget(countWidth: countWidth)
        lookUp(isCall: false)
    }

    /// LOOP, LOOPE, LOOPNE, JCXZ, JECXZ. The host has no form that counts in CX: ECX stands in for it.
    private mutating func counted(
        opcode: UInt8, taken: Int, fallThrough: Int, liveTaken: UInt32, liveFallThrough: UInt32
    ) {
        let rcx = HostRegister.rcx
        let isNarrow = addressWidth == 16
        if opcode <= 0xE1 { needFlags() }
        if isNarrow {
            if opcode != 0xE3 { code.lea16(rcx, base: rcx, -1) }
            code.move(scratch, rcx)
            code.zeroExtend16(rcx)
        } else if opcode != 0xE3 {
            code.lea(rcx, base: rcx, -1, wide: false)
        }
        code.byte(0x67)  // jecxz, over the jump
        code.byte(0xE3)
        code.byte(5)
        let toNotZero = code.jump()
        if isNarrow { code.move(rcx, scratch) }
        let countWidth = opcode == 0xE3 ? 0 : Int(addressWidth)
        let state = (flagsInHost, flagsSaved)
        if opcode == 0xE3 {
            live = liveTaken
            exit(to: taken)
        } else {
            live = liveFallThrough
            directExit(to: fallThrough, isBackward: false)
        }
        code.bind(toNotZero)
        if isNarrow { code.move(rcx, scratch) }
        (flagsInHost, flagsSaved) = state
        guard opcode != 0xE3 else {
            live = liveFallThrough
            directExit(to: fallThrough, isBackward: false)
            return
        }
        if opcode <= 0xE1 {
            // LOOPNE goes on while ZF is clear, LOOPE while it is set.
            let toTaken = code.jump(if: opcode == 0xE0 ? Condition.notEqual : Condition.equal)
            live = liveFallThrough
            directExit(to: fallThrough, isBackward: false)
            code.bind(toTaken)
            (flagsInHost, flagsSaved) = state
        }
        live = liveTaken
        exit(to: taken, countWidth: countWidth)
    }

    /// Goes on at the instruction pointer in the address register, through the jump cache, which knows linear
    /// addresses. An entry holds under any CS whose base leads to it and in which its whole page lies. Flags are put
    /// away already.
    mutating func lookUpSegmented() {
        code.storeContext(ContextOffset.rip, address)
        if isIsolated || mode.has(BlockMode.partialPage) {
            exit(.indirect, value: 0)
            return
        }
        let cache = ContextOffset.jumpCache + mode.table * JumpCache.entryCount * JumpCache.entrySize
        code.arithmeticContext32(.add, address, ContextOffset.csBase)
        code.move(scratch, address)
        code.shiftRight(scratch, 12)
        code.arithmetic(.xor, scratch, address)
        code.arithmeticContext(.and, scratch, ContextOffset.jumpMask)
        code.compareContext(address, index: scratch, cache)
        let unknown = code.jump(if: Condition.notEqual)
        code.arithmetic(.and, address, immediate: -4096)
        code.arithmeticContext32(.sub, address, ContextOffset.csBase)
        code.arithmeticContext(.cmp, address, ContextOffset.csPageLimit)
        let partial = code.jump(if: Condition.greater)
        code.storeContext(ContextOffset.ripPage, address)
        code.jumpContext(index: scratch, cache + 8, isCall: false)
        code.bind(unknown)
        code.bind(partial)
        exit(.indirect, value: 0)
    }
}

extension Condition {
    package static let less: UInt8 = 0xC, greater: UInt8 = 0xF
}

extension Emitter {
    /// `op destination32, gs:[offset]`.
    mutating func arithmeticContext32(_ operation: Arithmetic, _ destination: Int, _ offset: Int) {
        byte(0x65)
        rex(w: false, reg: destination, base: 0)
        byte(operation.rawValue << 3 | 3)
        absolute(destination, Int32(truncatingIfNeeded: offset))
    }
    /// `lea destination16, [base + displacement]`: the register's upper part stays.
    mutating func lea16(_ destination: Int, base: Int, _ displacement: Int32) {
        byte(0x66)
        lea(destination, base: base, displacement, wide: false)
    }
}
