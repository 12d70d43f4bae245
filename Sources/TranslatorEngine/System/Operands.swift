internal import VMM

// Registers, effective addresses, segmentation and the stack, as the interpreter of system instructions needs them.
extension TranslatorCPU {
    // MARK: Registers

    @inline(__always)
    func register(_ number: UInt8) -> UInt64 { context.pointee.gpr[Int(number & 15)] }

    /// Writes a register as instructions do: 32-bit results clear the upper half, narrower ones keep the rest.
    @inline(__always)
    func setRegister(_ number: UInt8, _ value: UInt64, size: UInt8) {
        let index = Int(number & 15)
        switch size {
        case 8: context.pointee.gpr[index] = value
        case 4: context.pointee.gpr[index] = value & 0xFFFF_FFFF
        case 2: context.pointee.gpr[index] = context.pointee.gpr[index] & ~0xFFFF | value & 0xFFFF
        default: context.pointee.gpr[index] = context.pointee.gpr[index] & ~0xFF | value & 0xFF
        }
    }

    @inline(__always) var rax: UInt64 {
        get { context.pointee.gpr[0] }
        set { context.pointee.gpr[0] = newValue }
    }
    @inline(__always) var rcx: UInt64 {
        get { context.pointee.gpr[1] }
        set { context.pointee.gpr[1] = newValue }
    }
    @inline(__always) var rdx: UInt64 {
        get { context.pointee.gpr[2] }
        set { context.pointee.gpr[2] = newValue }
    }
    @inline(__always) var rsp: UInt64 {
        get { context.pointee.gpr[4] }
        set { context.pointee.gpr[4] = newValue }
    }

    @inline(__always) var isUser: Bool { context.pointee.privilegeLevel == 3 }
    /// Paging-level address checks aside, segments mean what the 8086 made of them.
    @inline(__always) var isRealOrVirtual8086: Bool {
        context.pointee.cr0 & CR0.pe == 0 || context.pointee.systemFlags & RFLAGS.vm != 0
    }
    @inline(__always) var isProtected: Bool { !isRealOrVirtual8086 }
    @inline(__always) var ioPrivilegeLevel: Int { Int(context.pointee.systemFlags >> 12 & 3) }

    @inline(__always)
    func requireSupervisor() throws(GuestException) {
        if context.pointee.privilegeLevel != 0 { throw .generalProtection() }
    }

    @inline(__always)
    static func isCanonical(_ address: UInt64) -> Bool { CPUPolicy.isCanonical(address) }

    @inline(__always)
    static func mask(_ size: UInt8) -> UInt64 {
        switch size {
        case 8: ~0
        case 4: 0xFFFF_FFFF
        case 2: 0xFFFF
        default: 0xFF
        }
    }

    /// Running on over the end of a 64 KB segment does not wrap: it meets the limit. Only branches of 16-bit operand
    /// size cut the instruction pointer.
    @inline(__always)
    func next(_ instruction: UnsafePointer<SystemInstruction>) -> UInt64 {
        (context.pointee.rip &+ UInt64(instruction.pointee.length)) & (context.pointee.is64Bit ? ~0 : 0xFFFF_FFFF)
    }

    // MARK: Segment registers by number

    func segmentRegister(_ number: UInt8) -> SegmentRegister {
        switch number {
        case SegmentNumber.es: context.pointee.es
        case SegmentNumber.cs: context.pointee.cs
        case SegmentNumber.ss: context.pointee.ss
        case SegmentNumber.ds: context.pointee.ds
        case SegmentNumber.fs: context.pointee.fs
        default: context.pointee.gs
        }
    }

    func setSegmentRegister(_ number: UInt8, _ value: SegmentRegister) {
        switch number {
        case SegmentNumber.es: context.pointee.es = value
        case SegmentNumber.cs: context.pointee.cs = value
        case SegmentNumber.ss: context.pointee.ss = value
        case SegmentNumber.ds: context.pointee.ds = value
        case SegmentNumber.fs:
            context.pointee.fs = value
            context.pointee.fsBase = value.base
        default:
            context.pointee.gs = value
            context.pointee.gsBase = value.base
        }
    }

    // MARK: Addresses

    /// The offset that the r/m operand names, before segmentation.
    @inline(__always)
    func effectiveAddress(_ instruction: UnsafePointer<SystemInstruction>) -> UInt64 {
        let i = instruction.pointee
        var address = UInt64(bitPattern: i.displacement)
        if i.options.contains(.ripRelative) { address &+= next(instruction) }
        if i.base != SystemInstruction.none { address &+= register(i.base) }
        if i.index != SystemInstruction.none { address &+= register(i.index) &* UInt64(i.scale) }
        return address & Self.mask(i.addressSize)
    }

    /// Segmentation: the linear address of `count` bytes at an offset, with the segment's checks or, in 64-bit
    /// mode, the check for a canonical address (SDM Vol. 3, 3.4 and 5.3).
    @inline(__always)
    func linear(_ segment: UInt8, _ offset: UInt64, _ count: UInt64, write: Bool) throws(GuestException) -> UInt64 {
        guard context.pointee.is64Bit else { return try legacyLinear(segment, offset, count, write: write) }
        var linear = offset
        if segment == SegmentNumber.fs { linear &+= context.pointee.fsBase }
        if segment == SegmentNumber.gs { linear &+= context.pointee.gsBase }
        if Self.isCanonical(linear) && Self.isCanonical(linear &+ count &- 1) { return linear }
        throw segment == SegmentNumber.ss ? .stackFault() : .generalProtection()
    }

    @inline(never)
    private func legacyLinear(
        _ number: UInt8, _ offset: UInt64, _ count: UInt64, write: Bool
    ) throws(GuestException) -> UInt64 {
        let segment = segmentRegister(number)
        if isProtected {
            let isCode = segment.type & 8 != 0
            let allowed = write ? !isCode && segment.type & 2 != 0 : !isCode || segment.type & 2 != 0
            if segment.isUnusable || !allowed {
                throw number == SegmentNumber.ss ? .stackFault() : .generalProtection()
            }
        }
        if !Self.contains(segment, offset, count) {
            throw number == SegmentNumber.ss ? .stackFault() : .generalProtection()
        }
        var base = segment.base
        if number == SegmentNumber.fs { base = context.pointee.fsBase }
        if number == SegmentNumber.gs { base = context.pointee.gsBase }
        return (base &+ offset) & 0xFFFF_FFFF
    }

    /// The limit check, for expand-down segments too.
    static func contains(_ segment: SegmentRegister, _ offset: UInt64, _ count: UInt64) -> Bool {
        let last = offset &+ count &- 1
        guard last >= offset else { return false }
        if segment.type & 0xC == 4 {
            return offset > UInt64(segment.limit) && last <= (segment.isBig ? 0xFFFF_FFFF : 0xFFFF)
        }
        return last <= UInt64(segment.limit)
    }

    /// #AC for explicit accesses of user code (SDM Vol. 3, 6.15, interrupt 17).
    @inline(__always)
    func requireAlignment(_ linear: UInt64, _ alignment: UInt64) throws(GuestException) {
        if mode.has(BlockMode.alignmentCheck) && linear & (alignment &- 1) != 0 { throw .alignmentCheck }
    }

    // MARK: Operands

    /// A value at segment:offset, at the current privilege.
    @inline(__always)
    func read(_ segment: UInt8, _ offset: UInt64, size: UInt8) throws(GuestException) -> UInt64 {
        let address = try linear(segment, offset, UInt64(size), write: false)
        try requireAlignment(address, UInt64(size))
        return try load(address, byteCount: Int(size), user: isUser)
    }

    @inline(__always)
    func write(_ segment: UInt8, _ offset: UInt64, _ value: UInt64, size: UInt8) throws(GuestException) {
        let address = try linear(segment, offset, UInt64(size), write: true)
        try requireAlignment(address, UInt64(size))
        try store(address, value, byteCount: Int(size), user: isUser)
    }

    /// The r/m operand.
    @inline(__always)
    func readOperand(
        _ instruction: UnsafePointer<SystemInstruction>, size: UInt8
    ) throws(GuestException) -> UInt64 {
        if !instruction.pointee.isMemory { return register(instruction.pointee.rm) & Self.mask(size) }
        return try read(instruction.pointee.segment, effectiveAddress(instruction), size: size)
    }

    @inline(__always)
    func writeOperand(
        _ instruction: UnsafePointer<SystemInstruction>, _ value: UInt64, size: UInt8
    ) throws(GuestException) {
        if !instruction.pointee.isMemory {
            setRegister(instruction.pointee.rm, value, size: size)
        } else {
            try write(instruction.pointee.segment, effectiveAddress(instruction), value & Self.mask(size), size: size)
        }
    }

    // MARK: Stack

    /// The part of RSP that the stack segment uses.
    @inline(__always)
    var stackMask: UInt64 {
        if context.pointee.is64Bit { return ~0 }
        return context.pointee.ss.isBig ? 0xFFFF_FFFF : 0xFFFF
    }

    /// Pushes at a copy of the stack pointer: the instruction takes it over with `setStackPointer` when nothing
    /// can fail any more.
    @inline(__always)
    func push(_ pointer: inout UInt64, _ value: UInt64, size: UInt8) throws(GuestException) {
        let new = (pointer &- UInt64(size)) & stackMask
        try write(SegmentNumber.ss, new, value & Self.mask(size), size: size)
        pointer = new
    }

    @inline(__always)
    func pop(_ pointer: inout UInt64, size: UInt8) throws(GuestException) -> UInt64 {
        let value = try read(SegmentNumber.ss, pointer & stackMask, size: size)
        pointer = (pointer &+ UInt64(size)) & stackMask
        return value
    }

    @inline(__always)
    func setStackPointer(_ pointer: UInt64) {
        let mask = stackMask
        // With a 32-bit stack the upper half becomes zero, as with any 32-bit result.
        rsp = mask == 0xFFFF ? rsp & ~mask | pointer & mask : pointer & mask
    }
}
