internal import VMM

/// An exception that could not be delivered, nor the double fault after it: the machine resets.
package struct TripleFault: Error, Hashable {
    /// What was being delivered and what went wrong then, for the line that a user sees.
    package let reason: String
}

/// Where an event comes from: decides on privilege checks, the EXT bit and the RF image.
enum EventSource {
    /// Faults: the pushed RF is set, so that an instruction breakpoint does not hit twice.
    case fault
    /// External interrupts, NMI and hardware traps.
    case hardware
    /// INT n, INT3 and INTO: the gate's DPL is checked, error codes have EXT clear.
    case software
    /// INT1: like hardware, from an instruction.
    case privilegedSoftware
}

extension TranslatorCPU {
    // MARK: Entry points

    /// Delivers an exception at `context.rip`, through double fault to triple fault if need be
    /// (SDM Vol. 3, 6.15 and table 6-5).
    package func deliver(_ exception: GuestException) throws(TripleFault) {
        var current = exception
        // An instruction that faults has hit no data breakpoint; the delivery may.
        debugHits = 0
        while true {
            if current.vector == 14 { context.pointee.cr2 = current.address }
            do throws(GuestException) {
                try enterHandler(
                    current.vector, source: Self.source(current.vector), errorCode: current.errorCode,
                    returnAddress: context.pointee.rip)
                return
            } catch {
                // A page fault that ends in a double fault has overwritten CR2 all the same (SDM Vol. 3, 6.15).
                if error.vector == 14 { context.pointee.cr2 = error.address }
                guard let next = Self.combined(current, error) else {
                    throw TripleFault(
                        reason: "\(Self.describe(error)) while delivering a double fault after "
                            + Self.describe(exception))
                }
                current = next
            }
        }
    }

    /// Delivers an external interrupt; the caller has checked RFLAGS.IF and the interrupt shadow.
    package func deliverInterrupt(vector: UInt8) throws(TripleFault) {
        context.pointee.isHalted = false
        do throws(GuestException) {
            try enterHandler(vector, source: .hardware, errorCode: nil, returnAddress: context.pointee.rip)
        } catch {
            // Interrupts are benign: what goes wrong is delivered instead, with EXT set.
            try deliver(error)
        }
    }

    /// Delivers a non-maskable interrupt and blocks further ones until IRET.
    package func deliverNMI() throws(TripleFault) {
        context.pointee.nmiBlocked = true
        try deliverInterrupt(vector: 2)
    }

    /// INT n, INT3, INTO, INT1: faults on the way leave the state as before the instruction.
    func softwareInterrupt(
        _ vector: UInt8, source: EventSource, returnAddress: UInt64
    ) throws(GuestException) {
        try enterHandler(vector, source: source, errorCode: nil, returnAddress: returnAddress)
    }

    // MARK: Combining

    private enum Severity { case benign, contributory, pageFault, doubleFault }

    private static func severity(_ vector: UInt8) -> Severity {
        switch vector {
        case 0, 10, 11, 12, 13, 21: .contributory
        case 14, 20: .pageFault
        case 8: .doubleFault
        default: .benign
        }
    }

    /// What to deliver when `second` happens while `first` is being delivered; `nil` is shutdown.
    private static func combined(_ first: GuestException, _ second: GuestException) -> GuestException? {
        let next = severity(second.vector)
        switch severity(first.vector) {
        case .benign: return second
        case .contributory: return next == .contributory ? GuestException(vector: 8, errorCode: 0) : second
        case .pageFault: return next == .benign ? second : GuestException(vector: 8, errorCode: 0)
        case .doubleFault: return next == .benign ? second : nil
        }
    }

    private static func describe(_ exception: GuestException) -> String {
        let names = [
            0: "#DE", 1: "#DB", 2: "NMI", 3: "#BP", 4: "#OF", 5: "#BR", 6: "#UD", 7: "#NM", 8: "#DF", 10: "#TS",
            11: "#NP", 12: "#SS", 13: "#GP", 14: "#PF", 16: "#MF", 17: "#AC", 18: "#MC", 19: "#XM",
        ]
        var text = names[Int(exception.vector)] ?? "vector \(exception.vector)"
        if let code = exception.errorCode { text += "(0x\(String(code, radix: 16)))" }
        if exception.vector == 14 { text += " at 0x\(String(exception.address, radix: 16))" }
        return text
    }

    @inline(__always)
    private static func source(_ vector: UInt8) -> EventSource {
        switch vector {
        case 1, 2, 3, 4, 8, 18: .hardware
        default: .fault
        }
    }

    // MARK: The way into a handler

    @inline(__always)
    private func enterHandler(
        _ vector: UInt8, source: EventSource, errorCode: UInt32?, returnAddress: UInt64
    ) throws(GuestException) {
        if context.pointee.isLongMode {
            try enterLongHandler(vector, source: source, errorCode: errorCode, returnAddress: returnAddress)
        } else if context.pointee.cr0 & CR0.pe == 0 {
            try enterRealHandler(vector, source: source, returnAddress: returnAddress)
        } else {
            try enterLegacyHandler(vector, source: source, errorCode: errorCode, returnAddress: returnAddress)
        }
        context.pointee.interruptShadow = false
        context.pointee.stackShadow = false
        skipsStep = true
    }

    /// RFLAGS as the handler's frame shows it.
    @inline(__always)
    func flagsImage(_ source: EventSource) -> UInt64 {
        context.pointee.rflags | (source == .fault ? RFLAGS.rf : 0)
    }

    /// 64-bit mode interrupt and exception handling (SDM Vol. 3, 6.14).
    private func enterLongHandler(
        _ vector: UInt8, source: EventSource, errorCode: UInt32?, returnAddress: UInt64
    ) throws(GuestException) {
        let context = context
        let external: UInt32 = source == .software ? 0 : 1
        let offset = UInt64(vector) &* 16
        guard offset &+ 15 <= UInt64(context.pointee.idtr.limit) else { throw gateFault(13, vector, external) }
        let gateAddress = context.pointee.idtr.base &+ offset
        let gate = Descriptor(
            low: try load(gateAddress, byteCount: 8, user: false, implicit: true),
            high: try load(gateAddress &+ 8, byteCount: 8, user: false, implicit: true), address: gateAddress)
        guard gate.low & 0x1E << 40 == 0x0E << 40 else { throw gateFault(13, vector, external) }
        let level = context.pointee.privilegeLevel
        if source == .software && gate.privilegeLevel < level { throw gateFault(13, vector, external) }
        if !gate.isPresent { throw gateFault(11, vector, external) }

        let selector = gate.gateSelector
        if selector & 0xFFFC == 0 { throw .generalProtection(external) }
        var code = try descriptor(selector, external: external)
        guard code.isCode, code.privilegeLevel <= level, code.isLong, !code.isBig else {
            throw .selector(13, selector, external: external)
        }
        if !code.isPresent { throw .selector(11, selector, external: external) }
        let newLevel = code.isConforming ? level : code.privilegeLevel

        let stackTable = Int(gate.low >> 32 & 7)
        var stack = context.pointee.gpr[4]
        if stackTable != 0 {
            stack = try longStack(offset: 0x1C &+ 8 &* stackTable, external)
        } else if newLevel != level {
            stack = try longStack(offset: 4 &+ 8 &* newLevel, external)
        }
        stack &= ~0xF

        let handler = gate.gateOffset
        guard Self.isCanonical(handler) else { throw .generalProtection(external) }
        let ss = context.pointee.ss
        // From the bottom of the frame: RIP, CS, RFLAGS, RSP, SS; the error code lies below.
        var frame: [6 of UInt64] = [
            UInt64(errorCode ?? 0), returnAddress, UInt64(context.pointee.cs.selector), flagsImage(source),
            context.pointee.gpr[4], UInt64(ss.selector),
        ]
        let hasCode = errorCode != nil
        let bytes = hasCode ? 48 : 40
        stack &-= UInt64(bytes)
        guard Self.isCanonical(stack), Self.isCanonical(stack &+ UInt64(bytes &- 1)) else {
            throw .stackFault(external)
        }
        try markAccessed(&code)
        try withUnsafeMutableBytes(of: &frame) { (raw) throws(GuestException) in
            try self.store(
                stack, from: UnsafeRawBufferPointer(rebasing: raw[(48 &- bytes)...]), user: newLevel == 3)
        }

        // Nothing fails from here on.
        context.pointee.gpr[4] = stack
        context.pointee.rip = handler
        let newCS = code.register(selector & 0xFFFC | UInt16(truncatingIfNeeded: newLevel))
        let oldFlags = context.pointee.systemFlags
        var flags = oldFlags & ~(RFLAGS.tf | RFLAGS.nt | RFLAGS.rf | RFLAGS.vm)
        if gate.low & 1 << 40 == 0 { flags &= ~RFLAGS.if }
        context.pointee.systemFlags = flags
        if newLevel != level {
            context.pointee.ss = SegmentRegister(selector: UInt16(truncatingIfNeeded: newLevel))
        }
        let oldAttributes = context.pointee.cs.attributes
        context.pointee.cs = newCS
        if newLevel != level || oldAttributes != newCS.attributes || oldFlags & RFLAGS.tf != 0 { modeChanged() }
    }

    /// A stack pointer from the 64-bit TSS (SDM Vol. 3, figure 8-11).
    @inline(__always)
    func longStack(offset: Int, _ external: UInt32) throws(GuestException) -> UInt64 {
        let tr = context.pointee.tr
        guard offset &+ 7 <= Int(tr.limit), !tr.isUnusable else {
            throw .selector(10, tr.selector, external: external)
        }
        let stack = try load(tr.base &+ UInt64(offset), byteCount: 8, user: false, implicit: true)
        guard Self.isCanonical(stack) else { throw .stackFault(external) }
        return stack
    }

    /// A fault with an IDT vector in its error code (SDM Vol. 3, 6.13).
    @inline(never)
    func gateFault(_ fault: UInt8, _ vector: UInt8, _ external: UInt32) -> GuestException {
        GuestException(vector: fault, errorCode: UInt32(vector) << 3 | 2 | external)
    }
}
