import Linux

/// Looking at every table and comparing what refers to clusters with what their refcounts say, as `qemu-img check` does.
///
/// An image that was made to keep us busy cannot: each table is read once, however many refer to it.
extension QCOW2State {
    /// Everything is on the medium, and nobody else is using the image.
    func check(_ repair: QCOW2Repair) throws(ImageError) -> QCOW2CheckResult {
        var checker = QCOW2Checker(self)
        try checker.run()
        var result = checker.result
        guard repair != .none, !result.isClean || header.incompatible.contains(.dirty) || header.incompatible.contains(.corrupt) else {
            return result
        }
        // What could not be looked at has not been counted: to repair by such counts would give away what it uses.
        guard result.errors == 0 else { return result }
        guard !file.isReadOnly else { throw ImageError(.readOnly, file.name, "is opened for reading only, so it cannot be repaired") }
        if repair == .all {
            try rebuild(checker)
        } else {
            try removeLeaks(checker)
        }
        var again = QCOW2Checker(self)
        try again.run()
        if repair == .all, again.result.corruptions == 0, again.result.errors == 0,
            header.incompatible.contains(.dirty) || header.incompatible.contains(.corrupt)
        {
            header.incompatible.subtract([.dirty, .corrupt])
            isDirtyByUs = false
            try writeHeader()
        }
        result.corruptionsFixed = max(0, result.corruptions - again.result.corruptions)
        result.leaksFixed = max(0, result.leaks - again.result.leaks)
        result.corruptions = again.result.corruptions
        result.leaks = again.result.leaks
        result.errors = again.result.errors
        result.endOffset = again.result.endOffset
        return result
    }

    /// Refcounts only shrink, to what is really used: right after any part of it.
    private func removeLeaks(_ checker: borrowing QCOW2Checker) throws(ImageError) {
        for range in checker.leaks {
            for cluster in range {
                let surplus = try refcount(cluster) - min(try refcount(cluster), UInt64(checker.counts[cluster]))
                if surplus > 0 { try changeRefcount(cluster, by: -Int(clamping: surplus)) }
            }
        }
        try writeRefcounts()
        try synchronize()
    }

    /// New refcounts in new places from what the tables refer to, then the flags that follow from them.
    ///
    /// Until the end the image is marked corrupt, so a crash leaves one that must be repaired again.
    private func rebuild(_ checker: borrowing QCOW2Checker) throws(ImageError) {
        // The dirty bit says so already.
        if header.version >= 3, checker.result.corruptions > 0, !header.incompatible.contains(.dirty) {
            header.incompatible.insert(.corrupt)
            try writeHeader()
        }
        let bad = checker.badEntries
        for place in bad { try place.replacement.write(file, at: place.offset) }
        if !bad.isEmpty {
            // What was thrown out is counted no more.
            try synchronize()
            try reload()
            var again = QCOW2Checker(self)
            try again.run()
            try writeNewRefcounts(again.counts)
        } else {
            try writeNewRefcounts(checker.counts)
        }
        try reload()
        var flags = QCOW2Checker(self)
        try flags.run()
        for place in flags.wrongFlags { try place.replacement.write(file, at: place.offset) }
        try synchronize()
        try reload()
    }

    private func writeNewRefcounts(_ counts: QCOW2Counts) throws(ImageError) {
        let shift = UInt64(geometry.clusterBits)
        // The old ones go.
        for cluster in 0..<UInt64(header.refcountTableClusters) { counts.remove(header.refcountTableOffset >> shift + cluster) }
        for entry in table where entry & Self.tableOffsetMask != 0 {
            let offset = entry & Self.tableOffsetMask
            if offset & geometry.clusterMask == 0, offset < fileEnd { counts.remove(offset >> shift) }
        }
        var next = max(fileEnd >> shift, counts.end)
        let perBlock = UInt64(1) << UInt64(geometry.refcountBlockBits)
        var places: [UInt64: UInt64] = [:]
        // Blocks count themselves, so there may be more in the next round.
        var tableClusters: UInt64 = 0
        var tableFirst: UInt64 = 0
        while true {
            var wanted = Set<UInt64>()
            for range in counts.ranges where range.contains(where: { counts[$0] > 0 }) {
                for cluster in range where counts[cluster] > 0 { wanted.insert(cluster / perBlock) }
            }
            let missing = wanted.filter { places[$0] == nil }.sorted()
            for block in missing {
                places[block] = next
                counts.add(next)
                next += 1
            }
            let entries = (places.keys.max() ?? 0) + 1
            let clusters = geometry.clusters(entries * 8)
            if missing.isEmpty, clusters <= tableClusters { break }
            guard entries * 8 <= QCOW2Limit.refcountTableByteCount else { throw malformed("its refcounts need a table larger than 8 MiB") }
            for cluster in 0..<tableClusters { counts.remove(tableFirst + cluster) }
            tableClusters = clusters
            tableFirst = next
            for cluster in 0..<clusters { counts.add(next + cluster) }
            next += clusters
        }
        table = [UInt64](repeating: 0, count: Int(tableClusters << shift / 8))
        let buffer = UnsafeMutableRawBufferPointer.allocate(byteCount: Int(geometry.clusterSize), alignment: 4096)
        defer { buffer.deallocate() }
        guard let memory = buffer.baseAddress else { return }
        for (block, place) in places {
            buffer.initializeMemory(as: UInt8.self, repeating: 0)
            for index in 0..<Int(perBlock) {
                let count = UInt64(counts[block * perBlock + UInt64(index)])
                guard count <= geometry.refcountMaximum else { throw malformed("its refcounts of \(1 << geometry.refcountOrder) bits cannot count \(count)") }
                if count > 0 { memory.setRefcount(index, count, geometry) }
            }
            try file.write(UnsafeRawBufferPointer(buffer), at: place << shift)
            table[Int(block)] = place << shift
        }
        try writeTable(at: tableFirst << shift, clusters: UInt32(tableClusters))
        try synchronize()
        header.refcountTableOffset = tableFirst << shift
        header.refcountTableClusters = UInt32(tableClusters)
        try writeHeader()
    }

    /// Forgets everything and reads it again.
    func reload() throws(ImageError) {
        let l1 = try Self.readNumbers(file, header.l1Offset, UInt64(header.l1Entries), "L1 table")
        table = try Self.readNumbers(
            file, header.refcountTableOffset, UInt64(header.refcountTableClusters) << UInt64(geometry.clusterBits) / 8, "refcount table")
        map.replaceL1(l1)
        map.change { $0.dropAll() }
        refcounts.dropAll()
        pendingL1.removeAll()
        unlinkedBlocks.removeAll()
        movedTable = nil
        freed.removeAll()
        freedDurably.removeAll()
        compressedEnd = nil
        hint = 0
        fileEnd = max(fileEnd, try file.byteCount() &+ geometry.clusterMask & ~geometry.clusterMask)
        resetFilter(clusters: fileEnd >> UInt64(geometry.clusterBits))
    }
}
