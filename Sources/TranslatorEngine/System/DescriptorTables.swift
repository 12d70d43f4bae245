internal import VMM

// Descriptor-table registers and the instructions that ask about selectors (SDM Vol. 2).
extension TranslatorCPU {
    // MARK: GDTR and IDTR

    func loadTable(_ instruction: UnsafePointer<SystemInstruction>) throws(GuestException) {
        try requireSupervisor()
        let i = instruction.pointee
        let address = effectiveAddress(instruction)
        let limit = try read(i.segment, address, size: 2)
        let baseOffset = (address &+ 2) & Self.mask(i.addressSize)
        var base: UInt64
        if context.pointee.is64Bit {
            base = try read(i.segment, baseOffset, size: 8)
            guard Self.isCanonical(base) else { throw .generalProtection() }
        } else {
            base = try read(i.segment, baseOffset, size: 4)
            if i.operandSize == 2 { base &= 0xFF_FFFF }
        }
        let table = DescriptorTableRegister(base: base, limit: UInt16(truncatingIfNeeded: limit))
        if i.kind == .lgdt { context.pointee.gdtr = table } else { context.pointee.idtr = table }
    }

    func storeTable(_ instruction: UnsafePointer<SystemInstruction>) throws(GuestException) {
        try requireNoUMIP()
        let i = instruction.pointee
        let table = i.kind == .sgdt ? context.pointee.gdtr : context.pointee.idtr
        let size: UInt8 = context.pointee.is64Bit ? 8 : 4
        let address = effectiveAddress(instruction)
        let baseOffset = (address &+ 2) & Self.mask(i.addressSize)
        // Checked before the first byte is written.
        _ = try linear(i.segment, baseOffset, UInt64(size), write: true)
        var image: [10 of UInt8] = .init(repeating: 0)
        let start = try linear(i.segment, address, 2, write: true)
        try requireAlignment(start, 4)
        try withUnsafeMutableBytes(of: &image) { (raw) throws(GuestException) in
            raw.storeBytes(of: table.limit.littleEndian, as: UInt16.self)
            raw.storeBytes(of: table.base.littleEndian, toByteOffset: 2, as: UInt64.self)
            try self.store(
                start, from: UnsafeRawBufferPointer(rebasing: raw[..<(2 &+ Int(size))]), user: self.isUser)
        }
    }

    // MARK: LDTR and TR

    func loadLDT(_ instruction: UnsafePointer<SystemInstruction>) throws(GuestException) {
        if isRealOrVirtual8086 { throw .invalidOpcode }
        try requireSupervisor()
        let selector = UInt16(truncatingIfNeeded: try readOperand(instruction, size: 2))
        if selector & 0xFFFC == 0 {
            context.pointee.ldtr = SegmentRegister(selector: selector)
            return
        }
        if selector & 4 != 0 { throw .selector(13, selector) }
        let narrow = try descriptor(selector)
        guard !narrow.isSegment, narrow.type == SystemType.ldt else { throw .selector(13, selector) }
        if !narrow.isPresent { throw .selector(11, selector) }
        let wide = try widened(narrow, selector)
        context.pointee.ldtr = wide.register(selector)
    }

    func loadTask(_ instruction: UnsafePointer<SystemInstruction>) throws(GuestException) {
        if isRealOrVirtual8086 { throw .invalidOpcode }
        try requireSupervisor()
        let selector = UInt16(truncatingIfNeeded: try readOperand(instruction, size: 2))
        if selector & 0xFFFC == 0 { throw .generalProtection() }
        if selector & 4 != 0 { throw .selector(13, selector) }
        let narrow = try descriptor(selector)
        let isTSS =
            narrow.type == SystemType.availableTSS
            || narrow.type == SystemType.availableTSS16 && !context.pointee.isLongMode
        guard !narrow.isSegment, isTSS else { throw .selector(13, selector) }
        if !narrow.isPresent { throw .selector(11, selector) }
        var wide = try widened(narrow, selector)
        if context.pointee.isLongMode && !Self.isCanonical(wide.base) { throw .selector(13, selector) }
        // Busy, in the table too.
        wide.low |= 2 << 40
        try store(maskSystemAddress(wide.address &+ 5), wide.low >> 40 & 0xFF, byteCount: 1, user: false, implicit: true)
        context.pointee.tr = wide.register(selector)
    }

    func storeSelector(
        _ instruction: UnsafePointer<SystemInstruction>, _ selector: UInt16
    ) throws(GuestException) {
        if isRealOrVirtual8086 { throw .invalidOpcode }
        try requireNoUMIP()
        let size = instruction.pointee.isMemory ? 2 : instruction.pointee.operandSize
        try writeOperand(instruction, UInt64(selector), size: size)
    }

    // MARK: Questions about selectors

    /// The descriptor that LAR, LSL, VERR and VERW look at; `nil` answers them all with ZF clear.
    private func visibleDescriptor(
        _ selector: UInt16, _ isAllowedSystemType: (UInt64) -> Bool
    ) throws(GuestException) -> Descriptor? {
        if selector & 0xFFFC == 0 { return nil }
        guard let address = descriptorAddress(selector) else { return nil }
        let found = Descriptor(low: try load(address, byteCount: 8, user: false, implicit: true), address: address)
        if !found.isSegment && !isAllowedSystemType(found.type) { return nil }
        if !(found.isCode && found.isConforming) {
            if found.privilegeLevel < max(context.pointee.privilegeLevel, Int(selector & 3)) { return nil }
        }
        return found
    }

    private func setZero(_ value: Bool) {
        let flags = context.pointee.rflags
        context.pointee.rflags = value ? flags | RFLAGS.zf : flags & ~RFLAGS.zf
    }

    func verify(_ instruction: UnsafePointer<SystemInstruction>) throws(GuestException) {
        if isRealOrVirtual8086 { throw .invalidOpcode }
        let selector = UInt16(truncatingIfNeeded: try readOperand(instruction, size: 2))
        guard let found = try visibleDescriptor(selector, { _ in false }) else {
            setZero(false)
            return
        }
        setZero(instruction.pointee.kind == .verr ? found.isReadable : found.isWritableData)
    }

    func loadAccessRights(_ instruction: UnsafePointer<SystemInstruction>) throws(GuestException) {
        if isRealOrVirtual8086 { throw .invalidOpcode }
        let i = instruction.pointee
        let selector = UInt16(truncatingIfNeeded: try readOperand(instruction, size: 2))
        let isLong = context.pointee.isLongMode
        // SDM Vol. 2, table 3-50: in long mode only what exists there.
        let found = try visibleDescriptor(selector) { type in
            switch type {
            case 2, 9, 11, 12: true
            case 1, 3, 4, 5: !isLong
            default: false
            }
        }
        if let found { setRegister(i.register, found.low >> 32 & 0xFFFF00, size: i.operandSize) }
        setZero(found != nil)
    }

    func loadSegmentLimit(_ instruction: UnsafePointer<SystemInstruction>) throws(GuestException) {
        if isRealOrVirtual8086 { throw .invalidOpcode }
        let i = instruction.pointee
        let selector = UInt16(truncatingIfNeeded: try readOperand(instruction, size: 2))
        let isLong = context.pointee.isLongMode
        let found = try visibleDescriptor(selector) { type in
            switch type {
            case 2, 9, 11: true
            case 1, 3: !isLong
            default: false
            }
        }
        if let found { setRegister(i.register, UInt64(found.limit), size: i.operandSize) }
        setZero(found != nil)
    }

    /// ARPL: raises the destination's RPL to the source's.
    func adjustPrivilege(_ instruction: UnsafePointer<SystemInstruction>) throws(GuestException) {
        if isRealOrVirtual8086 { throw .invalidOpcode }
        let destination = try readOperand(instruction, size: 2)
        let level = register(instruction.pointee.register) & 3
        if destination & 3 < level {
            try writeOperand(instruction, destination & ~3 | level, size: 2)
            setZero(true)
        } else {
            setZero(false)
        }
    }

    // MARK: Segment registers

    func storeSegment(_ instruction: UnsafePointer<SystemInstruction>) throws(GuestException) {
        let i = instruction.pointee
        try writeOperand(instruction, UInt64(segmentRegister(i.register).selector), size: i.operandSize)
    }

    func moveToSegment(_ instruction: UnsafePointer<SystemInstruction>) throws(GuestException) {
        let i = instruction.pointee
        if i.register == SegmentNumber.cs || i.register > SegmentNumber.gs { throw .invalidOpcode }
        let selector = UInt16(truncatingIfNeeded: try readOperand(instruction, size: 2))
        try loadSegment(i.register, selector)
        if i.register == SegmentNumber.ss { shadowStackLoad() }
    }

    /// Interrupts and debug exceptions wait for the instruction behind a load of SS, but not for a second one (SDM
    /// Vol. 3, 6.8.3).
    private func shadowStackLoad() {
        if followsStackLoad { return }
        context.pointee.interruptShadow = true
        context.pointee.stackShadow = true
    }

    func pushSegment(_ instruction: UnsafePointer<SystemInstruction>) throws(GuestException) {
        let i = instruction.pointee
        var stack = rsp
        try push(&stack, UInt64(segmentRegister(i.register).selector), size: i.operandSize)
        setStackPointer(stack)
    }

    func popSegment(_ instruction: UnsafePointer<SystemInstruction>) throws(GuestException) {
        let i = instruction.pointee
        var stack = rsp
        let selector = UInt16(truncatingIfNeeded: try pop(&stack, size: i.operandSize))
        let mask = stackMask
        try loadSegment(i.register, selector)
        rsp = mask == 0xFFFF ? rsp & ~mask | stack : stack
        if i.register == SegmentNumber.ss { shadowStackLoad() }
    }

    /// LDS, LES, LFS, LGS, LSS.
    func loadFarPointer(_ instruction: UnsafePointer<SystemInstruction>) throws(GuestException) {
        let i = instruction.pointee
        let (selector, offset) = try readFarPointer(instruction, size: i.operandSize)
        try loadSegment(UInt8(truncatingIfNeeded: i.immediate), selector)
        setRegister(i.register, offset, size: i.operandSize)
    }
}
