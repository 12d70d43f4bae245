internal import VMM

/// A segment descriptor as it lies in a table (SDM Vol. 3, figure 3-8), with the address it came from.
struct Descriptor {
    var low: UInt64
    /// The upper half of a 16-byte system descriptor in long mode.
    var high: UInt64 = 0
    var address: UInt64

    var type: UInt64 { low >> 40 & 0xF }
    /// Code or data, as opposed to a gate, a TSS or an LDT.
    var isSegment: Bool { low & 1 << 44 != 0 }
    var privilegeLevel: Int { Int(low >> 45 & 3) }
    var isPresent: Bool { low & 1 << 47 != 0 }
    var isLong: Bool { low & 1 << 53 != 0 }
    var isBig: Bool { low & 1 << 54 != 0 }
    var isCode: Bool { low & 0x18 << 40 == 0x18 << 40 }
    var isConforming: Bool { low & 1 << 42 != 0 }
    var isWritableData: Bool { low & 0x1A << 40 == 0x12 << 40 }
    var isReadable: Bool { isSegment && (low & 8 << 40 == 0 || low & 2 << 40 != 0) }

    var base: UInt64 { low >> 16 & 0xFF_FFFF | low >> 32 & 0xFF00_0000 | high << 32 }
    var limit: UInt32 {
        let raw = UInt32(truncatingIfNeeded: low & 0xFFFF | low >> 32 & 0xF_0000)
        return low & 1 << 55 != 0 ? raw << 12 | 0xFFF : raw
    }

    /// What a segment register holds after loading this.
    func register(_ selector: UInt16) -> SegmentRegister {
        SegmentRegister(
            selector: selector, attributes: UInt32(truncatingIfNeeded: low >> 40 & 0xF0FF), limit: limit, base: base)
    }

    // Gates (SDM Vol. 3, figures 5-8, 6-2 and 6-8)
    var gateSelector: UInt16 { UInt16(truncatingIfNeeded: low >> 16) }
    /// Of 32-bit and 64-bit gates; 16-bit ones have no upper half.
    var gateOffset: UInt64 { low & 0xFFFF | low >> 32 & 0xFFFF_0000 | high << 32 }
    var gateParameterCount: Int { Int(low >> 32 & 0x1F) }
}

/// Types of system descriptors (SDM Vol. 3, table 3-2).
enum SystemType {
    static let availableTSS16: UInt64 = 1
    static let ldt: UInt64 = 2
    static let busyTSS16: UInt64 = 3
    static let callGate16: UInt64 = 4
    static let taskGate: UInt64 = 5
    static let interruptGate16: UInt64 = 6
    static let trapGate16: UInt64 = 7
    static let availableTSS: UInt64 = 9
    static let busyTSS: UInt64 = 11
    static let callGate: UInt64 = 12
    static let interruptGate: UInt64 = 14
    static let trapGate: UInt64 = 15
}

/// The exceptions that descriptor checks end in: which one depends on who loads.
extension GuestException {
    /// #GP, #NP, #SS or #TS with a selector as error code; bits 0 and 1 of the selector are the caller's.
    @inline(__always)
    static func selector(_ vector: UInt8, _ selector: UInt16, external: UInt32 = 0) -> GuestException {
        GuestException(vector: vector, errorCode: UInt32(selector & 0xFFFC) | external)
    }
}

extension TranslatorCPU {
    /// Reads the descriptor that a selector names.
    /// - Parameters:
    ///   - vector: the exception for a selector outside of its table.
    ///   - external: the EXT bit of error codes.
    @inline(__always)
    func descriptor(
        _ selector: UInt16, vector: UInt8 = 13, external: UInt32 = 0
    ) throws(GuestException) -> Descriptor {
        guard let address = descriptorAddress(selector) else {
            throw .selector(vector, selector, external: external)
        }
        return Descriptor(low: try load(address, byteCount: 8, user: false, implicit: true), address: address)
    }

    /// `nil` when the selector lies outside of its table.
    @inline(__always)
    func descriptorAddress(_ selector: UInt16) -> UInt64? {
        let offset = UInt64(selector & 0xFFF8)
        if selector & 4 == 0 {
            guard offset &+ 7 <= UInt64(context.pointee.gdtr.limit) else { return nil }
            return maskSystemAddress(context.pointee.gdtr.base &+ offset)
        }
        let ldtr = context.pointee.ldtr
        guard !ldtr.isUnusable, ldtr.isPresent, ldtr.selector & 0xFFFC != 0, offset &+ 7 <= UInt64(ldtr.limit) else {
            return nil
        }
        return maskSystemAddress(ldtr.base &+ offset)
    }

    /// Outside of long mode linear addresses have 32 bits.
    @inline(__always)
    func maskSystemAddress(_ address: UInt64) -> UInt64 {
        context.pointee.isLongMode ? address : address & 0xFFFF_FFFF
    }

    /// Adds the upper half of a system descriptor, which has 16 bytes in long mode (SDM Vol. 3, 3.5.2).
    func widened(_ descriptor: Descriptor, _ selector: UInt16) throws(GuestException) -> Descriptor {
        guard context.pointee.isLongMode else { return descriptor }
        guard selector < 0xFFF8, descriptorAddress(selector &+ 8) != nil else { throw .selector(13, selector) }
        var wide = descriptor
        wide.high = try load(maskSystemAddress(descriptor.address &+ 8), byteCount: 8, user: false, implicit: true)
        return wide
    }

    /// Sets the accessed flag of a code or data descriptor in its table.
    @inline(__always)
    func markAccessed(_ descriptor: inout Descriptor) throws(GuestException) {
        if descriptor.low & 1 << 40 == 0 {
            descriptor.low |= 1 << 40
            try store(
                maskSystemAddress(descriptor.address &+ 5), descriptor.low >> 40 & 0xFF, byteCount: 1, user: false, implicit: true)
        }
    }

    // MARK: Data segments

    /// MOV, POP and LDS-like loads of ES, SS, DS, FS and GS (SDM Vol. 2, MOV).
    func loadSegment(_ number: UInt8, _ selector: UInt16) throws(GuestException) {
        if isRealOrVirtual8086 {
            loadRealSegment(number, selector)
            return
        }
        if number == SegmentNumber.ss {
            let level = context.pointee.privilegeLevel
            setSegmentRegister(number, try stackSegment(selector, level: level, vector: 13, external: 0))
        } else {
            setSegmentRegister(number, try dataSegment(selector))
        }
        if !context.pointee.is64Bit { modeChanged() }
    }

    /// Real mode keeps limit and attributes; virtual-8086 mode has fixed ones (SDM Vol. 3, 20.2).
    func loadRealSegment(_ number: UInt8, _ selector: UInt16) {
        var segment = segmentRegister(number)
        segment.selector = selector
        segment.base = UInt64(selector) << 4
        if context.pointee.systemFlags & RFLAGS.vm != 0 {
            segment.limit = 0xFFFF
            segment.attributes = 0xF3
        } else {
            segment.attributes &= ~0x10000
        }
        setSegmentRegister(number, segment)
        modeChanged()
    }

    private func dataSegment(_ selector: UInt16) throws(GuestException) -> SegmentRegister {
        if selector & 0xFFFC == 0 { return SegmentRegister(selector: selector) }
        var descriptor = try descriptor(selector)
        guard descriptor.isReadable else { throw .selector(13, selector) }
        if !(descriptor.isCode && descriptor.isConforming) {
            let level = descriptor.privilegeLevel
            if Int(selector & 3) > level || context.pointee.privilegeLevel > level { throw .selector(13, selector) }
        }
        if !descriptor.isPresent { throw .selector(11, selector) }
        try markAccessed(&descriptor)
        return descriptor.register(selector)
    }

    /// Checks a selector for SS at privilege `level`. Null is good in 64-bit mode below level 3.
    /// - Parameter vector: 13, or 10 when the selector comes from a TSS.
    func stackSegment(
        _ selector: UInt16, level: Int, vector: UInt8, external: UInt32, into64Bit: Bool? = nil
    ) throws(GuestException) -> SegmentRegister {
        if selector & 0xFFFC == 0 {
            if into64Bit ?? context.pointee.is64Bit, level != 3, Int(selector & 3) == level {
                return SegmentRegister(selector: selector)
            }
            throw GuestException(vector: vector, errorCode: external)
        }
        var descriptor = try descriptor(selector, vector: vector, external: external)
        guard Int(selector & 3) == level, descriptor.isWritableData, descriptor.privilegeLevel == level else {
            throw .selector(vector, selector, external: external)
        }
        if !descriptor.isPresent { throw .selector(12, selector, external: external) }
        try markAccessed(&descriptor)
        return descriptor.register(selector)
    }

    /// After a return to an outer level: data segments that it may not use become null (SDM Vol. 2, RET).
    func dropPrivilegedSegments() {
        let level = context.pointee.privilegeLevel
        if isPrivileged(context.pointee.es, level) { setSegmentRegister(SegmentNumber.es, SegmentRegister()) }
        if isPrivileged(context.pointee.ds, level) { setSegmentRegister(SegmentNumber.ds, SegmentRegister()) }
        if isPrivileged(context.pointee.fs, level) { setSegmentRegister(SegmentNumber.fs, SegmentRegister()) }
        if isPrivileged(context.pointee.gs, level) { setSegmentRegister(SegmentNumber.gs, SegmentRegister()) }
    }

    @inline(__always)
    private func isPrivileged(_ segment: SegmentRegister, _ level: Int) -> Bool {
        !segment.isUnusable && segment.attributes & 0x10 != 0 && segment.type & 0xC != 0xC
            && Int(segment.privilegeLevel) < level
    }
}
