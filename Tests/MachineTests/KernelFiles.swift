import Glibc

/// A file that is gone when the test is.
final class TemporaryFile: Sendable {
    let path: String

    init(_ bytes: [UInt8]) {
        var template = Array("/tmp/vmd-test-XXXXXX".utf8CString)
        let descriptor = mkstemp(&template)
        precondition(descriptor >= 0)
        path = template.withUnsafeBufferPointer { String(cString: $0.baseAddress!) }
        write(bytes, descriptor)
    }

    /// Makes the file longer.
    func append(_ bytes: [UInt8]) {
        let descriptor = open(path, O_WRONLY | O_APPEND)
        precondition(descriptor >= 0)
        write(bytes, descriptor)
    }

    private func write(_ bytes: [UInt8], _ descriptor: CInt) {
        var rest = bytes[...]
        while !rest.isEmpty {
            let count = rest.withUnsafeBytes { Glibc.write(descriptor, $0.baseAddress, $0.count) }
            precondition(count > 0)
            rest = rest.dropFirst(count)
        }
        close(descriptor)
    }

    deinit { unlink(path) }
}

/// Little-endian fields in bytes.
struct Fields {
    var bytes: [UInt8]

    mutating func set<T: FixedWidthInteger & UnsignedInteger>(_ offset: Int, _ value: T) {
        for index in 0..<T.bitWidth / 8 {
            bytes[offset + index] = UInt8(truncatingIfNeeded: value >> T(index * 8))
        }
    }
}

/// A bzImage with a sound header: one setup sector, then a payload whose bytes count up.
func bzImage(payloadByteCount: Int = 8192, _ change: (inout Fields) -> Void = { _ in }) -> [UInt8] {
    var image = Fields(bytes: [UInt8](repeating: 0, count: 1024))
    image.set(0x1F1, UInt8(1))
    image.set(0x1F4, UInt32(payloadByteCount / 16))
    image.set(0x1FE, UInt16(0xAA55))
    image.set(0x201, UInt8(0x6A))
    image.bytes.replaceSubrange(0x202..<0x206, with: Array("HdrS".utf8))
    image.set(0x206, UInt16(0x20F))
    image.set(0x211, UInt8(1))
    image.set(0x22C, UInt32(0x7FFF_FFFF))
    image.set(0x230, UInt32(0x20_0000))
    image.set(0x234, UInt8(1))
    image.set(0x236, UInt16(1))
    image.set(0x238, UInt32(255))
    image.set(0x258, UInt64(0x100_0000))
    image.set(0x260, UInt32(0x10_0000))
    change(&image)
    return image.bytes + (0..<payloadByteCount).map { UInt8(truncatingIfNeeded: $0) }
}

/// A 64-bit ELF kernel with a PVH note and one segment of 4 KB at 2 MB, whose first byte is the entry.
func pvhImage(_ change: (inout Fields) -> Void = { _ in }) -> [UInt8] {
    var image = Fields(bytes: [UInt8](repeating: 0, count: 0x1000))
    image.bytes.replaceSubrange(0..<7, with: [0x7F, 0x45, 0x4C, 0x46, 2, 1, 1])
    image.set(16, UInt16(2))
    image.set(18, UInt16(62))
    image.set(32, UInt64(64))
    image.set(54, UInt16(56))
    image.set(56, UInt16(2))
    // PT_LOAD
    image.set(64, UInt32(1))
    image.set(64 + 8, UInt64(0x1000))
    image.set(64 + 24, UInt64(0x20_0000))
    image.set(64 + 32, UInt64(0x1000))
    image.set(64 + 40, UInt64(0x3000))
    // PT_NOTE: one note of another kind, then the entry.
    image.set(120, UInt32(4))
    image.set(120 + 8, UInt64(0x200))
    image.set(120 + 32, UInt64(20 + 20))
    image.set(0x200, UInt32(4))
    image.set(0x204, UInt32(2))
    image.set(0x208, UInt32(7))
    image.bytes.replaceSubrange(0x20C..<0x210, with: Array("Xen".utf8) + [0])
    image.set(0x214, UInt32(4))
    image.set(0x218, UInt32(4))
    image.set(0x21C, UInt32(18))
    image.bytes.replaceSubrange(0x220..<0x224, with: Array("Xen".utf8) + [0])
    image.set(0x224, UInt32(0x20_0000))
    change(&image)
    return image.bytes + [UInt8](repeating: 0x90, count: 0x1000)
}
