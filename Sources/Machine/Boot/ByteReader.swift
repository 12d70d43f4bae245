/// Little-endian fields of bytes that came from a file: every position is checked, since the file is not ours.
struct ByteReader {
    let bytes: [UInt8]

    /// `nil` when the field does not lie within the bytes.
    func load<T: FixedWidthInteger & UnsignedInteger>(_ offset: Int, as: T.Type = T.self) -> T? {
        let size = T.bitWidth / 8
        guard offset >= 0, offset <= bytes.count, bytes.count - offset >= size else { return nil }
        return bytes[offset..<offset + size].reversed().reduce(0) { $0 << 8 | T(truncatingIfNeeded: $1) }
    }

    func has(_ pattern: [UInt8], at offset: Int) -> Bool {
        guard offset >= 0, offset <= bytes.count, bytes.count - offset >= pattern.count else { return false }
        return bytes[offset..<offset + pattern.count].elementsEqual(pattern)
    }
}

/// Little-endian fields laid down one after the other.
struct ByteWriter {
    private(set) var bytes: [UInt8] = []

    mutating func append<T: FixedWidthInteger & UnsignedInteger>(_ value: T) {
        for shift in stride(from: 0, to: T.bitWidth, by: 8) { bytes.append(UInt8(truncatingIfNeeded: value >> T(shift))) }
    }

    mutating func append(contentsOf other: [UInt8]) { bytes += other }

    /// Zeros up to the next multiple.
    mutating func pad(to multiple: Int) {
        while bytes.count % multiple != 0 { bytes.append(0) }
    }
}
