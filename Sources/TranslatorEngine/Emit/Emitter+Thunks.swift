extension Emitter {
    /// The index of an address's TLB entry, as its offset in the table, into a register.
    @inline(__always) mutating func indexTLB(_ index: Int, address: Int, hasBMI2: Bool) {
        if hasBMI2 {
            rotateRight(index, address, TLB.shift)
        } else {
            move(index, address)
            shiftRight(index, TLB.shift)
        }
        arithmetic(.and, index, immediate: TLB.mask, wide: false)
    }

    /// The check of an access against the TLB: behind it `RegisterMap.address` holds the host address in place of the
    /// guest's. Clobbers flags and the scratch register.
    /// - Parameters:
    ///   - low: bits of the address that have to be clear.
    ///   - misaligned: the displacement of the jump for when they are not.
    /// - Returns: the displacement of the jump that a miss takes.
    mutating func checkTLB(
        table: Int, writes: Bool, size: Int, hasBMI2: Bool, low: Int, misaligned: inout UnsafeMutablePointer<UInt8>?
    ) -> UnsafeMutablePointer<UInt8> {
        let address = RegisterMap.address, scratch = RegisterMap.scratch
        let entries = ContextOffset.tlb + table * TLB.entryCount * TLB.entrySize
        indexTLB(scratch, address: address, hasBMI2: hasBMI2)
        arithmeticContext(.sub, address, base: scratch, entries + (writes ? TLB.writeTag : TLB.readTag))
        if low > 0 {
            // Tags are pages: the low bits are still the address's.
            test(address, immediate: Int32(low))
            misaligned = jump(if: Condition.notEqual)
        }
        arithmetic(.cmp, address, immediate: Int32(4096 - size))
        let displacement = jump(if: Condition.above)
        arithmeticContext(.add, address, base: scratch, entries + TLB.host)
        return displacement
    }
    mutating func checkTLB(table: Int, writes: Bool, size: Int, hasBMI2: Bool) -> UnsafeMutablePointer<UInt8> {
        var none: UnsafeMutablePointer<UInt8>?
        return checkTLB(table: table, writes: writes, size: size, hasBMI2: hasBMI2, low: 0, misaligned: &none)
    }
    /// The same against a slot; clobbers flags only. As long as `checkTLB`'s, which may take its place.
    mutating func checkSlot(_ slot: Int, size: Int, mayRetire: Bool, hasBMI2: Bool) -> UnsafeMutablePointer<UInt8> {
        if mayRetire {
            // A NOP of 11 or 12 bytes.
            for _ in 0..<(hasBMI2 ? 2 : 3) { byte(0x66) }
            for value: UInt8 in [0x2E, 0x0F, 0x1F, 0x84, 0, 0, 0, 0, 0] { byte(value) }
        }
        arithmeticContext(.sub, RegisterMap.address, slot)
        arithmetic(.cmp, RegisterMap.address, immediate: Int32(4096 - size))
        let displacement = jump(if: Condition.above)
        arithmeticContext(.add, RegisterMap.address, slot + TLBSlots.host)
        return displacement
    }
    /// Bytes of `checkTLB`, and of a `checkSlot` that may retire.
    static func checkByteCount(hasBMI2: Bool) -> Int { hasBMI2 ? 42 : 43 }

    /// One `Thunks.refill`.
    mutating func refillSlot(table: Int, writes: Bool, size: Int, hasBMI2: Bool) {
        let address = RegisterMap.address, scratch = RegisterMap.scratch
        let entries = ContextOffset.tlb + table * TLB.entryCount * TLB.entrySize
        let tag = entries + (writes ? TLB.writeTag : TLB.readTag)
        storeContext(ContextOffset.spill, scratch)
        arithmeticContext(.add, address, base: scratch, 0)
        indexTLB(scratch, address: address, hasBMI2: hasBMI2)
        arithmeticContext(.sub, address, base: scratch, tag)
        arithmetic(.cmp, address, immediate: Int32(4096 - size))
        let miss = jump(if: Condition.above)
        // A walk through memory comes in at a page's edge.
        arithmetic(.cmp, address, immediate: TLBSlots.edge)
        let low = jump(if: Condition.below)
        arithmetic(.cmp, address, immediate: 4096 - TLBSlots.edge - Int32(size))
        let high = jump(if: Condition.above)
        push(scratch)
        loadContext(scratch, ContextOffset.spill)
        byte(0x65)  // add qword gs:[slot + jumps], 1
        rex(w: true, reg: 0, base: scratch)
        byte(0x83)
        memory(0, base: scratch, Int32(TLBSlots.jumps))
        byte(1)
        byte(0x65)  // cmp qword gs:[slot + jumps], limit
        rex(w: true, reg: 0, base: scratch)
        byte(0x83)
        memory(7, base: scratch, Int32(TLBSlots.jumps))
        byte(UInt8(TLBSlots.jumpLimit))
        pop(scratch)
        let jumping = jump(if: Condition.equal)
        bind(low)
        bind(high)
        pushContext(base: scratch, tag)
        pushContext(base: scratch, entries + TLB.host)
        arithmeticContext(.add, address, base: scratch, entries + TLB.host)
        loadContext(scratch, ContextOffset.spill)
        popContext(base: scratch, TLBSlots.host)
        popContext(base: scratch, 0)
        storeContext32(ContextOffset.slotsUsed + table * 4, immediate: 1)
        ret()
        bind(miss)
        bind(jumping)
        for value: UInt8 in [0x48, 0x83, 0x04, 0x24, 0x05] { byte(value) }  // add qword [rsp], 5
        ret()
    }

    /// `push qword gs:[base + offset]` and `pop`; `base` is not rsp or r12.
    private mutating func pushContext(base: Int, _ offset: Int) { stackContext(0xFF, 6, base: base, offset) }
    private mutating func popContext(base: Int, _ offset: Int) { stackContext(0x8F, 0, base: base, offset) }
    private mutating func stackContext(_ opcode: UInt8, _ opcodeExtension: Int, base: Int, _ offset: Int) {
        byte(0x65)
        rex(w: false, reg: 0, base: base)
        byte(opcode)
        modRM(2, opcodeExtension, base)
        dword(Int32(truncatingIfNeeded: offset))
    }

    /// Before a helper: from the return stack to the host's. The helper may change `savedStack` to empty the former.
    mutating func toHostStack() {
        storeContext(ContextOffset.savedStack, HostRegister.rsp)
        loadContext(HostRegister.rsp, ContextOffset.hostStack)
    }
    /// `pop qword gs:[offset]`.
    package mutating func popContext(_ offset: Int) {
        byte(0x65)
        byte(0x8F)
        absolute(0, Int32(offset))
    }
    /// `call rel32` to an address in the same code memory.
    @inline(__always) package mutating func call(to target: UnsafeMutablePointer<UInt8>) {
        byte(0xE8)
        dword(Int32(truncatingIfNeeded: target - (cursor + 4)))
    }
    /// Makes a displacement lead to an address in the same code memory.
    @inline(__always)
    package func link(_ displacement: UnsafeMutablePointer<UInt8>, to target: UnsafeMutablePointer<UInt8>) {
        UnsafeMutableRawPointer(displacement).storeBytes(
            of: Int32(truncatingIfNeeded: target - (displacement + 4)), as: Int32.self)
    }
    package mutating func exitDescriptor(
        _ kind: ExitDescriptor.Kind, flagsInHost: Bool, vector: UInt8 = 0, value: Int32
    ) {
        byte(kind.rawValue)
        byte(flagsInHost ? 1 : 0)
        byte(vector)
        byte(0)
        dword(value)
    }
    /// Saves the whole host flags with PUSHF: for the rare path that must keep flags and every register.
    mutating func pushFlags(to offset: Int) {
        byte(0x9C)  // pushfq
        popContext(offset)
    }
    mutating func popFlags(from offset: Int) {
        byte(0x65)  // push qword gs:[offset]
        byte(0xFF)
        absolute(6, Int32(offset))
        byte(0x9D)  // popfq
    }
}
