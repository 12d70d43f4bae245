public import Linux

/// A disk as a guest sees it: so many bytes that can be read and written, whatever the file behind them looks like.
///
/// All calls are for any thread, several at a time. Requests that touch the same bytes at the same time have no order, as on
/// a disk. What is not aligned is no error: formats take any offset and count on the disk.
///
/// After an error of a write the bytes that it was for are undefined, and nothing else is: the image stays consistent.
public protocol BlockImage: AnyObject, Sendable {
    /// The disk's size.
    var byteCount: UInt64 { get }
    /// Writes are refused: the file was opened so, or its format cannot be written in place.
    var isReadOnly: Bool { get }

    /// Fills the buffers.
    /// - Throws: `outOfRange`, `system`, `malformed`.
    func read(into buffers: IOBuffers, at offset: UInt64) throws(ImageError)

    /// Writes the buffers' bytes. They are safe from a crash of the host once a `flush` that began later has returned.
    /// - Throws: `outOfRange`, `readOnly`, `system`, `malformed`.
    func write(_ buffers: IOBuffers, at offset: UInt64) throws(ImageError)

    /// Returns when all writes that were done before it are on the medium, and everything that finds them again
    /// (fdatasync(2)).
    func flush() throws(ImageError)

    /// The last call, when no request is under way: what was written is on the medium, and the file says nothing of an image in use.
    func close() throws(ImageError)

    /// The guest needs the bytes no more. They may read as before, or as zeros.
    func discard(at offset: UInt64, count: UInt64) throws(ImageError)

    /// The bytes read as zeros from now on.
    /// - Parameter mayDiscard: room in the file may be given back.
    func writeZeroes(at offset: UInt64, count: UInt64, mayDiscard: Bool) throws(ImageError)

    /// Where the first bytes of a range lie, when that is known without waiting for a disk: then the caller may transfer
    /// them himself, by io_uring for instance. `nil` otherwise, also for a write that must first find room: `read` and
    /// `write` do everything.
    ///
    /// An extent with a place holds that place: nothing else uses it until `endTransfer`, which must follow.
    func beginTransfer(_ direction: TransferDirection, at offset: UInt64, count: UInt64) -> Extent?

    /// The transfer of an extent is over, whether it worked or not.
    func endTransfer(_ direction: TransferDirection, _ extent: Extent)
}

extension BlockImage {
    public func close() throws(ImageError) { if !isReadOnly { try flush() } }
}

public enum TransferDirection: Hashable, Sendable { case read, write }

/// Bytes of a disk that lie together.
public struct Extent: Hashable, Sendable {
    public enum Place: Hashable, Sendable {
        /// In the file of this descriptor, which stays open as long as the image, from this offset on.
        case file(descriptor: CInt, offset: UInt64)
        /// Nowhere: they read as zeros. Only for reading.
        case zeros
    }

    public let place: Place
    /// At least 1, at most what was asked for.
    public let byteCount: UInt64

    public init(_ place: Place, byteCount: UInt64) {
        self.place = place
        self.byteCount = byteCount
    }
}
