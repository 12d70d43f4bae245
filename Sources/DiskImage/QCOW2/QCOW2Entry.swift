/// An L2 entry (qcow2.txt, "L2 table entry"): where a guest's cluster lies, and how.
struct QCOW2Entry: Hashable {
    var descriptor: UInt64
    /// With extended L2 entries: low half allocated subclusters, high half those that read as zeros.
    var bitmap: UInt64 = 0

    static let copied: UInt64 = 1 << 63
    static let compressed: UInt64 = 1 << 62
    static let zero: UInt64 = 1
    static let none = QCOW2Entry(descriptor: 0)
    static let allAllocated: UInt64 = 0x0000_0000_FFFF_FFFF
    static let allZero: UInt64 = 0xFFFF_FFFF_0000_0000

    enum Kind: Hashable {
        case unallocated, zero, data, compressed
        /// What the format does not allow.
        case malformed
    }

    var isCompressed: Bool { descriptor & Self.compressed != 0 }
    var isCopied: Bool { descriptor & Self.copied != 0 }
    /// Of an entry that is not compressed; 0 for none.
    var offset: UInt64 { descriptor & QCOW2Limit.offsetMask }

    /// What a unit of the cluster is: the cluster itself, or a subcluster of it.
    func kind(_ subcluster: Int, _ geometry: QCOW2Geometry, version: Int) -> Kind {
        if isCompressed { return .compressed }
        guard offset & geometry.clusterMask == 0 else { return .malformed }
        if geometry.extendedL2 {
            switch (bitmap >> UInt64(subcluster) & 1, bitmap >> UInt64(subcluster + 32) & 1) {
            case (0, 0): return .unallocated
            case (0, 1): return .zero
            case (1, 0): return offset == 0 ? .malformed : .data
            default: return .malformed
            }
        }
        if descriptor & Self.zero != 0 { return version >= 3 ? .zero : .malformed }
        return offset == 0 ? .unallocated : .data
    }

    /// Where a compressed cluster's bytes are, in whole sectors from their first on (qcow2.txt, "Compressed Clusters Descriptor").
    func compressedRange(_ geometry: QCOW2Geometry) -> (offset: UInt64, byteCount: UInt64) {
        let shift = UInt64(62 - (geometry.clusterBits - 8))
        let offset = descriptor & ((1 << shift) - 1)
        let sectors = (descriptor & (Self.compressed - 1)) >> shift + 1
        return (offset, sectors * 512 - (offset & 511))
    }

    /// - Returns: `nil` for what the descriptor has no room for.
    static func compressed(at offset: UInt64, byteCount: UInt64, _ geometry: QCOW2Geometry) -> QCOW2Entry? {
        let shift = UInt64(62 - (geometry.clusterBits - 8))
        let sectors = (offset + byteCount - 1) / 512 - offset / 512
        guard offset < 1 << shift, sectors < 1 << (62 - shift) else { return nil }
        return QCOW2Entry(descriptor: compressed | sectors << shift | offset)
    }

    static func data(at offset: UInt64, _ geometry: QCOW2Geometry) -> QCOW2Entry {
        QCOW2Entry(descriptor: offset | copied, bitmap: geometry.extendedL2 ? allAllocated : 0)
    }

    /// Reads as zeros whatever lies below.
    /// - Parameter offset: of a cluster that stays allocated; 0 for none.
    static func zeros(at offset: UInt64 = 0, _ geometry: QCOW2Geometry) -> QCOW2Entry {
        let place = offset == 0 ? 0 : offset | copied
        return geometry.extendedL2
            ? QCOW2Entry(descriptor: place, bitmap: allZero) : QCOW2Entry(descriptor: place | zero)
    }
}

extension UnsafeMutableRawPointer {
    /// The entry of an L2 slice.
    func entry(_ index: Int, _ geometry: QCOW2Geometry) -> QCOW2Entry {
        let at = index << geometry.entryBits
        return QCOW2Entry(
            descriptor: UInt64(bigEndian: load(fromByteOffset: at, as: UInt64.self)),
            bitmap: geometry.extendedL2 ? UInt64(bigEndian: load(fromByteOffset: at + 8, as: UInt64.self)) : 0)
    }

    /// Most of a table's may be.
    @inline(__always) func isEntryEmpty(_ index: Int, _ geometry: QCOW2Geometry) -> Bool {
        let at = index << geometry.entryBits
        guard load(fromByteOffset: at, as: UInt64.self) == 0 else { return false }
        return !geometry.extendedL2 || load(fromByteOffset: at + 8, as: UInt64.self) == 0
    }

    func setEntry(_ index: Int, _ entry: QCOW2Entry, _ geometry: QCOW2Geometry) {
        let at = index << geometry.entryBits
        storeBytes(of: entry.descriptor.bigEndian, toByteOffset: at, as: UInt64.self)
        if geometry.extendedL2 { storeBytes(of: entry.bitmap.bigEndian, toByteOffset: at + 8, as: UInt64.self) }
    }
}
