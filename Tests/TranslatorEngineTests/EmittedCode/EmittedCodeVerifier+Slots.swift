import CZydis
import VMM

@testable import TranslatorEngine

/// Checks that a slot answers, and what holds where two ways meet.
extension EmittedCodeVerifier {
    func isDifference(_ value: Value) -> Bool {
        switch value {
        case .difference, .slotDifference: true
        default: false
        }
    }

    /// What holds on both ways to a label.
    static func merge(_ left: [Value], _ right: [Value]) -> [Value] {
        zip(left, right).map { $0 == $1 ? $0 : $0.isHost || $1.isHost ? .stale : .unknown }
    }

    /// Whether a slot is one of the block's table's, and for writes.
    func slotWrites(_ slot: Int, _ block: Block) throws -> Bool {
        let first = ContextOffset.slots + block.mode.table * TLBSlots.countPerTable * TLBSlots.size
        let number = (slot - first) / TLBSlots.size
        guard slot >= first, number < TLBSlots.countPerTable, (slot - first) % TLBSlots.size == 0 else {
            throw Violation("slot of another table")
        }
        if number < 2 * TLBSlots.stackCount { return number >= TLBSlots.stackCount }
        return number - 2 * TLBSlots.stackCount >= TLBSlots.loopCount
    }

    /// The sequence for a slot that missed: its place into the scratch register, a call, a jump behind the check.
    func refill(at position: Int, _ block: Block) throws -> (slot: Int, write: Bool, size: Int, operation: Int, next: Int)? {
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
    func usesHost(_ values: [Value]) -> Bool {
        for index in 0..<Int(instruction.pointee.operand_count) where operands[index].type == ZYDIS_OPERAND_TYPE_MEMORY {
            let base = number(operands[index].mem.base)
            if base >= 0, case .host = values[base] { return true }
        }
        // Not the address of a string run, which no check belongs to.
        if isStandIn, case .host = values[14] { return true }
        return false
    }
}
