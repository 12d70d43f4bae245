import CZydis
import Testing
import VMM

@testable import TranslatorEngine

/// What becomes of AVX-512's instructions, by reading the code made of them: the same operation, with operands where they
/// must be. No host has to have AVX-512 for that: `SiliconTests` run the same forms where it does.
@Suite("Emitted AVX-512") struct WideEncodingTests {
    private static let code: UInt64 = 0x40_0000
    /// A CPU with everything that has a name.
    private static let host = HostCPU(
        vendorLeaf: CPUIDLeaf(ebx: 0x756E_6547, ecx: 0x6C65_746E, edx: 0x4965_6E69), signature: 0x00C0_6F20,
        features: CPUFeatures.all.subtracting([.hypervisor]), xcr0: 0xE7)

    private struct Difference: Error { let what: String }

    @Test(arguments: SiliconMode.allCases)
    func `a copy is the same operation on the same operands`(mode: SiliconMode) throws {
        let machine = try TestMachine(model: .host, host: Self.host)
        machine.map(Self.code, to: 0x10_0000, count: 1, [.user])
        machine.enter(level: 3)
        let isLong = mode == .long
        if !isLong {
            let isWide = mode != .segmented16
            machine.context.pointee.cs.attributes = isWide ? 0xC0FB : 0xFB
            machine.context.pointee.ss.attributes = isWide ? 0xC0F3 : 0xF3
            machine.cpu.modeChanged()
        }
        let decoder = SiliconDecoder(mode, shown: InstructionSets(machine.cpu.policy.features))
        let copy = SiliconDecoder(.long)
        let verifier = EmittedCodeVerifier(machine.cpu)
        let forms = SiliconForms(seed: 512, decoder: decoder, undefinedShare: 0, isWide: true)
        let page = try machine.cpu.codePage(Self.code)
        var count = 0, problems = 0
        for form in forms.forms where form.treatment == .compare {
            guard problems < 10 else { break }
            machine.memory.write(form.bytes, at: 0x10_0000)
            let index = try machine.cpu.translate(Self.code, page: page, mode: machine.cpu.mode, limit: 1, isIsolated: true)
            let block = machine.cpu.cache.blocks[index]
            defer { machine.cpu.cache.remove(index) }
            var wrong = verifier.violation(block: index)
            do { try Self.compare(form.bytes, decoder, machine.cpu, block, copy) } catch let error as Difference { wrong = error.what }
            count += 1
            guard let wrong else { continue }
            problems += 1
            Issue.record("\(decoder.text(form.bytes, at: Self.code)) \(form.bytes): \(wrong)")
        }
        #expect(count > (isLong ? 5000 : 500))
    }

    /// Finds the copy in the block.
    private static func compare(
        _ bytes: [UInt8], _ original: SiliconDecoder, _ cpu: TranslatorCPU, _ block: Block, _ copy: SiliconDecoder
    ) throws {
        guard original.decode(bytes) else { throw Difference(what: "not an instruction") }
        let isSystem = (0..<Int(original.instruction.pointee.operand_count)).contains {
            original.operands[$0].type == ZYDIS_OPERAND_TYPE_MEMORY && original.operands[$0].mem.type == ZYDIS_MEMOP_TYPE_VSIB
        }
        var position = Int(block.savedEntry), found = 0
        var loaded: [Int: Int] = [:], stored: [Int: Int] = [:]
        while position < Int(block.end) {
            guard copy.decode(cpu.cache.memory.writableBase + position, Int(block.end) - position) & 0x8000_0000 == 0 else { break }
            let i = copy.instruction.pointee
            if i.meta.isa_ext == ZYDIS_ISA_EXT_AVX512EVEX || i.meta.isa_ext == ZYDIS_ISA_EXT_AVX512VEX {
                found += 1
                try compare(original, copy, loaded)
            } else if i.mnemonic == ZYDIS_MNEMONIC_MOV {
                let isLoad = copy.operands[1].type == ZYDIS_OPERAND_TYPE_MEMORY
                let memory = copy.operands[isLoad ? 1 : 0], register = Operand.general(copy.operands[isLoad ? 0 : 1].reg.value)
                if memory.type == ZYDIS_OPERAND_TYPE_MEMORY && memory.mem.segment == ZYDIS_REGISTER_GS && memory.size == 64 {
                    if isLoad { loaded[register] = Int(memory.mem.disp.value) / 8 } else if found > 0 { stored[Int(memory.mem.disp.value) / 8] = register }
                }
            }
            if i.meta.category == ZYDIS_CATEGORY_UNCOND_BR { break }
            position += Int(i.length)
            // Data follows a call that does not come back.
            if i.meta.category == ZYDIS_CATEGORY_CALL && found > 0 { break }
        }
        if found != (isSystem ? 0 : 1) { throw Difference(what: "\(found) copies") }
        if isSystem { return }
        // What is written to a displaced register goes to the context.
        for number in 0..<Int(original.instruction.pointee.operand_count) where original.operands[number].type == ZYDIS_OPERAND_TYPE_REGISTER {
            let operand = original.operands[number]
            let guest = Operand.general(operand.reg.value)
            let isWritten = operand.actions & UInt8(truncatingIfNeeded: ZYDIS_OPERAND_ACTION_MASK_WRITE.rawValue) != 0
            if guest >= 13 && isWritten && stored[guest] == nil { throw Difference(what: "r\(guest) is not stored") }
        }
    }

    private static func compare(_ original: SiliconDecoder, _ copy: SiliconDecoder, _ loaded: [Int: Int]) throws {
        let a = original.instruction.pointee, b = copy.instruction.pointee
        func same<T: Equatable>(_ what: String, _ x: T, _ y: T) throws {
            if x != y { throw Difference(what: "\(what): \(x) became \(y)") }
        }
        try same("mnemonic", a.mnemonic.rawValue, b.mnemonic.rawValue)
        try same("encoding", a.encoding.rawValue, b.encoding.rawValue)
        try same("map", a.opcode_map.rawValue, b.opcode_map.rawValue)
        try same("opcode", a.opcode, b.opcode)
        try same("length", a.avx.vector_length, b.avx.vector_length)
        try same("mask", a.avx.mask.reg.rawValue, b.avx.mask.reg.rawValue)
        try same("mask mode", a.avx.mask.mode.rawValue, b.avx.mask.mode.rawValue)
        try same("broadcast", a.avx.broadcast.mode.rawValue, b.avx.broadcast.mode.rawValue)
        try same("rounding", a.avx.rounding.mode.rawValue, b.avx.rounding.mode.rawValue)
        try same("exceptions", a.avx.has_sae, b.avx.has_sae)
        try same("operands", a.operand_count, b.operand_count)
        for number in 0..<Int(a.operand_count) {
            let x = original.operands[number], y = copy.operands[number]
            try same("operand \(number)", x.type.rawValue, y.type.rawValue)
            // The flags are named after the code's width.
            if x.type == ZYDIS_OPERAND_TYPE_REGISTER && ZydisRegisterGetClass(x.reg.value) == ZYDIS_REGCLASS_FLAGS { continue }
            try same("size of operand \(number)", x.size, y.size)
            switch x.type {
            case ZYDIS_OPERAND_TYPE_REGISTER:
                let guest = Operand.general(x.reg.value), host = Operand.general(y.reg.value)
                guard guest >= 0 else {
                    try same("register", x.reg.value.rawValue, y.reg.value.rawValue)
                    break
                }
                if guest < 13 {
                    try same("register", guest == 4 ? 15 : guest, host)
                } else if x.actions & UInt8(truncatingIfNeeded: ZYDIS_OPERAND_ACTION_MASK_READ.rawValue) != 0 {
                    try same("register", guest, loaded[host] ?? -1)
                }
            case ZYDIS_OPERAND_TYPE_MEMORY:
                guard y.mem.base == ZYDIS_REGISTER_R14, y.mem.index == ZYDIS_REGISTER_NONE, y.mem.disp.value == 0,
                    y.mem.segment == ZYDIS_REGISTER_DS
                else { throw Difference(what: "memory operand elsewhere") }
            case ZYDIS_OPERAND_TYPE_IMMEDIATE: try same("immediate", x.imm.value.u, y.imm.value.u)
            default: break
            }
        }
    }
}
