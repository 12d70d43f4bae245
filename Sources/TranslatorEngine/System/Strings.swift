internal import VMM

// String instructions, element by element (SDM Vol. 1, 7.3.9 and Vol. 2, REP): the general case for any width,
// address size, direction and segment.
extension TranslatorCPU {
    /// Runs `step` once, or under REP until the count or the condition ends it. Registers are exact after each
    /// element. Returns `false` when it stopped early because something outside waits: rip stays, the instruction
    /// goes on when it is run again.
    /// - Parameter step: handles one element and says whether the REP condition allows another one.
    @inline(__always)
    func repeatString(
        _ i: SystemInstruction, _ step: (TranslatorCPU) throws(GuestException) -> Bool
    ) throws(GuestException) -> Bool {
        if !i.isRepeated {
            _ = try step(self)
            return true
        }
        let mask = Self.mask(i.addressSize)
        while rcx & mask != 0 {
            let goesOn = try step(self)
            setRegister(1, (rcx &- 1) & mask, size: i.addressSize)
            if !goesOn { return true }
            if (context.pointee.interruptRequest != 0 || stopsAfterElement) && rcx & mask != 0 {
                // What is delivered now pushes RF: the instruction is under way (SDM Vol. 3, 18.3.1.1).
                context.pointee.systemFlags |= RFLAGS.rf
                return false
            }
        }
        return true
    }

    /// Moves RSI (6) or RDI (7) past one element.
    @inline(__always)
    func advance(_ number: UInt8, _ i: SystemInstruction) {
        let size = UInt64(i.operandSize)
        let old = register(number)
        let new = context.pointee.systemFlags & RFLAGS.df == 0 ? old &+ size : old &- size
        setRegister(number, new, size: i.addressSize)
    }

    /// MOVS, CMPS, SCAS, LODS, STOS. Returns as `repeatString`.
    func stringOperation(_ instruction: UnsafePointer<SystemInstruction>) throws(GuestException) -> Bool {
        let i = instruction.pointee
        let size = i.operandSize
        let mask = Self.mask(i.addressSize)
        switch i.kind {
        case .movs:
            return try repeatString(i) { (cpu) throws(GuestException) in
                let value = try cpu.read(i.segment, cpu.register(6) & mask, size: size)
                try cpu.write(SegmentNumber.es, cpu.register(7) & mask, value, size: size)
                cpu.advance(6, i)
                cpu.advance(7, i)
                return true
            }
        case .stos:
            return try repeatString(i) { (cpu) throws(GuestException) in
                try cpu.write(SegmentNumber.es, cpu.register(7) & mask, cpu.rax & Self.mask(size), size: size)
                cpu.advance(7, i)
                return true
            }
        case .lods:
            return try repeatString(i) { (cpu) throws(GuestException) in
                let value = try cpu.read(i.segment, cpu.register(6) & mask, size: size)
                cpu.setRegister(0, value, size: size)
                cpu.advance(6, i)
                return true
            }
        case .cmps:
            return try repeatString(i) { (cpu) throws(GuestException) in
                let left = try cpu.read(i.segment, cpu.register(6) & mask, size: size)
                let right = try cpu.read(SegmentNumber.es, cpu.register(7) & mask, size: size)
                cpu.compare(left, right, size: size)
                cpu.advance(6, i)
                cpu.advance(7, i)
                return cpu.conditionHolds(i)
            }
        default:
            return try repeatString(i) { (cpu) throws(GuestException) in
                let right = try cpu.read(SegmentNumber.es, cpu.register(7) & mask, size: size)
                cpu.compare(cpu.rax & Self.mask(size), right, size: size)
                cpu.advance(7, i)
                return cpu.conditionHolds(i)
            }
        }
    }

    /// REPE goes on while equal, REPNE while not.
    @inline(__always)
    private func conditionHolds(_ i: SystemInstruction) -> Bool {
        let equal = context.pointee.rflags & RFLAGS.zf != 0
        return i.options.contains(.repne) ? !equal : equal
    }

    /// The flags of a subtraction.
    func compare(_ left: UInt64, _ right: UInt64, size: UInt8) {
        let mask = Self.mask(size)
        let sign = mask ^ mask >> 1
        let result = (left &- right) & mask
        var flags = context.pointee.rflags
        flags &= ~(RFLAGS.cf | RFLAGS.pf | RFLAGS.af | RFLAGS.zf | RFLAGS.sf | RFLAGS.of)
        if left < right { flags |= RFLAGS.cf }
        if result & sign != 0 { flags |= RFLAGS.sf }
        if (left ^ right) & (left ^ result) & sign != 0 { flags |= RFLAGS.of }
        if (left ^ right ^ result) & 0x10 != 0 { flags |= RFLAGS.af }
        context.pointee.rflags = flags | Self.zeroAndParity(result)
    }

    @inline(__always)
    static func zeroAndParity(_ result: UInt64) -> UInt64 {
        (result == 0 ? RFLAGS.zf : 0) | ((result & 0xFF).nonzeroBitCount & 1 == 0 ? RFLAGS.pf : 0)
    }
}
