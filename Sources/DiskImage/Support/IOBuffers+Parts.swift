import Glibc
import Linux

extension IOBuffers {
    /// Calls `body` with the buffers of a part.
    /// - Precondition: the part lies in the buffers.
    func withPart(
        from start: UInt64, count: UInt64, _ body: (IOBuffers) throws(ImageError) -> Void
    ) throws(ImageError) {
        if start == 0, count == byteCount { return try body(self) }
        let failure = withUnsafeTemporaryAllocation(of: iovec.self, capacity: vectors.count) { parts -> ImageError? in
            var position: UInt64 = 0
            var used = 0
            let end = start + count
            for vector in vectors {
                let next = position + UInt64(vector.iov_len)
                let from = max(position, start)
                let to = min(next, end)
                if from < to, let base = vector.iov_base {
                    parts.initializeElement(
                        at: used, to: iovec(iov_base: base + Int(from - position), iov_len: Int(to - from)))
                    used += 1
                }
                position = next
            }
            do throws(ImageError) {
                try body(IOBuffers(UnsafeBufferPointer(rebasing: parts[..<used]), byteCount: count))
                return nil
            } catch {
                return error
            }
        }
        if let failure { throw failure }
    }

    /// Calls `body` with one buffer.
    static func with(
        _ bytes: UnsafeRawBufferPointer, _ body: (IOBuffers) throws(ImageError) -> Void
    ) throws(ImageError) {
        // Whoever reads into it was given writable bytes.
        var vector = iovec(iov_base: UnsafeMutableRawPointer(mutating: bytes.baseAddress), iov_len: bytes.count)
        let failure = withUnsafePointer(to: &vector) { pointer -> ImageError? in
            do throws(ImageError) {
                try body(IOBuffers(UnsafeBufferPointer(start: pointer, count: 1), byteCount: UInt64(bytes.count)))
                return nil
            } catch {
                return error
            }
        }
        if let failure { throw failure }
    }

    /// Copies bytes into a part.
    func copy(_ bytes: UnsafeRawBufferPointer, at start: UInt64) {
        var position: UInt64 = 0
        let end = start + UInt64(bytes.count)
        for vector in vectors {
            let next = position + UInt64(vector.iov_len)
            let from = max(position, start)
            let to = min(next, end)
            if from < to, let base = vector.iov_base, let source = bytes.baseAddress {
                memcpy(base + Int(from - position), source + Int(from - start), Int(to - from))
            }
            position = next
        }
    }

    /// Fills a part with zeros.
    func zero(from start: UInt64, count: UInt64) {
        var position: UInt64 = 0
        let end = start + count
        for vector in vectors {
            let next = position + UInt64(vector.iov_len)
            let from = max(position, start)
            let to = min(next, end)
            if from < to, let base = vector.iov_base { memset(base + Int(from - position), 0, Int(to - from)) }
            position = next
        }
    }
}

extension BlockImage {
    /// Throws unless the range lies on the disk.
    func checkRange(_ offset: UInt64, _ count: UInt64, _ name: String) throws(ImageError) {
        guard offset <= byteCount, byteCount - offset >= count else {
            throw ImageError(.outOfRange, name, "\(count) bytes at \(offset) are not on the disk of \(byteCount)")
        }
    }

    /// Fills one buffer.
    public func read(into bytes: UnsafeMutableRawBufferPointer, at offset: UInt64) throws(ImageError) {
        try IOBuffers.with(UnsafeRawBufferPointer(bytes)) { buffers throws(ImageError) in try read(into: buffers, at: offset) }
    }

    /// Writes one buffer.
    public func write(_ bytes: UnsafeRawBufferPointer, at offset: UInt64) throws(ImageError) {
        try IOBuffers.with(bytes) { buffers throws(ImageError) in try write(buffers, at: offset) }
    }
}
