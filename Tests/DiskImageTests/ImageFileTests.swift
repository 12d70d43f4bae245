import DiskImage
import Linux
import Testing

@Suite("Image file") struct ImageFileTests {
    @Test func `reads what it wrote, and nothing behind the end`() throws {
        let file = ImageFile(owning: try FileDescriptor.memory("disk", byteCount: 0), name: "disk", isReadOnly: false)
        try Array("abc".utf8).withUnsafeBytes { try file.write($0, at: 10) }
        #expect(try file.byteCount() == 13)
        var bytes = [UInt8](repeating: 0xFF, count: 8)
        let count = try bytes.withUnsafeMutableBytes { try file.read(into: $0, at: 9) }
        #expect(count == 4)
        #expect(bytes.prefix(4) == [0, 97, 98, 99])
    }
}
