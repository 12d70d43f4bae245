/// What a new image is to be like.
public struct QCOW2Options: Hashable, Sendable {
    /// The disk's size in bytes. Rounded up to a multiple of 512.
    public var byteCount: UInt64
    /// 2 (`compat=0.10`) or 3.
    public var version = 3
    /// A power of two, 512 to 2 MiB.
    public var clusterSize: UInt64 = 65536
    /// A power of two, 1 to 64; 16 in version 2.
    public var refcountBits = 16
    public var compression = QCOW2Compression.zlib
    /// Refcounts are written when the image is closed; after a crash the next open repairs them. Version 3.
    public var lazyRefcounts = false
    /// 32 subclusters to a cluster. Version 3, clusters of at least 16 KiB.
    public var extendedL2 = false
    /// What to write into the header; nothing is opened.
    public var backing: QCOW2Backing?
    public var preallocation = Preallocation.off

    public enum Preallocation: String, Hashable, Sendable, CaseIterable {
        case off
        /// Every cluster has its place, which takes no room yet.
        case metadata
        /// And the file system keeps the room.
        case falloc
        /// And the room is written with zeros.
        case full
    }

    public init(byteCount: UInt64) { self.byteCount = byteCount }
}

/// How clusters are compressed (qcow2.txt, "compression type").
public enum QCOW2Compression: String, Hashable, Sendable, CaseIterable {
    /// Raw deflate.
    case zlib
    case zstd
}

/// What a header says about the image below it.
public struct QCOW2Backing: Hashable, Sendable {
    /// As it is in the file: a path, perhaps relative to the image's folder; from the file, so not to be trusted.
    public var name: String
    /// As it is in the file: `raw`, `qcow2` or something else. `nil`: not said, and guessing is dangerous.
    public var format: String?

    public init(name: String, format: String?) {
        self.name = name
        self.format = format
    }
}
