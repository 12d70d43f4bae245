public import Glibc

/// Borrowed memory for one transfer, as readv(2) and io_uring take it.
///
/// `@unchecked Sendable`: it owns nothing. Whoever makes one keeps the memory and the array alive until the transfer is over, on
/// whatever thread that is.
public struct IOBuffers: @unchecked Sendable {
    public let vectors: UnsafeBufferPointer<iovec>
    /// The sum of their lengths.
    public let byteCount: UInt64

    /// - Precondition: `byteCount` is the sum of the lengths.
    public init(_ vectors: UnsafeBufferPointer<iovec>, byteCount: UInt64) {
        self.vectors = vectors
        self.byteCount = byteCount
    }
}
