import Glibc
import Linux

extension IOBuffers {
    /// Calls `body` with a part of the buffers and other bytes around it.
    /// - Precondition: the part lies in the buffers.
    func withPart(
        from start: UInt64, count: UInt64, before: UnsafeMutableRawBufferPointer, after: UnsafeMutableRawBufferPointer,
        _ body: (IOBuffers) throws(ImageError) -> Void
    ) throws(ImageError) {
        if before.isEmpty, after.isEmpty { return try withPart(from: start, count: count, body) }
        try withPart(from: start, count: count) { part throws(ImageError) in
            var all: [iovec] = []
            all.reserveCapacity(part.vectors.count + 2)
            if !before.isEmpty { all.append(iovec(iov_base: before.baseAddress, iov_len: before.count)) }
            all.append(contentsOf: part.vectors)
            if !after.isEmpty { all.append(iovec(iov_base: after.baseAddress, iov_len: after.count)) }
            let byteCount = part.byteCount + UInt64(before.count + after.count)
            var result: Result<Void, ImageError> = .success(())
            all.withUnsafeBufferPointer { vectors in
                result = Result { () throws(ImageError) in try body(IOBuffers(vectors, byteCount: byteCount)) }
            }
            try result.get()
        }
    }
}
