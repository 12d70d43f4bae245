import Linux

/// What belongs to one image and is only touched with the image's lock held: refcounts, what is to be written, who is changing
/// what. The lock is held while tables are read and written, but never while a guest's data is.
///
/// ## What is safe when
///
/// Between two flushes the host may lose or reorder writes. So that any part of them leaves a sound image, `flush` writes in
/// this order, with fdatasync(2) between:
///
/// 1. refcounts that grew, and L2 tables that nothing refers to yet, whole; (data was written before);
/// 2. the refcount table's entries of new refcount blocks, if there are any;
/// 3. entries of L2 tables and of the L1 table;
/// 4. and only now the refcounts of what was freed shrink, and it can be used again.
///
/// A crash in between leaks clusters at most. Nothing of this waits for the medium but a flush, or a cache that is full of changes;
/// and while a flush waits, the lock is free: it writes tables as they were when it began (`QCOW2State+Flush`).
///
/// What changes flags and refcounts together (snapshots) or moves tables has no such order; it is a transaction: see
/// `QCOW2State+Transaction`.
final class QCOW2State {
    let file: ImageFile
    let geometry: QCOW2Geometry
    let map: QCOW2Map
    let backing: (any BlockImage)?
    var header: QCOW2Header
    var snapshots: [QCOW2Snapshot] = []
    /// Of their table in the file.
    var snapshotTableByteCount: UInt64 = 0
    /// The end of the disk for requests: `header.byteCount`, but for the time that a resize takes.
    var byteCount: UInt64

    // Refcounts
    var table: [UInt64]
    let refcounts: QCOW2SliceCache
    /// No cluster below it is free.
    var hint: UInt64 = 0
    /// From here on the file was never used, and reads as zeros.
    var fileEnd: UInt64
    /// Entries of the refcount table that the file does not have yet.
    var unlinkedBlocks: Set<Int> = []
    /// Where the refcount table goes with the next flush, since it has become too small.
    var movedTable: (offset: UInt64, clusters: UInt32)?
    var shadow: Shadow?
    /// Clusters that nothing refers to any more: not yet, and already, on the medium.
    var freed: [Freed] = []
    var freedDurably: [Freed] = []
    /// Where the next compressed cluster goes: a cluster that is partly used.
    var compressedEnd: UInt64?

    // What is to be written
    /// L1 entries that the file does not have yet.
    var pendingL1: Set<Int> = []
    /// Changes of the L2 tables rely on writes that are not known to be on the medium.
    var needsBarrier = false
    /// The header was written, but not known to be on the medium.
    var headerIsUnsure = false
    /// A flush is under way, without the lock (`QCOW2State+Flush`).
    var isFlushing = false
    /// The header was written meanwhile.
    var wroteHeaderInFlush = false
    /// Why what it has written may not be on the medium: the system tells of a lost write only once, whoever asks.
    var flushProblem: ImageError?
    /// The dirty bit is there since we have not written refcounts, and will.
    var isDirtyByUs = false

    // Who is changing what
    var inFlight: [InFlight] = []
    private var nextID: UInt64 = 0
    /// Requests that wait for all others to end.
    var exclusiveWaiters = 0

    struct Freed {
        var first: UInt64
        var count: UInt64
        /// The file system gets its room back.
        var givesBack: Bool
    }

    /// Clusters of the guest that somebody is finding room for.
    struct InFlight {
        var id: UInt64
        var clusters: Range<UInt64>
    }

    /// During a transaction: everything new goes behind the end of what is used.
    struct Shadow {
        var next: UInt64
        /// Refcount blocks that are new, or copies of those that the file's header leads to.
        var blocks: Set<Int> = []
        /// What nothing uses any more.
        var released: [Range<UInt64>] = []

        mutating func release(_ cluster: UInt64) {
            if let last = released.last, last.upperBound == cluster {
                released[released.count - 1] = last.lowerBound..<(cluster + 1)
            } else if released.count < QCOW2State.freedLimit {
                released.append(cluster..<(cluster + 1))
            }
        }
    }

    /// The bound on memory for refcounts.
    static let refcountCacheByteCount = 4 << 20
    static let freedLimit = 1 << 16
    static let tableOffsetMask: UInt64 = ~0x1FF

    init(
        _ file: ImageFile, _ header: QCOW2Header, l1: [UInt64], table: [UInt64], fileByteCount: UInt64, backing: (any BlockImage)?
    ) {
        self.file = file
        self.header = header
        self.backing = backing
        geometry = header.geometry
        byteCount = header.byteCount
        map = QCOW2Map(geometry, version: header.version, l1: l1)
        self.table = table
        refcounts = QCOW2SliceCache(sliceSize: geometry.sliceSize, byteCount: Self.refcountCacheByteCount)
        fileEnd = min(fileByteCount, UInt64(Int64.max) - geometry.clusterMask) &+ geometry.clusterMask & ~geometry.clusterMask
    }

    func malformed(_ reason: String) -> ImageError { ImageError(.malformed, file.name, reason) }

    /// - Throws: `readOnly`; `malformed` once damage was found.
    func checkWritable() throws(ImageError) {
        guard !file.isReadOnly else { throw ImageError(.readOnly, file.name, "is opened for reading only") }
        guard !header.incompatible.contains(.corrupt) else {
            throw malformed("is damaged and was marked so; check and repair it before writing to it")
        }
        if headerIsUnsure { try writeHeader() }
        guard header.autoclear.rawValue != 0 else { return }
        // We keep no bitmap up to date, nor what we do not know (qcow2.txt, "autoclear_features").
        let old = header
        header.autoclear = []
        header.bitmaps = nil
        do throws(ImageError) {
            try writeHeader()
        } catch {
            header = old
            throw error
        }
    }

    /// Damage was found that a write would make worse: nothing is written from now on, here or by others.
    func corrupt(_ reason: String) -> ImageError {
        if header.version >= 3, !file.isReadOnly, !header.incompatible.contains(.corrupt) {
            header.incompatible.insert(.corrupt)
            // The error to report is the damage; without the mark it will be found again.
            try? writeHeader()
        }
        header.incompatible.insert(.corrupt)
        return malformed("\(reason); check and repair it")
    }

    func begin(_ clusters: Range<UInt64>) -> UInt64 {
        nextID &+= 1
        inFlight.append(InFlight(id: nextID, clusters: clusters))
        return nextID
    }

    func end(_ id: UInt64) { inFlight.removeAll { $0.id == id } }

    func conflicts(_ clusters: Range<UInt64>) -> Bool { inFlight.contains { $0.clusters.overlaps(clusters) } }

    // MARK: The header

    /// Writes the header and sees it on the medium.
    func writeHeader() throws(ImageError) {
        headerIsUnsure = true
        wroteHeaderInFlush = isFlushing
        try header.encoded(file.name).write(file, at: 0)
        try synchronize()
        headerIsUnsure = false
    }

    /// All that was written is on the medium, or will be written again. Beside a flush only the header is written so.
    func synchronize() throws(ImageError) {
        do {
            try file.synchronize()
        } catch {
            didLoseWrites(error)
            throw error
        }
        // The system tells of a lost write only once: what a flush that is under way has written, that one may have been told of.
        guard !isFlushing else { return }
        map.change { $0.synchronized(true) }
        refcounts.synchronized(true)
    }

    /// What was written must be written again.
    private func didLoseWrites(_ problem: ImageError) {
        guard !isFlushing else {
            flushProblem = problem
            return
        }
        map.change { $0.synchronized(false) }
        refcounts.synchronized(false)
    }
}
