internal import VMM

// Instructions of user programs that are seldom worth generated code (SDM Vol. 2).
extension TranslatorCPU {
    // MARK: Decimal adjustment

    @inline(__always)
    private func setArithmetic(_ flags: UInt64, mask: UInt64) {
        context.pointee.rflags = context.pointee.rflags & ~mask | flags
    }

    @inline(__always)
    private static func signZeroParity(_ result: UInt64) -> UInt64 {
        zeroAndParity(result & 0xFF) | (result & 0x80 != 0 ? RFLAGS.sf : 0)
    }

    private static let allArithmetic =
        RFLAGS.cf | RFLAGS.pf | RFLAGS.af | RFLAGS.zf | RFLAGS.sf | RFLAGS.of

    /// DAA and DAS.
    func decimalAdjust(subtract: Bool) {
        let old = rax & 0xFF
        var value = old
        let flags = context.pointee.rflags
        var new: UInt64 = 0
        if old & 0xF > 9 || flags & RFLAGS.af != 0 {
            value = subtract ? value &- 6 : value &+ 6
            new |= RFLAGS.af
            // A borrow out of the low digit's correction counts for DAS alone.
            if subtract && old < 6 { new |= RFLAGS.cf }
        }
        if old > 0x99 || flags & RFLAGS.cf != 0 {
            value = subtract ? value &- 0x60 : value &+ 0x60
            new |= RFLAGS.cf
        }
        setRegister(0, value & 0xFF, size: 1)
        setArithmetic(new | Self.signZeroParity(value), mask: Self.allArithmetic)
    }

    /// AAA and AAS.
    func asciiAdjust(subtract: Bool) {
        var ax = rax & 0xFFFF
        var new: UInt64 = 0
        if ax & 0xF > 9 || context.pointee.rflags & RFLAGS.af != 0 {
            ax = subtract ? ax &- 0x106 : ax &+ 0x106
            new = RFLAGS.af | RFLAGS.cf
        }
        ax &= 0xFF0F
        setRegister(0, ax, size: 2)
        setArithmetic(new | Self.signZeroParity(ax), mask: Self.allArithmetic)
    }

    func asciiAdjustMultiply(_ base: UInt64) throws(GuestException) {
        let base = base & 0xFF
        if base == 0 { throw .divideError }
        let al = rax & 0xFF
        setRegister(0, (al / base) << 8 | al % base, size: 2)
        setArithmetic(Self.signZeroParity(al % base), mask: Self.allArithmetic)
    }

    func asciiAdjustDivide(_ base: UInt64) {
        let value = ((rax & 0xFF) &+ (rax >> 8 & 0xFF) &* (base & 0xFF)) & 0xFF
        setRegister(0, value, size: 2)
        setArithmetic(Self.signZeroParity(value), mask: Self.allArithmetic)
    }

    func setALFromCarry() {
        setRegister(0, context.pointee.rflags & RFLAGS.cf != 0 ? 0xFF : 0, size: 1)
    }

    // MARK: Memory

    func translateByte(_ instruction: UnsafePointer<SystemInstruction>) throws(GuestException) {
        let i = instruction.pointee
        let offset = (context.pointee.gpr[3] &+ rax & 0xFF) & Self.mask(i.addressSize)
        setRegister(0, try read(i.segment, offset, size: 1), size: 1)
    }

    func checkBounds(_ instruction: UnsafePointer<SystemInstruction>) throws(GuestException) {
        let i = instruction.pointee
        let size = i.operandSize
        let address = effectiveAddress(instruction)
        let second = (address &+ UInt64(size)) & Self.mask(i.addressSize)
        let lower = Self.signed(try read(i.segment, address, size: size), size)
        let upper = Self.signed(try read(i.segment, second, size: size), size)
        let index = Self.signed(register(i.register), size)
        if index < lower || index > upper { throw GuestException(vector: 5) }
    }

    private static func signed(_ value: UInt64, _ size: UInt8) -> Int64 {
        size == 2
            ? Int64(Int16(truncatingIfNeeded: value))
            : Int64(Int32(truncatingIfNeeded: value))
    }

    // MARK: Stack

    func pushAll(_ instruction: UnsafePointer<SystemInstruction>) throws(GuestException) {
        let size = instruction.pointee.operandSize
        var stack = rsp
        for number in 0..<8 as Range<UInt8> {
            try push(&stack, register(number), size: size)
        }
        setStackPointer(stack)
    }

    func popAll(_ instruction: UnsafePointer<SystemInstruction>) throws(GuestException) {
        let size = instruction.pointee.operandSize
        var stack = rsp
        var values: [8 of UInt64] = .init(repeating: 0)
        for index in 0..<8 { values[index] = try pop(&stack, size: size) }
        for index in 0..<8 where index != 3 {
            // The image runs from DI up to AX; SP's value is skipped.
            setRegister(UInt8(truncatingIfNeeded: 7 &- index), values[index], size: size)
        }
        setStackPointer(stack)
    }

    /// ENTER: a stack frame with up to 31 copied frame pointers.
    func enterFrame(_ instruction: UnsafePointer<SystemInstruction>) throws(GuestException) {
        let i = instruction.pointee
        let size = i.operandSize
        let allocated = UInt64(bitPattern: i.immediate) & 0xFFFF
        let level = Int(i.immediate >> 16 & 0x1F)
        var stack = rsp
        try push(&stack, register(5), size: size)
        // With a 16-bit stack EBP still gets the upper half of ESP.
        let frame = (register(4) & ~stackMask | stack) & (context.pointee.is64Bit ? ~0 : 0xFFFF_FFFF)
        if level > 0 {
            var source = register(5)
            for _ in 1..<level {
                source = (source &- UInt64(size)) & stackMask
                try push(&stack, try read(SegmentNumber.ss, source, size: size), size: size)
            }
            try push(&stack, frame, size: size)
        }
        stack = (stack &- allocated) & stackMask
        // The new stack top has to be one that can be written to (SDM Vol. 2, ENTER).
        let top = try linear(SegmentNumber.ss, stack, UInt64(size), write: true)
        try probeWrite(top, Int(size))
        setRegister(5, frame, size: size)
        setStackPointer(stack)
    }
}
