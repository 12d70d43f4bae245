import Glibc
import Linux

/// Memory for transfers: aligned to pages, zeros at first, given back when it goes out of scope.
@safe struct HeapBytes: ~Copyable, @unchecked Sendable {
    // Sendable: whoever holds it is its only owner.
    let bytes: UnsafeMutableRawBufferPointer

    init(count: Int) {
        bytes = UnsafeMutableRawBufferPointer.allocate(byteCount: max(0, count), alignment: 4096)
        if let base = bytes.baseAddress { memset(base, 0, bytes.count) }
    }

    deinit { bytes.deallocate() }

    var readable: UnsafeRawBufferPointer { UnsafeRawBufferPointer(bytes) }
}

extension UnsafeRawBufferPointer {
    /// An integer in little-endian order, wherever it lies.
    /// - Precondition: it lies in the buffer.
    func little<T: FixedWidthInteger & BitwiseCopyable>(_ offset: Int, as type: T.Type = T.self) -> T {
        T(littleEndian: loadUnaligned(fromByteOffset: offset, as: T.self))
    }
}

extension [UInt8] {
    /// Adds an integer in little-endian order.
    mutating func append(little value: some FixedWidthInteger) {
        Swift.withUnsafeBytes(of: value.littleEndian) { append(contentsOf: $0) }
    }

    /// Adds zeros up to a length.
    mutating func pad(to count: Int) {
        if self.count < count { append(contentsOf: repeatElement(0, count: count - self.count)) }
    }
}
