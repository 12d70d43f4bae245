import CZydis

/// Code behind the block, for a branch that leaves it.
struct PendingExit {
    enum Kind {
        /// To the block at `target`, linked when it is known.
        case chain
        /// To `target` by way of the run loop.
        case poll
        /// To the address in a register or, without one, in the first temporary, by way of the run loop.
        case pollIndirect(register: Int?)
        /// To the address in the address register by a thunk, which has to know the branch (`Context.branch`).
        case miss(branch: UInt32, thunk: Int)
        /// The branch at `target` faults, since its own target is not canonical. One that counts gets rcx back.
        case refused(isCall: Bool, counts: Bool)
    }
    var kind: Kind
    /// The branch's displacement.
    var displacement: UnsafeMutablePointer<UInt8>
    /// Offset from the code page: of `chain`, from the page that `pageDistance` leads to.
    var target: Int
    var pageDistance: Int32
    /// `target` is in another page than the block.
    var movesPage: Bool
    /// It may close a loop.
    var isBackward: Bool
    /// The guest's flags are in the host's flags.
    var inHost: Bool
}

/// Branches, and the ways out of a block.
///
/// A direct branch leads to a stub behind the block, which leaves to the run loop; once its target is translated the
/// branch itself leads there. Where the target is in another page, `ripPage` moves along before. A loop has a branch
/// backward, a call, or a jump through the jump cache, all of which see interrupt requests.
extension BlockBuilder {
    /// Calls an exit thunk. The flags are wherever the state says.
    mutating func exit(_ kind: ExitDescriptor.Kind, vector: UInt8 = 0, value: Int) {
        let inHost = flagsInHost && live != 0 && !flagsSaved
        code.call(to: origin + (inHost ? thunks.pointee.exitHost : thunks.pointee.exitSaved))
        code.exitDescriptor(kind, flagsInHost: inHost, vector: vector, value: Int32(truncatingIfNeeded: value))
    }

    /// From the code page to `target`'s, if that can be added in one instruction. Where segments are checked no branch
    /// leaves the page by itself, and near the canonical hole neither: pages there have blocks of another mode.
    private func pageDistance(_ target: Int) -> Int32? {
        if mode.has(BlockMode.segmented | BlockMode.nearHole) && (target & ~0xFFF != 0 || mode.has(BlockMode.partialPage)) {
            return nil
        }
        return Int32(exactly: target & ~0xFFF)
    }

    /// Moves `ripPage`; flags stay. Clobbers the address register.
    private mutating func movePage(_ distance: Int32) {
        if distance == 0 { return }
        code.loadContext(address, ContextOffset.ripPage)
        code.lea(address, base: address, distance, wide: is64Bit)
        code.storeContext(ContextOffset.ripPage, address)
    }

    private mutating func addExit(
        _ kind: PendingExit.Kind, _ displacement: UnsafeMutablePointer<UInt8>, to target: Int, pageDistance: Int32 = 0,
        movesPage: Bool, isBackward: Bool = false
    ) {
        (work.exits + exitCount).initialize(
            to: PendingExit(
                kind: kind, displacement: displacement, target: target, pageDistance: pageDistance, movesPage: movesPage,
                isBackward: isBackward, inHost: flagsInHost))
        exitCount += 1
    }

    /// Goes on at `target`, an offset from the code page, known now. `live` says which flags matter there.
    mutating func directExit(to target: Int, isBackward: Bool) {
        if isIsolated {
            if Int32(exactly: target) != nil { return exit(.goto, value: target) }
        } else if let distance = pageDistance(target) {
            if isBackward {
                // Loops without other exits pass here: look for interrupts. The compare clobbers the flags.
                putFlagsAway()
                flagsInHost = false
                movePage(distance)
                code.testContext32(ContextOffset.interruptRequest)
                addExit(.chain, code.jump(if: Condition.equal), to: target & 0xFFF, movesPage: distance != 0, isBackward: true)
                exit(.goto, value: target & 0xFFF)
            } else {
                movePage(distance)
                addExit(.chain, code.jump(), to: target & 0xFFF, movesPage: distance != 0)
            }
            return
        }
        putFlagsAway()
        flagsInHost = false
        loadCodeAddress(address, target)
        lookUp(isCall: false)
    }

    /// Goes on at the linear address in the address register, through the jump cache. Flags are put away already.
    mutating func lookUp(isCall: Bool, branch: UInt32 = Context.noBranch) {
        if mode.has(BlockMode.segmented) { return lookUpSegmented() }
        if isIsolated { return miss(branch, thunks.pointee.indirectMiss) }
        let displacement = code.lookUp(
            table: mode.table, address: address, scratch: scratch, hasBMI2: hasBMI2, isCall: isCall)
        addMiss(displacement, branch, thunks.pointee.indirectMiss)
    }

    // MARK: Targets that are not canonical

    /// `Context.branch` for the branch at hand.
    private func branch(popping count: Int = 0) -> UInt32 { UInt32(count << 13 | here) }

    private mutating func miss(_ branch: UInt32, _ thunk: Int) {
        if is64Bit { code.storeContext32(ContextOffset.branch, immediate: Int32(bitPattern: branch)) }
        code.jumpTo(origin + thunk)
    }
    private mutating func addMiss(_ displacement: UnsafeMutablePointer<UInt8>, _ branch: UInt32, _ thunk: Int) {
        if is64Bit {
            addExit(.miss(branch: branch, thunk: thunk), displacement, to: here, movesPage: false)
        } else {
            code.link(displacement, to: origin + thunk)
        }
    }

    /// #GP at the branch at hand unless the address in the scratch register is canonical. The flags are put away already.
    private mutating func checkCanonical(isCall: Bool, counts: Bool = false) {
        code.shiftRightArithmetic(scratch, 47, wide: true)
        code.arithmetic(.add, scratch, immediate: 1)
        code.arithmetic(.cmp, scratch, immediate: 1)
        addExit(.refused(isCall: isCall, counts: counts), code.jump(if: Condition.above), to: here, movesPage: false)
    }

    /// A direct branch may lead out of the canonical addresses only where its page is near their end.
    private func mayLeaveCanonical(_ target: Int) -> Bool { mode.has(BlockMode.nearHole) && target & ~0xFFF != 0 }

    private mutating func checkDirect(_ target: Int, isCall: Bool = false, counts: Bool = false) {
        guard mayLeaveCanonical(target) else { return }
        clobberFlags()
        loadCodeAddress(scratch, target)
        checkCanonical(isCall: isCall, counts: counts)
    }

    mutating func jump(to target: Int) {
        checkDirect(target)
        directExit(to: target, isBackward: target <= here)
    }

    // MARK: Calls and returns

    /// Puts the guest's return address, which is in the scratch register, onto the return stack: the host's follows
    /// with the call. Leaves instead when an interrupt is to be looked at or the stack is full. The flags are put away
    /// already.
    private mutating func pushReturn(leavingBy kind: PendingExit.Kind, to target: Int = 0) {
        code.arithmeticContext(.cmp, HostRegister.rsp, ContextOffset.returnLimit)
        addExit(kind, code.jump(if: Condition.belowOrEqual), to: target, movesPage: false)
        code.push(scratch)
    }

    /// Where the host's return from a guest call arrives, with the guest's return address in the address register.
    private mutating func landing() {
        code.arithmetic(.and, address, immediate: -4096)
        code.storeContext(ContextOffset.ripPage, address)
        code.lea(HostRegister.rsp, base: HostRegister.rsp, 8)
        flagsInHost = false
        flagsSaved = true
        addExit(.chain, code.jump(), to: next & 0xFFF, movesPage: next >= 4096)
    }

    /// A call's return address goes onto the return stack: not one that may be behind the last canonical address, since
    /// the return to it faults.
    private var isForeseen: Bool { !isIsolated && !(mode.has(BlockMode.nearHole) && next >= 4096) }

    mutating func call(to target: Int, liveAtTarget: UInt32) {
        clobberFlags()
        checkDirect(target, isCall: true)
        pushReturnAddress()
        live = liveAtTarget
        guard isForeseen, Int32(exactly: target) != nil, let distance = pageDistance(target) else {
            return directExit(to: target, isBackward: target <= here)
        }
        pushReturn(leavingBy: .poll, to: target)
        movePage(distance)
        addExit(.chain, code.call(), to: target & 0xFFF, movesPage: distance != 0)
        landing()
    }

    mutating func indirect(_ operand: UnsafePointer<ZydisDecodedOperand>, isCall: Bool) {
        // A register's value is still there behind the push.
        var register: Int?
        if is64Bit && isCall && operand.pointee.type == ZYDIS_OPERAND_TYPE_REGISTER {
            let guest = Operand.general(operand.pointee.reg.value)
            if !RegisterMap.isDisplaced(guest) && guest != 4 { register = RegisterMap.host(guest) }
        }
        if register == nil { loadTarget(operand) }
        if isCall {
            if register == nil { code.storeContext(ContextOffset.temporary, address) }
            clobberFlags()
            if is64Bit {
                // The target is looked at before the push (SDM Vol. 2, CALL), which cannot be undone.
                code.move(scratch, register ?? address)
                checkCanonical(isCall: true)
            }
            pushReturnAddress()
            if isForeseen { pushReturn(leavingBy: .pollIndirect(register: register)) }
            loadPushedTarget(register)
        }
        putFlagsAway()
        flagsInHost = false
        lookUp(isCall: isCall && isForeseen, branch: branch())
        if isCall && isForeseen { landing() }
    }

    /// The target of an indirect call into the address register, behind its push.
    private mutating func loadPushedTarget(_ register: Int?) {
        if let register { code.move(address, register) } else { code.loadContext(address, ContextOffset.temporary) }
    }

    mutating func ret(extra: Int) {
        clobberFlags()
        popReturnAddress(extra: extra)
        let branch = branch(popping: pointerSize + extra)
        if isIsolated { return miss(branch, thunks.pointee.indirectMiss) }
        // cmp address, [rsp + 8]
        code.rex(w: true, reg: address, base: HostRegister.rsp)
        code.byte(0x3B)
        code.memory(address, base: HostRegister.rsp, 8)
        let differs = code.jump(if: Condition.notEqual)
        addMiss(differs, branch, thunks.pointee.returnMiss[mode.table])
        code.ret()
    }

    // MARK: Conditional branches

    /// The taken side of Jcc; the block goes on with the other.
    mutating func conditional(_ condition: UInt8, taken: Int, liveTaken: UInt32) {
        needFlags()
        if !isIsolated && taken > here, let distance = pageDistance(taken) {
            addExit(.chain, code.jump(if: condition), to: taken & 0xFFF, pageDistance: distance, movesPage: distance != 0)
            return
        }
        let over = code.jump(if: condition ^ 1)
        takenSide(taken, liveTaken)
        code.bind(over)
    }

    /// LOOP, LOOPE, LOOPNE, JRCXZ and JECXZ: they count or test rcx by themselves and change no flag.
    mutating func counted(opcode: UInt8, is32Bit: Bool, taken: Int, liveTaken: UInt32) {
        if opcode <= 0xE1 { needFlags() }
        if mayLeaveCanonical(taken) { code.storeContext(ContextOffset.temporary, HostRegister.rcx) }
        if is32Bit { code.byte(0x67) }
        code.byte(opcode)
        code.byte(5)  // over the jump
        let over = code.jump()
        takenSide(taken, liveTaken, counts: true)
        code.bind(over)
    }

    /// Leaves in the middle of the block: what follows finds the flags where they are now.
    private mutating func takenSide(_ taken: Int, _ liveTaken: UInt32, counts: Bool = false) {
        let state = (flagsInHost, flagsSaved, live)
        live = liveTaken
        checkDirect(taken, counts: counts)
        directExit(to: taken, isBackward: taken <= here)
        (flagsInHost, flagsSaved, live) = state
    }

    // MARK: Behind the block

    mutating func emitExits(_ cache: CodeCache) {
        for index in 0..<exitCount {
            let pending = work.exits[index]
            code.bind(pending.displacement)
            switch pending.kind {
            case .chain:
                var displacement = pending.displacement
                if pending.pageDistance != 0 {
                    movePage(pending.pageDistance)
                    displacement = code.jump()
                }
                code.call(to: origin + (pending.inHost ? thunks.pointee.exitHost : thunks.pointee.exitSaved))
                code.exitDescriptor(.chain, flagsInHost: pending.inHost, value: Int32(truncatingIfNeeded: pending.target))
                code.dword(Int32(truncatingIfNeeded: cache.nextSite))
                let stub = code.cursor - origin - 5 - ExitDescriptor.size - 4
                cache.addSite(displacement: displacement - origin, stub: stub, movesPage: pending.movesPage, isBackward: pending.isBackward)
            case .poll:
                code.call(to: origin + thunks.pointee.exitSaved)
                code.exitDescriptor(.goto, flagsInHost: false, value: Int32(truncatingIfNeeded: pending.target))
            case .pollIndirect(let register):
                loadPushedTarget(register)
                code.jumpTo(origin + thunks.pointee.indirectMiss)
            case .miss(let branch, let thunk): miss(branch, thunk)
            case .refused(let isCall, let counts):
                if counts { code.loadContext(HostRegister.rcx, ContextOffset.temporary) }
                code.call(to: origin + thunks.pointee.exitSaved)
                code.exitDescriptor(
                    isCall ? .refusedCall : .exception, flagsInHost: false, vector: 13, value: Int32(truncatingIfNeeded: pending.target))
            }
        }
    }
}

extension Emitter {
    /// Jumps or calls by the jump cache to the guest's linear address in `address`, and sets `ripPage`. Clobbers flags and
    /// both registers, but on a miss not `address`.
    /// - Returns: the displacement of the jump that a miss takes.
    mutating func lookUp(
        table: Int, address: Int, scratch: Int, hasBMI2: Bool, isCall: Bool
    ) -> UnsafeMutablePointer<UInt8> {
        let cache = ContextOffset.jumpCache + table * JumpCache.entryCount * JumpCache.entrySize
        if hasBMI2 {
            rotateRight(scratch, address, 12)
        } else {
            move(scratch, address)
            shiftRight(scratch, 12)
        }
        arithmetic(.xor, scratch, address)
        arithmeticContext(.and, scratch, ContextOffset.jumpMask)
        compareContext(address, index: scratch, cache)
        let displacement = jump(if: Condition.notEqual)
        arithmetic(.and, address, immediate: -4096)
        storeContext(ContextOffset.ripPage, address)
        jumpContext(index: scratch, cache + 8, isCall: isCall)
        return displacement
    }
    /// `cmp register, gs:[index * 8 + offset]`.
    @inline(__always) mutating func compareContext(_ register: Int, index: Int, _ offset: Int) {
        byte(0x65)
        rex(w: true, reg: register, index: index, base: 0)
        byte(0x3B)
        indexed(register, index, offset)
    }
    /// `jmp` or `call gs:[index * 8 + offset]`.
    @inline(__always) mutating func jumpContext(index: Int, _ offset: Int, isCall: Bool) {
        byte(0x65)
        rex(w: false, reg: 0, index: index, base: 0)
        byte(0xFF)
        indexed(isCall ? 2 : 4, index, offset)
    }
    @inline(__always) private mutating func indexed(_ register: Int, _ index: Int, _ offset: Int) {
        modRM(0, register, 4)
        byte(UInt8(truncatingIfNeeded: 3 << 6 | (index & 7) << 3 | 5))
        dword(Int32(truncatingIfNeeded: offset))
    }
    /// `test register, immediate`, which is sign-extended.
    mutating func test(_ register: Int, immediate: Int32, wide: Bool = false) {
        rex(w: wide, reg: 0, base: register)
        byte(0xF7)
        modRM(3, 0, register)
        dword(immediate)
    }
    /// `jmp rel32` to an address in the same code memory.
    @inline(__always) mutating func jumpTo(_ target: UnsafeMutablePointer<UInt8>) {
        byte(0xE9)
        dword(Int32(truncatingIfNeeded: target - (cursor + 4)))
    }
    /// `call rel32`, returning where the displacement stands.
    @inline(__always) fileprivate mutating func call() -> UnsafeMutablePointer<UInt8> {
        byte(0xE8)
        dword(0)
        return cursor - 4
    }
}
