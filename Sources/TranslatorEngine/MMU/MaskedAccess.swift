// The slow path of accesses under a mask of AVX-512: what the mask leaves out is not accessed, so it does not fault.
// While an access hits the TLB, nothing it covers can fault, and the CPU does the rest.
extension TranslatorCPU {
    func maskedAccess(
        _ linear: UInt64, _ descriptor: MemoryDescriptor, _ operation: UInt64, _ pointer: UnsafeRawPointer
    ) throws(GuestException) -> UInt64 {
        let mask = AccessMask(rawValue: descriptor.slot)
        let size = Int(descriptor.size)
        let writes = descriptor.access & Access.write != 0
        let active = mask.bytes(size: size, mask: context.pointee.opmask[mask.register])
        let inFirst = min(size, 4096 - Int(linear & 0xFFF))
        var first = AccessPart(host: nil, physical: 0, count: inFirst)
        var second = AccessPart(host: nil, physical: 0, count: size - inFirst)
        if active != 0 {
            let low = active.trailingZeroBitCount, high = 64 - active.leadingZeroBitCount
            // Elements are checked one by one: their alignment is what counts, and a page fault of the first comes before
            // what is wrong with the last one's address.
            let granule = mask.granule(size: size)
            try checkAddress(linear &+ UInt64(low), linear, descriptor)
            try checkAddress(linear &+ UInt64(low + granule - 1), linear, descriptor)
            if mode.has(BlockMode.alignmentCheck) { try checkAlignment(linear, granule, descriptor.access) }
            let inside = AccessMask.low(inFirst)
            if active & inside != 0 {
                first = try resolve(linear, active & inside, from: 0, inFirst, writes: writes)
            }
            if active & ~inside != 0 {
                try checkAddress(linear &+ UInt64(high - 1), linear, descriptor)
                second = try resolve(linear, active & ~inside, from: inFirst, size - inFirst, writes: writes)
            }
            if debugHits != 0 && !runsAlone { return leaveToRunAlone() }
            if writes && (overwritesRunningBlock(first, pointer) || overwritesRunningBlock(second, pointer)) {
                pendingException = nil
                return leaveForFault()
            }
            if inFirst == size, let host = first.host { return UInt64(UInt(bitPattern: host)) }
        }
        let buffer = UnsafeMutableRawPointer(context) + ContextOffset.bounce + Int(linear & 63)
        let state = BounceState(
            first: first, second: second, buffer: buffer, continuation: operation + UInt64(descriptor.operationLength), active: active)
        if descriptor.access & Access.read != 0 {
            forEachRun(state) { part, offset in take(part, into: buffer + offset, reads: true) }
        }
        guard writes else { return UInt64(UInt(bitPattern: buffer)) }
        bounce = state
        fillBounceSlot(descriptor, operation)
        return UInt64(UInt(bitPattern: buffer))
    }

    /// The fault of an address that is not canonical or, outside of long mode, beyond 4 GB.
    private func checkAddress(_ byte: UInt64, _ linear: UInt64, _ descriptor: MemoryDescriptor) throws(GuestException) {
        let isGood = !context.pointee.isLongMode || Self.isCanonical(byte)
        if isGood && (descriptor.access & Access.flat == 0 || byte <= 0xFFFF_FFFF) { return }
        throw beforePaging(linear, descriptor) ?? (descriptor.access & Access.stack != 0 ? .stackFault() : .generalProtection())
    }

    private func overwritesRunningBlock(_ part: AccessPart, _ pointer: UnsafeRawPointer) -> Bool {
        guard let host = part.host else { return false }
        return invalidateCode(host, part.count, running: pointer)
    }

    /// The memory of the part of an access that begins at `from` and lies in one page, looked up by its active bytes.
    private func resolve(
        _ linear: UInt64, _ active: UInt64, from: Int, _ count: Int, writes: Bool
    ) throws(GuestException) -> AccessPart {
        let low = active.trailingZeroBitCount, high = 64 - active.leadingZeroBitCount
        let found = try resolve((linear &+ UInt64(low)) & linearMask, count: high - low, writes: writes, table: mode.table)
        let distance = low - from
        return AccessPart(
            host: found.host.map { $0 - distance }, physical: found.physical &- UInt64(distance), count: count)
    }

    /// Behind a masked write on the bounce buffer.
    func putActive(_ buffer: UnsafeMutableRawPointer) {
        forEachRun(bounce) { part, offset in put(part, from: buffer + offset) }
    }

    /// The runs of active bytes, each in one page, with their offsets in the operand.
    private func forEachRun(_ state: BounceState, _ body: (AccessPart, Int) -> Void) {
        var rest = state.active
        let border = state.first.count
        while rest != 0 {
            let start = rest.trailingZeroBitCount
            var count = (~(rest >> UInt64(start))).trailingZeroBitCount
            if start < border { count = min(count, border - start) }
            let part = start < border ? state.first : state.second
            let distance = start < border ? start : start - border
            body(
                AccessPart(host: part.host.map { $0 + distance }, physical: part.physical &+ UInt64(distance), count: count), start)
            rest &= ~(AccessMask.low(count) &<< UInt64(start))
        }
    }
}
