import Linux

/// Refcounts (qcow2.txt, "Host cluster management"): a table of blocks of numbers, one for each cluster of the file.
extension QCOW2State {
    /// Refcounts that have not to be right before the image is closed: the dirty bit says so.
    var defersRefcounts: Bool { header.compatible.contains(.lazyRefcounts) && header.version >= 3 }

    /// The number of a cluster; 0 where the table has no block.
    func refcount(_ cluster: UInt64) throws(ImageError) -> UInt64 {
        guard let slot = try refcountSlot(cluster) else { return 0 }
        return refcounts.memory(slot).refcount(refcountIndex(cluster), geometry)
    }

    func refcountIndex(_ cluster: UInt64) -> Int { Int(cluster & ((1 << UInt64(geometry.refcountSliceBits)) - 1)) }

    func blockIndex(_ cluster: UInt64) -> Int { Int(truncatingIfNeeded: cluster >> UInt64(geometry.refcountBlockBits)) }

    /// The slice that a cluster's refcount is in; `nil` where the table has no block.
    func refcountSlot(_ cluster: UInt64) throws(ImageError) -> Int? {
        let key = cluster >> UInt64(geometry.refcountSliceBits)
        if let slot = refcounts.find(key) { return slot }
        let index = blockIndex(cluster)
        guard index < table.count, table[index] & Self.tableOffsetMask != 0 else { return nil }
        let block = try blockOffset(index)
        let first = UInt64(index) << UInt64(geometry.refcountBlockBits - geometry.refcountSliceBits)
        let offset = block + (key - first) << UInt64(geometry.sliceBits)
        let slot = try takeRefcountSlot()
        let count = try file.read(into: UnsafeMutableRawBufferPointer(start: refcounts.memory(slot), count: refcounts.sliceSize), at: offset)
        // A new block at the end of the file may not be there in full.
        if count < refcounts.sliceSize {
            (refcounts.memory(slot) + count).initializeMemory(as: UInt8.self, repeating: 0, count: refcounts.sliceSize - count)
        }
        refcounts.publish(slot, key: key, hostOffset: offset)
        return slot
    }

    func blockOffset(_ index: Int) throws(ImageError) -> UInt64 {
        let offset = table[index] & Self.tableOffsetMask
        guard offset & geometry.clusterMask == 0, offset < fileEnd else {
            throw malformed("its refcount block \(index) is at \(offset), which is no cluster of the file; repair it")
        }
        return offset
    }

    /// Writing refcounts needs no order (those that shrink do so when it is safe), so they make room for each other.
    private func takeRefcountSlot() throws(ImageError) -> Int {
        if let slot = refcounts.take() { return slot }
        // While a flush is under way `isCrowded` has kept requests off that need more than there is.
        if !isFlushing {
            try writeRefcounts()
            try synchronize()
        }
        guard let slot = refcounts.take() else { throw malformed("its refcounts do not fit into memory") }
        return slot
    }

    /// - Returns: the new number.
    /// - Throws: `refused` when it has no room for it, `malformed` when it would fall below 0.
    @discardableResult
    func changeRefcount(_ cluster: UInt64, by change: Int) throws(ImageError) -> UInt64 {
        // What has no block has no number that could shrink.
        if change > 0 || blockIndex(cluster) < table.count && table[blockIndex(cluster)] & Self.tableOffsetMask != 0 {
            try ensureBlock(cluster)
        }
        guard let slot = try refcountSlot(cluster) else {
            throw corrupt("cluster \(cluster) is used, but has no refcount")
        }
        if refcounts.state(slot) == .clean, shadow == nil {
            let block = blockIndex(cluster)
            try checkTable(table[block] & Self.tableOffsetMask, block: block)
        }
        let index = refcountIndex(cluster)
        let old = refcounts.memory(slot).refcount(index, geometry)
        let new: UInt64
        if change < 0 {
            guard old >= UInt64(-change) else {
                throw corrupt("cluster \(cluster) is used more often than its refcount \(old) says")
            }
            new = old - UInt64(-change)
        } else {
            guard geometry.refcountMaximum - old >= UInt64(change) else {
                throw ImageError(
                    .refused, file.name, "its refcounts of \(1 << geometry.refcountOrder) bits cannot count that far")
            }
            new = old + UInt64(change)
        }
        refcounts.memory(slot).setRefcount(index, new, geometry)
        refcounts.markDirty(slot)
        if new == 0 {
            if shadow == nil { hint = min(hint, cluster) } else { shadow?.release(cluster) }
        }
        return new
    }

    /// There is a block for a cluster's refcount, and in a transaction one that may be changed.
    func ensureBlock(_ cluster: UInt64) throws(ImageError) {
        let index = blockIndex(cluster)
        guard index < table.count, table[index] & Self.tableOffsetMask != 0 else { return try makeBlock(index, at: cluster) }
        if let shadow, !shadow.blocks.contains(index) { try moveBlock(index) }
    }

    /// A new block lies in the first cluster that needs it, and so counts itself.
    func makeBlock(_ index: Int, at wanted: UInt64) throws(ImageError) {
        if index >= table.count { try growTable(index + 1) }
        guard table[index] & Self.tableOffsetMask == 0 else { return }
        let cluster = takeShadowClusters(1) ?? wanted
        try checkFree(cluster, 1)
        let offset = cluster << UInt64(geometry.clusterBits)
        if offset < fileEnd { try file.writeZeros(at: offset, count: geometry.clusterSize) }
        fileEnd = max(fileEnd, offset + geometry.clusterSize)
        table[index] = offset
        shadow?.blocks.insert(index)
        unlinkedBlocks.insert(index)
        needsBarrier = true
        map.addMetadata(offset, clusters: 1)
        try changeRefcount(cluster, by: 1)
    }

    /// In memory at once; the file gets a larger table with the next flush, or when the transaction ends.
    private func growTable(_ needed: Int) throws(ImageError) {
        let limit = Int(QCOW2Limit.refcountTableByteCount / 8)
        guard needed <= limit else { throw ImageError(.refused, file.name, "the file would become too large for its refcount table") }
        let perCluster = Int(geometry.clusterSize / 8)
        let wanted = min(limit, max(needed, table.count + table.count / 2))
        let count = (wanted + perCluster - 1) / perCluster * perCluster
        table.append(contentsOf: [UInt64](repeating: 0, count: count - table.count))
        guard shadow == nil else { return }
        let previous = movedTable
        let clusters = UInt64(count / perCluster)
        let first = try allocateTogether(clusters)
        movedTable = (first << UInt64(geometry.clusterBits), UInt32(clusters))
        map.addMetadata(first << UInt64(geometry.clusterBits), clusters: clusters)
        if let previous {
            // It was never referred to.
            for i in 0..<UInt64(previous.clusters) { try changeRefcount(previous.offset >> UInt64(geometry.clusterBits) + i, by: -1) }
        }
    }

    // MARK: Writing

    func writeRefcounts() throws(ImageError) {
        for slot in refcounts.dirtySlots() {
            try file.write(refcounts.bytes(slot), at: refcounts.hostOffset(slot))
            refcounts.markWritten(slot)
        }
    }

    /// The whole table, somewhere.
    func writeTable(at offset: UInt64, clusters: UInt32) throws(ImageError) {
        var bytes = [UInt8]()
        bytes.reserveCapacity(table.count * 8)
        for entry in table { bytes.appendBig64(entry) }
        let size = Int(clusters) << geometry.clusterBits
        if bytes.count < size { bytes.append(contentsOf: [UInt8](repeating: 0, count: size - bytes.count)) }
        try bytes.write(file, at: offset)
    }

    /// The new entries of the table where it is, or the header's pointer to where it has moved.
    func linkBlocks() throws(ImageError) {
        if let moved = movedTable {
            let old = (header.refcountTableOffset, header.refcountTableClusters)
            header.refcountTableOffset = moved.offset
            header.refcountTableClusters = moved.clusters
            do {
                try header.encoded(file.name).write(file, at: 0)
            } catch {
                (header.refcountTableOffset, header.refcountTableClusters) = old
                throw error
            }
            movedTable = nil
            headerIsUnsure = true
            try synchronize()
            headerIsUnsure = false
            unlinkedBlocks.removeAll()
            if old.1 > 0 {
                freedDurably.append(
                    Freed(first: old.0 >> UInt64(geometry.clusterBits), count: UInt64(old.1), givesBack: false))
            }
            return
        }
        guard !unlinkedBlocks.isEmpty else { return }
        for sector in Set(unlinkedBlocks.map { $0 / 64 }).sorted() {
            var bytes = [UInt8]()
            for i in (sector * 64)..<(sector * 64 + 64) { bytes.appendBig64(i < table.count ? table[i] : 0) }
            try bytes.write(file, at: header.refcountTableOffset + UInt64(sector) * 512)
        }
        try synchronize()
        unlinkedBlocks.removeAll()
    }
}

extension UnsafeMutableRawPointer {
    /// A number of a refcount block (qcow2.txt, "Refcount block entry"): narrow ones fill bytes from the low bits up.
    func refcount(_ index: Int, _ geometry: QCOW2Geometry) -> UInt64 {
        switch geometry.refcountOrder {
        case 0...2:
            let bits = 1 << geometry.refcountOrder
            let byte = load(fromByteOffset: index * bits / 8, as: UInt8.self)
            return UInt64(byte >> UInt8(index * bits % 8)) & geometry.refcountMaximum
        case 3: return UInt64(load(fromByteOffset: index, as: UInt8.self))
        case 4: return UInt64(UInt16(bigEndian: load(fromByteOffset: index * 2, as: UInt16.self)))
        case 5: return UInt64(UInt32(bigEndian: load(fromByteOffset: index * 4, as: UInt32.self)))
        default: return UInt64(bigEndian: load(fromByteOffset: index * 8, as: UInt64.self))
        }
    }

    func setRefcount(_ index: Int, _ value: UInt64, _ geometry: QCOW2Geometry) {
        switch geometry.refcountOrder {
        case 0...2:
            let bits = 1 << geometry.refcountOrder
            let shift = UInt8(index * bits % 8)
            let mask = UInt8(truncatingIfNeeded: geometry.refcountMaximum) << shift
            let at = index * bits / 8
            let byte = load(fromByteOffset: at, as: UInt8.self)
            storeBytes(of: byte & ~mask | UInt8(truncatingIfNeeded: value) << shift & mask, toByteOffset: at, as: UInt8.self)
        case 3: storeBytes(of: UInt8(truncatingIfNeeded: value), toByteOffset: index, as: UInt8.self)
        case 4: storeBytes(of: UInt16(truncatingIfNeeded: value).bigEndian, toByteOffset: index * 2, as: UInt16.self)
        case 5: storeBytes(of: UInt32(truncatingIfNeeded: value).bigEndian, toByteOffset: index * 4, as: UInt32.self)
        default: storeBytes(of: value.bigEndian, toByteOffset: index * 8, as: UInt64.self)
        }
    }
}
