/// Bringing changes to the medium, in the order that `QCOW2State` lists.
extension QCOW2State {
    /// What a flush writes, as it was when it began: requests go on changing tables while it waits for the medium.
    ///
    /// What they change then is not in it, and needs nothing of it: their data and refcounts are in front of the next flush's barrier.
    struct Flush {
        struct Piece {
            var offset: UInt64
            var bytes: [UInt8]
        }

        /// Slices of L2 tables that nothing refers to yet.
        var newTables: [Piece] = []
        /// Other slices, and sectors of the L1 table.
        var changed: [Piece] = []
        var needsBarrier: Bool
        var l1: Set<Int>
        var freed: [Freed]

        func write(_ file: ImageFile) throws(ImageError) {
            for piece in newTables { try piece.bytes.write(file, at: piece.offset) }
            if needsBarrier, !changed.isEmpty { try file.synchronize() }
            for piece in changed { try piece.bytes.write(file, at: piece.offset) }
            try file.synchronize()
        }
    }

    enum FlushStart {
        /// No table has changed. fdatasync(2) without the lock, and `endFlush`, must follow.
        case nothing
        /// It is done.
        case done
        /// `write` and `endFlush` must follow, the first without the lock.
        case begun(Flush)
    }

    /// No other flush is under way.
    func beginFlush() throws(ImageError) -> FlushStart {
        guard isUnwritten else {
            // The system tells of a lost write only once: of two that ask at the same time the wrong one may hear of it.
            isFlushing = true
            return .nothing
        }
        // The header, or the refcount table, which has a barrier of its own: seldom.
        guard !headerIsUnsure, defersRefcounts || movedTable == nil && unlinkedBlocks.isEmpty else {
            try flush()
            return .done
        }
        if !defersRefcounts { try writeRefcounts() }
        var flush = Flush(needsBarrier: needsBarrier, l1: pendingL1, freed: freed)
        for slot in map.cache.dirtySlots() {
            let piece = Flush.Piece(offset: map.cache.hostOffset(slot), bytes: Array(map.cache.bytes(slot)))
            if pendingL1.contains(l1Index(slot)) { flush.newTables.append(piece) } else { flush.changed.append(piece) }
            // Until `endFlush` says whether it was: what changes from now on is dirty again.
            map.change { $0.markWritten(slot) }
        }
        flush.changed += l1Sectors()
        pendingL1.removeAll()
        freed.removeAll()
        needsBarrier = false
        isFlushing = true
        return .begun(flush)
    }

    /// - Parameter flush: `nil` for `FlushStart.nothing`.
    /// - Parameter problem: why it was not written.
    func endFlush(_ flush: Flush?, _ problem: ImageError?) throws(ImageError) {
        isFlushing = false
        let problem = problem ?? flushProblem
        flushProblem = nil
        // Who wrote the header meanwhile may have been told that it is on the medium, and the flush that it is not.
        if problem != nil, wroteHeaderInFlush { headerIsUnsure = true }
        wroteHeaderInFlush = false
        map.change { $0.synchronized(problem == nil) }
        refcounts.synchronized(problem == nil)
        if let problem {
            // All of it is to be written again.
            if let flush {
                pendingL1.formUnion(flush.l1)
                freed.insert(contentsOf: flush.freed, at: 0)
            }
            needsBarrier = true
            throw problem
        }
        guard let flush else { return }
        freedDurably.append(contentsOf: flush.freed)
        try applyFreed()
    }

    /// Requests must wait for the flush that is under way: all tables or refcounts in memory are changed, so a further one has no
    /// place, and to make some would need a flush; or there is too much to give back, which a flush ends too.
    var isCrowded: Bool {
        isFlushing
            && (map.cache.unclean.count + Self.slotsOfRequest > map.cache.capacity
                || refcounts.unclean.count + refcountSlotsOfRequest > refcounts.capacity || freed.count > 2 * Self.freedLimit)
    }
    /// More than any request takes with the lock held.
    private static let slotsOfRequest = 8
    /// The same of refcounts. The most is a refcount table that moves: 16384 clusters of 512 bytes and those that it leaves, and
    /// with refcounts of 64 bits 64 of them in each of 8192 slices.
    private var refcountSlotsOfRequest: Int { max(Self.slotsOfRequest, refcounts.capacity / 16) }

    /// The same with the lock held all the time: everything that was done before is on the medium when it returns.
    func flush() throws(ImageError) {
        if headerIsUnsure { try writeHeader() }
        let changesMap = !map.cache.unclean.isEmpty || !pendingL1.isEmpty
        if !defersRefcounts { try writeRefcounts() }
        if changesMap || movedTable != nil || !unlinkedBlocks.isEmpty {
            try writeSlices { pendingL1.contains($0) }
            if let moved = movedTable, !defersRefcounts { try writeTable(at: moved.offset, clusters: moved.clusters) }
            if needsBarrier {
                try synchronize()
                if !defersRefcounts { try linkBlocks() }
            }
            try writeSlices { _ in true }
            for sector in l1Sectors() { try sector.bytes.write(file, at: sector.offset) }
        }
        try synchronize()
        pendingL1.removeAll()
        needsBarrier = false
        freedDurably.append(contentsOf: freed)
        freed.removeAll()
        try applyFreed()
    }

    /// Many changes that wait for a flush take memory; those of the time that one takes are few.
    func limitFreed() throws(ImageError) { if freed.count > Self.freedLimit, !isFlushing { try flush() } }

    private func l1Index(_ slot: Int) -> Int {
        Int(truncatingIfNeeded: map.cache.key(slot) >> UInt64(geometry.clusterBits - geometry.sliceBits))
    }

    private func writeSlices(_ isIncluded: (Int) -> Bool) throws(ImageError) {
        for slot in map.cache.dirtySlots() where isIncluded(l1Index(slot)) {
            try file.write(map.cache.bytes(slot), at: map.cache.hostOffset(slot))
            map.change { $0.markWritten(slot) }
        }
    }

    /// What has changed of the L1 table, by sectors, each to be written in one piece.
    private func l1Sectors() -> [Flush.Piece] {
        Set(pendingL1.map { $0 / 64 }).sorted().map { sector in
            var bytes = [UInt8]()
            for i in (sector * 64)..<(sector * 64 + 64) { bytes.appendBig64(i < map.l1.count ? map.l1[i] : 0) }
            return Flush.Piece(offset: header.l1Offset + UInt64(sector) * 512, bytes: bytes)
        }
    }

    /// Refcounts too; the dirty bit goes.
    func close() throws(ImageError) {
        guard !file.isReadOnly, !header.incompatible.contains(.corrupt) else { return }
        try flush()
        try writeRefcounts()
        if let moved = movedTable { try writeTable(at: moved.offset, clusters: moved.clusters) }
        if !unlinkedBlocks.isEmpty || movedTable != nil {
            try synchronize()
            try linkBlocks()
            // The table that was left has been given back.
            try applyFreed()
            try writeRefcounts()
        }
        try synchronize()
        compressedEnd = nil
        guard isDirtyByUs else { return }
        header.incompatible.remove(.dirty)
        do {
            try writeHeader()
        } catch {
            header.incompatible.insert(.dirty)
            throw error
        }
        isDirtyByUs = false
    }
}
