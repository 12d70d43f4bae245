import Linux

/// Finding room for a write, and entering it into the tables when the data is there.
extension QCOW2State {
    /// Room for a part of a write. The guest's clusters in it are its own until `finish` or `abandon`.
    struct Plan {
        enum Kind {
            /// New clusters.
            case new
            /// Clusters that were allocated, but read as something else.
            case reuse
            /// Data that is there already: only the filter for tables could not say that it is none.
            case inPlace
        }
        var kind: Kind
        var id: UInt64
        /// What the guest will find there, whole clusters or subclusters.
        var guest: Range<UInt64>
        var hostOffset: UInt64
        var isPristine = false
        /// What is not written around the payload is zeros.
        var headIsZero = false
        var tailIsZero = false
    }

    enum Prepared {
        /// Somebody else has found room meanwhile.
        case alreadyInPlace
        case plan(Plan)
    }

    func prepare(at offset: UInt64, count: UInt64) throws(ImageError) -> Prepared {
        try checkWritable()
        try limitFreed()
        try loadSlice(offset)
        if case .found = map.find(.write, at: offset, count: count) { return .alreadyInPlace }
        let slot = try writableSlice(offset)
        let index = entryIndex(offset)
        let memory = map.cache.memory(slot)
        let entry = memory.entry(index, geometry)
        let unit = Int(truncatingIfNeeded: offset >> UInt64(geometry.subclusterBits)) & (unitsPerCluster - 1)
        guard entry.kind(unit, geometry, version: header.version) != .malformed else {
            throw corrupt("the L2 entry \(String(entry.descriptor, radix: 16)) at \(offset) of the disk is no valid one")
        }
        // What may be changed: to the slice's end, and not what others are at.
        let shift = UInt64(geometry.clusterBits)
        let first = offset >> shift
        let sliceEnd = (offset >> UInt64(geometry.sliceShift) + 1) << UInt64(geometry.sliceShift - geometry.clusterBits)
        var last = min((offset + count - 1) >> shift + 1, sliceEnd)
        for other in inFlight where other.clusters.lowerBound > first { last = min(last, other.clusters.lowerBound) }
        // The table's slot can go while room is found: what is needed of it is taken first.
        if entry.isCopied, !entry.isCompressed, entry.offset != 0 {
            return .plan(try reuse(entry, unit, at: offset, count: count))
        }
        var run: UInt64 = 1
        while first + run < last {
            let next = memory.entry(index + Int(run), geometry)
            if next.isCopied, !next.isCompressed, next.offset != 0 { break }
            run += 1
        }
        let headEntry = entry
        let tailEntry = memory.entry(index + Int(run) - 1, geometry)
        let clusters = try allocate(upTo: run)
        var plan = Plan(
            kind: .new, id: 0, guest: (first << shift)..<((first + clusters.count) << shift),
            hostOffset: clusters.first << shift, isPristine: clusters.isPristine)
        plan.headIsZero = readsAsZero(headEntry, at: first)
        plan.tailIsZero = clusters.count == run && readsAsZero(tailEntry, at: first + run - 1)
        plan.id = begin(first..<(first + clusters.count))
        return .plan(plan)
    }

    var unitsPerCluster: Int { 1 << (geometry.clusterBits - geometry.subclusterBits) }

    /// A cluster, or subclusters of it, that have their place but not the guest's data.
    private func reuse(_ entry: QCOW2Entry, _ unit: Int, at offset: UInt64, count: UInt64) throws(ImageError) -> Plan {
        if let what = tableThatOverlaps(entry.offset, geometry.clusterSize) {
            throw corrupt("the disk's data at \(offset) lies in \(what)")
        }
        let shift = UInt64(geometry.clusterBits)
        let cluster = offset >> shift
        let kind = entry.kind(unit, geometry, version: header.version)
        var end = unit + 1
        while end < unitsPerCluster, entry.kind(end, geometry, version: header.version) == kind { end += 1 }
        let unitShift = UInt64(geometry.subclusterBits)
        let start = cluster << shift + UInt64(unit) << unitShift
        let limit = min(cluster << shift + UInt64(end) << unitShift, offset + count)
        var plan = Plan(kind: kind == .data ? .inPlace : .reuse, id: 0, guest: start..<limit, hostOffset: entry.offset + UInt64(unit) << unitShift)
        if kind == .data {
            plan.guest = offset..<limit
            plan.hostOffset += offset - start
        } else {
            // To whole subclusters.
            plan.guest = start..<(((limit + (1 << unitShift) - 1) >> unitShift) << unitShift)
            plan.headIsZero = kind == .zero || readsAsZero(entry, at: cluster)
            plan.tailIsZero = plan.headIsZero
        }
        plan.id = begin(cluster..<(cluster + 1))
        // Stale data must not show before what replaces it is there.
        needsBarrier = true
        return plan
    }

    /// The whole of a guest's cluster reads as zeros, whatever lies below.
    private func readsAsZero(_ entry: QCOW2Entry, at cluster: UInt64) -> Bool {
        guard !entry.isCompressed else { return false }
        let belowIsZero = backing.map { $0.byteCount <= cluster << UInt64(geometry.clusterBits) } ?? true
        for unit in 0..<unitsPerCluster {
            switch entry.kind(unit, geometry, version: header.version) {
            case .zero: continue
            case .unallocated where belowIsZero: continue
            default: return false
            }
        }
        return true
    }

    /// The data is in the file: the guest finds it from now on.
    func finish(_ plan: Plan) throws(ImageError) {
        do {
            switch plan.kind {
            case .inPlace: break
            case .new: try enterNew(plan)
            case .reuse: try enterReused(plan)
            }
        } catch {
            abandon(plan)
            throw error
        }
        end(plan.id)
    }

    private func enterNew(_ plan: Plan) throws(ImageError) {
        let slot = try writableSlice(plan.guest.lowerBound)
        // Data was written since the last barrier, even if one came since room was found.
        needsBarrier = true
        var index = entryIndex(plan.guest.lowerBound)
        var host = plan.hostOffset
        for _ in 0..<((plan.guest.upperBound - plan.guest.lowerBound) >> UInt64(geometry.clusterBits)) {
            let old = map.cache.memory(slot).entry(index, geometry)
            setEntry(slot, index, .data(at: host, geometry))
            free(old)
            index += 1
            host += geometry.clusterSize
        }
    }

    private func enterReused(_ plan: Plan) throws(ImageError) {
        let slot = try writableSlice(plan.guest.lowerBound)
        needsBarrier = true
        let index = entryIndex(plan.guest.lowerBound)
        var entry = map.cache.memory(slot).entry(index, geometry)
        if geometry.extendedL2 {
            let shift = UInt64(geometry.subclusterBits)
            for unit in (plan.guest.lowerBound >> shift)..<(plan.guest.upperBound >> shift) {
                let bit = unit & 31
                entry.bitmap = (entry.bitmap | 1 << bit) & ~(1 << (bit + 32))
            }
        } else {
            entry.descriptor &= ~QCOW2Entry.zero
        }
        setEntry(slot, index, entry)
    }

    /// The data could not be written: the guest finds what was there before.
    func abandon(_ plan: Plan) {
        if plan.kind == .new {
            // What cannot be given back leaks.
            giveBackUnused(plan.hostOffset >> UInt64(geometry.clusterBits), (plan.guest.upperBound - plan.guest.lowerBound) >> UInt64(geometry.clusterBits))
        }
        end(plan.id)
    }

    func giveBackUnused(_ first: UInt64, _ count: UInt64) {
        for cluster in first..<(first + count) { _ = try? changeRefcount(cluster, by: -1) }
    }

    // MARK: Zeros and discard, of whole clusters

    enum Clearing {
        /// The bytes read as zeros; the place in the file is kept where there is one.
        case zeroInPlace
        /// The same, and it need not be kept.
        case zero
        /// What the guest does not need: zeros where that is cheap.
        case discard
        /// As if nothing had ever been written: what lies below shows.
        case forget
    }

    /// - Parameter clusters: of the guest, all in one slice.
    /// - Parameter end: of what is to be cleared: tables that are not there are passed over up to it.
    /// - Returns: how many, from the first on, were done; when they are fewer than `clusters`, the next one needs zeros written.
    func clear(_ clusters: Range<UInt64>, _ how: Clearing, end: UInt64) throws(ImageError) -> UInt64 {
        try checkWritable()
        try limitFreed()
        let offset = clusters.lowerBound << UInt64(geometry.clusterBits)
        let l1 = Int(truncatingIfNeeded: offset >> UInt64(geometry.l1Shift))
        guard l1 < map.l1.count else { return UInt64(clusters.count) }
        if map.l1[l1] & QCOW2Limit.offsetMask == 0 {
            // Nothing is there.
            if how == .discard || how == .forget || !hasBelow(clusters.lowerBound) {
                let next = map.l1[l1...].firstIndex { $0 & QCOW2Limit.offsetMask != 0 } ?? map.l1.count
                let bits = UInt64(geometry.l2Bits)
                return max(UInt64(clusters.count), min(end, UInt64(next) << bits) - clusters.lowerBound)
            }
            if header.version < 3 { return 0 }
        }
        var slot: Int?
        var done: UInt64 = 0
        for cluster in clusters {
            let current: Int
            if let slot {
                current = slot
            } else if let found = try loadSlice(offset) {
                current = found
            } else {
                current = try writableSlice(offset)
            }
            slot = current
            let index = entryIndex(cluster << UInt64(geometry.clusterBits))
            let old = map.cache.memory(current).entry(index, geometry)
            guard let new = cleared(old, cluster, how) else { break }
            done += 1
            if new == old { continue }
            // A slice that snapshots share is copied by the first change, and may move.
            let writable = try writableSlice(offset)
            slot = writable
            setEntry(writable, index, new)
            if new.offset != old.offset || old.isCompressed {
                if old.isCompressed || old.offset & geometry.clusterMask == 0 { free(old, givesBack: how == .discard || how == .zero || how == .forget) }
            }
        }
        return done
    }

    private func hasBelow(_ cluster: UInt64) -> Bool {
        (backing?.byteCount ?? 0) > cluster << UInt64(geometry.clusterBits)
    }

    /// - Returns: `nil` when only writing zeros does it.
    private func cleared(_ old: QCOW2Entry, _ cluster: UInt64, _ how: Clearing) -> QCOW2Entry? {
        if how == .forget { return QCOW2Entry.none }
        let isEmpty = !old.isCompressed && old.offset == 0 && old.bitmap == 0 && old.descriptor & QCOW2Entry.zero == 0
        guard hasBelow(cluster) else {
            if how == .zeroInPlace, !old.isCompressed, old.offset != 0, old.isCopied {
                return header.version >= 3 ? .zeros(at: old.offset, geometry) : nil
            }
            return QCOW2Entry.none
        }
        if isEmpty, how == .discard { return old }
        // Version 2 has no entry that hides what lies below.
        guard header.version >= 3 else { return how == .discard ? old : nil }
        if how == .zeroInPlace, !old.isCompressed, old.offset != 0, old.isCopied { return .zeros(at: old.offset, geometry) }
        return .zeros(geometry)
    }
}
