import Linux

/// A disk in a qcow2 file, version 2 or 3 (QEMU's docs/interop/qcow2.txt).
///
/// It opens no other file: who opens it hands over what lies below it.
public final class QCOW2Image: BlockImage, @unchecked Sendable {
    /// What an image is opened for.
    public enum Purpose: Hashable, Sendable {
        /// As a disk. Refcounts that were not written (the dirty bit) are mended first; a corrupt image is refused for writing.
        case use
        /// For `check`, which reads or mends what `use` would refuse or has to mend first; and for `info`.
        case check
    }

    /// - Parameter backing: what to read where this image has nothing; must be given when `header.backing` is not `nil` and the
    ///   purpose is `use`, whatever lies behind the name. Read only, but for `commit`.
    /// - Throws: `malformed`, `unsupported`, `refused`, `system`.
    public init(_ file: ImageFile, backing: (any BlockImage)? = nil, for purpose: Purpose = .use) throws(ImageError) {
        throw ImageError(.unsupported, file.name, "not yet")
    }

    public var byteCount: UInt64 { 0 }
    public let isReadOnly: Bool = true
    public func read(into buffers: IOBuffers, at offset: UInt64) throws(ImageError) {}
    public func write(_ buffers: IOBuffers, at offset: UInt64) throws(ImageError) {}
    public func flush() throws(ImageError) {}
    public func discard(at offset: UInt64, count: UInt64) throws(ImageError) {}
    public func writeZeroes(at offset: UInt64, count: UInt64, mayDiscard: Bool) throws(ImageError) {}
    public func beginTransfer(_ direction: TransferDirection, at offset: UInt64, count: UInt64) -> Extent? { nil }
    public func endTransfer(_ direction: TransferDirection, _ extent: Extent) {}

    /// As it is now.
    public var header: QCOW2Header { QCOW2Header() }
    public var snapshots: [QCOW2Snapshot] { [] }
    public var info: QCOW2Info { get throws(ImageError) { throw ImageError(.unsupported, "", "not yet") } }

    /// Everything is on the medium, refcounts included, and the dirty bit is gone. The image can be used on. Called at the end;
    /// what is only dropped is as safe as after a crash.
    public func close() throws(ImageError) {}

    // MARK: What convert needs

    public enum Allocation: Hashable, Sendable {
        /// Bytes in the file, compressed or not.
        case data
        /// Zeros, whatever lies below.
        case zero
        /// What lies below shows; zeros without a backing image.
        case unallocated
    }

    /// What the first bytes of a range are, and how many of them are alike: at least 1, at most `count`. May read tables.
    public func allocation(at offset: UInt64, count: UInt64) throws(ImageError) -> (kind: Allocation, count: UInt64) {
        throw ImageError(.unsupported, "", "not yet")
    }

    /// Writes one whole cluster compressed, or as it is when that saves nothing. Compresses on the caller's thread, outside of all
    /// locks: several threads may each do a cluster. Meant for new images: compressed clusters are never changed in place.
    /// - Parameter offset: a multiple of the cluster size.
    /// - Parameter bytes: a cluster, or what is left of the disk.
    public func writeCompressed(_ bytes: UnsafeRawBufferPointer, at offset: UInt64) throws(ImageError) {}

    // MARK: Creation

    /// Makes an empty file, opened for reading and writing, an image. Leaves it half made on an error.
    public static func create(_ file: ImageFile, _ options: QCOW2Options) throws(ImageError) {}

    // MARK: Maintenance: each waits for running requests, holds up new ones, and happens as a whole or not at all

    /// Looks at every table. Read only without `repair`, which needs an image opened for writing.
    public func check(repair: QCOW2Repair = .none) throws(ImageError) -> QCOW2CheckResult { QCOW2CheckResult() }

    /// - Parameter name: must not be that of another snapshot.
    @discardableResult
    public func createSnapshot(name: String) throws(ImageError) -> QCOW2Snapshot { throw ImageError(.unsupported, "", "not yet") }
    /// The disk becomes what it was. - Parameter name: or id.
    public func applySnapshot(_ name: String) throws(ImageError) {}
    public func deleteSnapshot(_ name: String) throws(ImageError) {}

    /// - Parameter mayShrink: a smaller size loses the bytes behind it; refused without.
    public func resize(to byteCount: UInt64, mayShrink: Bool = false) throws(ImageError) {}

    /// Writes what this image has into the backing image, flushes that, and then empties this one unless `keeps`.
    /// - Parameter progress: bytes of the disk done so far.
    public func commit(keeps: Bool = false, progress: (UInt64) -> Void = { _ in }) throws(ImageError) {}

    /// Only changes what the header says: right when the new image below reads as the old one did. Open the image anew afterwards.
    public func rebase(_ backing: QCOW2Backing?) throws(ImageError) {}

    /// Copies first what would read otherwise above `newBacking`, so that the disk stays as it is. Open the image anew afterwards.
    /// - Parameter newBacking: `nil` for none: everything is copied.
    public func rebase(
        _ backing: QCOW2Backing?, onto newBacking: (any BlockImage)?, progress: (UInt64) -> Void = { _ in }
    ) throws(ImageError) {}
}
