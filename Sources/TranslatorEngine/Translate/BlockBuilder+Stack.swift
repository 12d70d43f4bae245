import CZydis

/// Instructions that use the stack, and addresses.
extension BlockBuilder {
    private var stack: Int { RegisterMap.guestStack }

    /// Pushes what is in the first temporary.
    mutating func pushTemporary() {
        beginPush(8)
        code.loadContext(scratch, ContextOffset.temporary)
        storeToAddress(scratch, size: 8)
        endPush(8)
    }

    /// Address of a push of `size` bytes, checked, in the address register.
    private mutating func beginPush(_ size: Int) {
        if isHeld {
            accessOffset = Int32(truncatingIfNeeded: heldOffset - size)
            return
        }
        clobberFlags()
        moveStack(address, -size)
        chooseStack()
        beginAccess(size: size, access: Access.write | Access.stack, stackDistance: 0)
    }
    private mutating func endPush(_ size: Int) {
        if isHeld { accessOffset = 0 } else { endAccess() }
        moveStack(stack, -size)
    }
    /// The same for a pop; the caller moves the stack pointer.
    private mutating func beginPop(_ size: Int) {
        if isHeld {
            accessOffset = Int32(truncatingIfNeeded: heldOffset)
            return
        }
        clobberFlags()
        moveStack(address, 0)
        chooseStack()
        beginAccess(size: size, access: Access.read | Access.stack, stackDistance: 0)
    }
    private mutating func endPop() {
        if isHeld { accessOffset = 0 } else { endAccess() }
    }
    mutating func storeToAddress(_ register: Int, size: Int) {
        if size == 2 { code.byte(0x66) }
        code.rex(w: size == 8, reg: register, base: address)
        code.byte(size == 1 ? 0x88 : 0x89)
        code.memory(register, base: address, accessOffset)
    }
    mutating func loadFromAddress(_ register: Int, size: Int) {
        if size <= 2 {
            code.rex(w: false, reg: register, base: address)
            code.byte(0x0F)
            code.byte(size == 1 ? 0xB6 : 0xB7)
        } else {
            code.rex(w: size == 8, reg: register, base: address)
            code.byte(0x8B)
        }
        code.memory(register, base: address, accessOffset)
    }

    mutating func push(
        _ instruction: UnsafePointer<ZydisDecodedInstruction>, _ operands: UnsafePointer<ZydisDecodedOperand>
    ) {
        let size = stackSize(instruction.pointee.operand_width)
        switch operands.pointee.type {
        case ZYDIS_OPERAND_TYPE_REGISTER:
            let guest = Operand.general(operands.pointee.reg.value)
            beginPush(size)
            var source = RegisterMap.host(guest)
            if RegisterMap.isDisplaced(guest) {
                source = scratch
                code.loadContext(scratch, RegisterMap.slot(guest))
            }
            storeToAddress(source, size: size)
        case ZYDIS_OPERAND_TYPE_IMMEDIATE:
            beginPush(size)
            // Immediates are sign-extended to the operand size by the decoder.
            code.move(scratch, immediate: operands.pointee.imm.value.u)
            storeToAddress(scratch, size: size)
        default:
            clobberFlags()
            emitAddress(operands.pointee.mem, withSegment: true)
            beginAccess(size: size, access: Access.read | Self.stackBit(operands.pointee.mem))
            loadFromAddress(scratch, size: size)
            endAccess()
            code.storeContext(ContextOffset.temporary, scratch)
            beginPush(size)
            code.loadContext(scratch, ContextOffset.temporary)
            storeToAddress(scratch, size: size)
        }
        endPush(size)
    }

    mutating func pop(
        _ instruction: UnsafePointer<ZydisDecodedInstruction>, _ operands: UnsafePointer<ZydisDecodedOperand>
    ) {
        let size = stackSize(instruction.pointee.operand_width)
        beginPop(size)
        if operands.pointee.type == ZYDIS_OPERAND_TYPE_REGISTER {
            let guest = Operand.general(operands.pointee.reg.value)
            if size >= 4 && !RegisterMap.isDisplaced(guest) && guest != 4 {
                loadFromAddress(RegisterMap.host(guest), size: size)
                endPop()
                moveStack(stack, size)
                return
            }
            loadFromAddress(scratch, size: size)
            endPop()
            moveStack(stack, size)
            if size >= 4 {
                if guest == 4 {
                    code.move(stack, scratch)
                } else {
                    code.storeContext(RegisterMap.slot(guest), scratch)
                }
            } else if RegisterMap.isDisplaced(guest) {
                code.byte(0x65)
                code.byte(0x66)
                code.rex(w: false, reg: scratch, base: 0)
                code.byte(0x89)
                code.absolute(scratch, Int32(RegisterMap.slot(guest)))
            } else {
                code.byte(0x66)
                code.rex(w: false, reg: scratch, base: RegisterMap.host(guest))
                code.byte(0x89)
                code.modRM(3, scratch, RegisterMap.host(guest))
            }
            return
        }
        // The stack pointer is incremented before the address is computed (SDM Vol. 2, POP), but only for good
        // once the store cannot fault.
        loadFromAddress(scratch, size: size)
        endAccess()
        code.storeContext(ContextOffset.temporary, scratch)
        if Operand.general(operands.pointee.mem.base) == 4 {
            var memory = operands.pointee.mem
            memory.disp.value &+= ZyanI64(size)
            memory.disp.has_displacement = 1
            emitAddress(memory, withSegment: true)
        } else {
            emitAddress(operands.pointee.mem, withSegment: true)
        }
        beginAccess(size: size, access: Access.write | Self.stackBit(operands.pointee.mem))
        code.loadContext(scratch, ContextOffset.temporary)
        storeToAddress(scratch, size: size)
        endAccess()
        moveStack(stack, size)
    }

    mutating func leave(_ instruction: UnsafePointer<ZydisDecodedInstruction>) {
        let size = stackSize(instruction.pointee.operand_width)
        clobberFlags()
        if is64Bit { code.move(address, HostRegister.rbp) } else { moveFrame(address, 0) }
        chooseStack()
        beginAccess(size: size, access: Access.read | Access.stack)
        // The new stack pointer comes from the old rbp, which the load replaces.
        loadFromAddress(scratch, size: size)
        endAccess()
        if is64Bit { code.lea(stack, base: HostRegister.rbp, Int32(size)) } else { moveFrame(stack, size) }
        if size == 2 {
            code.byte(0x66)
            code.move32(HostRegister.rbp, scratch)
        } else {
            code.move(HostRegister.rbp, scratch)
        }
    }

    /// Pushes the address of the next instruction, and leaves it in the scratch register.
    mutating func pushReturnAddress() {
        let size = pointerSize
        beginPush(size)
        loadCodeAddress(scratch, next)
        storeToAddress(scratch, size: size)
        endPush(size)
    }

    /// The target of an indirect branch into the address register.
    mutating func loadTarget(_ operand: UnsafePointer<ZydisDecodedOperand>) {
        if operand.pointee.type == ZYDIS_OPERAND_TYPE_REGISTER {
            read(address, guest: Operand.general(operand.pointee.reg.value))
            if !is64Bit { cutTarget() }
        } else {
            clobberFlags()
            emitAddress(operand.pointee.mem, withSegment: true)
            beginAccess(size: pointerSize, access: Access.read | Self.stackBit(operand.pointee.mem))
            loadFromAddress(address, size: pointerSize)
            endAccess()
        }
    }

    /// Pops the return address into the address register, and `extra` bytes.
    mutating func popReturnAddress(extra: Int) {
        clobberFlags()
        moveStack(address, 0)
        beginAccess(size: pointerSize, access: Access.read | Access.stack, stackDistance: 0)
        loadFromAddress(address, size: pointerSize)
        endAccess()
        moveStack(stack, pointerSize + extra)
    }

    /// Whether LEA computes into its own register.
    static func isDirect(_ operands: UnsafePointer<ZydisDecodedOperand>) -> Bool {
        let memory = operands[1].mem
        // 16-bit addresses are cut behind the sum.
        return !RegisterMap.isDisplaced(Operand.general(operands.pointee.reg.value))
            && (operands.pointee.size == 64
                || operands.pointee.size == 32 && !Operand.is16Bit(memory.base) && !Operand.is16Bit(memory.index))
    }

    /// LEA computes and checks nothing.
    mutating func lea(
        _ instruction: UnsafePointer<ZydisDecodedInstruction>, _ operands: UnsafePointer<ZydisDecodedOperand>
    ) {
        let guest = Operand.general(operands.pointee.reg.value)
        let width = operands.pointee.size
        let isDirect = Self.isDirect(operands)
        emitAddress(
            operands[1].mem, withSegment: false, into: isDirect ? RegisterMap.host(guest) : address,
            isNarrow: isDirect && width == 32)
        if isDirect { return }
        if keptInScratch == guest { keptInScratch = -1 }
        switch (width, RegisterMap.isDisplaced(guest)) {
        case (64, _):
            code.storeContext(RegisterMap.slot(guest), address)
            keptInAddress = guest
        case (32, true):
            code.move32(address, address)
            code.storeContext(RegisterMap.slot(guest), address)
            keptInAddress = guest
        case (32, false): code.move32(RegisterMap.host(guest), address)
        case (_, true):
            code.byte(0x65)
            code.byte(0x66)
            code.rex(w: false, reg: address, base: 0)
            code.byte(0x89)
            code.absolute(address, Int32(RegisterMap.slot(guest)))
        default:
            code.byte(0x66)
            code.move32(RegisterMap.host(guest), address)
        }
    }

    /// BT, BTS, BTR and BTC with a register index: the operand's address moves by the index's upper part, and the
    /// copy runs with the rest (SDM Vol. 1, 3.1.1.9).
    mutating func bitString(
        _ instruction: UnsafePointer<ZydisDecodedInstruction>, _ operands: UnsafePointer<ZydisDecodedOperand>,
        bytes: UnsafePointer<UInt8>, info: Instruction
    ) {
        let size = Int(operands.pointee.size) / 8
        let guest = Operand.general(operands[1].reg.value)
        let isLocked = instruction.pointee.attributes & UInt64(ZYDIS_ATTRIB_HAS_LOCK) != 0
        clobberFlags()
        emitAddress(operands.pointee.mem, withSegment: false)
        read(scratch, guest: guest)
        if size == 2 {
            // movsx scratch, scratch16
            code.rex(w: true, reg: scratch, base: scratch)
            code.byte(0x0F)
            code.byte(0xBF)
            code.modRM(3, scratch, scratch)
        } else if size == 4 {
            // movsxd scratch, scratch32
            code.rex(w: true, reg: scratch, base: scratch)
            code.byte(0x63)
            code.modRM(3, scratch, scratch)
        }
        let log2 = size == 8 ? 3 : size == 4 ? 2 : 1
        code.shiftRightArithmetic(scratch, UInt8(log2 + 3), wide: true)
        // The offset wraps as any part of an address does.
        code.lea(address, base: address, index: scratch, scale: log2, 0, wide: instruction.pointee.address_width == 64)
        if addressWidth == 16 { code.zeroExtend16(address) }
        addSegment(operands.pointee.mem, into: address)
        let writes = operands.pointee.actions & UInt8(truncatingIfNeeded: ZYDIS_OPERAND_ACTION_MASK_WRITE.rawValue) != 0
        beginAccess(
            size: size, access: Access.read | (writes ? Access.write : 0) | Self.stackBit(operands.pointee.mem))
        read(scratch, guest: guest)
        code.arithmetic(.and, scratch, immediate: Int32(size * 8 - 1), wide: false)
        code.storeContext(ContextOffset.temporary, scratch)
        needFlags(for: info)
        code.loadContext(scratch, ContextOffset.temporary)
        if isLocked { code.byte(0xF0) }
        if size == 2 { code.byte(0x66) }
        code.rex(w: size == 8, reg: scratch, base: address)
        code.byte(0x0F)
        code.byte(instruction.pointee.opcode)
        code.memory(scratch, base: address, 0)
        endAccess()
        noteFlags(info)
    }

    /// MOV between the accumulator and an absolute address (opcodes A0-A3).
    mutating func absoluteMove(
        _ instruction: UnsafePointer<ZydisDecodedInstruction>, _ operands: UnsafePointer<ZydisDecodedOperand>
    ) {
        let opcode = instruction.pointee.opcode
        let isStore = opcode >= 0xA2
        let memory = operands[isStore ? 0 : 1]
        let size = Int(memory.size) / 8
        clobberFlags()
        emitAddress(memory.mem, withSegment: true)
        beginAccess(size: size, access: isStore ? 2 : 1)
        moveAccumulator(isStore: isStore, size: size)
        endAccess()
    }
    /// MOV between the accumulator and a checked address.
    mutating func moveAccumulator(isStore: Bool, size: Int) {
        if size == 2 { code.byte(0x66) }
        code.rex(w: size == 8, reg: HostRegister.rax, base: address)
        code.byte((isStore ? 0x88 : 0x8A) | (size == 1 ? 0 : 1))
        code.memory(HostRegister.rax, base: address, 0)
    }
}
