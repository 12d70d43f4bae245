import Linux

/// Changes that have no safe order in place: they are made beside what is there, and one write of the header's first sector
/// makes them all valid.
///
/// Tables that change are written anew behind the end of what is used: L1 and L2 tables, the snapshot table, the refcount table,
/// and those refcount blocks that differ. Until the header is written nothing of the old is touched, so a crash, a full disk or an
/// error leaves the image as it was; afterwards the old tables' clusters are free, by the new refcounts.
extension QCOW2State {
    /// No request is running. `body` changes refcounts, writes new tables, and sets `header`, `snapshots` and the map's L1 table.
    func transaction<T>(_ body: () throws(ImageError) -> T) throws(ImageError) -> T {
        try checkWritable()
        // Everything is in the file, so it can be read from there, and nothing has to be put in order.
        try close()
        let before = (header: header, snapshots: snapshots, bytes: snapshotTableByteCount, table: table, l1: map.l1)
        shadow = Shadow(next: try endOfUse())
        do {
            let result = try body()
            try commitTransaction()
            return result
        } catch {
            // Written, but perhaps not yet on the medium: then it holds, and the header is written once more later.
            if headerIsUnsure { throw error }
            let isCorrupt = header.incompatible.contains(.corrupt)
            (header, snapshots, snapshotTableByteCount, table) = (before.header, before.snapshots, before.bytes, before.table)
            if isCorrupt { header.incompatible.insert(.corrupt) }
            map.replaceL1(before.l1)
            settleTransaction()
            throw error
        }
    }

    /// Behind every cluster that is in the file or has a refcount.
    private func endOfUse() throws(ImageError) -> UInt64 {
        var end = fileEnd >> UInt64(geometry.clusterBits)
        guard let last = table.lastIndex(where: { $0 & Self.tableOffsetMask != 0 }) else { return end }
        let first = UInt64(last) << UInt64(geometry.refcountBlockBits)
        var cluster = first + 1 << UInt64(geometry.refcountBlockBits)
        while cluster > first, cluster > end {
            if try refcount(cluster - 1) != 0 {
                end = cluster
                break
            }
            cluster -= 1
        }
        return end
    }

    private func commitTransaction() throws(ImageError) {
        let shift = UInt64(geometry.clusterBits)
        for i in 0..<UInt64(header.refcountTableClusters) { try changeRefcount(header.refcountTableOffset >> shift + i, by: -1) }
        var clusters: UInt64
        var first: UInt64
        while true {
            clusters = max(1, geometry.clusters(UInt64(table.count) * 8))
            first = try allocateTogether(clusters)
            if geometry.clusters(UInt64(table.count) * 8) <= clusters { break }
            // Counting it has made the table longer.
            for i in 0..<clusters { try changeRefcount(first + i, by: -1) }
        }
        try writeRefcounts()
        try writeTable(at: first << shift, clusters: UInt32(clusters))
        try synchronize()
        header.refcountTableOffset = first << shift
        header.refcountTableClusters = UInt32(clusters)
        try header.encoded(file.name).write(file, at: 0)
        headerIsUnsure = true
        let released = shadow?.released ?? []
        settleTransaction()
        byteCount = header.byteCount
        try synchronize()
        headerIsUnsure = false
        // It is done: room that cannot be given back is no reason to say otherwise.
        for range in released { try? giveBack(range) }
    }

    /// Back to the usual ways, with tables that are as the file has them.
    private func settleTransaction() {
        shadow = nil
        refcounts.dropAll()
        map.change { $0.dropAll() }
        unlinkedBlocks.removeAll()
        pendingL1.removeAll()
        needsBarrier = false
        hint = 0
        resetFilter(clusters: fileEnd >> UInt64(geometry.clusterBits))
    }

    /// A refcount block that may be changed: a copy of the one that the file's header leads to.
    func moveBlock(_ index: Int) throws(ImageError) {
        let old = try blockOffset(index)
        guard let cluster = takeShadowClusters(1) else { return }
        let new = cluster << UInt64(geometry.clusterBits)
        let copy = HeapBytes(count: Int(geometry.clusterSize))
        try readTable(copy.bytes, at: old)
        try file.write(copy.readable, at: new)
        fileEnd = max(fileEnd, new + geometry.clusterSize)
        let slices = geometry.clusterBits - geometry.sliceBits
        for part in 0..<(1 << slices) {
            if let slot = refcounts.find(UInt64(index) << UInt64(slices) + UInt64(part)) {
                refcounts.move(slot, to: new + UInt64(part * geometry.sliceSize))
            }
        }
        table[index] = new
        shadow?.blocks.insert(index)
        try changeRefcount(cluster, by: 1)
        try changeRefcount(old >> UInt64(geometry.clusterBits), by: -1)
    }

    // MARK: Tables in a transaction

    /// - Returns: where it is.
    func writeNumbers(_ numbers: [UInt64]) throws(ImageError) -> UInt64 {
        guard !numbers.isEmpty else { return 0 }
        var bytes: [UInt8] = []
        bytes.reserveCapacity(numbers.count * 8)
        for number in numbers { bytes.appendBig64(number) }
        return try writeBytes(bytes)
    }

    func writeBytes(_ bytes: [UInt8]) throws(ImageError) -> UInt64 {
        let clusters = geometry.clusters(UInt64(bytes.count))
        let offset = try allocateTogether(clusters) << UInt64(geometry.clusterBits)
        var whole = bytes
        whole.pad(to: Int(clusters) << geometry.clusterBits)
        try whole.write(file, at: offset)
        return offset
    }

    func releaseTable(_ offset: UInt64, _ byteCount: UInt64) throws(ImageError) {
        for i in 0..<geometry.clusters(byteCount) { try changeRefcount(offset >> UInt64(geometry.clusterBits) + i, by: -1) }
    }

    /// What an L1 table refers to has one user more or less.
    /// - Parameter entry: for each L1 entry with its L2 table's bytes; returns the entry to take instead.
    func forEachL2(
        _ l1: [UInt64], _ body: (_ index: Int, _ offset: UInt64, _ bytes: UnsafeMutableRawBufferPointer) throws(ImageError) -> Void
    ) throws(ImageError) {
        let buffer = HeapBytes(count: Int(geometry.clusterSize))
        var seen = Set<UInt64>()
        for (index, entry) in l1.enumerated() where entry & QCOW2Limit.offsetMask != 0 {
            let offset = try l2Offset(entry, index)
            guard seen.insert(offset).inserted else { throw malformed("two entries of an L1 table have the same L2 table at \(offset)") }
            try readTable(buffer.bytes, at: offset)
            try body(index, offset, buffer.bytes)
        }
    }

    /// - Parameter change: 1 or -1.
    func countEntries(_ bytes: UnsafeMutableRawBufferPointer, by change: Int) throws(ImageError) {
        guard let memory = bytes.baseAddress else { return }
        let shift = UInt64(geometry.clusterBits)
        for index in 0..<(1 << geometry.l2Bits) {
            let entry = memory.entry(index, geometry)
            if entry.isCompressed {
                let range = entry.compressedRange(geometry)
                for cluster in (range.offset >> shift)...((range.offset + range.byteCount - 1) >> shift) {
                    try changeRefcount(cluster, by: change)
                }
            } else if entry.offset != 0 {
                guard entry.offset & geometry.clusterMask == 0 else { throw malformed("it has a data cluster at \(entry.offset); repair it") }
                try changeRefcount(entry.offset >> shift, by: change)
            }
        }
    }

    /// A new L1 table with L2 tables of its own, whose clusters have one user more: none may be changed in place.
    func cloneTree(_ l1: [UInt64]) throws(ImageError) -> [UInt64] {
        var new = l1.map { _ in UInt64(0) }
        try forEachL2(l1) { index, _, bytes throws(ImageError) in
            try countEntries(bytes, by: 1)
            guard let memory = bytes.baseAddress else { return }
            for i in 0..<(1 << geometry.l2Bits) {
                var entry = memory.entry(i, geometry)
                if entry.isCopied {
                    entry.descriptor &= ~QCOW2Entry.copied
                    memory.setEntry(i, entry, geometry)
                }
            }
            new[index] = try writeL2(bytes)
        }
        return new
    }

    /// - Returns: its L1 entry.
    func writeL2(_ bytes: UnsafeMutableRawBufferPointer) throws(ImageError) -> UInt64 {
        let offset = try allocateTogether(1) << UInt64(geometry.clusterBits)
        try file.write(UnsafeRawBufferPointer(bytes), at: offset)
        return offset | QCOW2Entry.copied
    }

    /// Nothing uses a tree any more: neither its L1 table nor what that leads to.
    func releaseTree(_ l1: [UInt64], at offset: UInt64) throws(ImageError) {
        try forEachL2(l1) { _, table, bytes throws(ImageError) in
            try countEntries(bytes, by: -1)
            try changeRefcount(table >> UInt64(geometry.clusterBits), by: -1)
        }
        try releaseTable(offset, UInt64(l1.count) * 8)
    }

    /// The disk's L1 table is this one from now on.
    func useTree(_ l1: [UInt64]) throws(ImageError) {
        header.l1Offset = try writeNumbers(l1)
        header.l1Entries = UInt32(l1.count)
        map.replaceL1(l1)
    }
}
