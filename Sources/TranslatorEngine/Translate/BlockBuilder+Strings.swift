import VMM

/// String instructions that are not repeated: the access as any other instruction makes it, in any mode and through any
/// segment, then the pointers moved by RFLAGS.DF.
extension BlockBuilder {
    static func isSingleString(_ instruction: SystemInstruction) -> Bool {
        instruction.kind.isStringOperation && !instruction.isRepeated
    }
    /// CMPS and SCAS make all arithmetic flags, the others none.
    static func writesFlags(_ instruction: SystemInstruction) -> Bool {
        instruction.kind == .cmps || instruction.kind == .scas
    }

    /// Emits one that `isSingleString` accepted. Nothing is changed before the last access has been checked; CMPS and SCAS
    /// leave their flags in the host's.
    mutating func singleString(_ instruction: SystemInstruction) {
        let size = Int(instruction.operandSize)
        switch instruction.kind {
        case .lods:
            beginString(HostRegister.rsi, instruction, instruction.segment, Access.read)
            moveAccumulator(isStore: false, size: size)
            endAccess()
            step(instruction)
        case .stos:
            beginString(HostRegister.rdi, instruction, SegmentNumber.es, Access.write)
            moveAccumulator(isStore: true, size: size)
            endAccess()
            step(instruction)
        case .movs:
            loadElement(instruction)
            beginString(HostRegister.rdi, instruction, SegmentNumber.es, Access.write)
            code.loadContext(scratch, ContextOffset.temporary)
            storeToAddress(scratch, size: size)
            endAccess()
            step(instruction)
        case .cmps:
            loadElement(instruction)
            loadOther(instruction)
            step(instruction)
            code.loadContext(scratch, ContextOffset.temporary)
            compare(scratch, address, size: size)
        default:
            loadOther(instruction)
            step(instruction)
            compare(HostRegister.rax, address, size: size)
        }
    }

    /// The element at the source, into the first temporary.
    private mutating func loadElement(_ instruction: SystemInstruction) {
        beginString(HostRegister.rsi, instruction, instruction.segment, Access.read)
        loadFromAddress(scratch, size: Int(instruction.operandSize))
        endAccess()
        code.storeContext(ContextOffset.temporary, scratch)
    }
    /// The element at the destination, into the address register.
    private mutating func loadOther(_ instruction: SystemInstruction) {
        beginString(HostRegister.rdi, instruction, SegmentNumber.es, Access.read)
        loadFromAddress(address, size: Int(instruction.operandSize))
        endAccess()
    }

    /// Checks an access to the element that `pointer` names.
    private mutating func beginString(_ pointer: Int, _ instruction: SystemInstruction, _ segment: UInt8, _ access: UInt8) {
        clobberFlags()
        switch instruction.addressSize {
        case 8: code.move(address, pointer)
        case 4: code.move32(address, pointer)
        default: code.zeroExtend16(address, from: pointer)
        }
        if !is64Bit {
            chooseSegment(number: Int(segment))
        } else if segment == SegmentNumber.fs || segment == SegmentNumber.gs {
            code.arithmeticContext(.add, address, segment == SegmentNumber.fs ? ContextOffset.fsBase : ContextOffset.gsBase)
        }
        beginAccess(size: Int(instruction.operandSize), access: access | (segment == SegmentNumber.ss ? Access.stack : 0))
    }

    /// Moves the pointers past the element. Clobbers flags and the scratch register.
    private mutating func step(_ instruction: SystemInstruction) {
        let size = Int32(instruction.operandSize)
        // Twice the size to take off if DF is set, else 0.
        code.loadContext(scratch, ContextOffset.systemFlags)
        code.arithmetic(.and, scratch, immediate: Int32(RFLAGS.df), wide: false)
        code.shiftRight(scratch, UInt8(RFLAGS.df.trailingZeroBitCount - (2 * size).trailingZeroBitCount))
        code.negate(scratch)
        if instruction.kind != .stos && instruction.kind != .scas { move(HostRegister.rsi, instruction) }
        if instruction.kind != .lods { move(HostRegister.rdi, instruction) }
    }
    private mutating func move(_ pointer: Int, _ instruction: SystemInstruction) {
        // One of 16 bits leaves the register's upper part alone.
        if instruction.addressSize == 2 { code.byte(0x66) }
        code.lea(
            pointer, base: pointer, index: scratch, scale: 0, Int32(instruction.operandSize), wide: instruction.addressSize == 8)
    }

    /// The flags of `left - right`, of the registers' lowest `size` bytes.
    private mutating func compare(_ left: Int, _ right: Int, size: Int) {
        if size == 2 { code.byte(0x66) }
        code.rex(w: size == 8, reg: right, base: left)
        code.byte(size == 1 ? 0x38 : 0x39)
        code.modRM(3, right, left)
    }
}

/// REP MOVS and REP STOS whose bytes lie in one page each way: the host's own instruction on host addresses.
///
/// Starting a run in the system half costs more than a short run itself, and short runs are what compilers and kernels
/// make most of. All others (longer ones, downward, pages that miss the TLB) go on to the system half, as any other
/// string instruction does.
extension BlockBuilder {
    static func hasInlineRun(_ instruction: SystemInstruction, _ mode: BlockMode) -> Bool {
        guard instruction.kind == .movs || instruction.kind == .stos, instruction.addressSize == 8,
            instruction.options.contains(.rep), mode.codeSize == 0, !mode.has(BlockMode.alignmentCheck)
        else { return false }
        return instruction.kind == .stos || (instruction.segment != SegmentNumber.fs && instruction.segment != SegmentNumber.gs)
    }

    /// Emits the run. The flags are put away already.
    /// - Returns: the displacements of the jumps to the system half, and of the one past it.
    mutating func inlineRun(_ instruction: SystemInstruction) -> (misses: [5 of UnsafeMutablePointer<UInt8>?], done: UnsafeMutablePointer<UInt8>) {
        let size = instruction.operandSize
        let shift: UInt8 = size == 8 ? 3 : size == 4 ? 2 : size == 2 ? 1 : 0
        var misses: [5 of UnsafeMutablePointer<UInt8>?] = .init(repeating: nil)
        code.testContext32(ContextOffset.systemFlags, immediate: Int32(RFLAGS.df))
        misses[0] = code.jump(if: Condition.notEqual)
        if instruction.kind == .movs {
            (misses[1], misses[2]) = hostRun(HostRegister.rsi, shift, writes: false)
            code.storeContext(ContextOffset.temporary, address)
        }
        (misses[3], misses[4]) = hostRun(HostRegister.rdi, shift, writes: true)
        // Behind the host's instruction rdi tells how many bytes it were.
        if instruction.kind == .movs {
            code.storeContext(ContextOffset.temporary + 8, HostRegister.rsi)
            code.loadContext(HostRegister.rsi, ContextOffset.temporary)
        }
        code.move(scratch, HostRegister.rdi)
        code.move(HostRegister.rdi, address)
        code.byte(0xF3)
        if size == 2 { code.byte(0x66) }
        if size == 8 { code.byte(0x48) }
        code.byte((instruction.kind == .movs ? 0xA4 : 0xAA) | (size == 1 ? 0 : 1))
        code.arithmetic(.sub, HostRegister.rdi, address)
        if instruction.kind == .movs {
            code.move(HostRegister.rsi, HostRegister.rdi)
            code.arithmeticContext(.add, HostRegister.rsi, ContextOffset.temporary + 8)
        }
        code.arithmetic(.add, HostRegister.rdi, scratch)
        return (misses, code.jump())
    }

    /// The host address for rcx elements from the guest address in `pointer` on, into the address register.
    /// Clobbers the scratch register.
    /// - Returns: jumps taken when the page is not in the TLB, and when the run goes beyond it.
    private mutating func hostRun(
        _ pointer: Int, _ shift: UInt8, writes: Bool
    ) -> (UnsafeMutablePointer<UInt8>, UnsafeMutablePointer<UInt8>) {
        code.move(address, pointer)
        code.move(scratch, pointer)
        code.shiftRight(scratch, TLB.shift)
        code.arithmetic(.and, scratch, immediate: TLB.mask, wide: false)
        code.arithmeticContext(.sub, address, base: scratch, tlb + (writes ? TLB.writeTag : TLB.readTag))
        code.arithmetic(.cmp, address, immediate: 4095)
        let miss = code.jump(if: Condition.above)
        // Elements that have room in the page.
        code.negate(address)
        code.arithmetic(.add, address, immediate: 4096)
        if shift != 0 { code.shiftRight(address, shift) }
        code.arithmetic(.cmp, HostRegister.rcx, address)
        let beyond = code.jump(if: Condition.above)
        code.move32(address, pointer)
        code.arithmetic(.and, address, immediate: 4095, wide: false)
        code.arithmeticContext(.add, address, base: scratch, tlb + TLB.host)
        return (miss, beyond)
    }
}

extension Emitter {
    mutating func negate(_ register: Int) {
        rex(w: true, reg: 0, base: register)
        byte(0xF7)
        modRM(3, 3, register)
    }
}
