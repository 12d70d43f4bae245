internal import VMM

// IRET (SDM Vol. 2, IRET/IRETD/IRETQ).
extension TranslatorCPU {
    /// Flags that a return may load at all. RF holds until the run loop enters the next instruction.
    private static let returnFlags = RFLAGS.defined & ~RFLAGS.vm

    @inline(__always)
    func interruptReturn(_ instruction: UnsafePointer<SystemInstruction>) throws(GuestException) {
        // Also when the instruction faults (SDM Vol. 3, 6.7.1).
        context.pointee.nmiBlocked = false
        if context.pointee.isLongMode {
            try longInterruptReturn(instruction)
        } else if context.pointee.cr0 & CR0.pe == 0 {
            try realInterruptReturn(instruction)
        } else {
            try legacyInterruptReturn(instruction)
        }
    }

    /// The flags after a return at privilege `level` (the level before it).
    @inline(__always)
    private func returnedFlags(_ image: UInt64, level: Int, size: UInt8) -> UInt64 {
        var writable = Self.returnFlags
        if size == 2 { writable &= 0xFFFF }
        if level != 0 { writable &= ~(RFLAGS.iopl | RFLAGS.vif | RFLAGS.vip) }
        if level > ioPrivilegeLevel { writable &= ~RFLAGS.if }
        let old = context.pointee.rflags
        return old & ~(writable | RFLAGS.rf) | image & writable
    }

    private func longInterruptReturn(_ instruction: UnsafePointer<SystemInstruction>) throws(GuestException) {
        let context = context
        if context.pointee.systemFlags & RFLAGS.nt != 0 { throw .generalProtection() }
        let size = instruction.pointee.operandSize
        let level = context.pointee.privilegeLevel
        let is64Bit = context.pointee.is64Bit
        var frame: [5 of UInt64] = .init(repeating: 0)
        var pointer = context.pointee.gpr[4]
        if is64Bit && size == 8 {
            guard Self.isCanonical(pointer), Self.isCanonical(pointer &+ 39) else { throw .stackFault() }
            try requireAlignment(pointer, 8)
            try withUnsafeMutableBytes(of: &frame) { (raw) throws(GuestException) in
                try self.load(pointer, into: raw, user: level == 3)
            }
        } else {
            frame[0] = try pop(&pointer, size: size)
            frame[1] = try pop(&pointer, size: size)
            frame[2] = try pop(&pointer, size: size)
            // Compatibility mode pops the stack only when it changes level.
            if is64Bit || Int(frame[1] & 3) > level {
                frame[3] = try pop(&pointer, size: size)
                frame[4] = try pop(&pointer, size: size)
            }
        }

        let selector = UInt16(truncatingIfNeeded: frame[1])
        let newLevel = Int(selector & 3)
        if selector & 0xFFFC == 0 { throw .generalProtection() }
        if newLevel < level { throw .selector(13, selector) }
        var code = try descriptor(selector)
        guard code.isCode,
            code.isConforming ? code.privilegeLevel <= newLevel : code.privilegeLevel == newLevel,
            !(code.isLong && code.isBig)
        else { throw .selector(13, selector) }
        if !code.isPresent { throw .selector(11, selector) }
        let target = frame[0]
        if code.isLong ? !Self.isCanonical(target) : target > UInt64(code.limit) { throw .generalProtection() }

        let stackComesAlong = is64Bit || newLevel > level
        if stackComesAlong {
            let stackSelector = UInt16(truncatingIfNeeded: frame[4])
            let ss = try stackSegment(
                stackSelector, level: newLevel, vector: 13, external: 0, into64Bit: code.isLong)
            try markAccessed(&code)
            context.pointee.ss = ss
        } else {
            try markAccessed(&code)
        }

        let oldFlags = context.pointee.systemFlags
        context.pointee.rflags = returnedFlags(frame[2], level: level, size: size)
        let oldAttributes = context.pointee.cs.attributes
        context.pointee.cs = code.register(selector)
        context.pointee.rip = code.isLong ? target : target & 0xFFFF_FFFF
        if !stackComesAlong {
            setStackPointer(pointer)
        } else if code.isLong || is64Bit && size == 8 && context.pointee.ss.isBig {
            // Also into compatibility mode IRETQ loads all of RSP, but of a 16-bit stack's only SP.
            context.pointee.gpr[4] = frame[3]
        } else {
            setStackPointer(frame[3])
        }
        if newLevel != level { dropPrivilegedSegments() }
        let watched = RFLAGS.tf | RFLAGS.ac
        if newLevel != level || oldAttributes != context.pointee.cs.attributes || !code.isLong
            || (oldFlags ^ context.pointee.systemFlags) & watched != 0
        {
            modeChanged()
        }
    }

    private func realInterruptReturn(_ instruction: UnsafePointer<SystemInstruction>) throws(GuestException) {
        let size = instruction.pointee.operandSize
        var pointer = rsp
        let target = try pop(&pointer, size: size)
        let selector = UInt16(truncatingIfNeeded: try pop(&pointer, size: size))
        let image = try pop(&pointer, size: size)
        guard target <= UInt64(context.pointee.cs.limit) else { throw .generalProtection() }
        setStackPointer(pointer)
        context.pointee.cs.selector = selector
        context.pointee.cs.base = UInt64(selector) << 4
        context.pointee.rip = target
        let kept = RFLAGS.vm | RFLAGS.vif | RFLAGS.vip
        let old = context.pointee.rflags
        context.pointee.rflags =
            size == 4
            ? (old & kept | image & ~kept) & ~RFLAGS.rf
            : old & ~0xFFFF | image & 0xFFFF
        modeChanged()
    }

    private func legacyInterruptReturn(_ instruction: UnsafePointer<SystemInstruction>) throws(GuestException) {
        if context.pointee.systemFlags & RFLAGS.vm != 0 {
            try virtualInterruptReturn(instruction)
            return
        }
        if context.pointee.systemFlags & RFLAGS.nt != 0 {
            try returnToLinkedTask(instruction)
            return
        }
        let size = instruction.pointee.operandSize
        let level = context.pointee.privilegeLevel
        var pointer = rsp
        let target = try pop(&pointer, size: size)
        let selector = UInt16(truncatingIfNeeded: try pop(&pointer, size: size))
        let image = try pop(&pointer, size: size)
        if size == 4 && image & RFLAGS.vm != 0 && level == 0 {
            try returnToVirtual8086(pointer, target: target, selector: selector, image: image)
            return
        }
        let newLevel = Int(selector & 3)
        if selector & 0xFFFC == 0 { throw .generalProtection() }
        if newLevel < level { throw .selector(13, selector) }
        var code = try descriptor(selector)
        guard code.isCode,
            code.isConforming ? code.privilegeLevel <= newLevel : code.privilegeLevel == newLevel
        else { throw .selector(13, selector) }
        if !code.isPresent { throw .selector(11, selector) }
        guard target <= UInt64(code.limit) else { throw .generalProtection() }
        let flags = returnedFlags(image, level: level, size: size)
        if newLevel > level {
            let newPointer = try pop(&pointer, size: size)
            let stackSelector = UInt16(truncatingIfNeeded: try pop(&pointer, size: size))
            let ss = try stackSegment(
                stackSelector, level: newLevel, vector: 13, external: 0, into64Bit: false)
            try markAccessed(&code)
            context.pointee.ss = ss
            pointer = newPointer
        } else {
            try markAccessed(&code)
        }
        context.pointee.cs = code.register(selector)
        context.pointee.rip = target
        setStackPointer(pointer)
        context.pointee.rflags = flags
        if newLevel > level { dropPrivilegedSegments() }
        modeChanged()
    }

    /// IRET inside virtual-8086 mode is allowed at IOPL 3 only.
    private func virtualInterruptReturn(_ instruction: UnsafePointer<SystemInstruction>) throws(GuestException) {
        if ioPrivilegeLevel != 3 { throw .generalProtection() }
        let size = instruction.pointee.operandSize
        var pointer = rsp
        let target = try pop(&pointer, size: size)
        let selector = UInt16(truncatingIfNeeded: try pop(&pointer, size: size))
        let image = try pop(&pointer, size: size)
        guard target <= 0xFFFF else { throw .generalProtection() }
        setStackPointer(pointer)
        loadRealSegment(SegmentNumber.cs, selector)
        context.pointee.rip = target
        var writable = Self.returnFlags & ~(RFLAGS.iopl | RFLAGS.vif | RFLAGS.vip)
        if size == 2 { writable &= 0xFFFF }
        context.pointee.rflags = context.pointee.rflags & ~(writable | RFLAGS.rf) | image & writable
        modeChanged()
    }

    /// IRETD at CPL 0 with VM in the flags image: ESP, SS, ES, DS, FS and GS follow it on the stack.
    private func returnToVirtual8086(
        _ pointer: UInt64, target: UInt64, selector: UInt16, image: UInt64
    ) throws(GuestException) {
        var pointer = pointer
        var values: [6 of UInt64] = .init(repeating: 0)
        for index in 0..<6 { values[index] = try pop(&pointer, size: 4) }
        guard target <= 0xFFFF else { throw .generalProtection() }
        context.pointee.rflags = image & RFLAGS.defined
        rsp = values[0]
        loadRealSegment(SegmentNumber.cs, selector)
        loadRealSegment(SegmentNumber.ss, UInt16(truncatingIfNeeded: values[1]))
        loadRealSegment(SegmentNumber.es, UInt16(truncatingIfNeeded: values[2]))
        loadRealSegment(SegmentNumber.ds, UInt16(truncatingIfNeeded: values[3]))
        loadRealSegment(SegmentNumber.fs, UInt16(truncatingIfNeeded: values[4]))
        loadRealSegment(SegmentNumber.gs, UInt16(truncatingIfNeeded: values[5]))
        context.pointee.rip = target
        modeChanged()
    }
}
