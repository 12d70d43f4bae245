public import Linux

extension QCOW2Image {
    public func read(into buffers: IOBuffers, at offset: UInt64) throws(ImageError) {
        try checkRange(offset, buffers.byteCount)
        var done: UInt64 = 0
        while done < buffers.byteCount {
            let position = offset + done
            let mapping = try find(at: position, count: buffers.byteCount - done)
            defer { if mapping.isHeld { release(.read, offset: mapping.hostOffset, count: mapping.heldByteCount) } }
            try buffers.withPart(from: done, count: mapping.byteCount) { part throws(ImageError) in
                try read(part, mapping, at: position)
            }
            done += mapping.byteCount
        }
    }

    /// Looks up, and reads tables when it must. What it finds in the file is held.
    private func find(at offset: UInt64, count: UInt64) throws(ImageError) -> QCOW2Map.Mapping {
        while true {
            switch map.lookup(.read, at: offset, count: count) {
            case .found(let mapping): return mapping
            case .missing, .notInPlace: _ = try locked { state throws(ImageError) in try state.loadSlice(offset) }
            case .blocked: state.withLock(waitingWhile: { $0.exclusiveWaiters > 0 }) { _ in }
            }
        }
    }

    private func read(_ part: IOBuffers, _ mapping: QCOW2Map.Mapping, at offset: UInt64) throws(ImageError) {
        switch mapping.kind {
        case .data:
            let count = try file.read(into: part, at: mapping.hostOffset)
            // The file's last cluster may not be there in full.
            if count < part.byteCount { part.zero(from: count, count: part.byteCount - count) }
        case .zero: part.zero(from: 0, count: part.byteCount)
        case .unallocated: try readBelow(part, at: offset)
        case .compressed: try readCompressed(part, mapping, at: offset & geometry.clusterMask)
        case .malformed:
            throw ImageError(.malformed, file.name, "the L2 entry for offset \(offset) of the disk is no valid one; repair it")
        }
    }

    private func readBelow(_ part: IOBuffers, at offset: UInt64) throws(ImageError) {
        guard let backing, offset < backing.byteCount else { return part.zero(from: 0, count: part.byteCount) }
        let count = min(part.byteCount, backing.byteCount - offset)
        try part.withPart(from: 0, count: count) { below throws(ImageError) in try backing.read(into: below, at: offset) }
        if count < part.byteCount { part.zero(from: count, count: part.byteCount - count) }
    }

    public func write(_ buffers: IOBuffers, at offset: UInt64) throws(ImageError) {
        try checkWrite(offset, buffers.byteCount)
        var done: UInt64 = 0
        while done < buffers.byteCount {
            let rest = buffers.byteCount - done
            switch map.lookup(.write, at: offset + done, count: rest) {
            case .found(let mapping):
                defer { release(.write, offset: mapping.hostOffset, count: mapping.byteCount) }
                try buffers.withPart(from: done, count: mapping.byteCount) { part throws(ImageError) in
                    try file.write(part, at: mapping.hostOffset)
                }
                done += mapping.byteCount
            case .blocked: state.withLock(waitingWhile: { $0.exclusiveWaiters > 0 }) { _ in }
            case .missing, .notInPlace: done += try writeSlowly(buffers, done, at: offset + done, count: rest)
            }
        }
    }

    /// Finds room for the first clusters of a write, and writes them.
    /// - Parameter skipped: of the buffers, what was written before.
    /// - Returns: how many bytes were written.
    private func writeSlowly(_ buffers: IOBuffers, _ skipped: UInt64, at offset: UInt64, count: UInt64) throws(ImageError) -> UInt64 {
        let cluster = offset >> UInt64(geometry.clusterBits)
        let prepared = try locked(waitingWhile: { $0.exclusiveWaiters > 0 || $0.conflicts(cluster..<(cluster + 1)) }) {
            state throws(ImageError) in try state.prepare(at: offset, count: count)
        }
        guard case .plan(let plan) = prepared else { return 0 }
        defer { state.broadcast() }
        let payload = offset..<min(offset + count, plan.guest.upperBound)
        do {
            try write(buffers, skipped, payload, plan)
        } catch {
            state.withLock { $0.abandon(plan) }
            throw error
        }
        try locked { state throws(ImageError) in try state.finish(plan) }
        return payload.upperBound - payload.lowerBound
    }

    /// The payload, and around it what the guest had there before.
    private func write(_ buffers: IOBuffers, _ skipped: UInt64, _ payload: Range<UInt64>, _ plan: QCOW2State.Plan) throws(ImageError) {
        let head = plan.guest.lowerBound..<payload.lowerBound
        let tail = payload.upperBound..<plan.guest.upperBound
        // Zeros at first.
        let before = HeapBytes(count: plan.headIsZero && plan.isPristine ? 0 : head.count)
        let after = HeapBytes(count: plan.tailIsZero && plan.isPristine ? 0 : tail.count)
        if !plan.headIsZero { try readOld(before.bytes, at: head.lowerBound) }
        if !plan.tailIsZero { try readOld(after.bytes, at: tail.lowerBound) }
        let start = plan.hostOffset + (payload.lowerBound - plan.guest.lowerBound) - UInt64(before.bytes.count)
        try buffers.withPart(
            from: skipped, count: UInt64(payload.count), before: before.bytes, after: after.bytes
        ) { all throws(ImageError) in try file.write(all, at: start) }
    }

    /// What the disk has where it is not being changed; zeros behind its end.
    private func readOld(_ buffer: UnsafeMutableRawBufferPointer, at offset: UInt64) throws(ImageError) {
        let size = byteCount
        guard offset < size else { return }
        try IOBuffers.with(UnsafeRawBufferPointer(rebasing: buffer.prefix(Int(clamping: size - offset)))) {
            part throws(ImageError) in
            // While requests are kept off, those that have found room go on.
            var done: UInt64 = 0
            while done < part.byteCount {
                let mapping = try findOld(at: offset + done, count: part.byteCount - done)
                try part.withPart(from: done, count: mapping.byteCount) { piece throws(ImageError) in try read(piece, mapping, at: offset + done) }
                done += mapping.byteCount
            }
        }
    }

    /// Not held: nothing frees the clusters of a guest's range that is in flight.
    private func findOld(at offset: UInt64, count: UInt64) throws(ImageError) -> QCOW2Map.Mapping {
        try locked { state throws(ImageError) in
            try state.loadSlice(offset)
            guard case .found(let mapping) = state.map.find(.read, at: offset, count: count) else {
                throw state.malformed("it has no L2 table at \(offset)")
            }
            return mapping
        }
    }

    /// One at a time; no other request waits for it.
    public func flush() throws(ImageError) {
        guard !isReadOnly else { return }
        let start = try locked(waitingWhile: { $0.isFlushing || $0.exclusiveWaiters > 0 }) { state throws(ImageError) in
            try state.beginFlush()
        }
        var problem: ImageError?
        var begun: QCOW2State.Flush?
        do throws(ImageError) {
            switch start {
            case .done: return
            case .nothing: try file.synchronize()
            case .begun(let flush):
                begun = flush
                try flush.write(file)
            }
        } catch {
            problem = error
        }
        defer { state.broadcast() }
        try state.trying { state throws(ImageError) in try state.endFlush(begun, problem) }
    }

    // MARK: Zeros and discard

    public func discard(at offset: UInt64, count: UInt64) throws(ImageError) {
        try checkWrite(offset, count)
        guard let clusters = wholeClusters(offset, count) else { return }
        try clear(clusters, .discard)
    }

    public func writeZeroes(at offset: UInt64, count: UInt64, mayDiscard: Bool) throws(ImageError) {
        try checkWrite(offset, count)
        guard count > 0 else { return }
        guard let clusters = wholeClusters(offset, count) else { return try writeZeros(offset..<(offset + count)) }
        let shift = UInt64(geometry.clusterBits)
        try writeZeros(offset..<(clusters.lowerBound << shift))
        try clear(clusters, mayDiscard ? .zero : .zeroInPlace)
        if clusters.upperBound << shift < offset + count { try writeZeros((clusters.upperBound << shift)..<(offset + count)) }
    }

    /// The clusters that lie in a range, the disk's last one even when the disk ends in it.
    private func wholeClusters(_ offset: UInt64, _ count: UInt64) -> Range<UInt64>? {
        let shift = UInt64(geometry.clusterBits)
        let first = (offset + geometry.clusterMask) >> shift
        let end = offset + count == byteCount ? (offset + count + geometry.clusterMask) >> shift : (offset + count) >> shift
        return first < end ? first..<end : nil
    }

    func clear(_ clusters: Range<UInt64>, _ how: QCOW2State.Clearing) throws(ImageError) {
        let shift = UInt64(geometry.clusterBits)
        let perSlice = UInt64(1) << UInt64(geometry.sliceEntryBits)
        var first = clusters.lowerBound
        while first < clusters.upperBound {
            let part = first..<min(clusters.upperBound, (first / perSlice + 1) * perSlice)
            let done = try locked(waitingWhile: { $0.exclusiveWaiters > 0 || $0.conflicts(part) }) { state throws(ImageError) in
                try state.clear(part, how, end: clusters.upperBound)
            }
            first += done
            if done < UInt64(part.count) {
                try writeZeros((first << shift)..<min((first + 1) << shift, byteCount))
                first += 1
            }
        }
    }

    /// Written as data, unless the bytes read as zeros already.
    private func writeZeros(_ range: Range<UInt64>) throws(ImageError) {
        guard !range.isEmpty else { return }
        let size = Int(min(UInt64(range.count), 1 << 20))
        let zeros = HeapBytes(count: size)
        var at = range.lowerBound
        while at < range.upperBound {
            let status = try allocation(at: at, count: min(UInt64(size), range.upperBound - at))
            let isZero = status.kind == .zero || status.kind == .unallocated && at >= (backing?.byteCount ?? 0)
            if !isZero {
                try write(UnsafeRawBufferPointer(rebasing: zeros.readable.prefix(Int(status.count))), at: at)
            }
            at += status.count
        }
    }

    // MARK: Transfers by the caller

    public func beginTransfer(_ direction: TransferDirection, at offset: UInt64, count: UInt64) -> Extent? {
        let size = byteCount
        guard offset < size, count > 0, direction == .read || !isReadOnly else { return nil }
        guard case .found(let mapping) = map.lookup(direction, at: offset, count: min(count, size - offset), isTransfer: true) else {
            return nil
        }
        switch mapping.kind {
        case .data:
            return Extent(.file(descriptor: file.descriptor, offset: mapping.hostOffset), byteCount: mapping.byteCount)
        case .zero: return Extent(.zeros, byteCount: mapping.byteCount)
        case .unallocated:
            guard let backing, offset < backing.byteCount else { return Extent(.zeros, byteCount: mapping.byteCount) }
            return nil
        case .compressed:
            release(direction, offset: mapping.hostOffset, count: mapping.heldByteCount, isTransfer: true)
            return nil
        case .malformed: return nil
        }
    }

    public func endTransfer(_ direction: TransferDirection, _ extent: Extent) {
        guard case .file(_, let offset) = extent.place else { return }
        release(direction, offset: offset, count: extent.byteCount, isTransfer: true)
    }

    // MARK: What convert needs

    public enum Allocation: Hashable, Sendable {
        /// Bytes in the file, compressed or not.
        case data
        /// Zeros, whatever lies below.
        case zero
        /// What lies below shows; zeros without a backing image.
        case unallocated
    }

    /// What the first bytes of a range are, and how many of them are alike: at least 1, at most `count`. May read tables.
    public func allocation(at offset: UInt64, count: UInt64) throws(ImageError) -> (kind: Allocation, count: UInt64) {
        try checkRange(offset, count)
        guard count > 0 else { return (.unallocated, 0) }
        let mapping = try find(at: offset, count: count)
        if mapping.isHeld { release(.read, offset: mapping.hostOffset, count: mapping.heldByteCount) }
        switch mapping.kind {
        case .data, .compressed: return (.data, mapping.byteCount)
        case .zero: return (.zero, mapping.byteCount)
        case .unallocated: return (.unallocated, mapping.byteCount)
        case .malformed:
            throw ImageError(.malformed, file.name, "the L2 entry for offset \(offset) of the disk is no valid one; repair it")
        }
    }
}

extension QCOW2Map.Mapping {
    var isHeld: Bool { kind == .data || kind == .compressed }
    var heldByteCount: UInt64 { kind == .compressed ? compressedByteCount : byteCount }
}

extension QCOW2State {
    /// Tables were changed since the last flush.
    var isUnwritten: Bool {
        !map.cache.unclean.isEmpty || !pendingL1.isEmpty || !freed.isEmpty || !freedDurably.isEmpty || headerIsUnsure
    }
}
