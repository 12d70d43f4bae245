import Linux

/// L2 tables: found, made, changed and written.
extension QCOW2State {
    /// The slice that maps a guest's offset is in memory, if there is an L2 table for it.
    /// - Returns: its slot.
    @discardableResult
    func loadSlice(_ offset: UInt64) throws(ImageError) -> Int? {
        let key = offset >> UInt64(geometry.sliceShift)
        if let slot = map.cache.find(key) { return slot }
        let index = Int(truncatingIfNeeded: offset >> UInt64(geometry.l1Shift))
        guard index < map.l1.count, map.l1[index] & QCOW2Limit.offsetMask != 0 else { return nil }
        let table = try l2Offset(map.l1[index], index)
        let slot = try takeSlot()
        let start = table + sliceOffset(offset)
        try readTable(UnsafeMutableRawBufferPointer(start: map.cache.memory(slot), count: geometry.sliceSize), at: start)
        map.change { $0.publish(slot, key: key, hostOffset: start) }
        return slot
    }

    /// Of the slice for a guest's offset, from the start of its table on.
    private func sliceOffset(_ offset: UInt64) -> UInt64 {
        let slices = UInt64(1) << UInt64(geometry.clusterBits - geometry.sliceBits)
        return (offset >> UInt64(geometry.sliceShift) & (slices - 1)) << UInt64(geometry.sliceBits)
    }

    func l2Offset(_ entry: UInt64, _ index: Int) throws(ImageError) -> UInt64 {
        let offset = entry & QCOW2Limit.offsetMask
        guard offset & geometry.clusterMask == 0, offset < fileEnd else {
            throw malformed("its L2 table \(index) is at \(offset), which is no cluster of the file; repair it")
        }
        return offset
    }

    /// Reads a part of a table. The last table of a file may not be there in full: the rest is zeros.
    func readTable(_ buffer: UnsafeMutableRawBufferPointer, at offset: UInt64) throws(ImageError) {
        let count = try file.read(into: buffer, at: offset)
        guard count < buffer.count, let base = buffer.baseAddress else { return }
        (base + count).initializeMemory(as: UInt8.self, repeating: 0, count: buffer.count - count)
    }

    /// Changed slices stay in memory until a flush has written them, in order.
    private func takeSlot() throws(ImageError) -> Int {
        if let slot = map.change({ $0.take() }) { return slot }
        // While one is under way `isCrowded` has kept requests off that need more than there is.
        if !isFlushing { try flush() }
        guard let slot = map.change({ $0.take() }) else { throw malformed("its L2 tables do not fit into memory") }
        return slot
    }

    /// There is an L2 table for a guest's offset that belongs to the disk alone, and its slice is in memory.
    func writableSlice(_ offset: UInt64) throws(ImageError) -> Int {
        let index = Int(truncatingIfNeeded: offset >> UInt64(geometry.l1Shift))
        guard index < map.l1.count else { throw malformed("its L1 table is too small for its disk") }
        if map.l1[index] & QCOW2Entry.copied == 0 || map.l1[index] & QCOW2Limit.offsetMask == 0 { try makeL2(index) }
        guard let slot = try loadSlice(offset) else { throw malformed("it has no L2 table at \(offset)") }
        if map.cache.state(slot) == .clean { try checkTable(map.l1[index] & QCOW2Limit.offsetMask, l1Index: index) }
        return slot
    }

    /// A new L2 table: empty, or a copy of one that snapshots share.
    private func makeL2(_ index: Int) throws(ImageError) {
        let old = map.l1[index] & QCOW2Limit.offsetMask
        if old != 0 { _ = try l2Offset(map.l1[index], index) }
        let clusters = try allocate(upTo: 1)
        let offset = clusters.first << UInt64(geometry.clusterBits)
        do {
            if old != 0 || !clusters.isPristine {
                try copyTable(from: old, to: offset, index)
            } else {
                // An empty one in a part of the file that was never used needs no zeros, but must begin in the file: what the table
                // is made for may not be written, for want of room.
                try file.writeZeros(at: offset, count: 512)
            }
        } catch {
            try changeRefcount(clusters.first, by: -1)
            throw error
        }
        map.addMetadata(offset, clusters: 1)
        moveSlices(index, to: offset)
        map.setL1(index, offset | QCOW2Entry.copied)
        pendingL1.insert(index)
        needsBarrier = true
        if old != 0 { free(old >> UInt64(geometry.clusterBits), 1, givesBack: false) }
    }

    /// - Parameter old: 0 for zeros.
    private func copyTable(from old: UInt64, to new: UInt64, _ index: Int) throws(ImageError) {
        let buffer = UnsafeMutableRawBufferPointer.allocate(byteCount: Int(geometry.clusterSize), alignment: 4096)
        defer { buffer.deallocate() }
        buffer.initializeMemory(as: UInt8.self, repeating: 0)
        if old != 0 {
            try readTable(buffer, at: old)
            forEachSlice(index) { part, slot in
                UnsafeMutableRawBufferPointer(rebasing: buffer[(part * geometry.sliceSize)...])
                    .copyMemory(from: map.cache.bytes(slot))
            }
        }
        try file.write(UnsafeRawBufferPointer(buffer), at: new)
    }

    private func moveSlices(_ index: Int, to offset: UInt64) {
        forEachSlice(index) { part, slot in
            map.change { $0.move(slot, to: offset + UInt64(part * geometry.sliceSize)) }
        }
    }

    /// The slices of an L2 table that are in memory.
    private func forEachSlice(_ index: Int, _ body: (Int, Int) -> Void) {
        let slices = 1 << (geometry.clusterBits - geometry.sliceBits)
        let first = UInt64(index) << UInt64(geometry.clusterBits - geometry.sliceBits)
        for part in 0..<slices {
            if let slot = map.cache.find(first + UInt64(part)) { body(part, slot) }
        }
    }

    func entryIndex(_ offset: UInt64) -> Int {
        Int(truncatingIfNeeded: offset >> UInt64(geometry.clusterBits)) & ((1 << geometry.sliceEntryBits) - 1)
    }

    func setEntry(_ slot: Int, _ index: Int, _ entry: QCOW2Entry) {
        map.change { cache in
            cache.memory(slot).setEntry(index, entry, geometry)
            cache.markDirty(slot)
        }
    }
}
