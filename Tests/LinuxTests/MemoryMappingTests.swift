import Glibc
import Linux
import Testing

@Suite("Memory mapping") struct MemoryMappingTests {
    /// Whether a byte can be read: the kernel says so without a fault.
    private func isReadable(_ address: UnsafeMutableRawPointer) throws -> Bool {
        var ends: [CInt] = [0, 0]
        try #require(pipe(&ends) == 0)
        defer { for end in ends { close(end) } }
        return write(ends[1], address, 1) == 1
    }
    /// Whether a byte can be written, by writing it.
    private func isWritable(_ address: UnsafeMutableRawPointer) throws -> Bool {
        var ends: [CInt] = [0, 0]
        try #require(pipe(&ends) == 0)
        defer { for end in ends { close(end) } }
        var byte: UInt8 = 7
        try #require(write(ends[1], &byte, 1) == 1)
        return read(ends[0], address, 1) == 1
    }

    @Test func `guards on both sides cannot be touched`() throws {
        let guardByteCount = MemoryMapping.standardGuard
        let mapping = try MemoryMapping(
            byteCount: 3 * 4096, protection: PROT_READ | PROT_WRITE, flags: MAP_PRIVATE | MAP_ANONYMOUS,
            guardByteCount: guardByteCount)
        for place in [-guardByteCount, -1, 3 * 4096, 3 * 4096 + guardByteCount - 1] {
            #expect(try !isReadable(mapping.base + place), "\(place)")
            #expect(try !isWritable(mapping.base + place), "\(place)")
        }
        for place in [0, 3 * 4096 - 1] { #expect(try isWritable(mapping.base + place)) }
        #expect(mapping.base.load(as: UInt8.self) == 7)
    }
}
