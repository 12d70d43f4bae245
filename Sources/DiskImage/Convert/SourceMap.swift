/// What a disk has where, as far as it can tell without reading.
enum SourceMap {
    /// Whether the first bytes of a range are known to be zeros, and how many of them are alike.
    static func next(_ image: any BlockImage, at offset: UInt64, count: UInt64) throws(ImageError) -> (isZero: Bool, count: UInt64) {
        switch image {
        case let raw as RawImage:
            let end = offset + count
            guard let data = try raw.file.nextData(from: offset, end: end) else {
                return (true, count)
            }
            return data.lowerBound > offset ? (true, data.lowerBound - offset) : (false, data.upperBound - offset)
        case let qcow2 as QCOW2Image:
            let (kind, alike) = try qcow2.allocation(at: offset, count: count)
            guard kind == .unallocated else { return (kind == .zero, alike) }
            // Behind a shorter base's end are zeros.
            guard let base = qcow2.backing, offset < base.byteCount else { return (true, alike) }
            return try next(base, at: offset, count: min(alike, base.byteCount - offset))
        case let vmdk as VMDKImage where !vmdk.isStreamOptimized:
            let extent = try vmdk.map(offset, count)
            return (extent.place == .zeros, extent.byteCount)
        default: return (false, count)
        }
    }
}
