import Linux
import Synchronization

/// A disk in a qcow2 file, version 2 or 3 (QEMU's docs/interop/qcow2.txt).
///
/// It opens no other file: who opens it hands over what lies below it.
///
/// A request looks its clusters up in `map`, which never waits for a disk, and transfers without any lock. Only who has to read a
/// table, or find room, takes the image's lock: `state`. Memory: at most 16 MiB for L2 tables and 4 MiB for refcounts, beside the L1
/// and refcount tables (32 and 8 MiB at most).
public final class QCOW2Image: BlockImage {
    /// What an image is opened for.
    public enum Purpose: Hashable, Sendable {
        /// As a disk. Refcounts that were not written (the dirty bit) are mended first; a corrupt image is refused for writing.
        case use
        /// For `check`, which reads or mends what `use` would refuse or has to mend first; and for `info`.
        case check
    }

    let file: ImageFile
    let geometry: QCOW2Geometry
    let map: QCOW2Map
    let state: Monitor<QCOW2State>
    let backing: (any BlockImage)?
    let compression: QCOW2Compression
    let decompressed = UnpackedParts()
    let size: Atomic<UInt64>

    /// - Parameter backing: what to read where this image has nothing; must be given when `header.backing` is not `nil` and the
    ///   purpose is `use`, whatever lies behind the name. Read only, but for `commit`.
    /// - Throws: `malformed`, `unsupported`, `refused`, `system`.
    public init(_ file: ImageFile, backing: (any BlockImage)? = nil, for purpose: Purpose = .use) throws(ImageError) {
        let opened = try QCOW2State.open(file, backing, purpose)
        self.file = file
        self.backing = backing
        geometry = opened.geometry
        map = opened.map
        compression = opened.header.compression
        size = Atomic(opened.byteCount)
        state = Monitor(opened)
    }

    deinit {
        // Who wants to know of errors has called `close`.
        try? close()
    }

    public var byteCount: UInt64 { size.load(ordering: .relaxed) }
    public var isReadOnly: Bool { file.isReadOnly }

    /// As it is now.
    public var header: QCOW2Header { state.withLock { $0.header } }
    public var snapshots: [QCOW2Snapshot] { state.withLock { $0.snapshots } }

    public var info: QCOW2Info {
        get throws(ImageError) {
            let fileByteCount = try file.byteCount()
            return state.withLock { QCOW2Info($0.header, $0.snapshots, fileByteCount: fileByteCount) }
        }
    }

    /// Everything is on the medium, refcounts included, and the dirty bit is gone. The image can be used on. Called at the end;
    /// what is only dropped is as safe as after a crash.
    public func close() throws(ImageError) {
        try locked(waitingWhile: { $0.isFlushing }) { state throws(ImageError) in try state.close() }
    }

    // MARK: The lock

    /// - Parameter isToWait: sleeps while it holds.
    func locked<T>(
        waitingWhile isToWait: (QCOW2State) -> Bool = { _ in false }, _ body: (QCOW2State) throws(ImageError) -> T
    ) throws(ImageError) -> T {
        try state.trying(waitingWhile: { isToWait($0) || $0.isCrowded }) { state throws(ImageError) in try body(state) }
    }

    /// Waits for all requests, keeps new ones off, and runs `body` with the lock held.
    func exclusively<T>(_ body: (QCOW2State) throws(ImageError) -> T) throws(ImageError) -> T {
        defer { state.broadcast() }
        // Callers' transfers first: until they are over, whoever has begun one must be able to read and write.
        map.blockTransfers(1)
        defer { map.blockTransfers(-1) }
        state.withLock(waitingWhile: { [map] _ in map.hasTransfers }) { state in
            state.exclusiveWaiters += 1
            map.block(true)
        }
        return try locked(waitingWhile: { [map] in !$0.inFlight.isEmpty || !map.isIdle || $0.isFlushing }) { state throws(ImageError) in
            defer {
                state.exclusiveWaiters -= 1
                map.block(state.exclusiveWaiters > 0)
            }
            return try body(state)
        }
    }

    func release(_ direction: TransferDirection, offset: UInt64, count: UInt64, isTransfer: Bool = false) {
        guard map.release(direction, offset: offset, count: count, isTransfer: isTransfer) else { return }
        // With the lock in between, so that who has just looked is asleep by now.
        state.withLock { _ in }
        state.broadcast()
    }

    func checkRange(_ offset: UInt64, _ count: UInt64) throws(ImageError) {
        try checkRange(offset, count, file.name)
    }

    func checkWrite(_ offset: UInt64, _ count: UInt64) throws(ImageError) {
        try checkRange(offset, count)
        guard !isReadOnly else { throw ImageError(.readOnly, file.name, "is opened for reading only") }
    }
}
