import CZydis
import VMM

@testable import TranslatorEngine

/// Ways out of a block: thunks, sites, slow paths, and the jump cache.
extension EmittedCodeVerifier {
    func branchTarget(_ next: Int) throws -> Int? {
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

    func verifyExit(_ at: Int, _ block: Block) throws -> ExitDescriptor.Kind {
        let descriptor = UnsafeRawPointer(cpu.cache.memory.writableBase + at).loadUnaligned(as: ExitDescriptor.self)
        guard let kind = ExitDescriptor.Kind(rawValue: descriptor.kind), at + ExitDescriptor.size <= Int(block.end) else {
            throw Violation("exit without a descriptor")
        }
        switch kind {
        case .system: if Int(descriptor.value) >> 13 >= cpu.cache.segmentCount * SystemPool.limit { throw Violation("system instruction out of bounds") }
        case .chain: if descriptor.value < 0 || descriptor.value > 4095 { throw Violation("chain out of its page") }
        case .goto, .exception, .refusedCall, .indirect: break
        default: throw Violation("exit of a thunk's kind")
        }
        return kind
    }

    /// `cmp rsp, gs:[returnLimit]`.
    static let limitCheck: [UInt8] =
        [0x65, 0x48, 0x3B, 0x24, 0x25] + (0..<4).map { UInt8(truncatingIfNeeded: ContextOffset.returnLimit >> ($0 * 8)) }

    /// `mov dword gs:[branch], ...`.
    static let branchNote: [UInt8] =
        [0x65, 0xC7, 0x04, 0x25] + (0..<4).map { UInt8(truncatingIfNeeded: ContextOffset.branch >> ($0 * 8)) }

    /// Whether the miss of a return in 64-bit code stands at a place: it says which branch it is, and is the thunk's.
    func returnMisses(_ position: Int, _ block: Block) -> Bool {
        let jump = position + Self.branchNote.count + 4
        guard block.mode.codeSize == 0, position >= Int(block.entry), jump + 5 <= Int(block.end),
            starts(position, Self.branchNote), starts(jump, [0xE9])
        else { return false }
        let displacement = UnsafeRawPointer(cpu.cache.memory.writableBase + jump + 1).loadUnaligned(as: Int32.self)
        return jump + 5 + Int(displacement) == cpu.thunks.pointee.returnMiss[block.mode.table]
    }

    /// `mov rsp, gs:[returnBase]`.
    static let emptying: [UInt8] =
        [0x65, 0x48, 0x8B, 0x24, 0x25] + (0..<4).map { UInt8(truncatingIfNeeded: ContextOffset.returnBase >> ($0 * 8)) }

    func starts(_ position: Int, _ bytes: [UInt8]) -> Bool {
        position + bytes.count <= cpu.cache.memory.byteCount
            && bytes.indices.allSatisfy { cpu.cache.memory.writableBase[position + $0] == bytes[$0] }
    }

    /// A branch that the cache links: to its stub, or to the block that it is linked to.
    func verifySite(_ number: Int, _ target: Int, _ block: Block) throws {
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

    func verifySlowPath(_ at: Int, _ target: Int, _ check: Check, _ block: Block) throws {
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
        var mask: AccessMask?
        var position = check.operation
        let end = position + Int(descriptor.operationLength)
        while position < end {
            guard decode(position, limit: end - position) else { throw Violation("operation ends inside an instruction") }
            if try branchTarget(0) != nil { throw Violation("branch in an operation") }
            for index in 0..<Int(instruction.pointee.operand_count)
            where operands[index].type == ZYDIS_OPERAND_TYPE_MEMORY && operands[index].mem.segment != ZYDIS_REGISTER_GS {
                mask = mask ?? AccessMask(instruction, operands + index)
            }
            position += Int(instruction.pointee.length)
        }
        // What the helper lets pass without a fault is what the instruction leaves out.
        guard (descriptor.access & Access.masked != 0) == (mask != nil), mask == nil || mask?.rawValue == descriptor.slot else {
            throw Violation("slow path of another mask")
        }
    }

    func verifyIndirect(_ block: Block, _ values: [Value]) throws {
        let memory = operands[0].mem
        guard operands[0].type == ZYDIS_OPERAND_TYPE_MEMORY, memory.segment == ZYDIS_REGISTER_GS, memory.base == ZYDIS_REGISTER_NONE,
            memory.index == ZYDIS_REGISTER_R13, memory.scale == 8, values[13] == .jumpChecked,
            Int(memory.disp.value) == jumpCache(block) + 8
        else { throw Violation("indirect jump outside of the jump cache") }
    }

    func jumpCache(_ block: Block) -> Int {
        ContextOffset.jumpCache + transfer.mode.table * JumpCache.entryCount * JumpCache.entrySize
    }
}
