import CZydis

/// What takes the place of an instruction's register-or-memory operand.
private enum Place {
    /// As it is: a register whose number is in the original encoding or given.
    case register(Int)
    /// `[address]`.
    case address
    /// `[address + displacement]`, in a run.
    case held(Int32)
    /// `[base]` of an instruction that may not have a REX prefix.
    case legacyBase(Int)
    /// `gs:[offset]`: a guest register that lives in the context.
    case context(Int)
}

/// Instructions that are copied, with other registers where the guest's are displaced.
extension BlockBuilder {
    /// Emits a copy of an instruction whose effects the silicon gets right by itself.
    mutating func generic(
        _ instruction: UnsafePointer<ZydisDecodedInstruction>, _ operands: UnsafePointer<ZydisDecodedOperand>,
        bytes: UnsafePointer<UInt8>, info: Instruction
    ) {
        if !is64Bit
            && (instruction.pointee.mnemonic == ZYDIS_MNEMONIC_VZEROUPPER || instruction.pointee.mnemonic == ZYDIS_MNEMONIC_VZEROALL)
        {
            return clearNarrow(instruction)
        }
        var memory = -1
        // Guest numbers of general registers in each place of the encoding, -1 for none.
        var reg = -1, rm = -1, vvvv = -1, low = -1
        var hasHighByte = false
        var used: UInt32 = 0
        // Guest registers 13-15 that have to be loaded before and stored behind.
        var loads: UInt32 = 0, stores: UInt32 = 0
        var displaced = false
        var rmWidth = 0, rmIsWritten = false
        let count = Int(instruction.pointee.operand_count)
        for index in 0..<count {
            let operand = operands + index
            if operand.pointee.type == ZYDIS_OPERAND_TYPE_MEMORY {
                if operand.pointee.mem.type == ZYDIS_MEMOP_TYPE_MEM { memory = index }
                continue
            }
            guard operand.pointee.type == ZYDIS_OPERAND_TYPE_REGISTER else { continue }
            let number = Operand.general(operand.pointee.reg.value)
            if number < 0 { continue }
            if Operand.isHighByte(operand.pointee.reg.value) {
                hasHighByte = true
                used |= 1 << UInt32(number - 4)
                switch operand.pointee.encoding {
                case ZYDIS_OPERAND_ENCODING_MODRM_REG: reg = number + 16
                case ZYDIS_OPERAND_ENCODING_MODRM_RM: rm = number + 16
                case ZYDIS_OPERAND_ENCODING_OPCODE: low = number + 16
                default: break
                }
                continue
            }
            used |= 1 << UInt32(number)
            let actions = operand.pointee.actions
            let isWritten =
                actions & UInt8(truncatingIfNeeded: ZYDIS_OPERAND_ACTION_MASK_WRITE.rawValue) != 0
            if RegisterMap.isDisplaced(number) {
                displaced = true
                let isPureWrite =
                    actions == UInt8(truncatingIfNeeded: ZYDIS_OPERAND_ACTION_WRITE.rawValue) && operand.pointee.size >= 32
                // BSF and BSR of zero leave their destination as it was.
                let mayKeep = instruction.pointee.mnemonic == ZYDIS_MNEMONIC_BSF || instruction.pointee.mnemonic == ZYDIS_MNEMONIC_BSR
                if !isPureWrite || mayKeep { loads |= 1 << UInt32(number) }
                if isWritten { stores |= 1 << UInt32(number) }
            }
            switch operand.pointee.encoding {
            case ZYDIS_OPERAND_ENCODING_MODRM_REG: reg = number
            case ZYDIS_OPERAND_ENCODING_MODRM_RM:
                rm = number
                rmWidth = Int(operand.pointee.size)
                rmIsWritten = isWritten
            case ZYDIS_OPERAND_ENCODING_NDSNDD: vvvv = number
            case ZYDIS_OPERAND_ENCODING_OPCODE: low = number
            default: break
            }
        }

        let touchesStackPointer = used & (1 << 4) != 0
        if memory < 0 && !displaced && !touchesStackPointer && !isShortIncrement(instruction)
            && !isByteAlias(instruction) && !isPlainScan(instruction) && mode.codeSize != 2
            && (is64Bit || instruction.pointee.encoding == ZYDIS_INSTRUCTION_ENCODING_LEGACY)
        {
            needFlags(for: info)
            for index in 0..<Int(info.length) { code.byte(bytes[index]) }
            noteFlags(info)
            return
        }

        var place = Place.register(rm)
        if memory >= 0 && isHeld {
            let displacement = operands[memory].mem.disp
            place = .held(
                Int32(truncatingIfNeeded: heldOffset + (displacement.has_displacement != 0 ? Int(displacement.value) : 0)))
        } else if memory >= 0 {
            let operand = operands + memory
            let actions = operand.pointee.actions
            let reads = actions & UInt8(truncatingIfNeeded: ZYDIS_OPERAND_ACTION_MASK_READ.rawValue) != 0
            let writes = actions & UInt8(truncatingIfNeeded: ZYDIS_OPERAND_ACTION_MASK_WRITE.rawValue) != 0
            clobberFlags()
            emitAddress(operand.pointee.mem, withSegment: true)
            // A store that leaves out what its mask says keeps what was there.
            let mask = AccessMask(instruction, operand)
            let merges = writes && instruction.pointee.raw.evex.aaa != 0 && instruction.pointee.encoding == ZYDIS_INSTRUCTION_ENCODING_EVEX && mask == nil
            // A CMPXCHG that fails writes the old value back: it is a write to the paging unit as well.
            let access = (reads || merges ? Access.read : 0) | (writes ? Access.write : 0) | Self.stackBit(operand.pointee.mem)
            let isX87 = Self.waitsForX87(instruction, operands)
            let isAligned =
                (info.usesVectors || instruction.pointee.mnemonic == ZYDIS_MNEMONIC_CMPXCHG16B)
                && Self.needsAlignment(instruction, operand.pointee.size)
            beginAccess(
                size: Int(operand.pointee.size) / 8,
                access: access | (isAligned ? Access.aligned : 0) | (isX87 ? Access.x87 : 0),
                stackDistance: Self.stackDistance(operand.pointee.mem), mask: mask)
            place = .address
        }
        needFlags(for: info)

        // A displaced register in the register-or-memory place of a plain instruction is used where it lies: but when it
        // is written, only as a whole, since a load of eight bytes waits long for the stores of its parts.
        if memory < 0, rm >= 13 && rm < 16, !rmIsWritten || rmWidth == 64, Self.takesContextOperand(instruction) {
            place = .context(RegisterMap.slot(rm))
            let others = (reg == rm ? 1 : 0) + (vvvv == rm ? 1 : 0) + (low == rm ? 1 : 0)
            if others == 0 {
                loads &= ~(1 << UInt32(rm))
                stores &= ~(1 << UInt32(rm))
            } else if rmIsWritten {
                // Both places name it: the written one must be a register, unless only `rm` is written.
                if reg == rm && Self.writesOnlyRM(operands, count) {
                    stores &= ~(1 << UInt32(rm))
                    loads |= 1 << UInt32(rm)
                } else {
                    place = .register(rm)
                }
            }
        }

        // Host registers for the displaced ones.
        var hosts = (-1, -1, -1)
        var free: [2 of Int] = [scratch, memory < 0 && !isHeld ? address : -1]
        var borrowed: (register: Int, slot: Int) = (-1, -1)
        var borrowed2: (register: Int, slot: Int) = (-1, -1)
        for guest in 13..<16 where (loads | stores) & (1 << UInt32(guest)) != 0 {
            var host = -1
            if free[0] >= 0 {
                host = free[0]
                free[0] = -1
            } else if free[1] >= 0 {
                host = free[1]
                free[1] = -1
            } else {
                // Rare: three displaced registers, or two and memory.
                host = 3
                while used & (1 << UInt32(host)) != 0 || host == 4 || host == borrowed.register { host += 1 }
                let slot = borrowed.register < 0 ? 1 : 2
                code.storeContext(ContextOffset.temporary + slot * 8, host)
                if borrowed.register < 0 { borrowed = (host, slot) } else { borrowed2 = (host, slot) }
            }
            switch guest {
            case 13: hosts.0 = host
            case 14: hosts.1 = host
            default: hosts.2 = host
            }
            if loads & (1 << UInt32(guest)) != 0 { code.loadContext(host, RegisterMap.slot(guest)) }
        }
        func host(_ guest: Int) -> Int {
            if guest < 0 { return -1 }
            if guest >= 16 { return guest - 16 }
            switch guest {
            case 13: return hosts.0
            case 14: return hosts.1
            case 15: return hosts.2
            default: return RegisterMap.host(guest)
            }
        }

        if case .address = place, hasHighByte {
            // No REX may stand beside AH...BH: the base has to be one of the first eight.
            let base = used & (1 << 7) == 0 ? HostRegister.rdi : HostRegister.rsi
            code.storeContext(ContextOffset.temporary, base)
            code.move(base, address)
            reencode(instruction, bytes, info, reg: host(reg), place: .legacyBase(base), vvvv: host(vvvv), low: host(low))
            code.loadContext(base, ContextOffset.temporary)
        } else if hasHighByte && touchesStackPointer {
            // MOVZX, MOVSX and CRC32 between AH...BH and rsp, whose host register needs a REX.
            let stand = HostRegister.rdi
            code.storeContext(ContextOffset.temporary, stand)
            code.move(stand, RegisterMap.guestStack)
            reencode(instruction, bytes, info, reg: stand, place: .register(host(rm)), vvvv: -1, low: -1)
            code.move(RegisterMap.guestStack, stand)
            code.loadContext(stand, ContextOffset.temporary)
        } else {
            if case .register = place { place = .register(host(rm)) }
            reencode(instruction, bytes, info, reg: host(reg), place: place, vvvv: host(vvvv), low: host(low))
        }
        if memory >= 0 && !isHeld {
            hideInstructionPointer(instruction)
            endAccess()
        }
        for guest in 13..<16 where stores & (1 << UInt32(guest)) != 0 {
            code.storeContext(RegisterMap.slot(guest), host(guest))
        }
        if borrowed.register >= 0 { code.loadContext(borrowed.register, ContextOffset.temporary + borrowed.slot * 8) }
        if borrowed2.register >= 0 { code.loadContext(borrowed2.register, ContextOffset.temporary + borrowed2.slot * 8) }
        noteFlags(info)
    }

    /// Before an instruction that reads flags, or changes only some of the live ones.
    @inline(__always) mutating func needFlags(for info: Instruction) {
        if (info.flagsRead != 0 || info.modifiesFlags) && info.flagsLive != 0 { needFlags() }
    }

    /// Where the flags are behind an instruction.
    @inline(__always) mutating func noteFlags(_ info: Instruction) {
        if info.modifiesFlags {
            flagsInHost = true
            flagsSaved = false
        }
    }

    /// Whether the instruction means the same with a memory operand of the register's width: plain integer
    /// instructions. Not BT and XCHG, and not those whose memory form has another width.
    private static func takesContextOperand(_ instruction: UnsafePointer<ZydisDecodedInstruction>) -> Bool {
        guard instruction.pointee.encoding == ZYDIS_INSTRUCTION_ENCODING_LEGACY else { return false }
        let opcode = instruction.pointee.opcode
        if instruction.pointee.opcode_map == ZYDIS_OPCODE_MAP_DEFAULT {
            switch opcode {
            case 0x00..<0x40: return opcode & 7 < 4
            case 0x63, 0x69, 0x6B, 0x80...0x85, 0x88...0x8B, 0xC0, 0xC1, 0xC6, 0xC7, 0xD0...0xD3, 0xF6, 0xF7, 0xFE, 0xFF:
                return true
            default: return false
            }
        }
        if instruction.pointee.opcode_map == ZYDIS_OPCODE_MAP_0F {
            switch opcode {
            case 0x40...0x4F, 0x90...0x9F, 0xA4, 0xA5, 0xAC, 0xAD, 0xAF, 0xB6, 0xB7, 0xBE, 0xBF: return true
            default: return false
            }
        }
        return false
    }

    /// FNSTENV and FNSAVE store where the host's last x87 instruction and operand were: no business of the guest's.
    private mutating func hideInstructionPointer(_ instruction: UnsafePointer<ZydisDecodedInstruction>) {
        guard instruction.pointee.mnemonic == ZYDIS_MNEMONIC_FNSTENV || instruction.pointee.mnemonic == ZYDIS_MNEMONIC_FNSAVE
        else { return }
        // The 16-bit form has words from offset 6, the 32-bit form double words from offset 12 (SDM Vol. 1, 8.1.10).
        let isNarrow = instruction.pointee.operand_width == 16
        for offset in isNarrow ? stride(from: Int32(6), to: 14, by: 4) : stride(from: Int32(12), to: 28, by: 4) {
            code.rex(w: false, reg: 0, base: address)
            code.byte(0xC7)
            code.memory(0, base: address, offset)
            code.dword(0)
        }
    }

    /// Whether an x87 or MMX instruction raises an exception that is pending before it does anything.
    private static func waitsForX87(
        _ instruction: UnsafePointer<ZydisDecodedInstruction>, _ operands: UnsafePointer<ZydisDecodedOperand>
    ) -> Bool {
        // MMX registers are parts of the x87's.
        for index in 0..<Int(instruction.pointee.operand_count_visible) where operands[index].type == ZYDIS_OPERAND_TYPE_REGISTER {
            let register = operands[index].reg.value.rawValue
            if register >= ZYDIS_REGISTER_MM0.rawValue && register <= ZYDIS_REGISTER_MM7.rawValue { return true }
        }
        switch instruction.pointee.mnemonic {
        case ZYDIS_MNEMONIC_FISTTP: return true
        case ZYDIS_MNEMONIC_FNSTCW, ZYDIS_MNEMONIC_FNSTSW, ZYDIS_MNEMONIC_FNSTENV, ZYDIS_MNEMONIC_FNSAVE: return false
        default: return instruction.pointee.meta.isa_ext == ZYDIS_ISA_EXT_X87
        }
    }

    @inline(__always) static func stackBit(_ memory: ZydisDecodedOperandMem) -> UInt8 {
        memory.segment == ZYDIS_REGISTER_SS ? Access.stack : 0
    }

    /// How far from the stack pointer an operand relative to it is.
    @inline(__always) static func stackDistance(_ memory: ZydisDecodedOperandMem) -> Int? {
        guard Operand.general(memory.base) == 4 && memory.index == ZYDIS_REGISTER_NONE else { return nil }
        return memory.disp.has_displacement != 0 ? Int(memory.disp.value) : 0
    }

    /// Whether a vector instruction's memory operand must be aligned (SDM Vol. 1, 11.4.4 and 14.9).
    private static func needsAlignment(_ instruction: UnsafePointer<ZydisDecodedInstruction>, _ bits: UInt16) -> Bool {
        if instruction.pointee.encoding != ZYDIS_INSTRUCTION_ENCODING_LEGACY {
            switch instruction.pointee.mnemonic {
            case ZYDIS_MNEMONIC_VMOVAPS, ZYDIS_MNEMONIC_VMOVAPD, ZYDIS_MNEMONIC_VMOVDQA, ZYDIS_MNEMONIC_VMOVNTPS,
                ZYDIS_MNEMONIC_VMOVNTPD, ZYDIS_MNEMONIC_VMOVNTDQ, ZYDIS_MNEMONIC_VMOVNTDQA, ZYDIS_MNEMONIC_VMOVDQA32,
                ZYDIS_MNEMONIC_VMOVDQA64:
                return true
            default: return false
            }
        }
        // AMD's CPUs take unaligned operands of SHA instructions; where the host does not it says so.
        guard bits == 128 && instruction.pointee.meta.isa_ext != ZYDIS_ISA_EXT_SHA else { return false }
        switch instruction.pointee.mnemonic {
        case ZYDIS_MNEMONIC_MOVUPS, ZYDIS_MNEMONIC_MOVUPD, ZYDIS_MNEMONIC_MOVDQU, ZYDIS_MNEMONIC_LDDQU,
            ZYDIS_MNEMONIC_PCMPESTRI, ZYDIS_MNEMONIC_PCMPESTRM, ZYDIS_MNEMONIC_PCMPISTRI, ZYDIS_MNEMONIC_PCMPISTRM:
            return false
        default: return true
        }
    }

    /// Whether the only general register written is the one in the register-or-memory place.
    private static func writesOnlyRM(_ operands: UnsafePointer<ZydisDecodedOperand>, _ count: Int) -> Bool {
        for index in 0..<count {
            let operand = operands + index
            guard operand.pointee.type == ZYDIS_OPERAND_TYPE_REGISTER,
                Operand.general(operand.pointee.reg.value) >= 0,
                operand.pointee.actions & UInt8(truncatingIfNeeded: ZYDIS_OPERAND_ACTION_MASK_WRITE.rawValue) != 0
            else { continue }
            if operand.pointee.encoding != ZYDIS_OPERAND_ENCODING_MODRM_RM { return false }
        }
        return true
    }

    /// INC and DEC in one byte: in 64-bit code those bytes are REX prefixes.
    private func isShortIncrement(_ instruction: UnsafePointer<ZydisDecodedInstruction>) -> Bool {
        !is64Bit && instruction.pointee.encoding == ZYDIS_INSTRUCTION_ENCODING_LEGACY
            && instruction.pointee.opcode_map == ZYDIS_OPCODE_MAP_DEFAULT && instruction.pointee.opcode & 0xF0 == 0x40
    }
    /// Opcode 82 is another name for 80, which 64-bit code does not have.
    private func isByteAlias(_ instruction: UnsafePointer<ZydisDecodedInstruction>) -> Bool {
        !is64Bit && instruction.pointee.encoding == ZYDIS_INSTRUCTION_ENCODING_LEGACY
            && instruction.pointee.opcode_map == ZYDIS_OPCODE_MAP_DEFAULT && instruction.pointee.opcode == 0x82
    }

    /// Whether VEX.W or EVEX.W is the width of a general register.
    private static func hasGeneralWidth(_ instruction: UnsafePointer<ZydisDecodedInstruction>) -> Bool {
        let set = instruction.pointee.meta.isa_ext
        if set == ZYDIS_ISA_EXT_BMI1 || set == ZYDIS_ISA_EXT_BMI2 { return true }
        switch instruction.pointee.mnemonic {
        case ZYDIS_MNEMONIC_VCVTSI2SS, ZYDIS_MNEMONIC_VCVTSI2SD, ZYDIS_MNEMONIC_VCVTSS2SI, ZYDIS_MNEMONIC_VCVTSD2SI,
            ZYDIS_MNEMONIC_VCVTTSS2SI, ZYDIS_MNEMONIC_VCVTTSD2SI, ZYDIS_MNEMONIC_VMOVD, ZYDIS_MNEMONIC_VPCMPESTRI,
            ZYDIS_MNEMONIC_VPCMPESTRM, ZYDIS_MNEMONIC_VCVTUSI2SS, ZYDIS_MNEMONIC_VCVTUSI2SD, ZYDIS_MNEMONIC_VCVTSS2USI,
            ZYDIS_MNEMONIC_VCVTSD2USI, ZYDIS_MNEMONIC_VCVTTSS2USI, ZYDIS_MNEMONIC_VCVTTSD2USI, ZYDIS_MNEMONIC_VCVTSI2SH,
            ZYDIS_MNEMONIC_VCVTUSI2SH, ZYDIS_MNEMONIC_VCVTSH2SI, ZYDIS_MNEMONIC_VCVTSH2USI, ZYDIS_MNEMONIC_VCVTTSH2SI,
            ZYDIS_MNEMONIC_VCVTTSH2USI, ZYDIS_MNEMONIC_VPBROADCASTD:
            return true
        // VEX.W is not.
        case ZYDIS_MNEMONIC_VPINSRD, ZYDIS_MNEMONIC_VPEXTRD:
            return instruction.pointee.encoding == ZYDIS_INSTRUCTION_ENCODING_EVEX
        default: return false
        }
    }

    /// VZEROUPPER and VZEROALL outside of 64-bit code: registers 8 to 15 keep their values.
    private mutating func clearNarrow(_ instruction: UnsafePointer<ZydisDecodedInstruction>) {
        for register in 0..<8 as Range<UInt8> {
            code.byte(0xC5)
            if instruction.pointee.mnemonic == ZYDIS_MNEMONIC_VZEROUPPER {
                // vmovaps xmm, xmm
                code.byte(0xF8)
                code.byte(0x28)
            } else {
                // vxorps xmm, xmm, xmm
                code.byte(0x80 | (~register & 15) << 3)
                code.byte(0x57)
            }
            code.byte(0xC0 | register << 3 | register)
        }
    }

    /// BSF and BSR, where the host may have TZCNT and LZCNT: a prefix before them is not copied.
    private func isPlainScan(_ instruction: UnsafePointer<ZydisDecodedInstruction>) -> Bool {
        instruction.pointee.mnemonic == ZYDIS_MNEMONIC_BSF || instruction.pointee.mnemonic == ZYDIS_MNEMONIC_BSR
    }

    /// The EVEX prefix of `reencode`, and the opcode (SDM Vol. 2, 2.7.1). Bits that extend register numbers are inverted.
    private mutating func emitEVEX(
        _ instruction: UnsafePointer<ZydisDecodedInstruction>, _ bytes: UnsafePointer<UInt8>, reg: Int, place: Place, rmField: Int
    ) {
        let evex = Int(instruction.pointee.raw.evex.offset)
        // R, X, B, R' and the map; W, vvvv and pp; z, length, b, V' and the mask.
        var first = bytes[evex + 1], second = bytes[evex + 2], third = bytes[evex + 3]
        if !is64Bit {
            // As with VEX: ignored there, but not in the copy.
            first |= 0xF0
            second |= 0x40
            third |= 8
            if Self.hasGeneralWidth(instruction) { second &= 0x7F }
        }
        // General registers have no number above 15.
        if reg >= 0 { first = first & 0x6F | (reg & 8 == 0 ? 0x90 : 0x10) }
        if case .register(let number) = place, number < 0 {} else { first = first & 0x9F | (rmField & 8 == 0 ? 0x60 : 0x40) }
        code.byte(0x62)
        code.byte(first)
        code.byte(second)
        code.byte(third)
        code.byte(bytes[evex + 4])
    }

    /// Writes the instruction anew with other registers and operand places; -1 keeps what the original has.
    private mutating func reencode(
        _ instruction: UnsafePointer<ZydisDecodedInstruction>, _ bytes: UnsafePointer<UInt8>, _ info: Instruction,
        reg: Int, place: Place, vvvv: Int, low: Int
    ) {
        let raw = instruction.pointee.raw
        let length = Int(info.length)
        if isShortIncrement(instruction) {
            if instruction.pointee.operand_width == 16 { code.byte(0x66) }
            code.rex(w: false, reg: 0, base: low)
            code.byte(0xFF)
            code.modRM(3, instruction.pointee.opcode & 8 == 0 ? 0 : 1, low)
            return
        }
        let hasModRM = raw.modrm.offset != 0
        // What follows ModRM, SIB and displacement is copied as it is.
        var immediate = length
        if raw.disp.size != 0 && hasModRM {
            immediate = Int(raw.disp.offset) + Int(raw.disp.size) / 8
        } else if raw.sib.offset != 0 {
            immediate = Int(raw.sib.offset) + 1
        } else if hasModRM {
            immediate = Int(raw.modrm.offset) + 1
        } else if raw.imm.0.size != 0 {
            immediate = Int(raw.imm.0.offset)
        }
        var regField = 0, rmField = 0
        var b = 0

        if instruction.pointee.encoding == ZYDIS_INSTRUCTION_ENCODING_VEX {
            let vex = Int(raw.vex.offset)
            let short = bytes[vex] == 0xC5
            let first = bytes[vex + 1]
            var second = short ? first & 0x7F : bytes[vex + 2]
            let map: UInt8 = short ? 1 : first & 0x1F
            let originalR = first & 0x80 == 0 ? 8 : 0
            // Outside of 64-bit code B, the top of vvvv and, for general registers, W are ignored; in the copy they
            // would name other registers and another width.
            let originalB = short || first & 0x20 != 0 || !is64Bit ? 0 : 8
            if !is64Bit {
                second |= 0x40
                if Self.hasGeneralWidth(instruction) { second &= 0x7F }
            }
            let opcodeAt = vex + (short ? 2 : 3)
            regField = reg >= 0 ? reg : Int(raw.modrm.reg) & 7 | originalR
            switch place {
            case .register(let number): rmField = number >= 0 ? number : Int(raw.modrm.rm) & 7 | originalB
            case .address, .held: rmField = address
            case .legacyBase(let base): rmField = base
            case .context: rmField = 4
            }
            let v = vvvv >= 0 ? UInt8(truncatingIfNeeded: ~vvvv & 15) : second >> 3 & 15
            if case .context = place { code.byte(0x65) } else { b = rmField & 8 }
            code.byte(0xC4)
            code.byte((regField & 8 == 0 ? 0x80 : 0) | 0x40 | (b == 0 ? 0x20 : 0) | map)
            code.byte(second & 0x87 | v << 3)
            code.byte(bytes[opcodeAt])
        } else if instruction.pointee.encoding == ZYDIS_INSTRUCTION_ENCODING_EVEX {
            regField = reg >= 0 ? reg : Int(raw.modrm.reg) & 7
            switch place {
            case .register(let number): rmField = number >= 0 ? number : Int(raw.modrm.rm) & 7
            case .address, .held: rmField = address
            case .legacyBase(let base): rmField = base
            case .context: rmField = 4
            }
            emitEVEX(instruction, bytes, reg: reg, place: place, rmField: rmField)
        } else {
            // Prefixes that mean something to the copy: operand size, lock, and what F2 and F3 say.
            if case .context = place { code.byte(0x65) }
            // Each once: the copy may need bytes more than the original has, and 15 is the limit.
            // In 16-bit code the prefix means the other size.
            let isTurned = mode.codeSize == 2 && takesOperandSize(instruction)
            var position = 0
            var rexByte: UInt8 = 0
            var hasOperandSize = false, hasLock = false
            var repetition: UInt8 = 0
            while position < length {
                let prefix = bytes[position]
                if prefix == 0x66 || prefix == 0xF0 || prefix == 0xF2 || prefix == 0xF3 {
                    if prefix == 0x66 { hasOperandSize = true } else if prefix == 0xF0 { hasLock = true } else { repetition = prefix }
                    rexByte = 0
                } else if mode.codeSize == 0 && prefix & 0xF0 == 0x40 {
                    rexByte = prefix
                } else if prefix == 0x26 || prefix == 0x2E || prefix == 0x36 || prefix == 0x3E || prefix == 0x64
                    || prefix == 0x65 || prefix == 0x67
                {
                    rexByte = 0
                } else {
                    break
                }
                position += 1
            }
            if isTurned { hasOperandSize = instruction.pointee.operand_width == 16 }
            if hasOperandSize { code.byte(0x66) }
            if hasLock { code.byte(0xF0) }
            if repetition != 0 && (repetition != 0xF3 || !isPlainScan(instruction)) { code.byte(repetition) }
            let w = rexByte & 8
            if hasModRM {
                regField = reg >= 0 ? reg : Int(raw.modrm.reg) & 7 | Int(rexByte & 4) << 1
                switch place {
                case .register(let number): rmField = number >= 0 ? number : Int(raw.modrm.rm) & 7 | Int(rexByte & 1) << 3
                case .address, .held: rmField = address
                case .legacyBase(let base): rmField = base
                case .context: rmField = 4
                }
                if case .context = place {} else { b = rmField & 8 }
            } else {
                b = low >= 0 ? low & 8 : Int(rexByte & 1) << 3
            }
            let rex = 0x40 | w | UInt8(truncatingIfNeeded: (regField & 8) >> 1 | b >> 3)
            if rex != 0x40 || rexByte != 0 { code.byte(rex) }
            // Escape bytes and the opcode: everything up to ModRM or, without it, the immediate.
            let opcodeEnd = hasModRM ? Int(raw.modrm.offset) : immediate
            while position < opcodeEnd {
                var value = isByteAlias(instruction) ? 0x80 : bytes[position]
                if !hasModRM && low >= 0 && position == opcodeEnd - 1 {
                    value = value & 0xF8 | UInt8(truncatingIfNeeded: low & 7)
                }
                code.byte(value)
                position += 1
            }
        }
        if hasModRM {
            switch place {
            case .register: code.modRM(3, regField, rmField)
            case .address: code.modRM(0, regField, rmField)
            case .held(let displacement) where instruction.pointee.encoding == ZYDIS_INSTRUCTION_ENCODING_EVEX && displacement != 0:
                // A short displacement would count in vectors or elements.
                code.modRM(2, regField, rmField)
                code.dword(displacement)
            case .held(let displacement): code.memory(regField, base: rmField, displacement)
            case .legacyBase(let base): code.modRM(0, regField, base)
            case .context(let offset): code.absolute(regField, Int32(truncatingIfNeeded: offset))
            }
        }
        for index in immediate..<length { code.byte(bytes[index]) }
        if !is64Bit && instruction.pointee.encoding == ZYDIS_INSTRUCTION_ENCODING_VEX
            && instruction.pointee.opcode_map == ZYDIS_OPCODE_MAP_0F3A && (0x4A...0x4C).contains(instruction.pointee.opcode)
        {
            // A register in the immediate: its top bit is ignored too.
            code.maskLastByte(0x7F)
        }
    }
}
