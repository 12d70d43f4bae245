/// Numbers as qcow2 has them: big-endian, at any byte. All ranges are checked by the caller, by `count`.
extension [UInt8] {
    func big16(_ at: Int) -> UInt16 { UInt16(self[at]) << 8 | UInt16(self[at + 1]) }
    func big32(_ at: Int) -> UInt32 { UInt32(big16(at)) << 16 | UInt32(big16(at + 2)) }
    func big64(_ at: Int) -> UInt64 { UInt64(big32(at)) << 32 | UInt64(big32(at + 4)) }

    mutating func appendBig16(_ value: UInt16) { append(contentsOf: [UInt8(value >> 8), UInt8(truncatingIfNeeded: value)]) }
    mutating func appendBig32(_ value: UInt32) {
        appendBig16(UInt16(value >> 16))
        appendBig16(UInt16(truncatingIfNeeded: value))
    }
    mutating func appendBig64(_ value: UInt64) {
        appendBig32(UInt32(value >> 32))
        appendBig32(UInt32(truncatingIfNeeded: value))
    }
    mutating func putBig32(_ value: UInt32, at: Int) { for i in 0..<4 { self[at + i] = UInt8(truncatingIfNeeded: value >> UInt32(24 - 8 * i)) } }
    mutating func putBig64(_ value: UInt64, at: Int) { for i in 0..<8 { self[at + i] = UInt8(truncatingIfNeeded: value >> UInt64(56 - 8 * i)) } }

    /// Fills it from a file.
    /// - Returns: how many bytes there were.
    mutating func read(_ file: ImageFile, at offset: UInt64) throws(ImageError) -> Int {
        var result: Result<Int, ImageError> = .success(0)
        withUnsafeMutableBytes { buffer in result = Result { () throws(ImageError) in try file.read(into: buffer, at: offset) } }
        return try result.get()
    }

    func write(_ file: ImageFile, at offset: UInt64) throws(ImageError) {
        var result: Result<Void, ImageError> = .success(())
        withUnsafeBytes { buffer in result = Result { () throws(ImageError) in try file.write(buffer, at: offset) } }
        try result.get()
    }
}
