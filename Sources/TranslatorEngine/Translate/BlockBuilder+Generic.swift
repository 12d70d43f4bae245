import CZydis

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
        var rmIsWritten = false
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
            let index = operands[memory].mem.index
            var base = address
            if !runHasIndex && index != ZYDIS_REGISTER_NONE {
                // Those clobber the scratch register.
                needFlags(for: info)
                keptInScratch = -1
                base = scratch
                code.lea(
                    base, base: address, index: RegisterMap.host(Operand.general(index)),
                    scale: Int(operands[memory].mem.scale).trailingZeroBitCount, 0)
            }
            place = .held(
                base: base,
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

        // A displaced register that is only read is used where it lies, unless a register has it already.
        if memory < 0, rm >= 13 && rm < 16, !rmIsWritten, reg != rm && vvvv != rm && low != rm, kept(rm) < 0,
            Self.takesContextOperand(instruction)
        {
            place = .context(RegisterMap.slot(rm))
            loads &= ~(1 << UInt32(rm))
        }

        // Host registers for the displaced ones.
        var hosts: [3 of Int] = .init(repeating: -1)
        let wanted = loads | stores
        let addressIsFree = memory < 0 && !isHeld
        // Those that are there already; then the register whose value is not wanted now.
        for guest in 13..<16 where wanted & (1 << UInt32(guest)) != 0 { hosts[guest - 13] = kept(guest) }
        var borrowed: (register: Int, slot: Int) = (-1, -1)
        var borrowed2: (register: Int, slot: Int) = (-1, -1)
        for guest in 13..<16 where wanted & (1 << UInt32(guest)) != 0 && hosts[guest - 13] < 0 {
            let scratchIsFree = hosts[0] != scratch && hosts[1] != scratch && hosts[2] != scratch
            let mayUseAddress = addressIsFree && hosts[0] != address && hosts[1] != address && hosts[2] != address
            var host = -1
            if scratchIsFree && !(mayUseAddress && keptInAddress < 0 && keptInScratch >= 0) {
                host = scratch
                keptInScratch = guest
            } else if mayUseAddress {
                host = address
                keptInAddress = guest
            } else {
                // Rare: three displaced registers, or two and memory.
                host = 3
                while used & (1 << UInt32(host)) != 0 || host == 4 || host == borrowed.register { host += 1 }
                let slot = borrowed.register < 0 ? 1 : 2
                code.storeContext(ContextOffset.temporary + slot * 8, host)
                if borrowed.register < 0 { borrowed = (host, slot) } else { borrowed2 = (host, slot) }
            }
            hosts[guest - 13] = host
            if loads & (1 << UInt32(guest)) != 0 { code.loadContext(host, RegisterMap.slot(guest)) }
        }
        func host(_ guest: Int) -> Int {
            if guest < 0 { return -1 }
            if guest >= 16 { return guest - 16 }
            return RegisterMap.isDisplaced(guest) ? hosts[guest - 13] : RegisterMap.host(guest)
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
        // The 16-bit form has words from offset 6, the 32-bit form double words from offset 12 (SDM Vol. 1, 8.1.10). In
        // protected mode the upper half of the last, reserved, is stored as ones like those of the first three.
        let reserved: Int32 = mode.has(BlockMode.eightySix) ? 0 : -0x1_0000
        let isNarrow = instruction.pointee.operand_width == 16
        for offset in isNarrow ? stride(from: Int32(6), to: 14, by: 4) : stride(from: Int32(12), to: 28, by: 4) {
            code.rex(w: false, reg: 0, base: address)
            code.byte(0xC7)
            code.memory(0, base: address, offset)
            code.dword(offset == 24 ? reserved : 0)
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
}
