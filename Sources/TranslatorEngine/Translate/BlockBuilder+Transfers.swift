import VMM

/// SYSCALL, SYSRET, STAC and CLAC in 64-bit code without leaving translated code: the mode after them is known when
/// they are translated, and whatever does not fit goes to the system half.
extension BlockBuilder {
    /// Whether `systemTransfer` has code for an instruction in this mode.
    static func canTransfer(_ instruction: SystemInstruction, _ mode: BlockMode, isIsolated: Bool) -> Bool {
        guard mode.codeSize == 0, !isIsolated, !mode.has(BlockMode.breakpoints | BlockMode.alignmentCheck) else { return false }
        switch instruction.kind {
        case .syscall: return mode.table == TLB.Table.user.rawValue
        case .sysret:
            return instruction.operandSize == 8 && mode.table == TLB.Table.supervisor.rawValue && !mode.has(BlockMode.outerRing)
        default: return false
        }
    }

    /// STAC and CLAC that end their block because memory looks different behind them.
    static func changesTable(_ instruction: SystemInstruction, _ mode: BlockMode) -> Bool {
        (instruction.kind == .stac || instruction.kind == .clac) && mode.has(BlockMode.smap)
    }

    /// Flags that a return to a program may bring without a look at anything else.
    private static let plainFlags =
        UInt64(arithmeticFlags) | 2 | RFLAGS.if | RFLAGS.df | RFLAGS.iopl | RFLAGS.id

    /// SYSCALL and SYSRET (SDM Vol. 2; attributes of the segments as in System/FastCalls.swift). The exit behind it does
    /// what this leaves.
    mutating func systemTransfer(_ instruction: SystemInstruction) {
        putFlagsAway()
        flagsInHost = false
        let isCall = instruction.kind == .syscall
        let target = isCall ? TLB.Table.supervisor : TLB.Table.user
        let newMode = BlockMode(rawValue: mode.rawValue & ~3 | UInt64(target.rawValue))
        code.testContext32(ContextOffset.efer, immediate: Int32(EFER.sce))
        let disabled = code.jump(if: Condition.equal)
        code.arithmeticContext32(.cmp, ContextOffset.jumpCacheMode + target.rawValue * 8, immediate: Int32(newMode.rawValue))
        let otherJumps = code.jump(if: Condition.notEqual)
        let unusual: UnsafeMutablePointer<UInt8>
        var odd: [2 of UnsafeMutablePointer<UInt8>?] = .init(repeating: nil)
        if isCall {
            loadFlagsImage(into: scratch)
            code.loadContext(address, ContextOffset.sfmask)
            code.not(address)
            code.arithmetic(.and, address, scratch)
            code.test(address, immediate: Int32(RFLAGS.ac | RFLAGS.tf))
            unusual = code.jump(if: Condition.notEqual)
            code.move(HostRegister.r11, scratch)
            loadCodeAddress(HostRegister.rcx, next)
        } else {
            code.move(address, HostRegister.r11)
            code.test(address, immediate: Int32(truncatingIfNeeded: ~Self.plainFlags), wide: true)
            unusual = code.jump(if: Condition.notEqual)
            // Interrupts that waited are delivered behind the return.
            code.testContext32(ContextOffset.interruptWaiting)
            odd[0] = code.jump(if: Condition.notEqual)
            code.move(scratch, HostRegister.rcx)
            code.shiftRightArithmetic(scratch, 47, wide: true)
            code.arithmetic(.add, scratch, immediate: 1)
            code.arithmetic(.cmp, scratch, immediate: 1)
            odd[1] = code.jump(if: Condition.above)
        }
        storeFlagsImage(from: address)
        code.loadContext(scratch, ContextOffset.star)
        code.shiftRight(scratch, isCall ? 32 : 48)
        if isCall {
            code.arithmetic(.and, scratch, immediate: 0xFFFC, wide: false)
        } else {
            code.lea(scratch, base: scratch, 16, wide: false)
            code.arithmetic(.or, scratch, immediate: 3, wide: false)
        }
        let level: Int32 = isCall ? 0 : 0x60
        storeFlatSegment(ContextOffset.codeSegment, selector: scratch, attributes: 0xA09B | level)
        // SS is 8 behind CS for SYSCALL, and 8 before it for SYSRET.
        code.lea(scratch, base: scratch, isCall ? 8 : -8, wide: false)
        if !isCall { code.arithmetic(.or, scratch, immediate: 3, wide: false) }
        storeFlatSegment(ContextOffset.stackSegment, selector: scratch, attributes: 0xC093 | level)
        code.storeContext32(ContextOffset.mode, immediate: Int32(newMode.rawValue))
        if isCall { code.loadContext(address, ContextOffset.lstar) } else { code.move(address, HostRegister.rcx) }
        // No return of the other level may be foreseen.
        code.loadContext(HostRegister.rsp, ContextOffset.returnBase)
        let oldMode = mode
        mode = newMode
        lookUp(isCall: false)
        mode = oldMode
        code.bind(disabled)
        code.bind(otherJumps)
        code.bind(unusual)
        for index in 0..<2 { if let jump = odd[index] { code.bind(jump) } }
    }

    /// STAC and CLAC: RFLAGS.AC and, where SMAP is on, the view of memory for what follows.
    mutating func setAccessCheck(_ on: Bool, index: Int) {
        clobberFlags()
        let table = on ? TLB.Table.supervisorAC : TLB.Table.supervisor
        let newMode = BlockMode(rawValue: mode.rawValue & ~3 | UInt64(table.rawValue))
        if mode.has(BlockMode.smap) && newMode != mode {
            // What is in the other jump cache must have been made for this mode: if not, the system half clears it.
            code.arithmeticContext32(.cmp, ContextOffset.jumpCacheMode + table.rawValue * 8, immediate: Int32(newMode.rawValue))
            let fits = code.jump(if: Condition.equal)
            exit(.system, value: index << 13 | here)
            code.bind(fits)
            code.storeContext32(ContextOffset.mode, immediate: Int32(newMode.rawValue))
            modeBehind = newMode
            code.loadContext(HostRegister.rsp, ContextOffset.returnBase)
        }
        if on {
            code.arithmeticContext32(.or, ContextOffset.systemFlags, immediate: Int32(RFLAGS.ac))
        } else {
            code.arithmeticContext32(.and, ContextOffset.systemFlags, immediate: Int32(truncatingIfNeeded: ~RFLAGS.ac))
        }
    }

    /// RDFSBASE, RDGSBASE, WRFSBASE and WRGSBASE.
    mutating func accessBase(_ instruction: SystemInstruction, index: Int) {
        let isFS = instruction.kind == .readFSBase || instruction.kind == .writeFSBase
        let isWrite = instruction.kind == .writeFSBase || instruction.kind == .writeGSBase
        let base = isFS ? ContextOffset.fsBase : ContextOffset.gsBase
        let guest = Int(instruction.rm)
        let isNarrow = instruction.operandSize == 4
        clobberFlags()
        code.testContext32(ContextOffset.cr4, immediate: Int32(CR4.fsgsbase))
        let disabled = code.jump(if: Condition.equal)
        var bad: UnsafeMutablePointer<UInt8>?
        if isWrite {
            read(address, guest: guest)
            if isNarrow {
                code.move32(address, address)
            } else {
                code.move(scratch, address)
                code.shiftRightArithmetic(scratch, 47, wide: true)
                code.arithmetic(.add, scratch, immediate: 1)
                code.arithmetic(.cmp, scratch, immediate: 1)
                bad = code.jump(if: Condition.above)
            }
            code.storeContext(base, address)
        } else {
            code.loadContext(scratch, base)
            if isNarrow { code.move32(scratch, scratch) }
            if RegisterMap.isDisplaced(guest) {
                code.storeContext(RegisterMap.slot(guest), scratch)
            } else {
                code.move(RegisterMap.host(guest), scratch)
            }
        }
        let done = code.jump()
        code.bind(disabled)
        if let bad { code.bind(bad) }
        exit(.system, value: index << 13 | here)
        code.bind(done)
    }

    // MARK: Parts

    /// RFLAGS from the context, without RF and VM, which read as zero. Clobbers the address register.
    mutating func loadFlagsImage(into register: Int) {
        code.loadContextByte(register, ContextOffset.lahf + 1)
        code.arithmetic(.and, register, immediate: 0xD5, wide: false)
        code.loadContextByte(address, ContextOffset.lahf)
        code.shiftLeft(address, 11)
        code.arithmetic(.or, register, address)
        code.arithmeticContext(.or, register, ContextOffset.systemFlags)
        code.arithmetic(.and, register, immediate: 0x3C_FFFF, wide: false)
    }

    /// The reverse, as `Context.rflags` does it. Clobbers both registers.
    private mutating func storeFlagsImage(from register: Int) {
        code.move32(scratch, register)
        code.arithmetic(.and, scratch, immediate: 0x3F_7FD7 & ~0x8D5, wide: false)
        code.arithmetic(.or, scratch, immediate: 2, wide: false)
        code.storeContext(ContextOffset.systemFlags, scratch)
        code.move32(scratch, register)
        code.arithmetic(.and, scratch, immediate: 0xD5, wide: false)
        code.arithmetic(.or, scratch, immediate: 2, wide: false)
        code.shiftLeft(scratch, 8)
        code.shiftRight(register, 11)
        code.arithmetic(.and, register, immediate: 1, wide: false)
        code.arithmetic(.or, scratch, register)
        code.storeContext(ContextOffset.lahf, scratch)
    }

    private mutating func storeFlatSegment(_ offset: Int, selector: Int, attributes: Int32) {
        code.storeContext16(offset + ContextOffset.selectorField, selector)
        code.storeContext32(offset + ContextOffset.attributesField, immediate: attributes)
        code.storeContext32(offset + ContextOffset.limitField, immediate: -1)
        code.storeContext64(offset + ContextOffset.baseField, immediate: 0)
    }
}

extension Emitter {
    /// `test dword gs:[offset], immediate`.
    mutating func testContext32(_ offset: Int, immediate: Int32) {
        byte(0x65)
        byte(0xF7)
        absolute(0, Int32(offset))
        dword(immediate)
    }
    /// `mov word gs:[offset], source`.
    mutating func storeContext16(_ offset: Int, _ source: Int) {
        byte(0x65)
        byte(0x66)
        rex(w: false, reg: source, base: 0)
        byte(0x89)
        absolute(source, Int32(offset))
    }
    /// `mov qword gs:[offset], immediate`, sign-extended.
    mutating func storeContext64(_ offset: Int, immediate: Int32) {
        byte(0x65)
        rex(w: true, reg: 0, base: 0)
        byte(0xC7)
        absolute(0, Int32(offset))
        dword(immediate)
    }
    mutating func not(_ register: Int) {
        rex(w: true, reg: 0, base: register)
        byte(0xF7)
        modRM(3, 2, register)
    }
}
