import DiskImage
import Glibc
import Linux
import Testing

/// Bytes of a disk, by way of its buffers: several ones of odd lengths.
extension BlockImage {
    func bytes(at offset: UInt64, count: Int) throws -> [UInt8] {
        var bytes = [UInt8](repeating: 0xEE, count: count)
        try bytes.withUnsafeMutableBytes { try withBuffers($0) { try read(into: $0, at: offset) } }
        return bytes
    }

    func put(_ bytes: [UInt8], at offset: UInt64) throws {
        var bytes = bytes
        try bytes.withUnsafeMutableBytes { try withBuffers($0) { try write($0, at: offset) } }
    }

    private func withBuffers(_ memory: UnsafeMutableRawBufferPointer, _ body: (IOBuffers) throws -> Void) throws {
        let first = memory.count / 3
        let vectors = [
            iovec(iov_base: memory.baseAddress, iov_len: first), iovec(iov_base: nil, iov_len: 0),
            iovec(iov_base: memory.baseAddress.map { $0 + first }, iov_len: memory.count - first),
        ]
        try vectors.withUnsafeBufferPointer { try body(IOBuffers($0, byteCount: UInt64(memory.count))) }
    }
}

@Suite("Raw image") struct RawImageTests {
    private func image(_ byteCount: Int, isReadOnly: Bool = false) throws -> RawImage {
        try RawImage(
            ImageFile(owning: try FileDescriptor.memory("disk", byteCount: byteCount), name: "disk", isReadOnly: isReadOnly))
    }

    @Test func `reads what was written, and zeros elsewhere`() throws {
        let image = try image(1 << 20)
        try image.put([1, 2, 3, 4, 5, 6, 7], at: 1021)
        #expect(try image.bytes(at: 1020, count: 9) == [0, 1, 2, 3, 4, 5, 6, 7, 0])
        try image.flush()
    }

    @Test func `file of no whole sectors ends with zeros`() throws {
        let image = try image(1000)
        #expect(image.byteCount == 1024)
        #expect(try image.bytes(at: 990, count: 34) == [UInt8](repeating: 0, count: 34))
        #expect(image.beginTransfer(.read, at: 990, count: 34)?.byteCount == 10)
        #expect(image.beginTransfer(.read, at: 1000, count: 24) == nil)
        try image.put([9], at: 1023)
        #expect(try image.bytes(at: 1022, count: 2) == [0, 9])
    }

    @Test(arguments: [(0, 1025), (1024, 1), (UInt64.max, 2), (1 << 63, 1)] as [(UInt64, Int)])
    func `nothing is outside of the disk`(offset: UInt64, count: Int) throws {
        let image = try image(1024)
        #expect(throws: ImageError.self) { _ = try image.bytes(at: offset, count: count) }
        #expect(throws: ImageError.self) { try image.put([UInt8](repeating: 1, count: count), at: offset) }
        #expect(throws: ImageError.self) { try image.discard(at: offset, count: UInt64(count)) }
        #expect(throws: ImageError.self) { try image.writeZeroes(at: offset, count: .max, mayDiscard: true) }
    }

    @Test func `what is read-only is not written`() throws {
        let image = try image(4096, isReadOnly: true)
        #expect { try image.put([1], at: 0) } throws: { ($0 as? ImageError)?.kind == .readOnly }
        #expect { try image.discard(at: 0, count: 512) } throws: { ($0 as? ImageError)?.kind == .readOnly }
        #expect(image.beginTransfer(.write, at: 0, count: 512) == nil)
        #expect(image.beginTransfer(.read, at: 0, count: 512) != nil)
    }

    @Test(arguments: [true, false])
    func `zeros are written, and discarded room is given back`(mayDiscard: Bool) throws {
        let image = try image(1 << 20)
        try image.put([UInt8](repeating: 7, count: 1 << 20), at: 0)
        try image.writeZeroes(at: 4095, count: 8194, mayDiscard: mayDiscard)
        #expect(try image.bytes(at: 4094, count: 8196) == [7] + [UInt8](repeating: 0, count: 8194) + [7])
        try image.discard(at: 1 << 19, count: 1 << 19)
        #expect(try image.file.nextData(from: 1 << 19, end: 1 << 20) == nil)
    }

    @Test func `a transfer is the file's own`() throws {
        let image = try image(8192)
        let extent = try #require(image.beginTransfer(.write, at: 512, count: 100_000))
        #expect(extent == Extent(.file(descriptor: image.file.descriptor, offset: 512), byteCount: 7680))
        image.endTransfer(.write, extent)
    }

    @Test func `new image is all zeros and takes no room`() throws {
        let file = ImageFile(owning: try FileDescriptor.memory("disk", byteCount: 0), name: "disk", isReadOnly: false)
        try RawImage.create(file, byteCount: 1000)
        #expect(try RawImage(file).byteCount == 1024)
        #expect(try file.nextData(from: 0, end: 1024) == nil)
        #expect(throws: ImageError.self) { try RawImage.create(file, byteCount: 0) }
        #expect(throws: ImageError.self) { try RawImage.create(file, byteCount: .max) }
    }
}
