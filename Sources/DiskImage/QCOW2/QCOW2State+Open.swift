import Linux

extension QCOW2State {
    static func open(
        _ file: ImageFile, _ backing: (any BlockImage)?, _ purpose: QCOW2Image.Purpose
    ) throws(ImageError) -> QCOW2State {
        var header = try QCOW2Header(reading: file)
        let name = file.name
        if header.encryption != 0 {
            throw ImageError(.unsupported, name, "is encrypted, which is not supported; qemu-img convert can decrypt it")
        }
        if header.incompatible.contains(.externalData) || header.dataFileName != nil {
            throw ImageError(
                .unsupported, name, "keeps its data in another file, which is not supported; qemu-img convert can bring it into one")
        }
        if purpose == .use {
            if header.backing != nil, backing == nil {
                throw ImageError(.refused, name, "lies above another image, which was not opened")
            }
            if header.incompatible.contains(.corrupt), !file.isReadOnly {
                throw ImageError(.malformed, name, "is damaged and was marked so; check and repair it, or open it for reading only")
            }
        }
        let fileByteCount = try file.byteCount()
        guard fileByteCount <= UInt64(Int64.max) else { throw ImageError(.malformed, name, "the file is too large") }
        let l1 = try readNumbers(file, header.l1Offset, UInt64(header.l1Entries), "L1 table")
        let tableEntries = UInt64(header.refcountTableClusters) << UInt64(header.clusterBits) / 8
        if tableEntries == 0, purpose == .use, !file.isReadOnly {
            throw ImageError(.malformed, name, "it has no refcount table; repair it")
        }
        let table = tableEntries == 0 ? [] : try readNumbers(file, header.refcountTableOffset, tableEntries, "refcount table")
        // Only for this program: the file keeps what it says until something is written.
        if header.bitmaps != nil, !header.autoclear.contains(.bitmaps) { header.bitmaps = nil }
        let state = QCOW2State(file, header, l1: l1, table: table, fileByteCount: fileByteCount, backing: backing)
        state.snapshots = try state.readSnapshots()
        state.resetFilter(clusters: state.fileEnd >> UInt64(header.clusterBits))
        if !file.isReadOnly, purpose == .use { try state.beginUse() }
        return state
    }

    /// A table of big-endian numbers, all of which must be in the file.
    static func readNumbers(_ file: ImageFile, _ offset: UInt64, _ count: UInt64, _ what: String) throws(ImageError) -> [UInt64] {
        let size = try file.byteCount()
        guard offset <= size, size - offset >= count * 8 else {
            throw ImageError(.malformed, file.name, "its \(what) at \(offset) with \(count) entries lies past the end of the file")
        }
        var bytes = [UInt8](repeating: 0, count: Int(count) * 8)
        guard try bytes.read(file, at: offset) == bytes.count else {
            throw ImageError(.malformed, file.name, "its \(what) at \(offset) lies past the end of the file")
        }
        return bytes.withUnsafeBytes { buffer in
            (0..<Int(count)).map { UInt64(bigEndian: buffer.loadUnaligned(fromByteOffset: $0 * 8, as: UInt64.self)) }
        }
    }

    /// The tables that the header leads to lie in places of their own: those that it names are written where they are.
    private func checkPlaces() throws(ImageError) {
        var places: [(start: UInt64, end: UInt64, what: String)] = [(0, geometry.clusterSize, "header")]
        func add(_ offset: UInt64, _ byteCount: UInt64, _ what: String) {
            if byteCount > 0 { places.append((offset, offset + byteCount, what)) }
        }
        add(header.l1Offset, UInt64(header.l1Entries) * 8, "L1 table")
        add(header.refcountTableOffset, UInt64(header.refcountTableClusters) << UInt64(geometry.clusterBits), "refcount table")
        add(header.snapshotsOffset, snapshotTableByteCount, "snapshot table")
        places.sort { $0.start < $1.start }
        for (first, second) in zip(places, places.dropFirst()) where second.start < first.end {
            throw malformed("its \(first.what) and its \(second.what) overlap; open it for reading only")
        }
    }

    /// What opening for writing changes (qcow2.txt: autoclear features, the dirty bit).
    private func beginUse() throws(ImageError) {
        try checkPlaces()
        try checkWritable()
        var blocks = Set<UInt64>()
        for entry in table where entry & Self.tableOffsetMask != 0 {
            guard blocks.insert(entry & Self.tableOffsetMask).inserted else {
                throw malformed("two entries of its refcount table have the same block: repair it")
            }
        }
        guard header.incompatible.contains(.dirty) else { return }
        let result = try check(.all)
        guard result.corruptions == 0, result.errors == 0 else {
            throw malformed("was not closed, and could not be repaired: \(result.messages.first ?? "")")
        }
    }
}

extension QCOW2Info {
    init(_ header: QCOW2Header, _ snapshots: [QCOW2Snapshot], fileByteCount: UInt64) {
        self.init(
            version: header.version, byteCount: header.byteCount, fileByteCount: fileByteCount,
            clusterSize: 1 << UInt64(header.clusterBits), refcountBits: 1 << header.refcountOrder, compression: header.compression,
            hasLazyRefcounts: header.compatible.contains(.lazyRefcounts), hasExtendedL2: header.incompatible.contains(.extendedL2),
            isDirty: header.incompatible.contains(.dirty), isCorrupt: header.incompatible.contains(.corrupt), backing: header.backing,
            snapshots: snapshots.map(\.summary),
            bitmapCount: header.autoclear.contains(.bitmaps) ? Int(header.bitmaps?.count ?? 0) : 0)
    }
}
