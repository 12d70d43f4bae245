internal import VMM

/// Bits of DR6 (SDM Vol. 3, figure 18-1).
enum DR6 {
    /// B0-B3: which breakpoint it was.
    static let breakpoints: UInt64 = 0xF
    static let generalDetect: UInt64 = 1 << 13
    static let singleStep: UInt64 = 1 << 14
    static let taskSwitch: UInt64 = 1 << 15
    static let writable: UInt64 = 0xE00F
    static let fixed: UInt64 = 0xFFFF_0FF0
}

/// Bits of DR7.
enum DR7 {
    static let localEnables: UInt64 = 0x55
    static let localExact: UInt64 = 1 << 8
    static let generalDetect: UInt64 = 1 << 13
    static let writable: UInt64 = 0xFFFF_23FF
    static let fixed: UInt64 = 0x400
}

/// What DR0-DR3 and DR7 ask for, worked out when they change (SDM Vol. 3, 18.2.4).
struct Breakpoints {
    enum Kind: UInt8 { case off, execute, write, port, access }
    private var kinds: [4 of Kind] = .init(repeating: .off)
    /// Aligned to the length, as the CPU takes them.
    private var starts: [4 of UInt64] = .init(repeating: 0)
    private var lengths: [4 of UInt64] = .init(repeating: 1)
    private(set) var watchesData = false
    private(set) var watchesPorts = false
    private(set) var stopsCode = false

    init() {}

    init(_ addresses: [4 of UInt64], dr7: UInt64, hasPorts: Bool) {
        for index in 0..<4 where dr7 >> UInt64(index &* 2) & 3 != 0 {
            let field = dr7 >> UInt64(16 &+ index &* 4)
            let lengthBits = field >> 2 & 3
            lengths[index] = lengthBits == 2 ? 8 : lengthBits &+ 1
            starts[index] = addresses[index] & ~(lengths[index] &- 1)
            switch field & 3 {
            case 0:
                // An instruction is found by its first byte, whatever the length says.
                kinds[index] = .execute
                starts[index] = addresses[index]
                stopsCode = true
            case 1:
                kinds[index] = .write
                watchesData = true
            case 2:
                // Without CR4.DE undefined: it does nothing.
                if hasPorts {
                    kinds[index] = .port
                    watchesPorts = true
                }
            default:
                kinds[index] = .access
                watchesData = true
            }
        }
    }

    private func overlaps(_ index: Int, _ start: UInt64, _ count: UInt64) -> Bool {
        start < starts[index] &+ lengths[index] && starts[index] < start &+ count
    }

    /// B0-B3 for a data access.
    func data(_ linear: UInt64, _ count: Int, writes: Bool) -> UInt64 {
        var hits: UInt64 = 0
        for index in 0..<4 where kinds[index] == .access || kinds[index] == .write && writes {
            if overlaps(index, linear, UInt64(count)) { hits |= 1 << UInt64(index) }
        }
        return hits
    }

    /// Whether data of the page at `linear` is watched: such a page may not be in the TLB.
    func watches(page linear: UInt64) -> Bool {
        for index in 0..<4 where kinds[index] == .access || kinds[index] == .write {
            if (starts[index] ^ linear) >> 12 == 0 { return true }
        }
        return false
    }

    func port(_ port: UInt16, _ count: UInt8) -> UInt64 {
        var hits: UInt64 = 0
        for index in 0..<4 where kinds[index] == .port {
            if overlaps(index, UInt64(port), UInt64(count)) { hits |= 1 << UInt64(index) }
        }
        return hits
    }

    func code(_ linear: UInt64) -> UInt64 {
        var hits: UInt64 = 0
        for index in 0..<4 where kinds[index] == .execute && starts[index] == linear { hits |= 1 << UInt64(index) }
        return hits
    }

    /// Whether blocks have to end before an instruction at this place of its page. Blocks hold no linear address, so
    /// this goes by the offset in the page alone; the run loop compares the rest.
    @inline(__always) func stopsCode(atOffset offset: Int) -> Bool {
        for index in 0..<4 where kinds[index] == .execute && Int(truncatingIfNeeded: starts[index] & 0xFFF) == offset & 0xFFF {
            return true
        }
        return false
    }

    func watchedPage(_ index: Int) -> UInt64? {
        kinds[index] == .access || kinds[index] == .write ? starts[index] & ~0xFFF : nil
    }
    /// The places that blocks were cut at, in an order of their own: 0 for none.
    var codeOffsets: UInt64 {
        var result: UInt64 = 0
        for index in 0..<4 where kinds[index] == .execute {
            result |= (starts[index] & 0xFFF | 0x8000) << UInt64(index &* 16)
        }
        return result
    }
}

// Debug exceptions (SDM Vol. 3, chapter 18).
//
// Instruction breakpoints: blocks have a mode bit while one is enabled, and end before every place that has a
// breakpoint's offset in its page, so that only the run loop goes on there. Data breakpoints: their pages are not in
// the TLB; the slow path compares, and an instruction that hits runs again in a block of its own, behind which the
// trap is delivered. Nothing of this costs anything while no breakpoint is enabled.
extension TranslatorCPU {
    /// DR0-DR3, DR7 or CR4.DE changed.
    func debugChanged() {
        let c = context
        breakpoints = Breakpoints(c.pointee.dr, dr7: c.pointee.dr7, hasPorts: c.pointee.cr4 & CR4.de != 0)
        spaces.dropAll()
        for index in 0..<4 {
            if let page = breakpoints.watchedPage(index) { flushTLB(page: page) }
        }
        let offsets = breakpoints.codeOffsets
        if offsets != 0 && offsets != cutOffsets {
            cutOffsets = offsets
            flushCode()
        }
        modeChanged()
    }

    /// The linear address of the instruction at hand.
    var linearInstructionPointer: UInt64 {
        context.pointee.is64Bit ? context.pointee.rip : (context.pointee.cs.base &+ context.pointee.rip) & 0xFFFF_FFFF
    }

    /// Delivers #DB for conditions in DR6's places. B0-B3 tell of this exception alone, the others accumulate.
    func deliverDebug(_ conditions: UInt64) throws(TripleFault) {
        let c = context
        c.pointee.pendingDebug = 0
        c.pointee.dr6 = c.pointee.dr6 & ~DR6.breakpoints | conditions
        c.pointee.dr7 &= ~DR7.generalDetect
        c.pointee.isHalted = false
        try deliver(GuestException(vector: 1))
        modeChanged()
    }

    /// Whether a repeated string instruction has to stop after the element that it has just done, for a trap.
    @inline(__always) var stopsAfterElement: Bool {
        context.pointee.systemFlags & RFLAGS.tf != 0 || debugHits != 0
    }

    /// SYSCALL and SYSRET: whether a trap follows goes by the flag behind them, as masked or loaded, so that stepping
    /// over a system call looks like stepping over one instruction.
    @inline(__always) func stepByNewFlag() {
        skipsStep = true
        if context.pointee.systemFlags & RFLAGS.tf != 0 { debugHits |= DR6.singleStep }
    }

    /// One step where debugging wants a look before or behind each instruction: RFLAGS.TF or RF is set, a trap is held
    /// back, or an instruction breakpoint is enabled.
    /// - Parameter afterStackLoad: the instruction follows a load of SS.
    /// - Returns: `false` when a whole block may run.
    func runCarefully(
        afterStackLoad: Bool, _ enter: @convention(c) (UnsafeMutableRawPointer, UInt64) -> Void
    ) throws(TripleFault) -> Bool {
        let resumes = context.pointee.systemFlags & RFLAGS.rf != 0
        context.pointee.systemFlags &= ~RFLAGS.rf
        let steps = context.pointee.systemFlags & RFLAGS.tf != 0
        var isAlone = steps || context.pointee.pendingDebug != 0
        if mode.has(BlockMode.breakpoints) {
            let linear = linearInstructionPointer
            if breakpoints.stopsCode(atOffset: Int(linear & 0xFFF)) {
                let hits = resumes || afterStackLoad ? 0 : breakpoints.code(linear)
                if hits != 0 {
                    try deliverDebug(hits)
                    return true
                }
                isAlone = true
            }
        }
        guard isAlone else { return false }
        do throws(GuestException) {
            let entry = try isolatedEntry()
            skipsStep = false
            enter(context, entry)
            try leave(entry, isolated: true)
            // A load of SS swallows its own (SDM Vol. 3, 6.8.3).
            if steps && !skipsStep && !context.pointee.stackShadow { debugHits |= DR6.singleStep }
        } catch {
            try deliver(error)
            modeChanged()
        }
        return true
    }

    // MARK: MOV to and from DRn

    func accessDebug(_ instruction: UnsafePointer<SystemInstruction>) throws(GuestException) {
        let i = instruction.pointee
        var number = i.register
        if number > 7 { throw .invalidOpcode }
        if number == 4 || number == 5 {
            if context.pointee.cr4 & CR4.de != 0 { throw .invalidOpcode }
            number &+= 2
        }
        try requireSupervisor()
        if context.pointee.dr7 & DR7.generalDetect != 0 {
            // The handler gets to use the registers.
            context.pointee.dr6 = context.pointee.dr6 & ~DR6.breakpoints | DR6.generalDetect
            context.pointee.dr7 &= ~DR7.generalDetect
            throw GuestException(vector: 1)
        }
        if i.kind == .readDebug {
            let value: UInt64
            switch number {
            case 6: value = context.pointee.dr6
            case 7: value = context.pointee.dr7
            default: value = context.pointee.dr[Int(number & 3)]
            }
            setRegister(i.rm, value, size: i.operandSize)
            return
        }
        let value = register(i.rm) & Self.mask(i.operandSize)
        switch number {
        case 6:
            if value >> 32 != 0 { throw .generalProtection() }
            context.pointee.dr6 = value & DR6.writable | DR6.fixed
        case 7:
            if value >> 32 != 0 { throw .generalProtection() }
            context.pointee.dr7 = value & DR7.writable | DR7.fixed
            debugChanged()
        default:
            context.pointee.dr[Int(number & 3)] = value
            if context.pointee.dr7 >> UInt64((number & 3) &* 2) & 3 != 0 { debugChanged() }
        }
    }
}
