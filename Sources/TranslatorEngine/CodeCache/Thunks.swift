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
