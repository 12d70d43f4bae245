internal import VMM

// Interrupts and exceptions outside of long mode: real mode, protected mode and out of virtual-8086 mode.
extension TranslatorCPU {
    /// The real-mode vector table (SDM Vol. 3, 20.1.4). There are no error codes.
    func enterRealHandler(
        _ vector: UInt8, source: EventSource, returnAddress: UInt64
    ) throws(GuestException) {
        let offset = UInt64(vector) &* 4
        // A vector outside of the table is a double fault in the end: #GP cannot be delivered either.
        guard offset &+ 3 <= UInt64(context.pointee.idtr.limit) else { throw .generalProtection() }
        let entry = try load((context.pointee.idtr.base &+ offset) & 0xFFFF_FFFF, byteCount: 4, user: false, implicit: true)
        var stack = rsp
        try push(&stack, context.pointee.rflags & 0xFFFF, size: 2)
        try push(&stack, UInt64(context.pointee.cs.selector), size: 2)
        try push(&stack, returnAddress, size: 2)
        setStackPointer(stack)
        context.pointee.systemFlags &= ~(RFLAGS.if | RFLAGS.tf | RFLAGS.rf | RFLAGS.ac)
        context.pointee.cs.selector = UInt16(truncatingIfNeeded: entry >> 16)
        context.pointee.cs.base = (entry >> 16) << 4
        context.pointee.rip = entry & 0xFFFF
        modeChanged()
    }

    /// Protected-mode gates (SDM Vol. 3, 6.12) and the way out of virtual-8086 mode (20.3).
    func enterLegacyHandler(
        _ vector: UInt8, source: EventSource, errorCode: UInt32?, returnAddress: UInt64
    ) throws(GuestException) {
        let external: UInt32 = source == .software ? 0 : 1
        let offset = UInt64(vector) &* 8
        guard offset &+ 7 <= UInt64(context.pointee.idtr.limit) else { throw gateFault(13, vector, external) }
        let gateAddress = (context.pointee.idtr.base &+ offset) & 0xFFFF_FFFF
        let gate = Descriptor(low: try load(gateAddress, byteCount: 8, user: false, implicit: true), address: gateAddress)
        guard !gate.isSegment else { throw gateFault(13, vector, external) }
        switch gate.type {
        case SystemType.taskGate, SystemType.interruptGate16, SystemType.trapGate16, SystemType.interruptGate,
            SystemType.trapGate:
            break
        default: throw gateFault(13, vector, external)
        }
        let level = context.pointee.privilegeLevel
        if source == .software && gate.privilegeLevel < level { throw gateFault(13, vector, external) }
        if !gate.isPresent { throw gateFault(11, vector, external) }
        if gate.type == SystemType.taskGate {
            try enterTaskGate(gate, errorCode: errorCode, source: source, returnAddress: returnAddress)
            return
        }

        let selector = gate.gateSelector
        if selector & 0xFFFC == 0 { throw .generalProtection(external) }
        var code = try descriptor(selector, external: external)
        guard code.isCode, code.privilegeLevel <= level else { throw .selector(13, selector, external: external) }
        if !code.isPresent { throw .selector(11, selector, external: external) }
        let newLevel = code.isConforming ? level : code.privilegeLevel
        let fromVirtual = context.pointee.systemFlags & RFLAGS.vm != 0
        // Virtual-8086 mode is left for ring 0 only.
        if fromVirtual && newLevel != 0 { throw .selector(13, selector, external: external) }
        let size: UInt8 = gate.type & 8 != 0 ? 4 : 2
        let handler = size == 4 ? gate.gateOffset : gate.gateOffset & 0xFFFF
        guard handler <= UInt64(code.limit) else { throw .generalProtection(external) }

        var frame = LegacyFrame(size: size)
        if newLevel != level {
            let (ss, stack) = try legacyStack(level: newLevel, external: external)
            if fromVirtual {
                frame.append(UInt64(context.pointee.gs.selector))
                frame.append(UInt64(context.pointee.fs.selector))
                frame.append(UInt64(context.pointee.ds.selector))
                frame.append(UInt64(context.pointee.es.selector))
            }
            frame.append(UInt64(context.pointee.ss.selector))
            frame.append(rsp)
            appendReturn(&frame, source: source, errorCode: errorCode, returnAddress: returnAddress)
            try markAccessed(&code)
            let pointer = try push(frame, on: ss, at: stack, level: newLevel, external: external)
            context.pointee.ss = ss
            rsp = ss.isBig ? pointer : rsp & ~0xFFFF | pointer
        } else {
            appendReturn(&frame, source: source, errorCode: errorCode, returnAddress: returnAddress)
            try markAccessed(&code)
            let pointer = try push(frame, on: context.pointee.ss, at: rsp, level: level, external: external)
            setStackPointer(pointer)
        }
        if fromVirtual {
            context.pointee.es = SegmentRegister()
            context.pointee.ds = SegmentRegister()
            setSegmentRegister(SegmentNumber.fs, SegmentRegister())
            setSegmentRegister(SegmentNumber.gs, SegmentRegister())
        }
        context.pointee.cs = code.register(selector & 0xFFFC | UInt16(truncatingIfNeeded: newLevel))
        context.pointee.rip = handler
        context.pointee.systemFlags &= ~(RFLAGS.tf | RFLAGS.nt | RFLAGS.rf | RFLAGS.vm)
        if gate.type & 1 == 0 { context.pointee.systemFlags &= ~RFLAGS.if }
        modeChanged()
    }

    private func appendReturn(
        _ frame: inout LegacyFrame, source: EventSource, errorCode: UInt32?, returnAddress: UInt64
    ) {
        frame.append(flagsImage(source))
        frame.append(UInt64(context.pointee.cs.selector))
        frame.append(returnAddress)
        if let errorCode { frame.append(UInt64(errorCode)) }
    }

    /// SS and ESP for a more privileged level, from a 32-bit or 16-bit TSS (SDM Vol. 3, 8.2.1 and 8.6).
    func legacyStack(level: Int, external: UInt32) throws(GuestException) -> (ss: SegmentRegister, pointer: UInt64) {
        let tr = context.pointee.tr
        let isBig = tr.type & 8 != 0
        let offset = isBig ? 4 &+ 8 &* level : 2 &+ 4 &* level
        guard !tr.isUnusable, offset &+ (isBig ? 5 : 3) <= Int(tr.limit) else {
            throw .selector(10, tr.selector, external: external)
        }
        let address = tr.base &+ UInt64(offset)
        let pointer: UInt64
        let selector: UInt64
        if isBig {
            pointer = try load(address & 0xFFFF_FFFF, byteCount: 4, user: false, implicit: true)
            selector = try load((address &+ 4) & 0xFFFF_FFFF, byteCount: 2, user: false, implicit: true)
        } else {
            pointer = try load(address & 0xFFFF_FFFF, byteCount: 2, user: false, implicit: true)
            selector = try load((address &+ 2) & 0xFFFF_FFFF, byteCount: 2, user: false, implicit: true)
        }
        let ss = try stackSegment(
            UInt16(truncatingIfNeeded: selector), level: level, vector: 10, external: external, into64Bit: false)
        return (ss, pointer)
    }

    /// Values to push, first one first.
    struct LegacyFrame {
        let size: UInt8
        private(set) var count = 0
        private var values: [48 of UInt32] = .init(repeating: 0)
        init(size: UInt8) { self.size = size }
        mutating func append(_ value: UInt64) {
            guard count < 48 else { return }
            values[count] = UInt32(truncatingIfNeeded: value)
            count &+= 1
        }
        subscript(index: Int) -> UInt64 { UInt64(values[min(max(index, 0), 47)]) }
    }

    /// Pushes on a stack that need not be in SS yet; returns the new stack pointer within the stack's width.
    func push(
        _ frame: borrowing LegacyFrame, on ss: SegmentRegister, at pointer: UInt64, level: Int, external: UInt32
    ) throws(GuestException) -> UInt64 {
        let mask: UInt64 = ss.isBig ? 0xFFFF_FFFF : 0xFFFF
        let bytes = UInt64(frame.size) &* UInt64(frame.count)
        var current = pointer & mask
        // The whole frame is checked first, so that a stack that is too small is left alone.
        let bottom = (current &- bytes) & mask
        guard Self.contains(ss, bottom, 1), Self.contains(ss, (current &- 1) & mask, 1) else {
            throw .selector(12, level == context.pointee.privilegeLevel ? 0 : ss.selector, external: external)
        }
        for index in 0..<frame.count {
            current = (current &- UInt64(frame.size)) & mask
            try store(
                (ss.base &+ current) & 0xFFFF_FFFF, frame[index] & Self.mask(frame.size),
                byteCount: Int(frame.size), user: level == 3)
        }
        return current
    }
}

extension TranslatorCPU {
    /// INT n in virtual-8086 mode (SDM Vol. 3, table 20-2): IOPL 3 allows it; with VME the TSS's redirection bitmap
    /// may send it straight to the 8086 program's own vector table.
    func virtualInterrupt(_ vector: UInt8, returnAddress: UInt64) throws(GuestException) {
        if context.pointee.cr4 & CR4.vme != 0, try isRedirected(vector) {
            let entry = try load(UInt64(vector) &* 4, byteCount: 4, user: true)
            var image = context.pointee.rflags & 0xFFFF
            if ioPrivilegeLevel != 3 {
                image = image & ~RFLAGS.if | RFLAGS.iopl
                if context.pointee.systemFlags & RFLAGS.vif != 0 { image |= RFLAGS.if }
            }
            var stack = rsp
            try push(&stack, image, size: 2)
            try push(&stack, UInt64(context.pointee.cs.selector), size: 2)
            try push(&stack, returnAddress, size: 2)
            let hidden = ioPrivilegeLevel == 3 ? RFLAGS.if : RFLAGS.vif
            setStackPointer(stack)
            context.pointee.systemFlags &= ~(RFLAGS.tf | hidden)
            loadRealSegment(SegmentNumber.cs, UInt16(truncatingIfNeeded: entry >> 16))
            context.pointee.rip = entry & 0xFFFF
            skipsStep = true
            return
        }
        if ioPrivilegeLevel != 3 { throw .generalProtection() }
        try softwareInterrupt(vector, source: .software, returnAddress: returnAddress)
    }

    /// A clear bit in the 32 bytes below the I/O bitmap redirects.
    private func isRedirected(_ vector: UInt8) throws(GuestException) -> Bool {
        let tr = context.pointee.tr
        guard tr.type & 8 != 0, tr.limit >= 103 else { return false }
        let start = try load(maskSystemAddress(tr.base &+ 102), byteCount: 2, user: false, implicit: true)
        let offset = start &- 32 &+ UInt64(vector >> 3)
        guard start >= 32, offset <= UInt64(tr.limit) else { return false }
        let bits = try load(maskSystemAddress(tr.base &+ offset), byteCount: 1, user: false, implicit: true)
        return bits >> UInt64(vector & 7) & 1 == 0
    }
}
