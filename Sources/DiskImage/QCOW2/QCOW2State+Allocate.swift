import Linux
import Synchronization

/// Finding and giving back clusters of the file.
extension QCOW2State {
    struct Clusters {
        var first: UInt64
        var count: UInt64
        /// They read as zeros: nothing was ever there.
        var isPristine: Bool
    }

    /// The end of what L2 entries can address, and files can have.
    private var clusterLimit: UInt64 { 1 << UInt64(min(56, 63) - geometry.clusterBits) }

    /// Clusters that lie together, with refcount 1 from now on.
    /// - Returns: at least one, perhaps fewer than wanted.
    func allocate(upTo wanted: UInt64) throws(ImageError) -> Clusters {
        try beginAllocating()
        if let first = takeShadowClusters(wanted) { return try claim(first, wanted) }
        while true {
            guard hint < clusterLimit else { throw ImageError(.refused, file.name, "has no free cluster left") }
            guard let slot = try refcountSlot(hint) else {
                try makeBlock(blockIndex(hint), at: hint)
                continue
            }
            let memory = refcounts.memory(slot)
            let end = 1 << geometry.refcountSliceBits
            var index = refcountIndex(hint)
            let start = index
            while index < end, memory.refcount(index, geometry) != 0 { index += 1 }
            hint += UInt64(index - start)
            if index == end { continue }
            var count: UInt64 = 1
            while count < wanted, index + Int(count) < end, memory.refcount(index + Int(count), geometry) == 0 { count += 1 }
            let first = hint
            let clusters = try claim(first, count)
            hint = first + count
            return clusters
        }
    }

    /// - Returns: the first of exactly so many clusters that lie together.
    func allocateTogether(_ count: UInt64) throws(ImageError) -> UInt64 {
        try beginAllocating()
        if let first = takeShadowClusters(count) { return try claim(first, count).first }
        var first = hint
        var found: UInt64 = 0
        while found < count {
            let cluster = first + found
            guard cluster < clusterLimit else { throw ImageError(.refused, file.name, "has no room for a table") }
            guard try refcountSlot(cluster) != nil else {
                try makeBlock(blockIndex(cluster), at: cluster)
                first = cluster + 1
                found = 0
                continue
            }
            if try refcount(cluster) == 0 {
                found += 1
            } else {
                first = cluster + 1
                found = 0
            }
        }
        return try claim(first, count).first
    }

    private func claim(_ first: UInt64, _ count: UInt64) throws(ImageError) -> Clusters {
        try checkFree(first, count)
        for cluster in first..<(first + count) { try changeRefcount(cluster, by: 1) }
        needsBarrier = true
        let start = first << UInt64(geometry.clusterBits)
        let isPristine = start >= fileEnd
        fileEnd = max(fileEnd, start + count << UInt64(geometry.clusterBits))
        return Clusters(first: first, count: count, isPristine: isPristine)
    }

    /// In a transaction.
    func takeShadowClusters(_ count: UInt64) -> UInt64? {
        guard let first = shadow?.next else { return nil }
        shadow?.next = first + count
        return first
    }

    /// With lazy refcounts the mark comes first.
    private func beginAllocating() throws(ImageError) {
        guard defersRefcounts, !header.incompatible.contains(.dirty), shadow == nil else { return }
        header.incompatible.insert(.dirty)
        do {
            try writeHeader()
        } catch {
            header.incompatible.remove(.dirty)
            throw error
        }
        isDirtyByUs = true
    }

    /// What has refcount 0 may still be in use, in a damaged image: by a table, or by a guest's transfer.
    func checkFree(_ first: UInt64, _ count: UInt64) throws(ImageError) {
        let offset = first << UInt64(geometry.clusterBits)
        let byteCount = count << UInt64(geometry.clusterBits)
        if map.mayBeMetadata(offset, byteCount), let what = tableThatOverlaps(offset, byteCount) {
            throw corrupt("the refcount of cluster \(first) is 0, but it holds \(what)")
        }
        if map.isHeld(offset, byteCount) { throw corrupt("the refcount of cluster \(first) is 0, but the disk uses it") }
        if map.needsLargerFilter(clusters: first + count) { resetFilter(clusters: (first + count) * 2) }
    }

    // MARK: Giving back

    /// Something no longer refers to what an L2 entry says.
    func free(_ entry: QCOW2Entry, givesBack: Bool = false) {
        if entry.isCompressed {
            let range = entry.compressedRange(geometry)
            let first = range.offset >> UInt64(geometry.clusterBits)
            let last = (range.offset + range.byteCount - 1) >> UInt64(geometry.clusterBits)
            for cluster in first...max(first, last) { free(cluster, 1, givesBack: givesBack) }
        } else if entry.offset != 0 {
            free(entry.offset >> UInt64(geometry.clusterBits), 1, givesBack: givesBack)
        }
    }

    func free(_ first: UInt64, _ count: UInt64, givesBack: Bool) {
        if let last = freed.last, last.first + last.count == first, last.givesBack == givesBack {
            freed[freed.count - 1].count += count
        } else {
            freed.append(Freed(first: first, count: count, givesBack: givesBack))
        }
    }

    /// What is not referred to on the medium any more, and what no transfer uses, can be used again.
    func applyFreed() throws(ImageError) {
        guard !freedDurably.isEmpty else { return }
        map.generation.add(1, ordering: .releasing)
        var waiting: [Freed] = []
        var problem: ImageError?
        let list = freedDurably
        freedDurably = []
        for range in list {
            let offset = range.first << UInt64(geometry.clusterBits)
            if map.isHeld(offset, range.count << UInt64(geometry.clusterBits)) {
                waiting.append(range)
                continue
            }
            do {
                try release(range)
            } catch {
                // They leak.
                problem = error
            }
        }
        freedDurably.append(contentsOf: waiting)
        if let problem { throw problem }
    }

    private func release(_ range: Freed) throws(ImageError) {
        var run: Range<UInt64>?
        for cluster in range.first..<(range.first + range.count) {
            guard try changeRefcount(cluster, by: -1) == 0 else { continue }
            if let end = compressedEnd, (end - 1) >> UInt64(geometry.clusterBits) == cluster { compressedEnd = nil }
            guard range.givesBack else { continue }
            if let open = run, open.upperBound == cluster {
                run = open.lowerBound..<(cluster + 1)
            } else {
                try run.map(giveBack)
                run = cluster..<(cluster + 1)
            }
        }
        try run.map(giveBack)
    }

    func giveBack(_ clusters: Range<UInt64>) throws(ImageError) {
        let shift = UInt64(geometry.clusterBits)
        // What the file system cannot give back stays.
        _ = try file.tryZero(
            at: clusters.lowerBound << shift, count: UInt64(clusters.count) << shift, keepsRoom: false)
    }

    // MARK: Tables in the way

    /// What table lies where somebody wants to write data (the same question as QEMU's overlap check).
    func tableThatOverlaps(_ offset: UInt64, _ byteCount: UInt64) -> String? {
        let size = geometry.clusterSize
        func overlaps(_ start: UInt64, _ count: UInt64) -> Bool { start < offset &+ byteCount && offset < start &+ count }
        if overlaps(0, size) { return "the header" }
        if overlaps(header.l1Offset, UInt64(map.l1.count) * 8) { return "the L1 table" }
        if overlaps(header.refcountTableOffset, UInt64(header.refcountTableClusters) * size) { return "the refcount table" }
        if let moved = movedTable, overlaps(moved.offset, UInt64(moved.clusters) * size) { return "the refcount table" }
        if map.l1.contains(where: { $0 & QCOW2Limit.offsetMask != 0 && overlaps($0 & QCOW2Limit.offsetMask, size) }) {
            return "an L2 table"
        }
        if table.contains(where: { $0 & Self.tableOffsetMask != 0 && overlaps($0 & Self.tableOffsetMask, size) }) {
            return "a refcount block"
        }
        if header.snapshotsOffset != 0, overlaps(header.snapshotsOffset, max(1, snapshotTableByteCount)) { return "the snapshot table" }
        if snapshots.contains(where: { overlaps($0.l1Offset, UInt64($0.l1Entries) * 8) }) { return "a snapshot's L1 table" }
        return nil
    }

    /// A table that is about to be changed in place is nothing else as well.
    /// - Parameter l1Index: of an L2 table; `block`: of a refcount block.
    func checkTable(_ offset: UInt64, l1Index: Int? = nil, block: Int? = nil) throws(ImageError) {
        let size = geometry.clusterSize
        func overlaps(_ start: UInt64, _ count: UInt64) -> Bool { start < offset &+ size && offset < start &+ count }
        let isWrong =
            overlaps(0, size) || overlaps(header.l1Offset, UInt64(map.l1.count) * 8)
            || overlaps(header.refcountTableOffset, UInt64(header.refcountTableClusters) * size)
            || header.snapshotsOffset != 0 && overlaps(header.snapshotsOffset, snapshotTableByteCount)
            || snapshots.contains { overlaps($0.l1Offset, UInt64($0.l1Entries) * 8) }
            || Self.contains(map.l1, offset, QCOW2Limit.offsetMask, except: l1Index)
            || Self.contains(table, offset, Self.tableOffsetMask, except: block)
        if isWrong {
            let what = l1Index.map { "L2 table \($0)" } ?? "refcount block \(block ?? 0)"
            throw corrupt("its \(what) at \(offset) lies in another table")
        }
    }

    private static func contains(_ entries: [UInt64], _ offset: UInt64, _ mask: UInt64, except index: Int?) -> Bool {
        entries.withUnsafeBufferPointer { entries in
            for i in 0..<entries.count where entries[i] & mask == offset && i != index { return true }
            return false
        }
    }

    /// Makes the filter anew for a file of so many clusters.
    func resetFilter(clusters: UInt64) {
        map.resetFilter(clusters: clusters)
        func add(_ offset: UInt64, _ byteCount: UInt64) {
            if byteCount > 0 { map.addMetadata(offset, clusters: geometry.clusters(byteCount)) }
        }
        add(0, 1)
        add(header.l1Offset, UInt64(map.l1.count) * 8)
        add(header.refcountTableOffset, UInt64(header.refcountTableClusters) << UInt64(geometry.clusterBits))
        if let moved = movedTable { add(moved.offset, UInt64(moved.clusters) << UInt64(geometry.clusterBits)) }
        for entry in map.l1 where entry & QCOW2Limit.offsetMask != 0 { add(entry & QCOW2Limit.offsetMask, 1) }
        for entry in table where entry & Self.tableOffsetMask != 0 { add(entry & Self.tableOffsetMask, 1) }
        add(header.snapshotsOffset, header.snapshotsOffset == 0 ? 0 : max(1, snapshotTableByteCount))
        for snapshot in snapshots { add(snapshot.l1Offset, UInt64(snapshot.l1Entries) * 8) }
    }
}
