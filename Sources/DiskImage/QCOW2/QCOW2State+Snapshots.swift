import CLinux
import Glibc
import Linux

/// Internal snapshots (qcow2.txt, "Snapshots"): an L1 table each, and a refcount more for every cluster that it leads to.
extension QCOW2State {
    func snapshot(_ name: String) throws(ImageError) -> QCOW2Snapshot {
        // As qemu-img finds them: by id first.
        guard let found = snapshots.first(where: { $0.id == name }) ?? snapshots.first(where: { $0.name == name }) else {
            throw ImageError(.refused, file.name, "has no snapshot \"\(name)\"")
        }
        return found
    }

    /// The disk's tables become the snapshot's; the disk gets new ones, in which no cluster may be changed in place.
    func createSnapshot(_ name: String) throws(ImageError) -> QCOW2Snapshot {
        guard !name.isEmpty, name.utf8.count <= 1024 else {
            throw ImageError(.refused, file.name, "a snapshot's name has 1 to 1024 bytes, not \(name.utf8.count)")
        }
        guard !snapshots.contains(where: { $0.name == name }) else {
            throw ImageError(.refused, file.name, "has a snapshot \"\(name)\" already")
        }
        guard snapshots.count < QCOW2Limit.snapshots else { throw ImageError(.refused, file.name, "has \(snapshots.count) snapshots; there can be no more") }
        var now = timespec()
        clock_gettime(CLOCK_REALTIME, &now)
        let id = snapshots.compactMap { UInt64($0.id) }.max().map { $0 &+ 1 } ?? 1
        var extra: [UInt8] = []
        extra.appendBig64(0)
        extra.appendBig64(header.byteCount)
        // No count of instructions.
        extra.appendBig64(.max)
        let snapshot = QCOW2Snapshot(
            id: String(id), name: name, seconds: UInt32(clamping: now.tv_sec), nanoseconds: UInt32(clamping: now.tv_nsec),
            guestNanoseconds: 0, machineStateByteCount: 0, byteCount: header.byteCount, l1Offset: header.l1Offset,
            l1Entries: header.l1Entries, extra: extra, idBytes: Array(String(id).utf8), nameBytes: Array(name.utf8))
        return try transaction { () throws(ImageError) in
            try useTree(try cloneTree(map.l1))
            try useSnapshots(snapshots + [snapshot])
            return snapshot
        }
    }

    func applySnapshot(_ name: String) throws(ImageError) {
        let snapshot = try snapshot(name)
        let needed = geometry.l1Entries(snapshot.byteCount)
        guard snapshot.byteCount <= UInt64(Int64.max), needed * 8 <= QCOW2Limit.l1ByteCount else {
            throw malformed("its snapshot \"\(snapshot.name)\" is of a disk of \(snapshot.byteCount) bytes, which is too large")
        }
        try transaction { () throws(ImageError) in
            let old = (l1: map.l1, offset: header.l1Offset)
            var l1 = try Self.readNumbers(file, snapshot.l1Offset, UInt64(snapshot.l1Entries), "L1 table of a snapshot")
            if UInt64(l1.count) < needed { l1.append(contentsOf: repeatElement(0, count: Int(needed) - l1.count)) }
            let new = try cloneTree(l1)
            try releaseTree(old.l1, at: old.offset)
            try useTree(new)
            header.byteCount = snapshot.byteCount
        }
    }

    func deleteSnapshot(_ name: String) throws(ImageError) {
        let snapshot = try snapshot(name)
        try transaction { () throws(ImageError) in
            let l1 = try Self.readNumbers(file, snapshot.l1Offset, UInt64(snapshot.l1Entries), "L1 table of a snapshot")
            try releaseTree(l1, at: snapshot.l1Offset)
            try useSnapshots(snapshots.filter { $0 != snapshot })
            try setFlags()
        }
    }

    /// What only the disk uses now may be changed in place.
    private func setFlags() throws(ImageError) {
        let old = (l1: map.l1, offset: header.l1Offset)
        var new = old.l1
        let shift = UInt64(geometry.clusterBits)
        try forEachL2(old.l1) { index, offset, bytes throws(ImageError) in
            guard let memory = bytes.baseAddress else { return }
            var differs = false
            for i in 0..<(1 << geometry.l2Bits) {
                var entry = memory.entry(i, geometry)
                guard !entry.isCompressed, entry.offset != 0 else { continue }
                guard try (refcount(entry.offset >> shift) == 1) != entry.isCopied else { continue }
                entry.descriptor ^= QCOW2Entry.copied
                memory.setEntry(i, entry, geometry)
                differs = true
            }
            if differs {
                new[index] = try writeL2(bytes)
                try changeRefcount(offset >> shift, by: -1)
            } else {
                let isAlone = try refcount(offset >> shift) == 1
                new[index] = offset | (isAlone ? QCOW2Entry.copied : 0)
            }
        }
        guard new != old.l1 else { return }
        try releaseTable(old.offset, UInt64(old.l1.count) * 8)
        try useTree(new)
    }

    private func useSnapshots(_ list: [QCOW2Snapshot]) throws(ImageError) {
        if header.snapshotsOffset != 0 { try releaseTable(header.snapshotsOffset, snapshotTableByteCount) }
        let bytes = list.flatMap { $0.encoded }
        guard UInt64(bytes.count) <= QCOW2Limit.snapshotTableByteCount else {
            throw ImageError(.refused, file.name, "its snapshot table would be larger than \(QCOW2Limit.snapshotTableByteCount) bytes")
        }
        header.snapshotsOffset = list.isEmpty ? 0 : try writeBytes(bytes)
        header.snapshotCount = UInt32(list.count)
        snapshotTableByteCount = UInt64(bytes.count)
        snapshots = list
    }
}
