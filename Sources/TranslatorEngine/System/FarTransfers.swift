internal import VMM

// Far jumps, calls and returns (SDM Vol. 2, JMP, CALL, RET; Vol. 3, 5.8).
extension TranslatorCPU {
    /// The pointer that a far jump or call names.
    private func farPointer(
        _ instruction: UnsafePointer<SystemInstruction>
    ) throws(GuestException) -> (selector: UInt16, offset: UInt64) {
        let i = instruction.pointee
        guard i.isMemory else {
            let offset = UInt64(bitPattern: i.immediate) & 0xFFFF_FFFF
            return (UInt16(truncatingIfNeeded: i.immediate >> 32), offset & Self.mask(i.operandSize))
        }
        return try readFarPointer(instruction, size: i.operandSize)
    }

    func readFarPointer(
        _ instruction: UnsafePointer<SystemInstruction>, size: UInt8
    ) throws(GuestException) -> (selector: UInt16, offset: UInt64) {
        let address = effectiveAddress(instruction)
        let segment = instruction.pointee.segment
        let offset = try read(segment, address, size: size)
        let next = (address &+ UInt64(size)) & Self.mask(instruction.pointee.addressSize)
        return (UInt16(truncatingIfNeeded: try read(segment, next, size: 2)), offset)
    }

    // MARK: JMP

    func farJump(_ instruction: UnsafePointer<SystemInstruction>) throws(GuestException) {
        let (selector, offset) = try farPointer(instruction)
        if isRealOrVirtual8086 {
            guard offset <= UInt64(context.pointee.cs.limit) else { throw .generalProtection() }
            loadRealSegment(SegmentNumber.cs, selector)
            context.pointee.rip = offset
            return
        }
        if selector & 0xFFFC == 0 { throw .generalProtection() }
        let target = try descriptor(selector)
        let level = context.pointee.privilegeLevel
        if target.isSegment {
            try checkDirect(target, selector, level: level)
            try enter(target, selector, offset: offset, level: level)
            return
        }
        // Long mode has no 16-bit gates and no tasks.
        let isLong = context.pointee.isLongMode
        switch target.type {
        case SystemType.callGate, isLong ? SystemType.callGate : SystemType.callGate16:
            let gate = try checkedGate(target, selector)
            let code = try descriptor(gate.gateSelector)
            try checkGated(code, gate.gateSelector, level: level, isJump: true)
            let offset = gate.type == SystemType.callGate16 ? gate.gateOffset & 0xFFFF : gate.gateOffset
            try enter(code, gate.gateSelector, offset: offset, level: level)
        case SystemType.taskGate where !isLong, SystemType.availableTSS where !isLong,
            SystemType.availableTSS16 where !isLong:
            try farTask(target, selector, isCall: false, returnAddress: next(instruction))
        default: throw .selector(13, selector)
        }
    }

    // MARK: CALL

    func farCall(_ instruction: UnsafePointer<SystemInstruction>) throws(GuestException) {
        let (selector, offset) = try farPointer(instruction)
        let size = instruction.pointee.operandSize
        let level = context.pointee.privilegeLevel
        var stack = rsp
        if isRealOrVirtual8086 {
            guard offset <= UInt64(context.pointee.cs.limit) else { throw .generalProtection() }
            try push(&stack, UInt64(context.pointee.cs.selector), size: size)
            try push(&stack, next(instruction), size: size)
            setStackPointer(stack)
            loadRealSegment(SegmentNumber.cs, selector)
            context.pointee.rip = offset
            return
        }
        if selector & 0xFFFC == 0 { throw .generalProtection() }
        let target = try descriptor(selector)
        if target.isSegment {
            try checkDirect(target, selector, level: level)
            try checkOffset(target, offset)
            try push(&stack, UInt64(context.pointee.cs.selector), size: size)
            try push(&stack, next(instruction), size: size)
            let mask = stackMask
            try enter(target, selector, offset: offset, level: level)
            rsp = mask == 0xFFFF ? rsp & ~mask | stack & mask : stack & mask
            return
        }
        // Long mode has no 16-bit gates and no tasks.
        let isLong = context.pointee.isLongMode
        switch target.type {
        case SystemType.callGate, isLong ? SystemType.callGate : SystemType.callGate16:
            try callGate(try checkedGate(target, selector), returnAddress: next(instruction), level: level)
        case SystemType.taskGate where !isLong, SystemType.availableTSS where !isLong,
            SystemType.availableTSS16 where !isLong:
            try farTask(target, selector, isCall: true, returnAddress: next(instruction))
        default: throw .selector(13, selector)
        }
    }

    private func callGate(_ gate: Descriptor, returnAddress: UInt64, level: Int) throws(GuestException) {
        let selector = gate.gateSelector
        let code = try descriptor(selector)
        try checkGated(code, selector, level: level, isJump: false)
        let isLong = context.pointee.isLongMode
        let size: UInt8 = isLong ? 8 : gate.type == SystemType.callGate16 ? 2 : 4
        let offset = size == 2 ? gate.gateOffset & 0xFFFF : gate.gateOffset
        try checkOffset(code, offset)
        let newLevel = code.isConforming ? level : code.privilegeLevel
        if newLevel == level {
            var stack = rsp
            try push(&stack, UInt64(context.pointee.cs.selector), size: size)
            try push(&stack, returnAddress, size: size)
            let mask = stackMask
            try enter(code, selector, offset: offset, level: level)
            rsp = mask == 0xFFFF ? rsp & ~mask | stack & mask : stack & mask
            return
        }
        if isLong {
            var stack = try longStack(offset: 4 &+ 8 &* newLevel, 0)
            for value in [
                UInt64(context.pointee.ss.selector), rsp, UInt64(context.pointee.cs.selector), returnAddress,
            ] {
                stack &-= 8
                guard Self.isCanonical(stack), Self.isCanonical(stack &+ 7) else { throw .stackFault() }
                try store(stack, value, byteCount: 8, user: false, implicit: true)
            }
            try enter(code, selector, offset: offset, level: newLevel)
            context.pointee.ss = SegmentRegister(selector: UInt16(truncatingIfNeeded: newLevel))
            rsp = stack
            return
        }
        let (ss, pointer) = try legacyStack(level: newLevel, external: 0)
        var frame = LegacyFrame(size: size)
        frame.append(UInt64(context.pointee.ss.selector))
        frame.append(rsp)
        // Parameters keep their order: the highest first.
        for index in (0..<gate.gateParameterCount).reversed() {
            let source = (rsp &+ UInt64(index) &* UInt64(size)) & stackMask
            frame.append(try read(SegmentNumber.ss, source, size: size))
        }
        frame.append(UInt64(context.pointee.cs.selector))
        frame.append(returnAddress)
        let bottom = try push(frame, on: ss, at: pointer, level: newLevel, external: 0)
        try enter(code, selector, offset: offset, level: newLevel)
        context.pointee.ss = ss
        rsp = ss.isBig ? bottom : rsp & ~0xFFFF | bottom
        modeChanged()
    }

    // MARK: RET

    func farReturn(_ instruction: UnsafePointer<SystemInstruction>) throws(GuestException) {
        let size = instruction.pointee.operandSize
        let released = UInt64(bitPattern: instruction.pointee.immediate) & 0xFFFF
        let oldMask = stackMask
        var stack = rsp
        let offset = try pop(&stack, size: size)
        let selector = UInt16(truncatingIfNeeded: try pop(&stack, size: size))
        if isRealOrVirtual8086 {
            guard offset <= UInt64(context.pointee.cs.limit) else { throw .generalProtection() }
            setStackPointer((stack &+ released) & oldMask)
            loadRealSegment(SegmentNumber.cs, selector)
            context.pointee.rip = offset
            return
        }
        let level = context.pointee.privilegeLevel
        let newLevel = Int(selector & 3)
        if selector & 0xFFFC == 0 { throw .generalProtection() }
        let code = try descriptor(selector)
        guard newLevel >= level, code.isCode,
            code.isConforming ? code.privilegeLevel <= newLevel : code.privilegeLevel == newLevel,
            !(context.pointee.isLongMode && code.isLong && code.isBig)
        else { throw .selector(13, selector) }
        if !code.isPresent { throw .selector(11, selector) }
        try checkOffset(code, offset)
        stack = (stack &+ released) & oldMask
        guard newLevel > level else {
            try enter(code, selector, offset: offset, level: level)
            rsp = oldMask == 0xFFFF ? rsp & ~oldMask | stack : stack
            return
        }
        let newStack = try pop(&stack, size: size)
        let stackSelector = UInt16(truncatingIfNeeded: try pop(&stack, size: size))
        let ss = try stackSegment(
            stackSelector, level: newLevel, vector: 13, external: 0,
            into64Bit: context.pointee.isLongMode && code.isLong)
        try enter(code, selector, offset: offset, level: newLevel)
        context.pointee.ss = ss
        setStackPointer(newStack &+ released)
        dropPrivilegedSegments()
        modeChanged()
    }

    // MARK: Checks

    /// A code segment named by the instruction itself.
    private func checkDirect(_ code: Descriptor, _ selector: UInt16, level: Int) throws(GuestException) {
        let allowed =
            code.isConforming
            ? code.privilegeLevel <= level
            : Int(selector & 3) <= level && code.privilegeLevel == level
        guard code.isCode, allowed, !(context.pointee.isLongMode && code.isLong && code.isBig) else {
            throw .selector(13, selector)
        }
        if !code.isPresent { throw .selector(11, selector) }
    }

    /// A call gate that may be used; in long mode with its upper half.
    private func checkedGate(_ gate: Descriptor, _ selector: UInt16) throws(GuestException) -> Descriptor {
        if gate.privilegeLevel < max(context.pointee.privilegeLevel, Int(selector & 3)) {
            throw .selector(13, selector)
        }
        if !gate.isPresent { throw .selector(11, selector) }
        let wide = try widened(gate, selector)
        // The type field of the upper half must be zero (SDM Vol. 3, 5.8.3.1).
        if wide.high & 0x1F << 40 != 0 { throw .selector(13, selector) }
        var narrow = wide
        narrow.high &= 0xFFFF_FFFF
        if narrow.gateSelector & 0xFFFC == 0 { throw .generalProtection() }
        return narrow
    }

    /// A code segment named by a call gate.
    private func checkGated(
        _ code: Descriptor, _ selector: UInt16, level: Int, isJump: Bool
    ) throws(GuestException) {
        let allowed =
            isJump && !code.isConforming ? code.privilegeLevel == level : code.privilegeLevel <= level
        guard code.isCode, allowed, !context.pointee.isLongMode || code.isLong && !code.isBig else {
            throw .selector(13, selector)
        }
        if !code.isPresent { throw .selector(11, selector) }
    }

    func checkOffset(_ code: Descriptor, _ offset: UInt64) throws(GuestException) {
        if context.pointee.isLongMode && code.isLong {
            if !Self.isCanonical(offset) { throw .generalProtection() }
        } else if offset > UInt64(code.limit) {
            throw .generalProtection()
        }
    }

    /// Loads CS and RIP; the last step of every transfer.
    private func enter(
        _ code: Descriptor, _ selector: UInt16, offset: UInt64, level: Int
    ) throws(GuestException) {
        try checkOffset(code, offset)
        var code = code
        try markAccessed(&code)
        context.pointee.cs = code.register(selector & 0xFFFC | UInt16(truncatingIfNeeded: level))
        context.pointee.rip = offset
        modeChanged()
    }
}
