import Linux
import Synchronization

/// Each waits for running requests, keeps new ones off, and happens as a whole or not at all.
extension QCOW2Image {
    /// Looks at every table. Read only without `repair`, which needs an image opened for writing.
    public func check(repair: QCOW2Repair = .none) throws(ImageError) -> QCOW2CheckResult {
        try exclusively { state throws(ImageError) in
            try state.close()
            return try state.check(repair)
        }
    }

    /// - Parameter name: must not be that of another snapshot.
    @discardableResult
    public func createSnapshot(name: String) throws(ImageError) -> QCOW2Snapshot {
        try exclusively { state throws(ImageError) in try state.createSnapshot(name) }
    }

    /// The disk becomes what it was, its size too.
    /// - Parameter name: or id.
    public func applySnapshot(_ name: String) throws(ImageError) {
        try exclusively { state throws(ImageError) in
            defer { size.store(state.byteCount, ordering: .relaxed) }
            try state.applySnapshot(name)
        }
    }

    /// - Parameter name: or id.
    public func deleteSnapshot(_ name: String) throws(ImageError) {
        try exclusively { state throws(ImageError) in try state.deleteSnapshot(name) }
    }

    // MARK: Size

    /// What is new reads as zeros.
    /// - Parameter mayShrink: a smaller size loses the bytes behind it; refused without.
    public func resize(to byteCount: UInt64, mayShrink: Bool = false) throws(ImageError) {
        guard !isReadOnly else { throw ImageError(.readOnly, file.name, "is opened for reading only") }
        let new = try DiskSize.whole(byteCount, file.name)
        let old = self.byteCount
        guard new >= old || mayShrink else {
            throw ImageError(.refused, file.name, "would shrink from \(old) to \(new) bytes and lose what is behind; say that it may")
        }
        try exclusively { state throws(ImageError) in
            if state.header.version == 2, !state.snapshots.isEmpty {
                throw ImageError(.refused, file.name, "is version 2 and has snapshots, which do not know the disk's size; delete them first")
            }
            try state.growL1(new)
        }
        let shift = UInt64(geometry.clusterBits)
        if new < old {
            try setSize(new)
            // Those who were at it are through. A crash in between only keeps the room.
            let first = geometry.clusters(new)
            try clear(first..<geometry.clusters(old), .forget)
        } else if new > old {
            // What is there from a time when the disk was larger, or shows from below, is cleared before it is part of the disk.
            size.store(new, ordering: .relaxed)
            do throws(ImageError) {
                let end = min(new, max(geometry.clusters(old) << shift, backing?.byteCount ?? 0))
                if end > old { try writeZeroes(at: old, count: end - old, mayDiscard: true) }
                let first = geometry.clusters(max(old, end))
                if first < geometry.clusters(new) { try clear(first..<geometry.clusters(new), .forget) }
                try flush()
                try setSize(new)
            } catch {
                size.store(old, ordering: .relaxed)
                throw error
            }
        }
        try flush()
    }

    private func setSize(_ byteCount: UInt64) throws(ImageError) {
        try exclusively { state throws(ImageError) in
            try state.flush()
            let old = state.header.byteCount
            state.header.byteCount = byteCount
            do throws(ImageError) {
                try state.writeHeader()
            } catch {
                state.header.byteCount = old
                throw error
            }
            state.byteCount = byteCount
            size.store(byteCount, ordering: .relaxed)
        }
    }

    // MARK: What lies below

    /// Writes what this image has into the backing image, flushes that, and then empties this one unless `keeps`. Nobody else writes
    /// meanwhile.
    /// - Parameter progress: bytes of the disk done so far. What it throws ends the work: this image has all that it had then, so the
    ///   disk reads as before and the work can be done again.
    public func commit(
        keeps: Bool = false, progress: (UInt64) throws(ImageError) -> Void = { _ throws(ImageError) in }
    ) throws(ImageError) {
        guard let backing else { throw ImageError(.refused, file.name, "lies above no other image, so there is nothing to commit to") }
        guard !backing.isReadOnly else { throw ImageError(.refused, file.name, "the image below is opened for reading only") }
        guard keeps || !isReadOnly else { throw ImageError(.readOnly, file.name, "is opened for reading only, so it cannot be emptied") }
        let buffer = HeapBytes(count: 1 << 20)
        let size = byteCount
        let limit = backing.byteCount
        var at: UInt64 = 0
        while at < size {
            let (kind, count) = try allocation(at: at, count: min(size - at, 1 << 30))
            guard kind != .unallocated else {
                at += count
                try progress(at)
                continue
            }
            guard at + count <= limit else {
                throw ImageError(
                    .refused, file.name, "has data behind the end of the image below, which has \(limit) bytes; make that larger first")
            }
            if kind == .zero {
                try backing.writeZeroes(at: at, count: count, mayDiscard: true)
                at += count
            } else {
                let part = UnsafeMutableRawBufferPointer(rebasing: buffer.bytes.prefix(Int(min(count, UInt64(buffer.bytes.count)))))
                try read(into: part, at: at)
                try backing.write(UnsafeRawBufferPointer(part), at: at)
                at += UInt64(part.count)
            }
            try progress(at)
        }
        try backing.flush()
        guard !keeps else { return }
        try exclusively { state throws(ImageError) in
            try state.transaction { () throws(ImageError) in
                try state.releaseTree(state.map.l1, at: state.header.l1Offset)
                try state.useTree(state.map.l1.map { _ in 0 })
            }
        }
    }

    /// Only changes what the header says: right when the new image below reads as the old one did. Open the image anew afterwards.
    public func rebase(_ backing: QCOW2Backing?) throws(ImageError) {
        guard !isReadOnly else { throw ImageError(.readOnly, file.name, "is opened for reading only") }
        try exclusively { state throws(ImageError) in
            try state.checkWritable()
            try state.flush()
            let old = state.header.backing
            state.header.backing = backing
            do throws(ImageError) {
                try state.writeHeader()
            } catch {
                state.header.backing = old
                throw error
            }
        }
    }

    /// Copies first what would read otherwise above `newBacking`, so that the disk stays as it is. Nobody else writes meanwhile. Open
    /// the image anew afterwards.
    /// - Parameters:
    ///   - newBacking: `nil` for none: everything is copied.
    ///   - progress: as for `commit`: when it throws the image stands on what it stood on, and reads as before.
    public func rebase(
        _ backing: QCOW2Backing?, onto newBacking: (any BlockImage)?,
        progress: (UInt64) throws(ImageError) -> Void = { _ throws(ImageError) in }
    ) throws(ImageError) {
        guard !isReadOnly else { throw ImageError(.readOnly, file.name, "is opened for reading only") }
        let mine = HeapBytes(count: 1 << 20)
        let other = HeapBytes(count: 1 << 20)
        let size = byteCount
        var at: UInt64 = 0
        while at < size {
            let (kind, count) = try allocation(at: at, count: min(size - at, UInt64(mine.bytes.count)))
            if kind == .unallocated { try copyDifferences(at..<(at + count), mine, other, newBacking) }
            at += count
            try progress(at)
        }
        try flush()
        try rebase(backing)
    }

    /// In pieces of clusters, so that a small difference does not copy much.
    private func copyDifferences(
        _ range: Range<UInt64>, _ mine: borrowing HeapBytes, _ other: borrowing HeapBytes, _ newBacking: (any BlockImage)?
    ) throws(ImageError) {
        let count = range.count
        let old = UnsafeMutableRawBufferPointer(rebasing: mine.bytes.prefix(count))
        let new = UnsafeMutableRawBufferPointer(rebasing: other.bytes.prefix(count))
        try read(into: old, at: range.lowerBound)
        new.initializeMemory(as: UInt8.self, repeating: 0)
        if let newBacking, range.lowerBound < newBacking.byteCount {
            let part = min(UInt64(count), newBacking.byteCount - range.lowerBound)
            try newBacking.read(into: UnsafeMutableRawBufferPointer(rebasing: new.prefix(Int(part))), at: range.lowerBound)
        }
        var at = 0
        while at < count {
            let next = min(count, at + Int(geometry.clusterSize - (range.lowerBound + UInt64(at)) & geometry.clusterMask))
            if !UnsafeRawBufferPointer(rebasing: old[at..<next]).elementsEqual(UnsafeRawBufferPointer(rebasing: new[at..<next])) {
                try write(UnsafeRawBufferPointer(rebasing: old[at..<next]), at: range.lowerBound + UInt64(at))
            }
            at = next
        }
    }
}

extension QCOW2State {
    /// The L1 table has an entry for every cluster of a larger disk.
    fileprivate func growL1(_ byteCount: UInt64) throws(ImageError) {
        let needed = geometry.l1Entries(byteCount)
        guard needed * 8 <= QCOW2Limit.l1ByteCount else {
            throw ImageError(.refused, file.name, "a disk of \(byteCount) bytes needs larger clusters than \(geometry.clusterSize) bytes")
        }
        guard needed > UInt64(map.l1.count) else { return }
        try transaction { () throws(ImageError) in
            try releaseTable(header.l1Offset, UInt64(map.l1.count) * 8)
            try useTree(map.l1 + [UInt64](repeating: 0, count: Int(needed) - map.l1.count))
        }
    }
}
