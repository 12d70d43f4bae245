import Glibc
public import Linux

/// Transfers of several buffers in one call.
extension ImageFile {
    /// Fills the buffers in their order.
    /// - Returns: how many bytes there were; fewer than asked for only at the end of the file.
    public func read(into buffers: IOBuffers, at offset: UInt64) throws(ImageError) -> UInt64 {
        try transfer(buffers, at: offset, "read") { preadv($0, $1, $2, $3) }
    }

    /// Writes all of the buffers, or fails: then any part of them may have been written.
    public func write(_ buffers: IOBuffers, at offset: UInt64) throws(ImageError) {
        guard observer == nil else {
            // One after the other, so that a crash between two of them is seen too.
            var position = offset
            for vector in buffers.vectors {
                try write(UnsafeRawBufferPointer(start: vector.iov_base, count: vector.iov_len), at: position)
                position &+= UInt64(vector.iov_len)
            }
            return
        }
        let count = try transfer(buffers, at: offset, "write") { pwritev($0, $1, $2, $3) }
        guard count == buffers.byteCount else {
            throw ImageError(.system(SystemError("pwritev", errno: EFBIG)), name, "cannot write: the file would become too large")
        }
    }

    /// - Returns: how much was transferred before a call moved nothing.
    private func transfer(
        _ buffers: IOBuffers, at offset: UInt64, _ action: String,
        _ call: (CInt, UnsafePointer<iovec>, CInt, off_t) -> Int
    ) throws(ImageError) -> UInt64 {
        let vectors = buffers.vectors
        guard let base = vectors.baseAddress else { return 0 }
        let number = descriptor
        var index = 0
        var done: UInt64 = 0
        // Of the vector at `index`.
        var skipped = 0
        while index < vectors.count {
            if vectors[index].iov_len == skipped {
                index += 1
                skipped = 0
                continue
            }
            guard let position = off_t(exactly: offset &+ done) else { return done }
            let moved = try attempt(action) { () throws(SystemError) in
                if skipped > 0 {
                    var rest = iovec(
                        iov_base: vectors[index].iov_base.map { $0 + skipped }, iov_len: vectors[index].iov_len - skipped)
                    return try retrying("preadv") { call(number, &rest, 1, position) }
                }
                return try retrying("preadv") { call(number, base + index, CInt(min(vectors.count - index, 1024)), position) }
            }
            if moved == 0 { return done }
            done &+= UInt64(moved)
            var left = moved
            while index < vectors.count, left > 0 {
                let room = vectors[index].iov_len - skipped
                guard left >= room else {
                    skipped += left
                    break
                }
                left -= room
                index += 1
                skipped = 0
            }
        }
        return done
    }
}
