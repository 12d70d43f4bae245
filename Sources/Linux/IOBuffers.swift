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

    /// No memory.
    public static var none: IOBuffers { IOBuffers(UnsafeBufferPointer(start: nil, count: 0), byteCount: 0) }

    /// How far a transfer has come.
    public struct Position: Sendable {
        /// Of the vector that the next byte is in.
        fileprivate var index = 0
        /// How many bytes of that vector are done.
        fileprivate var offset = 0

        public init() {}
        public var isStart: Bool { index == 0 && offset == 0 }
    }

    /// Moves a position forward; not beyond the end.
    public func advance(_ position: inout Position, by byteCount: UInt64) {
        var left = byteCount
        while left > 0, position.index < vectors.count {
            let room = vectors[position.index].iov_len - position.offset
            guard left >= UInt64(room) else {
                position.offset += Int(left)
                return
            }
            left -= UInt64(room)
            position.index += 1
            position.offset = 0
        }
    }

    /// What lies from a position on, as vectors of their own.
    /// - Parameter room: where to put them; borrowed by the result. When it is too small the result is shorter than asked for.
    public func slice(
        from position: Position, byteCount: UInt64, in room: UnsafeMutableBufferPointer<iovec>
    ) -> IOBuffers {
        var left = byteCount
        var count = 0
        var (index, offset) = (position.index, position.offset)
        while left > 0, count < room.count, index < vectors.count {
            let vector = vectors[index]
            let length = Swift.min(UInt64(vector.iov_len - offset), left)
            if length > 0 {
                room[count] = iovec(iov_base: vector.iov_base + offset, iov_len: Int(length))
                count += 1
                left -= length
            }
            index += 1
            offset = 0
        }
        return IOBuffers(UnsafeBufferPointer(rebasing: room[..<count]), byteCount: byteCount - left)
    }

    /// Fills bytes from a position on with zeros.
    public func zero(from position: Position, byteCount: UInt64) {
        var left = byteCount
        var (index, offset) = (position.index, position.offset)
        while left > 0, index < vectors.count {
            let vector = vectors[index]
            let length = Swift.min(UInt64(vector.iov_len - offset), left)
            if length > 0 { memset(vector.iov_base + offset, 0, Int(length)) }
            left -= length
            index += 1
            offset = 0
        }
    }
}
