import CZydis
import Testing
import TranslatorEngine

@Suite("Decoding system instructions") struct SystemDecodeTests {
    typealias Kind = SystemInstruction.Kind

    private func decode(_ bytes: [UInt8], _ bits: Int = 64) throws -> SystemInstruction? {
        switch bits {
        case 64: try SystemMachine.decode(bytes, ZYDIS_MACHINE_MODE_LONG_64, ZYDIS_STACK_WIDTH_64)
        case 32: try SystemMachine.decode(bytes, ZYDIS_MACHINE_MODE_LONG_COMPAT_32, ZYDIS_STACK_WIDTH_32)
        default: try SystemMachine.decode(bytes, ZYDIS_MACHINE_MODE_LONG_COMPAT_16, ZYDIS_STACK_WIDTH_16)
        }
    }

    @Test(arguments: [
        ([0x48, 0xCF], .iret, 8, true), ([0xCF], .iret, 4, true), ([0x66, 0xCF], .iret, 2, true),
        ([0x9C], .pushFlags, 8, false), ([0x66, 0x9D], .popFlags, 2, true), ([0xFA], .cli, 4, false),
        ([0xFB], .sti, 4, true), ([0x0F, 0x05], .syscall, 8, true), ([0x48, 0x0F, 0x07], .sysret, 8, true),
        ([0x0F, 0x07], .sysret, 4, true), ([0x0F, 0x01, 0xF8], .swapgs, 8, false),
        ([0x0F, 0x20, 0xC0], .readControl, 8, false), ([0x0F, 0x22, 0xD8], .writeControl, 8, true),
        ([0x0F, 0x22, 0xD0], .writeControl, 8, false), ([0x44, 0x0F, 0x22, 0xC0], .writeControl, 8, false),
        ([0xE4, 0x10], .inPort, 1, false), ([0x66, 0xEF], .outPort, 2, false), ([0x48, 0xED], .inPort, 4, false),
        ([0x6D], .inString, 4, false), ([0xF3, 0x6E], .outString, 1, true), ([0x48, 0xA5], .movs, 8, false),
        ([0xF3, 0xAA], .stos, 1, true), ([0x66, 0xAF], .scas, 2, false), ([0x0F, 0xA2], .cpuid, 4, false),
        ([0x0F, 0x01, 0x10], .lgdt, 8, true), ([0x8C, 0xD8], .storeSegment, 4, false),
        ([0x48, 0x8C, 0xD8], .storeSegment, 8, false), ([0x8C, 0x18], .storeSegment, 2, false),
        ([0x8E, 0xD8], .loadSegment, 0, false), ([0x8E, 0xD0], .loadSegment, 0, true),
        ([0x0F, 0xA1], .popSegment, 8, false), ([0xFF, 0x28], .farJumpIndirect, 4, true),
        ([0x48, 0xFF, 0x18], .farCallIndirect, 8, true), ([0x48, 0xCB], .farReturn, 8, true),
        ([0x0F, 0xAE, 0x20], .xsave, 4, false), ([0x48, 0x0F, 0xAE, 0x28], .xrstor, 8, false),
        ([0x0F, 0xAE, 0x00], .fxsave, 4, false), ([0x0F, 0xAE, 0x38], .lineFlush, 0, false),
        ([0xF3, 0x48, 0x0F, 0xAE, 0xD0], .writeFSBase, 8, false), ([0x0F, 0x01, 0x38], .invlpg, 0, true),
        ([0x0F, 0x00, 0xE8], .verw, 0, false), ([0xF3, 0x0F, 0x1E, 0xFA], .nop, 0, false),
    ] as [([UInt8], SystemInstruction.Kind, UInt8, Bool)])
    func `64-bit encodings give kind, operand size and end of block`(
        bytes: [UInt8], kind: SystemInstruction.Kind, size: UInt8, ends: Bool
    ) throws {
        let instruction = try #require(try decode(bytes))
        #expect(instruction.kind == kind)
        if size != 0 { #expect(instruction.operandSize == size || kind == .cli || kind == .sti || kind == .syscall || kind == .swapgs) }
        #expect(instruction.endsBlock == ends)
        #expect(Int(instruction.length) == bytes.count)
    }

    @Test(arguments: [
        [0x48, 0x89, 0xC8], [0x50], [0xC3], [0xE9, 0, 0, 0, 0], [0xFF, 0x20], [0xFF, 0x10], [0x0F, 0x0D, 0x08],
        [0x0F, 0x18, 0x08], [0xF2, 0x0F, 0x10, 0x00], [0xF2, 0x0F, 0xC2, 0xC1, 0x00], [0x0F, 0xC7, 0x08], [0xC9],
        [0xF3, 0x90], [0x90], [0x0F, 0xAE, 0xF0], [0x0F, 0xAE, 0x10], [0xDD, 0x30], [0x0F, 0xC7, 0xF0], [0x9F],
        [0x0F, 0x1F, 0x00], [0xC5, 0xF8, 0x28, 0xC1], [0x62, 0xF1, 0x7C, 0x48, 0x58, 0xC1], [0xC5, 0xF4, 0x47, 0xC9],
    ] as [[UInt8]])
    func `what may be copied is none of the system's`(bytes: [UInt8]) throws {
        #expect(try decode(bytes) == nil)
    }

    @Test(arguments: [
        // VMX, SVM, SGX, MONITOR, WAITPKG, TSX, MPX, PKU, CET, AMX, ENQCMD, CLZERO
        [0x0F, 0x01, 0xC2], [0x0F, 0xC7, 0x30], [0x0F, 0x01, 0xD8], [0x0F, 0x01, 0xD7], [0x0F, 0x01, 0xC8],
        [0xF3, 0x0F, 0xAE, 0xF0], [0xC7, 0xF8, 0, 0, 0, 0], [0xF3, 0x0F, 0x1A, 0x00], [0x0F, 0x01, 0xEF],
        [0xF3, 0x0F, 0xAE, 0xE8], [0x0F, 0x38, 0xF6, 0x00], [0xC4, 0xE2, 0x78, 0x49, 0xC0],
        [0xF2, 0x0F, 0x38, 0xF8, 0x00], [0x0F, 0x01, 0xFC],
    ] as [[UInt8]])
    func `extensions that no guest is shown are undefined`(bytes: [UInt8]) throws {
        #expect(try decode(bytes)?.kind == .undefined)
    }

    @Test func `memory operands are taken apart`() throws {
        // lgdt fs:[rbx + rcx*4 - 0x10]
        let i = try #require(try decode([0x64, 0x0F, 0x01, 0x54, 0x8B, 0xF0]))
        #expect((i.base, i.index, i.scale, i.segment) == (3, 1, 4, 4))
        #expect(i.displacement == -16)
        let relative = try #require(try decode([0x0F, 0x01, 0x15, 0x10, 0, 0, 0]))
        #expect(relative.options.contains(.ripRelative))
        #expect(relative.base == SystemInstruction.none)
        let extended = try #require(try decode([0x43, 0x0F, 0x01, 0x14, 0x67]))
        #expect((extended.base, extended.index, extended.scale) == (15, 12, 2))
    }

    @Test func `far pointers and 16-bit addressing`() throws {
        let jump = try #require(try decode([0xEA, 0x78, 0x56, 0x34, 0x12, 0xCD, 0xAB], 32))
        #expect(jump.immediate == 0xABCD_1234_5678)
        #expect(jump.operandSize == 4)
        let narrow = try #require(try decode([0xEA, 0x34, 0x12, 0xCD, 0xAB], 16))
        #expect(narrow.immediate == 0xABCD_0000_1234)
        // lgdt [bp + si + 2]
        let table = try #require(try decode([0x0F, 0x01, 0x52, 0x02], 16))
        #expect((table.base, table.index, table.addressSize, table.segment) == (5, 6, 2, 2))
        let string = try #require(try decode([0x2E, 0x67, 0xA4], 16))
        #expect((string.segment, string.addressSize, string.operandSize) == (1, 4, 1))
    }
}
