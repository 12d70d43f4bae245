import Linux
import Synchronization

extension QCOW2Image {
    /// - Parameter offset: in the cluster.
    func readCompressed(_ part: IOBuffers, _ mapping: QCOW2Map.Mapping, at offset: UInt64) throws(ImageError) {
        let key = UnpackedParts.Key(
            place: mapping.hostOffset, byteCount: mapping.compressedByteCount, generation: map.generation.load(ordering: .acquiring))
        if let bytes = decompressed.find(key) {
            copy(bytes, to: part, from: offset)
            return
        }
        var packed = [UInt8](repeating: 0, count: Int(mapping.compressedByteCount))
        let count = try packed.read(file, at: mapping.hostOffset)
        var isValid = false
        let bytes = [UInt8](unsafeUninitializedCapacity: Int(geometry.clusterSize)) { buffer, used in
            isValid = packed.withUnsafeBytes {
                QCOW2Codec.decompress(
                    UnsafeRawBufferPointer(rebasing: $0.prefix(count)), into: UnsafeMutableRawBufferPointer(buffer), compression)
            }
            used = isValid ? buffer.count : 0
        }
        guard isValid else {
            throw ImageError(
                .malformed, file.name, "the \(mapping.compressedByteCount) compressed bytes at \(mapping.hostOffset) do not make a cluster")
        }
        copy(bytes, to: part, from: offset)
        decompressed.keep(key, bytes)
    }

    private func copy(_ bytes: [UInt8], to part: IOBuffers, from start: UInt64) {
        bytes.withUnsafeBytes {
            part.copy(UnsafeRawBufferPointer(rebasing: $0[Int(start)..<Int(start + part.byteCount)]), at: 0)
        }
    }

    /// Writes one whole cluster compressed, or as it is when that saves nothing. Compresses on the caller's thread, outside of all
    /// locks: several threads may each do a cluster. Meant for new images: compressed clusters are never changed in place.
    /// - Parameter offset: a multiple of the cluster size.
    /// - Parameter bytes: a cluster, or what is left of the disk.
    public func writeCompressed(_ bytes: UnsafeRawBufferPointer, at offset: UInt64) throws(ImageError) {
        try checkWrite(offset, UInt64(bytes.count))
        guard offset & geometry.clusterMask == 0, UInt64(bytes.count) == min(geometry.clusterSize, byteCount - offset), !bytes.isEmpty else {
            throw ImageError(.refused, file.name, "only whole clusters can be compressed, not \(bytes.count) bytes at \(offset)")
        }
        var packed: [UInt8]?
        if UInt64(bytes.count) == geometry.clusterSize {
            packed = QCOW2Codec.compress(bytes, compression)
        } else {
            // The disk's last cluster: filled up with zeros.
            var whole = [UInt8](repeating: 0, count: Int(geometry.clusterSize))
            whole.withUnsafeMutableBytes { $0.copyMemory(from: bytes) }
            packed = whole.withUnsafeBytes { QCOW2Codec.compress($0, compression) }
        }
        guard let packed else {
            return try write(bytes, at: offset)
        }
        let cluster = offset >> UInt64(geometry.clusterBits)
        let place = try locked(waitingWhile: { $0.exclusiveWaiters > 0 || $0.conflicts(cluster..<(cluster + 1)) }) {
            state throws(ImageError) in try state.prepareCompressed(cluster, byteCount: UInt64(packed.count))
        }
        defer { state.broadcast() }
        do {
            try packed.write(file, at: place.offset)
        } catch {
            state.withLock { $0.abandonCompressed(place) }
            throw error
        }
        try locked { state throws(ImageError) in try state.finishCompressed(cluster, place) }
    }
}

extension QCOW2State {
    struct CompressedPlace {
        var id: UInt64
        var offset: UInt64
        var entry: QCOW2Entry
    }

    /// Room for compressed bytes, behind those that were written last where that is possible.
    func prepareCompressed(_ cluster: UInt64, byteCount: UInt64) throws(ImageError) -> CompressedPlace {
        try checkWritable()
        try limitFreed()
        _ = try writableSlice(cluster << UInt64(geometry.clusterBits))
        let offset = try allocateBytes(byteCount)
        guard let entry = QCOW2Entry.compressed(at: offset, byteCount: byteCount, geometry) else {
            releaseBytes(offset, byteCount)
            throw ImageError(.refused, file.name, "the file is too large for compressed clusters")
        }
        return CompressedPlace(id: begin(cluster..<(cluster + 1)), offset: offset, entry: entry)
    }

    func finishCompressed(_ cluster: UInt64, _ place: CompressedPlace) throws(ImageError) {
        do {
            let offset = cluster << UInt64(geometry.clusterBits)
            let slot = try writableSlice(offset)
            needsBarrier = true
            let old = map.cache.memory(slot).entry(entryIndex(offset), geometry)
            setEntry(slot, entryIndex(offset), place.entry)
            free(old)
            end(place.id)
        } catch {
            abandonCompressed(place)
            throw error
        }
    }

    func abandonCompressed(_ place: CompressedPlace) {
        let range = place.entry.compressedRange(geometry)
        releaseBytes(range.offset, range.byteCount)
        end(place.id)
    }

    private func releaseBytes(_ offset: UInt64, _ byteCount: UInt64) {
        let first = offset >> UInt64(geometry.clusterBits)
        let last = (offset + byteCount - 1) >> UInt64(geometry.clusterBits)
        giveBackUnused(first, last - first + 1)
        compressedEnd = nil
    }

    /// Each cluster of the file counts the compressed ones that touch it.
    private func allocateBytes(_ byteCount: UInt64) throws(ImageError) -> UInt64 {
        let shift = UInt64(geometry.clusterBits)
        if let end = compressedEnd, end & geometry.clusterMask != 0 {
            let cluster = end >> shift
            let left = geometry.clusterSize - end & geometry.clusterMask
            // Refcounts have room for one more, and nothing has freed the cluster.
            let count = try refcount(cluster)
            if count > 0, count < geometry.refcountMaximum {
                if byteCount <= left {
                    needsBarrier = true
                    try changeRefcount(cluster, by: 1)
                    compressedEnd = end + byteCount
                    return end
                }
                let next = try allocate(upTo: 1)
                if next.first == cluster + 1 {
                    do {
                        try changeRefcount(cluster, by: 1)
                    } catch {
                        giveBackUnused(next.first, 1)
                        throw error
                    }
                    compressedEnd = end + byteCount
                    return end
                }
                compressedEnd = next.first << shift + byteCount
                return next.first << shift
            }
        }
        let next = try allocate(upTo: 1)
        compressedEnd = next.first << shift + byteCount
        return next.first << shift
    }
}
