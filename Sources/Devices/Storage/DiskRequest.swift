public import Linux

/// What a guest asks of a disk.
public enum DiskOperation: UInt8, Sendable {
    case read, write
    /// Returns when all writes that were done before it was submitted are on the medium.
    case flush
    /// The bytes are needed no more.
    case discard
    /// The bytes read as zeros from now on; the room in the file stays.
    case writeZeroes
    /// The same, and the room may be given back.
    case writeZeroesDiscarding

    var movesBytes: Bool { self == .read || self == .write }
}

/// How a request ended.
public enum DiskResult: UInt8, Sendable { case done, failed, outOfRange, readOnly, unsupported }

/// One request for a `DiskQueue`.
public struct DiskRequest: Sendable {
    public var operation: DiskOperation
    /// The caller's name for it, which comes back with the result.
    public var tag: UInt32
    /// Where on the disk, in bytes.
    public var offset: UInt64
    /// How many bytes; of `read` and `write` no more than there is memory for.
    public var byteCount: UInt64
    /// Memory to read into or to write from, the caller's until the request is over; empty for everything else.
    public var buffers: IOBuffers

    /// - Parameter byteCount: may be left out where the memory says it.
    public init(
        _ operation: DiskOperation, tag: UInt32, offset: UInt64 = 0, byteCount: UInt64? = nil, buffers: IOBuffers = .none
    ) {
        self.operation = operation
        self.tag = tag
        self.offset = offset
        let most = operation.movesBytes ? buffers.byteCount : .max
        self.byteCount = min(byteCount ?? buffers.byteCount, most)
        self.buffers = buffers
    }
}
