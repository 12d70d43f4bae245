/// The numbers that follow from a header's cluster size, refcount width and kind of L2 entry (qcow2.txt, "Cluster mapping").
struct QCOW2Geometry: Hashable, Sendable {
    let clusterBits: Int
    /// 3, or 4 with extended L2 entries.
    let entryBits: Int
    /// The refcounts' width is 1 << refcountOrder bits.
    let refcountOrder: Int

    init(clusterBits: Int, extendedL2: Bool, refcountOrder: Int) {
        self.clusterBits = clusterBits
        entryBits = extendedL2 ? 4 : 3
        self.refcountOrder = refcountOrder
    }

    var clusterSize: UInt64 { 1 << clusterBits }
    var clusterMask: UInt64 { clusterSize - 1 }
    var extendedL2: Bool { entryBits == 4 }
    /// log2 of the L2 entries in a table.
    var l2Bits: Int { clusterBits - entryBits }
    /// log2 of the guest bytes that an L2 table maps: one L1 entry.
    var l1Shift: Int { clusterBits + l2Bits }
    /// log2 of the refcounts in a block.
    var refcountBlockBits: Int { clusterBits + 3 - refcountOrder }
    var refcountMaximum: UInt64 { refcountOrder == 6 ? .max : (1 << (1 << UInt64(refcountOrder))) - 1 }

    /// Tables are cached in parts of this size: a whole table of large clusters would fill the cache.
    var sliceBits: Int { min(clusterBits, 14) }
    var sliceSize: Int { 1 << sliceBits }
    /// log2 of the L2 entries in a slice.
    var sliceEntryBits: Int { sliceBits - entryBits }
    /// log2 of the guest bytes that a slice of an L2 table maps.
    var sliceShift: Int { clusterBits + sliceEntryBits }
    /// log2 of the refcounts in a slice of a refcount block.
    var refcountSliceBits: Int { sliceBits + 3 - refcountOrder }
    /// log2 of the guest bytes of a subcluster: a cluster without extended L2 entries.
    var subclusterBits: Int { extendedL2 ? clusterBits - 5 : clusterBits }

    /// How many clusters so many bytes take.
    func clusters(_ byteCount: UInt64) -> UInt64 { byteCount >> UInt64(clusterBits) + (byteCount & clusterMask == 0 ? 0 : 1) }

    /// The L1 entries that a disk needs.
    func l1Entries(_ diskSize: UInt64) -> UInt64 {
        diskSize >> UInt64(l1Shift) + (diskSize & ((1 << UInt64(l1Shift)) - 1) == 0 ? 0 : 1)
    }
}

/// What QEMU accepts at most; larger tables are an attack on memory.
enum QCOW2Limit {
    static let l1ByteCount: UInt64 = 32 << 20
    static let refcountTableByteCount: UInt64 = 8 << 20
    static let snapshots = 65536
    /// Of the whole snapshot table.
    static let snapshotTableByteCount: UInt64 = 64 << 20
    /// Of the L1 tables of all snapshots together, to be checked, when they are small: as much as 65536 of a disk of 128 GB with
    /// clusters of 64 KB have.
    static let snapshotTreesByteCount: UInt64 = 128 << 20
    /// And as many of the largest as this: with small clusters each has up to 32 MiB.
    static let snapshotTreesOfLargest: UInt64 = 1024
    /// What a check remembers of them takes 1 GiB of memory.
    static let tablesToCheck = 1 << 25
    static let snapshotExtraByteCount: UInt64 = 1024
    static let backingNameByteCount: UInt64 = 1023
    /// Bits 9 to 55 of a table entry: where clusters can lie.
    static let offsetMask: UInt64 = 0x00FF_FFFF_FFFF_FE00
    static let bitmaps = 65535
    static let bitmapDirectoryByteCount: UInt64 = 64 << 20
    /// Of all bitmaps together.
    static let bitmapTablesByteCount: UInt64 = 256 << 20
}
