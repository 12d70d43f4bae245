import CZydis
import VMM

@testable import TranslatorEngine

/// One instruction: its kind, its registers, its memory operands, and the state behind it.
extension EmittedCodeVerifier {
    static let extensions: Set<UInt32> = Set(
        [
            ZYDIS_ISA_EXT_BASE, ZYDIS_ISA_EXT_LONGMODE, ZYDIS_ISA_EXT_X87, ZYDIS_ISA_EXT_MMX, ZYDIS_ISA_EXT_SSE,
            ZYDIS_ISA_EXT_SSE2, ZYDIS_ISA_EXT_SSE3, ZYDIS_ISA_EXT_SSSE3, ZYDIS_ISA_EXT_SSE4, ZYDIS_ISA_EXT_AES,
            ZYDIS_ISA_EXT_PCLMULQDQ, ZYDIS_ISA_EXT_AVX, ZYDIS_ISA_EXT_AVX2, ZYDIS_ISA_EXT_AVXAES, ZYDIS_ISA_EXT_F16C,
            ZYDIS_ISA_EXT_FMA, ZYDIS_ISA_EXT_BMI1, ZYDIS_ISA_EXT_BMI2, ZYDIS_ISA_EXT_LZCNT, ZYDIS_ISA_EXT_MOVBE,
            ZYDIS_ISA_EXT_ADOX_ADCX, ZYDIS_ISA_EXT_SHA, ZYDIS_ISA_EXT_PAUSE, ZYDIS_ISA_EXT_RDRAND, ZYDIS_ISA_EXT_RDSEED,
            ZYDIS_ISA_EXT_VAES, ZYDIS_ISA_EXT_VPCLMULQDQ, ZYDIS_ISA_EXT_GFNI, ZYDIS_ISA_EXT_AMD3DNOW_PREFETCH,
            ZYDIS_ISA_EXT_AVX512EVEX, ZYDIS_ISA_EXT_AVX512VEX,
        ].map(\.rawValue))

    /// Kinds that never stand in a block, whatever their operands are.
    static let categories: Set<UInt32> = Set(
        [
            ZYDIS_CATEGORY_RET, ZYDIS_CATEGORY_SYSCALL, ZYDIS_CATEGORY_SYSRET, ZYDIS_CATEGORY_SYSTEM, ZYDIS_CATEGORY_INTERRUPT,
            ZYDIS_CATEGORY_IO, ZYDIS_CATEGORY_IOSTRINGOP, ZYDIS_CATEGORY_STRINGOP, ZYDIS_CATEGORY_XSAVE,
            ZYDIS_CATEGORY_XSAVEOPT, ZYDIS_CATEGORY_RDWRFSGS, ZYDIS_CATEGORY_SEGOP, ZYDIS_CATEGORY_PUSH, ZYDIS_CATEGORY_POP,
            ZYDIS_CATEGORY_GATHER, ZYDIS_CATEGORY_SCATTER, ZYDIS_CATEGORY_CLDEMOTE, ZYDIS_CATEGORY_UINTR,
        ].map(\.rawValue))

    func verifyKind() throws {
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

    func number(_ register: ZydisRegister) -> Int {
        let wide = ZydisRegisterGetLargestEnclosing(ZYDIS_MACHINE_MODE_LONG_64, register)
        let value = Int(wide.rawValue) - Int(ZYDIS_REGISTER_RAX.rawValue)
        return value >= 0 && value < 16 ? value : -1
    }

    func isWritten(_ operand: ZydisDecodedOperand) -> Bool {
        operand.actions & UInt8(truncatingIfNeeded: ZYDIS_OPERAND_ACTION_MASK_WRITE.rawValue) != 0
    }
    func isRead(_ operand: ZydisDecodedOperand) -> Bool {
        operand.actions & UInt8(truncatingIfNeeded: ZYDIS_OPERAND_ACTION_MASK_READ.rawValue) != 0
    }

    /// MOV of the address register to one that has no REX bit: the form of high-byte operands.
    var isStandIn: Bool {
        instruction.pointee.mnemonic == ZYDIS_MNEMONIC_MOV && operands[0].type == ZYDIS_OPERAND_TYPE_REGISTER
            && operands[1].type == ZYDIS_OPERAND_TYPE_REGISTER && operands[1].reg.value == ZYDIS_REGISTER_R14
            && (operands[0].reg.value == ZYDIS_REGISTER_RDI || operands[0].reg.value == ZYDIS_REGISTER_RSI)
    }

    func verifyRegisters(_ values: [Value]) throws {
        for index in 0..<Int(instruction.pointee.operand_count) where operands[index].type == ZYDIS_OPERAND_TYPE_REGISTER {
            let register = operands[index].reg.value
            switch ZydisRegisterGetClass(register) {
            case ZYDIS_REGCLASS_SEGMENT, ZYDIS_REGCLASS_CONTROL, ZYDIS_REGCLASS_DEBUG, ZYDIS_REGCLASS_TABLE, ZYDIS_REGCLASS_TEST,
                ZYDIS_REGCLASS_BOUND, ZYDIS_REGCLASS_TMM:
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
    static let writable: [Range<Int>] = [
        0..<128, ContextOffset.rip..<ContextOffset.rip + 8, ContextOffset.ripPage..<ContextOffset.ripPage + 8, ContextOffset.lahf..<ContextOffset.lahf + 8,
        ContextOffset.gsBase..<ContextOffset.gsBase + 8, ContextOffset.kernelGSBase..<ContextOffset.kernelGSBase + 8,
        ContextOffset.fsBase..<ContextOffset.fsBase + 8, ContextOffset.mode..<ContextOffset.mode + 4,
        ContextOffset.codeSegment..<ContextOffset.codeSegment + MemoryLayout<SegmentRegister>.size,
        ContextOffset.stackSegment..<ContextOffset.stackSegment + MemoryLayout<SegmentRegister>.size,
        ContextOffset.branch..<ContextOffset.branch + 4, ContextOffset.temporary..<ContextOffset.temporary + 48, ContextOffset.systemFlags..<ContextOffset.systemFlags + 8,
    ]

    func verifyMemory(_ block: Block, _ values: [Value]) throws {
        if instruction.pointee.mnemonic == ZYDIS_MNEMONIC_NOP { return }
        for index in 0..<Int(instruction.pointee.operand_count) where operands[index].type == ZYDIS_OPERAND_TYPE_MEMORY {
            let operand = operands[index]
            let memory = operand.mem
            let base = number(memory.base), other = number(memory.index)
            if memory.type == ZYDIS_MEMOP_TYPE_AGEN {
                if indexedHost(values) != nil { continue }
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

    /// `lea r13, [r14 + index * scale]` with a host address and an index that is known to be small: the host address of
    /// what is left of the checked bytes in any case.
    private func indexedHost(_ values: [Value]) -> Value? {
        let memory = operands[1].mem
        guard instruction.pointee.mnemonic == ZYDIS_MNEMONIC_LEA, operands[0].reg.value == ZYDIS_REGISTER_R13,
            memory.base == ZYDIS_REGISTER_R14, case .host(let size, let write) = values[14], memory.disp.value == 0,
            memory.index.rawValue >= ZYDIS_REGISTER_RAX.rawValue && memory.index.rawValue <= ZYDIS_REGISTER_R12.rawValue,
            case .bounded(let bound) = values[number(memory.index)], size > bound * Int(memory.scale)
        else { return nil }
        return .host(size: size - bound * Int(memory.scale), write: write)
    }

    /// A register behind an instruction that leaves a small number in it.
    private func bounded(_ values: [Value]) -> (register: Int, value: Value)? {
        guard operands[0].type == ZYDIS_OPERAND_TYPE_REGISTER else { return nil }
        let register = operands[0].reg.value
        let number = number(register)
        // AH...BH are no low bytes.
        guard number >= 0 && number < 13, register.rawValue < ZYDIS_REGISTER_AH.rawValue || register.rawValue > ZYDIS_REGISTER_BH.rawValue
        else { return nil }
        if instruction.pointee.meta.category == ZYDIS_CATEGORY_SETCC {
            if case .bounded(0...255) = values[number] { return (number, .bounded(1)) }
            return nil
        }
        guard operands[0].size >= 32 else { return nil }
        switch instruction.pointee.mnemonic {
        case ZYDIS_MNEMONIC_XOR where operands[1].type == ZYDIS_OPERAND_TYPE_REGISTER && operands[1].reg.value == register:
            return (number, .bounded(0))
        case ZYDIS_MNEMONIC_AND where operands[1].type == ZYDIS_OPERAND_TYPE_IMMEDIATE && operands[1].imm.value.u < 256:
            return (number, .bounded(Int(operands[1].imm.value.u)))
        default: return nil
        }
    }

    /// The state behind an instruction that has passed.
    func follow(_ block: Block, _ values: inout [Value]) throws {
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
        let indexed = indexedHost(values), bounded = bounded(values)
        for index in 0..<Int(instruction.pointee.operand_count)
        where operands[index].type == ZYDIS_OPERAND_TYPE_REGISTER && isWritten(operands[index]) {
            let number = number(operands[index].reg.value)
            if number >= 0 { values[number] = .unknown }
        }
        if let indexed { values[13] = indexed }
        if let bounded { values[bounded.register] = bounded.value }
    }
}
