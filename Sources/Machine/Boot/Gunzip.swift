import CZlib

/// Unpacks what gzip packed (RFC 1952), into memory and up to a limit: a small file can spell gigabytes.
enum Gunzip {
    static let magic: [UInt8] = [0x1F, 0x8B]

    enum Failure: Error {
        /// The data contradict themselves or their checksum.
        case damaged
        case truncated
        /// They, or the file itself, are longer than the limit.
        case tooLong
        /// zlib got no memory.
        case noMemory
    }

    /// How much is read and unpacked at a time.
    private static let partByteCount = 64 << 10
    /// inflateInit2: the largest window, 16 more for gzip's header and checksum instead of zlib's.
    private static let gzipWindow: CInt = 15 + 16

    /// All members of the file, one after the other; what follows the last and is none is padding, as gunzip has it.
    /// - Parameters:
    ///   - limit: the most bytes to unpack to.
    ///   - read: reads so many bytes at an offset of the file, fewer at its end.
    static func unpack(
        limit: Int, _ read: (_ offset: UInt64, _ count: Int) throws(MachineError) -> [UInt8]
    ) throws -> [UInt8] {
        // zlib keeps the address of its stream, so it may not move.
        let stream = UnsafeMutablePointer<z_stream>.allocate(capacity: 1)
        unsafe stream.initialize(to: z_stream())
        // SAFETY: the stream was initialised above; inflateEnd takes one that inflateInit2 has refused too.
        defer {
            unsafe inflateEnd(stream)
            unsafe stream.deallocate()
        }
        // SAFETY: as zlib's macro inflateInit2 calls it.
        let ready = unsafe inflateInit2_(stream, gzipWindow, ZLIB_VERSION, CInt(MemoryLayout<z_stream>.size))
        guard ready == Z_OK else { throw Failure.noMemory }

        var unpacked: [UInt8] = []
        var part = [UInt8](repeating: 0, count: partByteCount)
        var input: [UInt8] = []
        var used = 0
        // Of the input's first byte in the file.
        var offset: UInt64 = 0
        var isInMember = false
        while true {
            if input.count - used < magic.count {
                offset += UInt64(used)
                guard offset <= UInt64(limit) else { throw Failure.tooLong }
                (input, used) = (try read(offset, partByteCount), 0)
            }
            if !isInMember {
                guard input[used...].starts(with: magic) else { return unpacked }
                unsafe inflateReset(stream)
                isInMember = true
            }
            guard used < input.count else { throw Failure.truncated }
            let (result, consumed, produced) = unsafe inflate(stream, input[used...], into: &part)
            used += consumed
            guard produced <= limit - unpacked.count else { throw Failure.tooLong }
            unpacked += part[..<produced]
            switch result {
            case Z_STREAM_END: isInMember = false
            case Z_OK where consumed + produced > 0: break
            case Z_MEM_ERROR: throw Failure.noMemory
            default: throw Failure.damaged
            }
        }
    }

    /// One step of zlib's.
    private static func inflate(
        _ stream: UnsafeMutablePointer<z_stream>, _ input: ArraySlice<UInt8>, into output: inout [UInt8]
    ) -> (result: CInt, consumed: Int, produced: Int) {
        // SAFETY: zlib reads and writes within the two buffers, whose lengths it is told, and only during the call; it does
        // not write to its input, though its type says that it may.
        return unsafe input.withUnsafeBytes { from in
            unsafe output.withUnsafeMutableBytes { to in
                unsafe stream.pointee.next_in = UnsafeMutablePointer(mutating: from.baseAddress?.assumingMemoryBound(to: UInt8.self))
                unsafe stream.pointee.avail_in = UInt32(truncatingIfNeeded: from.count)
                unsafe stream.pointee.next_out = to.baseAddress?.assumingMemoryBound(to: UInt8.self)
                unsafe stream.pointee.avail_out = UInt32(truncatingIfNeeded: to.count)
                let result = unsafe CZlib.inflate(stream, Z_NO_FLUSH)
                return unsafe (
                    result, from.count - Int(stream.pointee.avail_in), to.count - Int(stream.pointee.avail_out)
                )
            }
        }
    }
}
