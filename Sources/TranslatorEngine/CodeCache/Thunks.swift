/// What translated code tells the run loop when it leaves: stored in the code behind the call to an exit thunk.
package struct ExitDescriptor {
    package enum Kind: UInt8 {
        /// A direct jump that is not linked yet: `value` is the target's offset from the code page; the number of its
        /// `Site` follows the descriptor.
        case chain
        /// As `chain`, never linked: an interrupt is to be looked at first.
        case goto
        /// An instruction for the system half: `value` is its index in the system instruction pool.
        case system
        /// An indirect jump that missed the jump cache: the target is in `Context.rip`.
        case indirect
        /// An exception: `vector` at offset `value` from the code page.
        case exception
        /// A near call to an address that is not canonical, at offset `value` from the code page.
        case refusedCall
        /// A memory helper found a fault; the exception is with the CPU, `Context.rip` is exact.
        case fault
        /// `Context.rip` says where to go on.
        case resume
        /// A host signal arrived in translated code.
        case signal
    }
    package var kind: UInt8
    /// Whether the flags were in the host's flags (of `chain`: which of the target's entries to link to).
    package var flagsInHost: UInt8
    package var vector: UInt8
    package var padding: UInt8
    package var value: Int32
    package static let size = 8
}

/// What a memory access is, in a byte.
package enum Access {
    package static let read: UInt8 = 1
    package static let write: UInt8 = 2
    /// Through SS: a non-canonical address is #SS, not #GP.
    package static let stack: UInt8 = 4
    /// A vector access that must be aligned to its size: #GP otherwise, which comes before a page fault. Where
    /// there is no page fault the host's CPU finds that by itself.
    package static let aligned: UInt8 = 8
    /// Of an x87 instruction: an exception that is pending there comes before a page fault.
    package static let x87: UInt8 = 16
    /// Outside of 64-bit code: not through a segment that was checked, so an access that passes 4 GB passes the limit.
    package static let flat: UInt8 = 32
    /// Under a mask that keeps what it leaves out from faulting: `MemoryDescriptor.slot` is an `AccessMask`.
    package static let masked: UInt8 = 64

    /// What #AC wants an access's address to be a multiple of (SDM Vol. 3, table 6-7): its size up to 16, 8 for
    /// ten bytes, 4 or 2 for the x87 environment and state. Accesses that raise #GP when misaligned want nothing here.
    static func alignment(size: Int, _ access: UInt8) -> Int {
        if access & aligned != 0 { return 1 }
        switch size {
        case 1, 2, 4, 8, 16: return size
        case 10: return 8
        case 14, 94: return 2
        case 6, 28, 108: return 4
        default: return size > 16 ? 16 : 1
        }
    }
}

/// What a memory access tells its slow path: stored in the code behind the call.
package struct MemoryDescriptor {
    /// From this descriptor to the instruction that makes the access.
    package var operation: Int32
    /// Length of that instruction's host code, to copy when it has to run on the bounce buffer.
    package var operationLength: UInt8
    /// An `Access`.
    package var access: UInt8
    /// Bytes.
    package var size: UInt16
    /// Offset of the guest instruction from the code page.
    package var guest: UInt16
    /// One more than the number of the slot that the site may give up, 0 for none. Under `Access.masked` an `AccessMask`.
    package var slot: UInt16
    package static let size = 12
}

/// Code that every block shares: the way in, the ways out, and the slow path of memory accesses.
package struct Thunks {
    /// `(context, entry)`: a C function that runs translated code until it leaves.
    package var enter = 0
    /// Called by blocks, followed by an `ExitDescriptor`; the flags are in the host's flags / in the context.
    package var exitHost = 0
    package var exitSaved = 0
    /// Where a signal handler sends the thread: registers are the guest's, `exitReason` is set.
    package var exitSignal = 0
    /// Jumped to with the target in the address register, and in 64-bit code `Context.branch` set.
    package var indirectMiss = 0
    package var neverHit = 0
    /// Jumped to by a return in the same way when the return stack's top is another one.
    package var returnMiss: [3 of Int] = .init(repeating: 0)
    /// Called on a TLB miss, followed by a `MemoryDescriptor`; index by `slowIndex`.
    package var slow: [12 of Int] = .init(repeating: 0)
    /// Called with a slot's place in the scratch register and the address less the slot's tag in the address register.
    /// Returns with the host address there, and the slot filled; or, when the TLB misses, behind the jump (5 bytes) that
    /// follows the call, with the registers as `slow` wants them. Index by `refillIndex`.
    package var refill: [54 of Int] = .init(repeating: 0)
    /// Called at the first vector instruction of a block when the guest's vectors are in the context.
    package var restoreVectors = 0
    /// Called behind it at the first AVX-512 instruction of a block when that state does not count yet.
    package var beginWideState = 0
    package var signalDescriptor = 0
    package var resumeDescriptor = 0
    /// Called in the middle of a block for an instruction of the system half.
    package var systemCall = 0
    package var faultDescriptor = 0
    /// `(area, mask)`: C functions around XSAVE64 and XRSTOR64.
    package var xsave = 0
    package var xrstor = 0
    /// Room for one instruction that runs on the bounce buffer, rewritten for each.
    package var bounceSlot = 0
    package var end = 0
    package static let bounceSlotSize = 160

    package static func slowIndex(table: Int, writes: Bool, vectors: Bool) -> Int {
        table * 4 + (writes ? 2 : 0) + (vectors ? 1 : 0)
    }

    package static func refillIndex(table: Int, writes: Bool, sizeClass: Int) -> Int {
        (table * 2 + (writes ? 1 : 0)) * TLBSlots.sizeClassCount + sizeClass
    }

    /// - Parameters:
    ///   - memoryHelper: `(owner, linear address, descriptor) -> host address`, 0 to leave for a fault.
    ///   - bounceHelper: `(owner)`: writes the bounce buffer back.
    ///   - systemHelper: `(owner, descriptor) -> 0` to leave, 1 to go on behind the descriptor.
    package init(
        in memory: CodeMemory, vectors extent: VectorExtent, hasBMI2: Bool, memoryHelper: UInt64, bounceHelper: UInt64, systemHelper: UInt64
    ) {
        var code = Emitter(at: memory.writableBase)
        func offset(_ code: Emitter) -> Int { code.cursor - memory.writableBase }
        let address = RegisterMap.address, scratch = RegisterMap.scratch
        let calleeSaved = [HostRegister.rbx, HostRegister.rbp, 12, 13, 14, 15]

        enter = offset(code)
        for register in calleeSaved { code.push(register) }
        code.arithmetic(.sub, HostRegister.rsp, immediate: 8)
        code.storeContext(ContextOffset.hostStack, HostRegister.rsp)
        code.storeContext(ContextOffset.spill, HostRegister.rsi)
        code.loadContext(HostRegister.rsp, ContextOffset.returnBase)
        code.restoreRegisters()
        code.byte(0x65)  // jmp gs:[spill]
        code.byte(0xFF)
        code.absolute(4, Int32(ContextOffset.spill))

        exitHost = offset(code)
        code.popContext(ContextOffset.exitReason)
        code.saveFlags(scratch: scratch)
        let toCommon = code.jump()
        exitSaved = offset(code)
        code.popContext(ContextOffset.exitReason)
        exitSignal = offset(code)
        code.bind(toCommon)
        code.saveRegisters()
        code.testContext32(ContextOffset.vectorsSaved)
        let saved = code.jump(if: Condition.notEqual)
        code.saveVectors(extent)
        code.bind(saved)
        let leave = offset(code)
        code.loadContext(HostRegister.rsp, ContextOffset.hostStack)
        code.arithmetic(.add, HostRegister.rsp, immediate: 8)
        for register in calleeSaved.reversed() { code.pop(register) }
        code.ret()

        // Where the first entry of each jump cache and the bottom of the return stack lead: their tag is an address
        // that a guest can name.
        neverHit = offset(code)
        code.move(address, immediate: JumpCache.never)
        indirectMiss = offset(code)
        code.storeContext(ContextOffset.rip, address)
        code.call(to: memory.writableBase + exitSaved)
        code.exitDescriptor(.indirect, flagsInHost: false, value: 0)
        faultDescriptor = offset(code)
        code.exitDescriptor(.fault, flagsInHost: false, value: 0)
        resumeDescriptor = offset(code)
        code.exitDescriptor(.resume, flagsInHost: false, value: 0)
        signalDescriptor = offset(code)
        code.exitDescriptor(.signal, flagsInHost: false, value: 0)

        // A return to another place than the return stack's top says: a few entries down, then the jump cache.
        for table in 0..<TLB.tableCount {
            returnMiss[table] = offset(code)
            code.arithmeticContext(.cmp, HostRegister.rsp, ContextOffset.returnBase)
            let isEmpty = code.jump(if: Condition.equal)
            for depth in 1..<ReturnStack.depth {
                code.rex(w: true, reg: address, base: HostRegister.rsp)  // cmp address, [rsp + ...]
                code.byte(0x3B)
                code.memory(address, base: HostRegister.rsp, Int32(depth * 16 + 8))
                let differs = code.jump(if: Condition.notEqual)
                code.lea(HostRegister.rsp, base: HostRegister.rsp, Int32(depth * 16))
                code.ret()
                code.bind(differs)
            }
            code.loadContext(HostRegister.rsp, ContextOffset.returnBase)
            code.bind(isEmpty)
            let misses = code.lookUp(table: table, address: address, scratch: scratch, hasBMI2: false, isCall: false)
            code.link(misses, to: memory.writableBase + indirectMiss)
        }

        restoreVectors = offset(code)
        code.restoreVectors(extent)
        code.ret()
        let saveVectors = offset(code)
        code.saveVectors(extent)
        code.ret()
        if extent.hasAVX512 {
            beginWideState = offset(code)
            code.beginWideState()
            code.ret()
        }

        // The slow path of memory accesses. On entry the address register holds address - tag, the scratch
        // register the TLB entry's offset, the stack the descriptor's address.
        var common = [0, 0]
        for vectors in [false, true] {
            common[vectors ? 1 : 0] = offset(code)
            code.popContext(ContextOffset.exitReason)
            code.saveRegisters()
            if vectors {
                code.call(to: memory.writableBase + saveVectors)
            } else {
                code.testContext32(ContextOffset.vectorsSaved)
                let skip = code.jump(if: Condition.notEqual)
                code.call(to: memory.writableBase + saveVectors)
                code.bind(skip)
            }
            code.toHostStack()
            code.loadContext(HostRegister.rdi, ContextOffset.owner)
            code.move(HostRegister.rsi, address)
            code.loadContext(HostRegister.rdx, ContextOffset.exitReason)
            code.move(HostRegister.rax, immediate: memoryHelper)
            code.call(register: HostRegister.rax)
            code.loadContext(HostRegister.rsp, ContextOffset.savedStack)
            code.byte(0x48)  // test rax, rax
            code.byte(0x85)
            code.byte(0xC0)
            let fault = code.jump(if: Condition.equal)
            code.move(address, HostRegister.rax)
            if vectors { code.call(to: memory.writableBase + restoreVectors) }
            code.restoreCallerSaved()
            code.byte(0x65)  // jmp gs:[spill + 24]
            code.byte(0xFF)
            code.absolute(4, Int32(ContextOffset.spill + 24))
            code.bind(fault)
            let toLeave = code.jump()
            code.link(toLeave, to: memory.writableBase + leave)
        }
        for table in 0..<TLB.tableCount {
            for writes in [false, true] {
                for vectors in [false, true] {
                    slow[Thunks.slowIndex(table: table, writes: writes, vectors: vectors)] = offset(code)
                    let base = ContextOffset.tlb + table * TLB.entryCount * TLB.entrySize
                    code.arithmeticContext(.add, address, base: scratch, base + (writes ? TLB.writeTag : TLB.readTag))
                    let toCommon = code.jump()
                    code.link(toCommon, to: memory.writableBase + common[vectors ? 1 : 0])
                }
            }
        }

        for table in 0..<TLB.tableCount {
            for writes in [false, true] {
                for sizeClass in 0..<TLBSlots.sizeClassCount {
                    refill[Thunks.refillIndex(table: table, writes: writes, sizeClass: sizeClass)] = offset(code)
                    code.refillSlot(table: table, writes: writes, size: 1 << sizeClass, hasBMI2: hasBMI2)
                }
            }
        }

        // An instruction of the system half inside a block, followed by an `ExitDescriptor`.
        systemCall = offset(code)
        code.popContext(ContextOffset.exitReason)
        code.saveRegisters()
        code.testContext32(ContextOffset.vectorsSaved)
        let areSaved = code.jump(if: Condition.notEqual)
        code.call(to: memory.writableBase + saveVectors)
        code.bind(areSaved)
        code.toHostStack()
        code.loadContext(HostRegister.rdi, ContextOffset.owner)
        code.loadContext(HostRegister.rsi, ContextOffset.exitReason)
        code.move(HostRegister.rax, immediate: systemHelper)
        code.call(register: HostRegister.rax)
        code.loadContext(HostRegister.rsp, ContextOffset.savedStack)
        code.byte(0x48)  // test rax, rax
        code.byte(0x85)
        code.byte(0xC0)
        let leaves = code.jump(if: Condition.equal)
        code.restoreRegisters()
        code.loadContext(scratch, ContextOffset.exitReason)
        code.lea(scratch, base: scratch, Int32(ExitDescriptor.size))
        code.jump(register: scratch)
        code.bind(leaves)
        let toLeaveHere = code.jump()
        code.link(toLeaveHere, to: memory.writableBase + leave)

        // C functions (area: rdi, mask: rsi).
        for isSave in [true, false] {
            if isSave { xsave = offset(code) } else { xrstor = offset(code) }
            code.move(HostRegister.rax, HostRegister.rsi)
            code.move(HostRegister.rdx, immediate: 0)
            code.byte(0x48)
            code.byte(0x0F)
            code.byte(0xAE)
            code.modRM(0, isSave ? 4 : 5, HostRegister.rdi)
            code.ret()
        }

        // Behind an instruction that ran on the bounce buffer: flags and all registers are the guest's.
        bounceFinish = offset(code)
        code.popContext(ContextOffset.spill + 16)
        code.pushFlags(to: ContextOffset.spill + 8)
        code.storeContext(ContextOffset.bounceScratch, scratch)
        code.storeContext(ContextOffset.bounceAddress, address)
        code.saveRegisters()
        code.testContext32(ContextOffset.vectorsSaved)
        let alreadySaved = code.jump(if: Condition.notEqual)
        code.call(to: memory.writableBase + saveVectors)
        code.storeContext32(ContextOffset.bounceVectors, immediate: 1)
        code.bind(alreadySaved)
        code.toHostStack()
        code.loadContext(HostRegister.rdi, ContextOffset.owner)
        code.move(HostRegister.rax, immediate: bounceHelper)
        code.call(register: HostRegister.rax)
        code.loadContext(HostRegister.rsp, ContextOffset.savedStack)
        code.testContext32(ContextOffset.bounceVectors)
        let noVectors = code.jump(if: Condition.equal)
        code.call(to: memory.writableBase + restoreVectors)
        code.storeContext32(ContextOffset.bounceVectors, immediate: 0)
        code.bind(noVectors)
        code.popFlags(from: ContextOffset.spill + 8)
        code.restoreRegisters()
        code.loadContext(scratch, ContextOffset.bounceScratch)
        code.loadContext(address, ContextOffset.bounceAddress)
        code.byte(0x65)  // jmp gs:[spill + 24]
        code.byte(0xFF)
        code.absolute(4, Int32(ContextOffset.spill + 24))

        bounceSlot = offset(code)
        for _ in 0..<Thunks.bounceSlotSize { code.byte(0xCC) }
        end = (offset(code) + 63) & ~63
    }

    /// Called by the bounce slot behind its instruction; goes on at `spill[3]`.
    package var bounceFinish = 0
}

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
    fileprivate mutating func refillSlot(table: Int, writes: Bool, size: Int, hasBMI2: Bool) {
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
    fileprivate mutating func toHostStack() {
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
