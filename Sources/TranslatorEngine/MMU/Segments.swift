internal import VMM

/// A segment as generated code checks it outside of 64-bit code: an access is allowed when its first byte is not below
/// `low` and its last one not above `readHigh` or `writeHigh`, as signed numbers. What the segment's type forbids, and
/// all accesses through a null one, have a bound of -1.
package struct SegmentView {
    package var base: UInt64 = 0
    package var readHigh: Int64 = -1
    package var writeHigh: Int64 = -1
    /// Above 0 in expand-down segments only: code checks it under `BlockMode.expandDown`.
    package var low: Int64 = 0
    package static let size = 32

    package init() {}

    /// SDM Vol. 3, 5.3 and 5.5; in real mode only the limit counts.
    init(_ segment: SegmentRegister, base: UInt64, isProtected: Bool) {
        self.base = base & 0xFFFF_FFFF
        var high = Int64(segment.limit)
        if segment.type & 0xC == 4 {
            low = high + 1
            high = segment.isBig ? 0xFFFF_FFFF : 0xFFFF
        }
        let isCode = segment.type & 8 != 0
        let isUsable = !segment.isUnusable
        if !isProtected || isUsable && (!isCode || segment.type & 2 != 0) { readHigh = high }
        if !isProtected || isUsable && !isCode && segment.type & 2 != 0 { writeHigh = high }
    }
}

extension ContextOffset {
    static let viewBase = 0
    static let viewReadHigh = 8
    static let viewWriteHigh = 16
    static let viewLow = 24
}

extension TranslatorCPU {
    /// Takes over the segment registers for generated code, outside of 64-bit code.
    /// - Returns: the bits of the block mode that they make.
    func updateSegments() -> UInt64 {
        let c = context
        let isProtected = isProtected
        var bits: UInt64 = isProtected ? 0 : BlockMode.eightySix
        var isFlat = isProtected && c.pointee.cs.isBig && c.pointee.ss.isBig
        for number in 0..<6 {
            let segment = segmentRegister(UInt8(truncatingIfNeeded: number))
            let base = number < 4 ? segment.base : number == 4 ? c.pointee.fsBase : c.pointee.gsBase
            let view = SegmentView(segment, base: base, isProtected: isProtected)
            c.pointee.segments[number] = view
            if view.low != 0 { bits |= BlockMode.expandDown }
            if number < 4 {
                let isWhole = segment.base == 0 && segment.limit == ~0
                if !isWhole || number != 1 && view.writeHigh != 0xFFFF_FFFF || view.low != 0 { isFlat = false }
            }
        }
        if !c.pointee.ss.isBig { bits |= BlockMode.smallStack }
        if !isFlat { bits |= BlockMode.segmented }
        let limit = UInt64(c.pointee.cs.limit)
        c.pointee.csBase = c.pointee.cs.base & 0xFFFF_FFFF
        c.pointee.csLimit = limit
        // Near branches of 16-bit code wrap at 64 KB, whatever the limit.
        c.pointee.csPageLimit = Int64(c.pointee.cs.isBig ? limit : min(limit, 0xFFFF)) - 4095
        return bits
    }

    /// The A20 gate was opened or closed: no translation holds.
    func a20Changed(isOpen: Bool) {
        addressMask = isOpen ? ~0 : ~(1 << 20)
        flushTLB(global: true)
        // The running block is left behind the port write.
        codeChanged = true
    }

    /// The linear address of an instruction pointer.
    @inline(__always) func linearCode(_ ip: UInt64) -> UInt64 { (ip &+ context.pointee.csBase) & codeMask }
    /// Width of instruction pointers and linear addresses of the current mode's code.
    @inline(__always) var codeMask: UInt64 { mode.codeSize == 0 ? ~0 : 0xFFFF_FFFF }
    /// The instruction pointer at an offset of the running block's page.
    @inline(__always) func instructionPointer(_ offset: Int) -> UInt64 {
        (context.pointee.ripPage &+ UInt64(bitPattern: Int64(offset))) & codeMask
    }

    /// The page behind the one of a linear address, for an instruction that goes on there. `ripPage` is that of the
    /// first.
    func nextCodePage(_ linear: UInt64) throws(GuestException) -> CodePage {
        if mode.has(BlockMode.segmented) && (context.pointee.ripPage &+ 4096) & codeMask > context.pointee.csLimit {
            throw .generalProtection()
        }
        return try codePage(((linear & ~0xFFF) &+ 4096) & codeMask)
    }

    /// The mode of blocks at an instruction pointer that may be fetched from, with `ripPage` set for it.
    func blockMode(at ip: UInt64, _ linear: UInt64) throws(GuestException) -> BlockMode {
        context.pointee.ripPage = (ip &- (linear & 0xFFF)) & codeMask
        guard mode.has(BlockMode.segmented) else {
            guard mode.codeSize == 0 else { return mode }
            // As far as a displacement reaches, and an instruction beside.
            let reach: UInt64 = 0x8000_2000
            let isNear = !Self.isCanonical(ip &+ reach) || !Self.isCanonical(ip &- reach)
            return isNear ? BlockMode(rawValue: mode.rawValue | BlockMode.nearHole) : mode
        }
        if ip > context.pointee.csLimit { throw .generalProtection() }
        let isWhole = Int64(bitPattern: context.pointee.ripPage) <= context.pointee.csPageLimit
        return isWhole ? mode : BlockMode(rawValue: mode.rawValue | BlockMode.partialPage)
    }

    /// Whether a block that starts at an instruction pointer has bytes beyond the limit of CS.
    func passesLimit(_ ip: UInt64, block index: Int) -> Bool {
        ip &+ UInt64(cache.blocks[index].length) &- 1 > context.pointee.csLimit
    }
}
