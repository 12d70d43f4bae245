import CZydis

/// A slow path to be emitted behind the block: where the inline check jumps from, and what the helper must know.
struct SlowPath {
    var displacement: UnsafeMutablePointer<UInt8>
    var operation: UnsafeMutablePointer<UInt8>
    var operationLength: Int
    var access: UInt8
    var size: Int
    var guest: Int
    var vectors: Bool
    /// Place of the access's slot in the context, 0 for none.
    var slot: Int
    /// The site may turn to the TLB for good.
    var mayRetire: Bool
    /// Under `Access.masked`, 0 otherwise.
    var mask: UInt16
    /// Of the jump that the alignment check makes, under `BlockMode.alignmentCheck`.
    var misaligned: UnsafeMutablePointer<UInt8>?
}

/// A way out for an access or a branch that its segment forbids.
struct SegmentFault {
    var displacement: UnsafeMutablePointer<UInt8>
    var vector: UInt8
    var guest: Int
    /// LOOP has counted already: the width of its count, 0 for other instructions.
    var countWidth: Int
}

/// Memory that translation of a block works in; one per CPU, reused for each block.
struct BlockWorkspace {
    static let instructionLimit = 64
    /// Conditional branches in a block: it goes on behind all but the last.
    static let branchLimit = 6
    let decoded = UnsafeMutablePointer<ZydisDecodedInstruction>.allocate(capacity: instructionLimit + 1)
    let operands = UnsafeMutablePointer<ZydisDecodedOperand>.allocate(
        capacity: (instructionLimit + 1) * Decoder.operandLimit)
    let instructions = UnsafeMutablePointer<Instruction>.allocate(capacity: instructionLimit + 1)
    /// Which instruction of the block a branch leads to, -1 for none.
    let targets = UnsafeMutablePointer<Int>.allocate(capacity: instructionLimit + 1)
    let roles = UnsafeMutablePointer<RunRole>.allocate(capacity: instructionLimit)
    let runs = UnsafeMutablePointer<AccessRun>.allocate(capacity: instructionLimit)
    let slowPaths = UnsafeMutablePointer<SlowPath>.allocate(capacity: instructionLimit * 4)
    let exits = UnsafeMutablePointer<PendingExit>.allocate(capacity: CodeCache.siteLimit)
    let segmentFaults = UnsafeMutablePointer<SegmentFault>.allocate(capacity: instructionLimit * 8)
    /// A copy of the code that the block is made from.
    static let byteLimit = instructionLimit * 15 + 16
    let bytes = UnsafeMutablePointer<UInt8>.allocate(capacity: byteLimit)
    /// The instruction that begins at an offset of the page.
    func index(ofOffset offset: Int, count: Int) -> Int? {
        (0..<count).first { instructions[$0].offset == offset }
    }
    func deallocate() {
        decoded.deallocate()
        operands.deallocate()
        instructions.deallocate()
        targets.deallocate()
        roles.deallocate()
        runs.deallocate()
        slowPaths.deallocate()
        exits.deallocate()
        segmentFaults.deallocate()
        bytes.deallocate()
    }
}

/// Emits one block: the state of the emission, and the sequences that all kinds of instructions share.
///
/// **Flags.** The guest's arithmetic flags are in the host's flags (`flagsInHost`), in the context
/// (`flagsSaved`), in both, or, when nothing reads them again, in neither. Sequences that clobber the host's
/// flags call `clobberFlags` before; instructions that read or partly write flags call `needFlags`.
///
/// **Faults.** An instruction's checks come before any of its effects, so a fault finds the state at its start.
struct BlockBuilder {
    var code: Emitter
    /// Start of the code memory (writable view): displacements and sites are relative to it.
    let origin: UnsafeMutablePointer<UInt8>
    let thunks: UnsafePointer<Thunks>
    let work: BlockWorkspace
    var mode: BlockMode
    /// Another mode that the block's last instruction has changed to.
    var modeBehind: BlockMode?
    let hasBMI2: Bool
    /// The block runs one instruction and comes back to the run loop: no links, no jump caches.
    let isIsolated: Bool

    var flagsInHost = true
    var flagsSaved = false
    /// Flags live at the point of emission.
    var live: UInt32 = arithmeticFlags
    var vectorsReady = false {
        didSet { if !vectorsReady { wideStateReady = false } }
    }
    /// The state of AVX-512 counts: from here on it does until a helper has run.
    var wideStateReady = false
    var slowPathCount = 0
    /// The block jumps back into itself: its accesses have slots.
    var isLoop = false
    /// In a run (`AccessRun`): the address register has a host address, and the run's base register's place is so many
    /// bytes behind it.
    var isHeld = false
    var heldOffset = 0
    /// The run's check has added its index.
    var runHasIndex = false
    /// The displaced registers (`RegisterMap`) whose values the scratch and the address register still have, -1 for none:
    /// copies of what lies in the context, which spare the next instruction the way through memory.
    var keptInScratch = -1
    var keptInAddress = -1
    /// Where `storeToAddress` and `loadFromAddress` go, from the address register.
    var accessOffset: Int32 = 0
    /// Spreads the accesses of loops over the slots.
    var slotNumber = 0
    var exitCount = 0
    var segmentFaultCount = 0
    /// The segment that the next access has to be checked against and whose base is to be added; -1 for none.
    var pendingSegment = -1
    /// Of the instruction at hand, in bits.
    var operandWidth: UInt8 = 32
    var addressWidth: UInt8 = 32
    /// Offset of the instruction at hand from the code page, and of the next.
    var here = 0
    var next = 0

    init(
        code: Emitter, origin: UnsafeMutablePointer<UInt8>, thunks: UnsafePointer<Thunks>, work: BlockWorkspace,
        mode: BlockMode, hasBMI2: Bool, isIsolated: Bool
    ) {
        self.code = code
        self.origin = origin
        self.thunks = thunks
        self.work = work
        self.mode = mode
        self.hasBMI2 = hasBMI2
        self.isIsolated = isIsolated
    }

    var is64Bit: Bool { mode.codeSize == 0 }
    /// Bytes that a push of the given operand width moves the stack pointer by.
    @inline(__always) func stackSize(_ operandWidth: UInt8) -> Int {
        is64Bit ? (operandWidth == 16 ? 2 : 8) : (operandWidth == 16 ? 2 : 4)
    }
    /// Bytes of a near branch's return address.
    var pointerSize: Int { is64Bit ? 8 : operandWidth == 16 ? 2 : 4 }
    /// `lea` on the stack pointer: outside 64-bit code it has 32 or 16 bits.
    @inline(__always) mutating func moveStack(_ destination: Int, _ distance: Int) {
        if mode.has(BlockMode.smallStack) { return moveSmallStack(destination, from: RegisterMap.guestStack, distance) }
        if distance == 0 && is64Bit { return code.move(destination, RegisterMap.guestStack) }
        code.lea(destination, base: RegisterMap.guestStack, Int32(truncatingIfNeeded: distance), wide: is64Bit)
    }

    var address: Int { RegisterMap.address }
    var scratch: Int { RegisterMap.scratch }
    var tlb: Int { ContextOffset.tlb + mode.table * TLB.entryCount * TLB.entrySize }

    // MARK: Flags

    /// Before code that changes the host's flags. Clobbers the scratch register.
    @inline(__always) mutating func clobberFlags() {
        putFlagsAway()
        flagsInHost = false
    }
    /// Before code that reads the host's flags, or writes only some. Clobbers the scratch register.
    @inline(__always) mutating func needFlags() {
        if !flagsInHost && flagsSaved {
            code.restoreFlags(scratch: scratch)
            keptInScratch = -1
            flagsInHost = true
        }
    }
    /// Before leaving through a path that has the flags in the context. Clobbers the scratch register.
    @inline(__always) mutating func putFlagsAway() {
        if live != 0 && flagsInHost && !flagsSaved {
            code.saveFlags(scratch: scratch)
            keptInScratch = -1
            flagsSaved = true
        }
    }

    // MARK: Displaced registers

    /// Before code that uses the scratch and the address register as it likes.
    @inline(__always) mutating func forgetKept() {
        keptInScratch = -1
        keptInAddress = -1
    }
    /// The host register that still has a displaced register's value, -1 for none.
    @inline(__always) func kept(_ guest: Int) -> Int {
        guest < 13 ? -1 : keptInScratch == guest ? scratch : keptInAddress == guest ? address : -1
    }
    /// A displaced register's value, in a register that has it or from the context into a given one.
    @inline(__always) private mutating func fetch(_ guest: Int, _ known: Int, into host: Int) -> Int {
        if known >= 0 { return known }
        code.loadContext(host, RegisterMap.slot(guest))
        if host == scratch { keptInScratch = guest } else { keptInAddress = guest }
        return host
    }

    // MARK: Memory

    /// Turns the linear address in the address register into a host address, after the checks that an access of
    /// `size` bytes needs. Clobbers flags and the scratch register. The caller emits the access next, then calls
    /// `endAccess`.
    /// - Parameters:
    ///   - stackDistance: how far from the stack pointer the access is, when it is relative to it.
    ///   - mask: which elements are accessed, under `Access.masked`.
    mutating func beginAccess(size: Int, access: UInt8, stackDistance: Int? = nil, mask: AccessMask? = nil) {
        clobberFlags()
        forgetKept()
        var access = access
        if pendingSegment >= 0 {
            checkSegment(size: size, writes: access & Access.write != 0)
        } else if !is64Bit {
            access |= Access.flat
        }
        let slot = mask != nil ? 0 : slot(size: size, writes: access & Access.write != 0, stackDistance: stackDistance)
        if mask != nil { access |= Access.masked }
        let mayRetire = slot != 0 && stackDistance == nil
        // Under RFLAGS.AC, the mask of the low bits that must be clear.
        let low = mode.has(BlockMode.alignmentCheck) ? Access.alignment(size: size, access) - 1 : 0
        var misaligned: UnsafeMutablePointer<UInt8>?
        let displacement =
            slot == 0
            ? code.checkTLB(
                table: mode.table, writes: access & Access.write != 0, size: size, hasBMI2: hasBMI2, low: low,
                misaligned: &misaligned)
            : code.checkSlot(slot, size: size, mayRetire: mayRetire, hasBMI2: hasBMI2)
        work.slowPaths[slowPathCount] = SlowPath(
            displacement: displacement, operation: code.cursor, operationLength: 0, access: access, size: size,
            guest: here, vectors: vectorsReady, slot: slot, mayRetire: mayRetire, mask: mask?.rawValue ?? 0,
            misaligned: misaligned)
        slowPathCount += 1
    }

    /// The slot that an access looks into before the TLB, 0 for none: the stack's, or one of its own in a loop.
    mutating func slot(size: Int, writes: Bool, stackDistance: Int?) -> Int {
        if isIsolated || mode.has(BlockMode.alignmentCheck) || TLBSlots.sizeClass(size) == nil { return 0 }
        if let stackDistance { return TLBSlots.stack(table: mode.table, writes: writes, distance: stackDistance) }
        guard isLoop else { return 0 }
        slotNumber += 1
        return TLBSlots.loop(table: mode.table, writes: writes, number: slotNumber)
    }

    /// The access has been emitted: everything since `beginAccess` runs on the bounce buffer when it must.
    @inline(__always) mutating func endAccess() {
        work.slowPaths[slowPathCount - 1].operationLength = code.cursor - work.slowPaths[slowPathCount - 1].operation
    }

    /// A slot missed: goes on at `operation` when the TLB hits, falls through when not.
    mutating func refillSlot(_ slot: Int, size: Int, writes: Bool, to operation: UnsafeMutablePointer<UInt8>) {
        guard let sizeClass = TLBSlots.sizeClass(size) else { return }
        code.move(scratch, immediate: UInt64(slot))
        code.call(
            to: origin + thunks.pointee.refill[
                Thunks.refillIndex(table: mode.table, writes: writes, sizeClass: sizeClass)])
        code.jumpTo(operation)
    }

    mutating func emitSlowPaths() {
        for index in 0..<slowPathCount {
            let path = work.slowPaths[index]
            code.bind(path.displacement)
            if path.slot != 0 { refillSlot(path.slot, size: path.size, writes: path.access & Access.write != 0, to: path.operation) }
            if let misaligned = path.misaligned { code.bind(misaligned) }
            let thunk = thunks.pointee.slow[
                Thunks.slowIndex(table: mode.table, writes: path.access & Access.write != 0, vectors: path.vectors)]
            code.call(to: origin + thunk)
            code.dword(Int32(truncatingIfNeeded: path.operation - code.cursor))
            code.byte(UInt8(truncatingIfNeeded: path.operationLength))
            code.byte(path.access)
            code.word(UInt16(truncatingIfNeeded: path.size))
            code.word(UInt16(truncatingIfNeeded: path.guest))
            code.word(path.mayRetire ? TLBSlots.number(of: path.slot) : path.mask)
        }
        emitSegmentFaults()
    }

    /// The linear address of `offset` from the code page, into a register. Needs no flags.
    mutating func loadCodeAddress(_ register: Int, _ offset: Int) {
        code.loadContext(register, ContextOffset.ripPage)
        if let short = Int32(exactly: offset) {
            code.lea(register, base: register, short)
        } else {
            let other = register == scratch ? address : scratch
            code.move(other, immediate: UInt64(bitPattern: Int64(offset)))
            code.lea(register, base: register, index: other, scale: 0, 0)
        }
        if !is64Bit { code.move32(register, register) }
    }

    /// A guest general register's value into a host register.
    @inline(__always) mutating func read(_ host: Int, guest: Int) {
        if RegisterMap.isDisplaced(guest) {
            code.loadContext(host, RegisterMap.slot(guest))
        } else {
            code.move(host, RegisterMap.host(guest))
        }
    }

    /// The effective address of a memory operand, with fs and gs bases added if `withSegment`, into the address
    /// register. Clobbers the scratch register; flags only when a segment base is added.
    /// - Parameter isNarrow: only the low half is wanted; the upper one becomes zero.
    mutating func emitAddress(
        _ memory: ZydisDecodedOperandMem, withSegment: Bool, into target: Int = RegisterMap.address, isNarrow: Bool = false
    ) {
        let wide =
            is64Bit && !isNarrow && !(Operand.is32Bit(memory.base) || Operand.is32Bit(memory.index) || memory.base == ZYDIS_REGISTER_EIP)
        var displacement = memory.disp.has_displacement != 0 ? memory.disp.value : 0
        if !is64Bit { displacement &= addressWidth == 16 ? 0xFFFF : 0xFFFF_FFFF }
        if memory.base == ZYDIS_REGISTER_RIP || memory.base == ZYDIS_REGISTER_EIP {
            loadCodeAddress(target, next &+ Int(displacement))
            if !wide { code.move32(target, target) }
        } else {
            var base = Operand.general(memory.base)
            var index = Operand.general(memory.index)
            let keptIndex = kept(index)
            if base >= 0 {
                base = RegisterMap.isDisplaced(base)
                    ? fetch(base, kept(base), into: keptIndex == address ? scratch : address) : RegisterMap.host(base)
            }
            if index >= 0 {
                index = RegisterMap.isDisplaced(index)
                    ? fetch(index, keptIndex, into: base == scratch ? address : scratch) : RegisterMap.host(index)
            }
            let scale = memory.scale <= 1 ? 0 : memory.scale == 2 ? 1 : memory.scale == 4 ? 2 : 3
            let short = Int32(truncatingIfNeeded: displacement)
            if base >= 0 && index >= 0 {
                code.lea(target, base: base, index: index, scale: scale, short, wide: wide)
            } else if base >= 0 {
                if short == 0 && wide {
                    if base != target { code.move(target, base) }
                } else {
                    code.lea(target, base: base, short, wide: wide)
                }
            } else if index >= 0 {
                code.lea(target, index: index, scale: scale, short, wide: wide)
            } else {
                code.move(
                    target, immediate: isNarrow ? UInt64(UInt32(truncatingIfNeeded: displacement)) : UInt64(bitPattern: displacement))
            }
        }
        if !is64Bit && (Operand.is16Bit(memory.base) || Operand.is16Bit(memory.index)) {
            code.zeroExtend16(target)
        }
        if target == address { keptInAddress = -1 }
        if withSegment { addSegment(memory, into: target) }
    }

    /// Adds fs's or gs's base to an effective address. Outside of 64-bit code `beginAccess` does it, with the check.
    mutating func addSegment(_ memory: ZydisDecodedOperandMem, into target: Int) {
        if !is64Bit {
            chooseSegment(memory.segment)
        } else if memory.segment == ZYDIS_REGISTER_GS {
            code.arithmeticContext(.add, target, ContextOffset.gsBase)
        } else if memory.segment == ZYDIS_REGISTER_FS {
            code.arithmeticContext(.add, target, ContextOffset.fsBase)
        }
    }

    /// Before the first vector instruction of a block: brings the guest's vector registers back from the context if
    /// a helper ran since. From here on slow paths bring them back themselves.
    mutating func readyVectors() {
        clobberFlags()
        forgetKept()
        code.testContext32(ContextOffset.vectorsSaved)
        let ready = code.jump(if: Condition.equal)
        code.call(to: origin + thunks.pointee.restoreVectors)
        code.bind(ready)
        vectorsReady = true
    }

    /// The same before the first AVX-512 instruction, behind `readyVectors`: the state that it uses begins to count.
    mutating func readyWideState() {
        clobberFlags()
        code.testContext32(ContextOffset.wideState)
        let ready = code.jump(if: Condition.notEqual)
        code.call(to: origin + thunks.pointee.beginWideState)
        code.bind(ready)
        wideStateReady = true
    }
}
