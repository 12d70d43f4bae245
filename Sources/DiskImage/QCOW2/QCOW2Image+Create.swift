import Linux

extension QCOW2Image {
    /// Makes an empty file, opened for reading and writing, an image. Leaves it half made on an error.
    public static func create(_ file: ImageFile, _ options: QCOW2Options) throws(ImageError) {
        var header = try options.header(file.name)
        let geometry = header.geometry
        let shift = UInt64(geometry.clusterBits)
        // Header, refcount table, refcount blocks, L1 table: the blocks count all of them, themselves too.
        let l1Clusters = geometry.clusters(UInt64(header.l1Entries) * 8)
        var blocks: UInt64 = 1
        var tableClusters: UInt64 = 1
        while true {
            let total = 1 + tableClusters + blocks + l1Clusters
            let neededBlocks = (total + (1 << UInt64(geometry.refcountBlockBits)) - 1) >> UInt64(geometry.refcountBlockBits)
            let neededTable = geometry.clusters(neededBlocks * 8)
            if neededBlocks <= blocks, neededTable <= tableClusters { break }
            blocks = max(blocks, neededBlocks)
            tableClusters = max(tableClusters, neededTable)
        }
        header.refcountTableOffset = 1 << shift
        header.refcountTableClusters = UInt32(tableClusters)
        let firstBlock = 1 + tableClusters
        if header.l1Entries > 0 { header.l1Offset = (firstBlock + blocks) << shift }
        var used = firstBlock + blocks + l1Clusters
        try file.setByteCount(used << shift)
        try header.encoded(file.name).write(file, at: 0)
        var table: [UInt8] = []
        for block in 0..<blocks { table.appendBig64((firstBlock + block) << shift) }
        try table.write(file, at: 1 << shift)
        let buffer = UnsafeMutableRawBufferPointer.allocate(byteCount: Int(geometry.clusterSize), alignment: 4096)
        defer { buffer.deallocate() }
        guard let memory = buffer.baseAddress else { return }
        for block in 0..<blocks {
            buffer.initializeMemory(as: UInt8.self, repeating: 0)
            let count = min(used, 1 << UInt64(geometry.refcountBlockBits))
            for index in 0..<Int(count) { memory.setRefcount(index, 1, geometry) }
            used -= count
            // Mostly zeros, which the file has already.
            let byteCount = (Int(count) << geometry.refcountOrder + 7) / 8
            try file.write(UnsafeRawBufferPointer(rebasing: buffer.prefix(byteCount)), at: (firstBlock + block) << shift)
        }
        guard options.preallocation != .off else { return }
        let image = try QCOW2Image(file, for: .check)
        try image.preallocate(options.preallocation)
        try image.close()
    }

    /// Gives every cluster its place. Only for a new image.
    private func preallocate(_ how: QCOW2Options.Preallocation) throws(ImageError) {
        let size = byteCount
        var offset: UInt64 = 0
        while offset < size {
            let position = offset
            offset = try locked { state throws(ImageError) in
                guard case .plan(let plan) = try state.prepare(at: position, count: size - position) else {
                    throw state.malformed("was written while it was made")
                }
                let byteCount = plan.guest.upperBound - plan.guest.lowerBound
                do throws(ImageError) {
                    try state.extend(to: plan.hostOffset + byteCount)
                    switch how {
                    case .off, .metadata: break
                    case .falloc: try state.file.zero(at: plan.hostOffset, count: byteCount, keepsRoom: true)
                    case .full: try state.file.writeZeros(at: plan.hostOffset, count: byteCount)
                    }
                } catch {
                    state.abandon(plan)
                    throw error
                }
                try state.finish(plan)
                return plan.guest.upperBound
            }
        }
    }
}

extension QCOW2State {
    fileprivate func extend(to end: UInt64) throws(ImageError) {
        if try file.byteCount() < end { try file.setByteCount(end) }
    }
}

extension QCOW2Options {
    /// The header of such an image, without the places of its tables.
    func header(_ name: String) throws(ImageError) -> QCOW2Header {
        func refused(_ reason: String) -> ImageError { ImageError(.refused, name, reason) }
        var header = QCOW2Header()
        guard version == 2 || version == 3 else { throw refused("there is no version \(version) of qcow2; use 3 or 2") }
        guard (512...(2 << 20)).contains(clusterSize), clusterSize & (clusterSize - 1) == 0 else {
            throw refused("clusters of \(clusterSize) bytes are not possible; use a power of two from 512 to 2097152")
        }
        guard (1...64).contains(refcountBits), refcountBits & (refcountBits - 1) == 0 else {
            throw refused("refcounts of \(refcountBits) bits are not possible; use a power of two from 1 to 64")
        }
        if version == 2 {
            guard refcountBits == 16 else { throw refused("version 2 has refcounts of 16 bits only") }
            guard !lazyRefcounts, !extendedL2, compression == .zlib else {
                throw refused("version 2 has neither lazy refcounts nor subclusters nor zstd; use version 3")
            }
        }
        guard !extendedL2 || clusterSize >= 16384 else { throw refused("subclusters need clusters of at least 16384 bytes") }
        guard backing == nil || preallocation == .off else {
            throw refused("an image above another one cannot have its clusters allocated beforehand")
        }
        header.version = version
        header.clusterBits = clusterSize.trailingZeroBitCount
        header.byteCount = try DiskSize.whole(byteCount, name)
        header.refcountOrder = refcountBits.trailingZeroBitCount
        header.backing = backing
        header.compression = compression
        if compression == .zstd { header.incompatible.insert(.compressionType) }
        if extendedL2 { header.incompatible.insert(.extendedL2) }
        if lazyRefcounts { header.compatible.insert(.lazyRefcounts) }
        let entries = header.geometry.l1Entries(header.byteCount)
        guard entries * 8 <= QCOW2Limit.l1ByteCount else {
            throw refused("a disk of \(header.byteCount) bytes needs larger clusters than \(clusterSize) bytes")
        }
        header.l1Entries = UInt32(entries)
        return header
    }
}
