import Linux

/// The table of snapshots (qcow2.txt, "Snapshots").
extension QCOW2State {
    func readSnapshots() throws(ImageError) -> [QCOW2Snapshot] {
        var found: [QCOW2Snapshot] = []
        guard header.snapshotCount > 0 else { return found }
        let fileByteCount = try file.byteCount()
        var at = header.snapshotsOffset
        let limit = min(fileByteCount, at &+ QCOW2Limit.snapshotTableByteCount)
        for index in 0..<Int(header.snapshotCount) {
            at = (at + 7) & ~7
            let bytes = try readPart(at, 40, limit, index)
            let l1Offset = bytes.big64(0)
            let l1Entries = bytes.big32(8)
            let idCount = UInt64(bytes.big16(12))
            let nameCount = UInt64(bytes.big16(14))
            let extraCount = UInt64(bytes.big32(36))
            guard extraCount <= QCOW2Limit.snapshotExtraByteCount else {
                throw malformed("its snapshot \(index) has \(extraCount) bytes of extra data; \(QCOW2Limit.snapshotExtraByteCount) are the most")
            }
            guard UInt64(l1Entries) * 8 <= QCOW2Limit.l1ByteCount, l1Offset & geometry.clusterMask == 0, l1Offset < fileBound else {
                throw malformed("the L1 table of its snapshot \(index) at \(l1Offset) with \(l1Entries) entries is no valid one")
            }
            let rest = try readPart(at + 40, extraCount + idCount + nameCount, limit, index)
            let extra = Array(rest.prefix(Int(extraCount)))
            let idBytes = Array(rest[Int(extraCount)..<Int(extraCount + idCount)])
            let nameBytes = Array(rest[Int(extraCount + idCount)...])
            found.append(
                QCOW2Snapshot(
                    id: String(decoding: idBytes, as: UTF8.self), name: String(decoding: nameBytes, as: UTF8.self),
                    seconds: bytes.big32(16), nanoseconds: bytes.big32(20), guestNanoseconds: bytes.big64(24),
                    machineStateByteCount: extra.count >= 8 ? extra.big64(0) : UInt64(bytes.big32(32)),
                    byteCount: extra.count >= 16 ? extra.big64(8) : header.byteCount,
                    l1Offset: l1Offset, l1Entries: l1Entries, extra: extra, idBytes: idBytes, nameBytes: nameBytes))
            at += 40 + UInt64(rest.count)
        }
        snapshotTableByteCount = at - header.snapshotsOffset
        return found
    }

    /// Where offsets stop making sense.
    private var fileBound: UInt64 { UInt64(Int64.max) - QCOW2Limit.l1ByteCount }

    private func readPart(_ at: UInt64, _ count: UInt64, _ limit: UInt64, _ index: Int) throws(ImageError) -> [UInt8] {
        guard at <= limit, limit - at >= count else {
            throw malformed("its snapshot \(index) lies past the end of the table or the file")
        }
        var bytes = [UInt8](repeating: 0, count: Int(count))
        guard try bytes.read(file, at: at) == bytes.count else { throw malformed("its snapshot \(index) lies past the end of the file") }
        return bytes
    }
}

extension QCOW2Snapshot {
    /// As it is in the table, with what fills it up to 8 bytes.
    var encoded: [UInt8] {
        var bytes: [UInt8] = []
        bytes.appendBig64(l1Offset)
        bytes.appendBig32(l1Entries)
        bytes.appendBig16(UInt16(truncatingIfNeeded: idBytes.count))
        bytes.appendBig16(UInt16(truncatingIfNeeded: nameBytes.count))
        bytes.appendBig32(seconds)
        bytes.appendBig32(nanoseconds)
        bytes.appendBig64(guestNanoseconds)
        bytes.appendBig32(UInt32(truncatingIfNeeded: machineStateByteCount))
        bytes.appendBig32(UInt32(truncatingIfNeeded: extra.count))
        bytes.append(contentsOf: extra)
        bytes.append(contentsOf: idBytes)
        bytes.append(contentsOf: nameBytes)
        bytes.append(contentsOf: [UInt8](repeating: 0, count: (8 - bytes.count % 8) % 8))
        return bytes
    }
}
