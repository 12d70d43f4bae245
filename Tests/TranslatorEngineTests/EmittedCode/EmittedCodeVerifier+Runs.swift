import CZydis
import VMM

@testable import TranslatorEngine

/// Runs of string instructions, and changes of the mode.
extension EmittedCodeVerifier {
    /// REP MOVS and REP STOS on host addresses that were checked for all of their elements.
    func verifyRun(_ values: [Value]) throws -> Bool {
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
    func followRun(_ block: Block, _ values: inout [Value]) throws {
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

    func isTemporary(_ operand: ZydisDecodedOperand) -> Bool {
        operand.mem.segment == ZYDIS_REGISTER_GS && operand.mem.base == ZYDIS_REGISTER_NONE && operand.mem.index == ZYDIS_REGISTER_NONE
            && Int(operand.mem.disp.value) == ContextOffset.temporary
    }
    /// The one place a host address may be kept in for a moment, and the one that may be taken from another.
    func keepsRun(_ values: [Value]) -> Bool {
        let second = operands[1]
        guard second.type == ZYDIS_OPERAND_TYPE_REGISTER, second.reg.value == ZYDIS_REGISTER_R14, case .run = values[14] else { return false }
        switch instruction.pointee.mnemonic {
        case ZYDIS_MNEMONIC_MOV: return operands[0].type == ZYDIS_OPERAND_TYPE_MEMORY ? isTemporary(operands[0]) : isStandIn
        case ZYDIS_MNEMONIC_SUB: return operands[0].type == ZYDIS_OPERAND_TYPE_REGISTER && operands[0].reg.value == ZYDIS_REGISTER_RDI
        default: return false
        }
    }

    func contextField(_ operand: ZydisDecodedOperand) -> Int? {
        operand.type == ZYDIS_OPERAND_TYPE_MEMORY && operand.mem.segment == ZYDIS_REGISTER_GS
            && operand.mem.base == ZYDIS_REGISTER_NONE && operand.mem.index == ZYDIS_REGISTER_NONE ? Int(operand.mem.disp.value) : nil
    }

    /// The mode is set to one whose jump cache was made for it, and to no other.
    func verifyTransfer() throws {
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
    func followTransfer(_ target: Int) {
        if let compared = transfer.compared {
            if instruction.pointee.mnemonic == ZYDIS_MNEMONIC_JZ { transfer.atLabel[target] = compared }
            if instruction.pointee.mnemonic == ZYDIS_MNEMONIC_JNZ { transfer.checked = compared }
            transfer.compared = nil
        }
    }

    func isEntry(_ target: Int, of block: Block) -> Bool { target == Int(block.entry) || target == Int(block.savedEntry) }

    /// Where a relative branch leads, `nil` for anything else.
}
