import CZlib

/// zlib streams (RFC 1950) of bounded length.
enum ZlibStream {
    /// - Returns: `nil` when it is no stream of exactly so many bytes.
    static func unpack(_ packed: UnsafeRawBufferPointer, byteCount: Int) -> [UInt8]? {
        guard let source = packed.bindMemory(to: UInt8.self).baseAddress else { return nil }
        var isGood = false
        let bytes = [UInt8](unsafeUninitializedCapacity: byteCount) { buffer, count in
            var length = uLongf(byteCount)
            isGood = uncompress(buffer.baseAddress, &length, source, uLong(packed.count)) == Z_OK && Int(length) == byteCount
            count = isGood ? byteCount : 0
        }
        return isGood ? bytes : nil
    }

    /// - Returns: `nil` when there is no memory for it.
    static func pack(_ bytes: UnsafeRawBufferPointer, level: CInt) -> [UInt8]? {
        guard let source = bytes.bindMemory(to: UInt8.self).baseAddress else { return nil }
        let bound = Int(compressBound(uLong(bytes.count)))
        var isGood = false
        let packed = [UInt8](unsafeUninitializedCapacity: bound) { buffer, count in
            var length = uLongf(bound)
            isGood = compress2(buffer.baseAddress, &length, source, uLong(bytes.count), level) == Z_OK
            count = isGood ? Int(length) : 0
        }
        return isGood ? packed : nil
    }
}
