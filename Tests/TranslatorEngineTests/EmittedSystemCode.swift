import CZydis

@testable import TranslatorEngine

/// What blocks hold of system instructions that have code of their own.
extension EmittedCodeVerifier {
    /// The mode that a block goes on in when the instruction at hand writes it, `nil` for any other instruction.
    func newMode(_ block: Block) throws -> BlockMode? {
        let first = operands[0]
        guard first.type == ZYDIS_OPERAND_TYPE_MEMORY, first.mem.segment == ZYDIS_REGISTER_GS,
            first.mem.base == ZYDIS_REGISTER_NONE, first.mem.index == ZYDIS_REGISTER_NONE,
            Int(first.mem.disp.value) == ContextOffset.mode
        else { return nil }
        guard instruction.pointee.mnemonic == ZYDIS_MNEMONIC_MOV, operands[1].type == ZYDIS_OPERAND_TYPE_IMMEDIATE else {
            throw Violation("mode that is not known")
        }
        let mode = BlockMode(rawValue: operands[1].imm.value.u)
        guard mode.rawValue & ~3 == block.mode.rawValue & ~3, mode.table < TLB.tableCount, mode != block.mode,
            mode.codeSize == 0
        else { throw Violation("mode that no instruction leads to") }
        return mode
    }

    /// REP MOVS and REP STOS: one fixed sequence, in which host addresses are in guest registers for a while. It is read
    /// here as it has to be, register by register, so nothing in it can lead to other memory than the bytes from the
    /// operands on to the ends of their pages.
    /// - Returns: what it is made of, and where it ends, in a jump past the call of the system half.
    func stringRun(
        at start: Int, _ block: Block, isInside: (Int) -> Bool
    ) throws -> (boundaries: Set<Int>, labels: Set<Int>, end: Int)? {
        let flags = Int(ContextOffset.systemFlags)
        guard instruction.pointee.mnemonic == ZYDIS_MNEMONIC_TEST, operands[0].type == ZYDIS_OPERAND_TYPE_MEMORY,
            operands[0].mem.segment == ZYDIS_REGISTER_GS, Int(operands[0].mem.disp.value) == flags,
            operands[1].imm.value.u == 0x400
        else { return nil }
        var position = start
        var boundaries: Set<Int> = []
        var labels: Set<Int> = []
        func take() throws -> String {
            guard decode(position, limit: min(15, Int(block.end) - position)) else { throw Violation("string run cut short") }
            let text = text(position)
            boundaries.insert(position)
            position += Int(instruction.pointee.length)
            return text
        }
        func expect(_ wanted: String...) throws {
            for line in wanted {
                let found = try take()
                if found != line { throw Violation("string run: \(found) instead of \(line)") }
            }
        }
        func branch(_ name: String) throws {
            let found = try take()
            let target = position + Int(operands[0].imm.value.s)
            guard found.hasPrefix(name + " "), isInside(target), target >= position else { throw Violation("string run: \(found)") }
            labels.insert(target)
        }
        func field(_ offset: Int) -> String {
            let digits = String(offset, radix: 16, uppercase: true)
            return "[0x" + String(repeating: "0", count: 16 - digits.count) + digits + "]"
        }
        func entry(_ offset: Int) -> String {
            let tlb = ContextOffset.tlb + block.mode.table * TLB.entryCount * TLB.entrySize
            return "[r13+0x" + String(tlb + offset, radix: 16, uppercase: true) + "]"
        }
        /// The TLB entry of the page that `pointer` is in is there, rcx elements from there on lie in the page, and r14
        /// is their host address.
        func check(_ pointer: String, _ low: String, tag: Int, shift: Int) throws {
            try expect(
                "mov r14, \(pointer)", "mov r13, \(pointer)", "shr r13, 0x07", "and r13d, 0x\(String(TLB.mask, radix: 16, uppercase: true))",
                "sub r14, gs:\(entry(tag))", "cmp r14, 0xFFF")
            try branch("jnbe")
            try expect("neg r14", "add r14, 0x1000")
            if shift > 0 { try expect("shr r14, 0x0\(shift)") }
            try expect("cmp rcx, r14")
            try branch("jnbe")
            try expect("mov r14d, \(low)", "and r14d, 0xFFF", "add r14, gs:\(entry(TLB.host))")
        }
        let lines = ["byte", "word", "dword", "qword"].indices.flatMap { shift in [(shift, true), (shift, false)] }
        for (shift, isMove) in lines {
            position = start
            boundaries = []
            labels = []
            do {
                _ = try take()
                try branch("jnz")
                if isMove {
                    try check("rsi", "esi", tag: TLB.readTag, shift: shift)
                    try expect("mov gs:\(field(ContextOffset.temporary)), r14")
                }
                try check("rdi", "edi", tag: TLB.writeTag, shift: shift)
                if isMove {
                    try expect("mov gs:\(field(ContextOffset.temporary + 8)), rsi", "mov rsi, gs:\(field(ContextOffset.temporary))")
                }
                let letter = ["b", "w", "d", "q"][shift]
                try expect("mov r13, rdi", "mov rdi, r14", "rep \(isMove ? "movs" : "stos")\(letter)", "sub rdi, r14")
                if isMove { try expect("mov rsi, rdi", "add rsi, gs:\(field(ContextOffset.temporary + 8))") }
                try expect("add rdi, r13")
                try branch("jmp")
                return (boundaries, labels, position)
            } catch {
                if shift == 3 && !isMove { throw error }
            }
        }
        return nil
    }
}
