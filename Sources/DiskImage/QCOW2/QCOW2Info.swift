/// What there is to say about an image without reading its tables.
public struct QCOW2Info: Hashable, Sendable {
    public let version: Int
    /// The disk's size.
    public let byteCount: UInt64
    /// The file's size.
    public let fileByteCount: UInt64
    public let clusterSize: UInt64
    public let refcountBits: Int
    public let compression: QCOW2Compression
    public let hasLazyRefcounts: Bool
    public let hasExtendedL2: Bool
    /// Refcounts may be wrong: not closed since the last write.
    public let isDirty: Bool
    /// Somebody found its tables damaged; it is not written before it is repaired.
    public let isCorrupt: Bool
    public var backing: QCOW2Backing?
    public var snapshots: [ImageSnapshot]
    /// How many bitmaps it holds, when they are valid.
    public let bitmapCount: Int

    public init(
        version: Int, byteCount: UInt64, fileByteCount: UInt64, clusterSize: UInt64, refcountBits: Int, compression: QCOW2Compression,
        hasLazyRefcounts: Bool, hasExtendedL2: Bool, isDirty: Bool, isCorrupt: Bool, backing: QCOW2Backing?,
        snapshots: [ImageSnapshot], bitmapCount: Int
    ) {
        self.version = version
        self.byteCount = byteCount
        self.fileByteCount = fileByteCount
        self.clusterSize = clusterSize
        self.refcountBits = refcountBits
        self.compression = compression
        self.hasLazyRefcounts = hasLazyRefcounts
        self.hasExtendedL2 = hasExtendedL2
        self.isDirty = isDirty
        self.isCorrupt = isCorrupt
        self.backing = backing
        self.snapshots = snapshots
        self.bitmapCount = bitmapCount
    }
}

/// An internal snapshot, as people are told of it.
public struct ImageSnapshot: Hashable, Sendable {
    /// Unique in the image; given by who made it.
    public var id: String
    public var name: String
    /// Seconds since 1970.
    public let seconds: UInt32
    /// Of a saved machine's state beside the disk.
    public let machineStateByteCount: UInt64
    /// The disk's size at that time.
    public let byteCount: UInt64

    public init(id: String, name: String, seconds: UInt32, machineStateByteCount: UInt64, byteCount: UInt64) {
        self.id = id
        self.name = name
        self.seconds = seconds
        self.machineStateByteCount = machineStateByteCount
        self.byteCount = byteCount
    }
}

extension QCOW2Snapshot {
    public var summary: ImageSnapshot {
        ImageSnapshot(id: id, name: name, seconds: seconds, machineStateByteCount: machineStateByteCount, byteCount: byteCount)
    }
}

/// An internal snapshot: the disk as it was.
public struct QCOW2Snapshot: Hashable, Sendable {
    /// Unique in the image; given by who made it.
    public let id: String
    public let name: String
    /// Seconds since 1970.
    public let seconds: UInt32
    public let nanoseconds: UInt32
    /// How long the guest had run, in nanoseconds.
    public let guestNanoseconds: UInt64
    /// A saved machine's state lies in the image beside the disk. We keep it, but cannot read it.
    public let machineStateByteCount: UInt64
    /// The disk's size at that time.
    public let byteCount: UInt64

    let l1Offset: UInt64
    let l1Entries: UInt32
    /// The extra data as it is in the file, what we do not know of it included.
    let extra: [UInt8]
    /// Identifier and name as they are in the file, which need not be UTF-8.
    let idBytes: [UInt8]
    let nameBytes: [UInt8]
}

/// What `check` mends.
public enum QCOW2Repair: Hashable, Sendable {
    case none
    /// Room that nothing uses is given back.
    case leaks
    /// Everything that can be mended.
    case all
}

/// What `check` found; the numbers are those of `qemu-img check`.
public struct QCOW2CheckResult: Hashable, Sendable {
    /// Damage: data may be wrong or become wrong.
    public var corruptions = 0
    /// Clusters that nothing uses, though their refcount says so.
    public var leaks = 0
    /// What could not be looked at.
    public var errors = 0
    public var corruptionsFixed = 0
    public var leaksFixed = 0
    /// Clusters of the disk.
    public var totalClusters: UInt64 = 0
    public var allocatedClusters: UInt64 = 0
    public var compressedClusters: UInt64 = 0
    /// Clusters that do not lie behind the cluster before them.
    public var fragmentedClusters: UInt64 = 0
    /// Behind the last cluster in use.
    public var endOffset: UInt64 = 0
    /// The first findings, one line each, at most `messageLimit`.
    public var messages: [String] = []

    public static let messageLimit = 100

    public init() {}

    /// Nothing is wrong.
    public var isClean: Bool { corruptions == 0 && leaks == 0 && errors == 0 }

    mutating func note(_ text: @autoclosure () -> String) {
        if messages.count < Self.messageLimit { messages.append(text()) }
    }
}
