import CZlib
import CZstd

/// A cluster's bytes, smaller and back.
enum QCOW2Codec {
    /// - Returns: the compressed bytes; `nil` when they are not fewer.
    static func compress(_ bytes: UnsafeRawBufferPointer, _ kind: QCOW2Compression) -> [UInt8]? {
        let packed = [UInt8](unsafeUninitializedCapacity: bytes.count) { buffer, count in
            count = kind == .zlib ? deflate(bytes, buffer) : zstd(bytes, buffer)
        }
        return packed.isEmpty || packed.count >= bytes.count ? nil : packed
    }

    /// - Returns: 0 when it does not fit.
    private static func deflate(_ bytes: UnsafeRawBufferPointer, _ output: UnsafeMutableBufferPointer<UInt8>) -> Int {
        var stream = z_stream()
        // Raw, with the window of 4 KiB that QEMU takes: older ones read no other.
        let size = CInt(MemoryLayout<z_stream>.size)
        guard deflateInit2_(&stream, Z_DEFAULT_COMPRESSION, Z_DEFLATED, -12, 9, Z_DEFAULT_STRATEGY, ZLIB_VERSION, size) == Z_OK
        else { return 0 }
        defer { deflateEnd(&stream) }
        stream.next_in = UnsafeMutablePointer(mutating: bytes.assumingMemoryBound(to: UInt8.self).baseAddress)
        stream.avail_in = UInt32(bytes.count)
        stream.next_out = output.baseAddress
        stream.avail_out = UInt32(output.count)
        guard CZlib.deflate(&stream, Z_FINISH) == Z_STREAM_END else { return 0 }
        return output.count - Int(stream.avail_out)
    }

    private static func zstd(_ bytes: UnsafeRawBufferPointer, _ output: UnsafeMutableBufferPointer<UInt8>) -> Int {
        let count = ZSTD_compress(output.baseAddress, output.count, bytes.baseAddress, bytes.count, ZSTD_CLEVEL_DEFAULT)
        return ZSTD_isError(count) == 0 ? count : 0
    }

    /// Fills `output`, whose size is the cluster's.
    /// - Parameter bytes: the compressed bytes; what follows them in the last sector is ignored.
    /// - Returns: whether they make exactly so many.
    static func decompress(
        _ bytes: UnsafeRawBufferPointer, into output: UnsafeMutableRawBufferPointer, _ kind: QCOW2Compression
    ) -> Bool {
        kind == .zlib ? inflate(bytes, output) : unzstd(bytes, output)
    }

    private static func inflate(_ bytes: UnsafeRawBufferPointer, _ output: UnsafeMutableRawBufferPointer) -> Bool {
        var stream = z_stream()
        // Any window, not just QEMU's.
        guard inflateInit2_(&stream, -15, ZLIB_VERSION, CInt(MemoryLayout<z_stream>.size)) == Z_OK else { return false }
        defer { inflateEnd(&stream) }
        stream.next_in = UnsafeMutablePointer(mutating: bytes.assumingMemoryBound(to: UInt8.self).baseAddress)
        stream.avail_in = UInt32(bytes.count)
        stream.next_out = output.assumingMemoryBound(to: UInt8.self).baseAddress
        stream.avail_out = UInt32(output.count)
        let result = CZlib.inflate(&stream, Z_FINISH)
        guard stream.avail_out == 0 else { return false }
        if result == Z_STREAM_END { return true }
        guard result == Z_BUF_ERROR || result == Z_OK else { return false }
        // Full, but is that all? One byte more would be too much.
        return withUnsafeTemporaryAllocation(of: UInt8.self, capacity: 1) { extra in
            stream.next_out = extra.baseAddress
            stream.avail_out = 1
            _ = CZlib.inflate(&stream, Z_FINISH)
            return stream.avail_out == 1
        }
    }

    private static func unzstd(_ bytes: UnsafeRawBufferPointer, _ output: UnsafeMutableRawBufferPointer) -> Bool {
        let size = ZSTD_findFrameCompressedSize(bytes.baseAddress, bytes.count)
        guard ZSTD_isError(size) == 0 else { return false }
        return ZSTD_decompress(output.baseAddress, output.count, bytes.baseAddress, size) == output.count
    }
}
