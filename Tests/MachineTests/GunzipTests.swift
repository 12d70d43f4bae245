import CZlib
import TestSupport
import Testing
import VMM

@testable import Machine

/// What gzip makes of bytes.
private func gzip(_ bytes: [UInt8]) -> [UInt8] {
    var stream = z_stream()
    // 15 + 16: with gzip's header and checksum.
    precondition(
        deflateInit2_(&stream, 9, Z_DEFLATED, 31, 8, Z_DEFAULT_STRATEGY, ZLIB_VERSION, CInt(MemoryLayout<z_stream>.size)) == Z_OK)
    defer { deflateEnd(&stream) }
    var input = bytes
    var output = [UInt8](repeating: 0, count: Int(deflateBound(&stream, UInt(bytes.count))) + 64)
    let count = output.count
    input.withUnsafeMutableBytes { from in
        output.withUnsafeMutableBytes { to in
            stream.next_in = from.bindMemory(to: UInt8.self).baseAddress
            stream.avail_in = UInt32(from.count)
            stream.next_out = to.bindMemory(to: UInt8.self).baseAddress
            stream.avail_out = UInt32(to.count)
            precondition(deflate(&stream, Z_FINISH) == Z_STREAM_END)
        }
    }
    return Array(output[..<(count - Int(stream.avail_out))])
}

@Suite("gzip") struct GunzipTests {
    private static func unpack(_ packed: [UInt8], limit: Int = 1 << 20) throws -> [UInt8] {
        try Gunzip.unpack(limit: limit) { offset, count in
            Array(packed.dropFirst(Int(offset)).prefix(count))
        }
    }

    @Test(arguments: [0, 1, 2, 65535, 65536, 65537, 300_000])
    func `bytes come back as they were`(count: Int) throws {
        var random = SplitMix64(seed: UInt64(count))
        let bytes = (0..<count).map { _ in UInt8.random(in: 0...255, using: &random) }
        #expect(try Self.unpack(gzip(bytes)) == bytes)
        let zeros = [UInt8](repeating: 0, count: count)
        #expect(try Self.unpack(gzip(zeros)) == zeros)
    }

    @Test func `members follow each other, and padding follows them`() throws {
        let bytes = gzip([1, 2]) + gzip([]) + gzip([3])
        #expect(try Self.unpack(bytes) == [1, 2, 3])
        #expect(try Self.unpack(bytes + [UInt8](repeating: 0, count: 1000)) == [1, 2, 3])
        #expect(try Self.unpack(bytes + [0x1F]) == [1, 2, 3])
        // The second member's magic number may lie on both sides of what is read at a time.
        var random = SplitMix64(seed: 4)
        let noise = (0..<66000).map { _ in UInt8.random(in: 0...255, using: &random) }
        for cut in 65400..<65536 {
            let first = gzip(Array(noise[..<cut]))
            guard (65534...65537).contains(first.count) else { continue }
            #expect(try Self.unpack(first + gzip([9])).suffix(1) == [9])
        }
    }

    @Test func `what is longer than the limit is refused, however short it was`() {
        let bomb = gzip([UInt8](repeating: 0, count: 3 << 20))
        #expect(bomb.count < 4096)
        #expect(throws: Gunzip.Failure.tooLong) { try Self.unpack(bomb) }
        #expect(throws: Never.self) { try Self.unpack(bomb, limit: 3 << 20) }
        #expect(throws: Gunzip.Failure.tooLong) { try Self.unpack(bomb, limit: 3 << 20 - 1) }
        // Nothing, very often.
        let empty = gzip([])
        #expect(throws: Gunzip.Failure.tooLong) {
            try Gunzip.unpack(limit: 1 << 20) { offset, count in
                (0..<count).map { empty[(Int(offset) + $0) % empty.count] }
            }
        }
    }

    @Test func `damage and truncation at any byte are errors`() {
        let packed = gzip(Array("It was a dark and stormy night; the rain fell in torrents".utf8))
        for index in 2..<packed.count {
            #expect(throws: Gunzip.Failure.truncated, "\(index)") { try Self.unpack(Array(packed[..<index])) }
        }
        // Behind the header, whose time, system and level mean nothing.
        for index in 10..<packed.count {
            var damaged = packed
            damaged[index] ^= 0x10
            #expect(throws: (any Error).self, "\(index)") { try Self.unpack(damaged) }
        }
    }

    @Test(arguments: [bzImage(), pvhImage(), ELFBuilder().bytes])
    func `any kernel may be packed`(kernel: [UInt8]) throws {
        let (memory, state) = try load(gzip(kernel))
        let (expected, plain) = try load(kernel)
        #expect(state.rip == plain.rip)
        for address in [0x20_0000, 0x20_3000, 0x100_0000] as [UInt64] {
            // All but the 64 random bytes, and the command line's name of the file.
            #expect(memory.read(address, count: 0x800) == expected.read(address, count: 0x800))
        }
    }

    @Test func `packed kernel that cannot be used is refused with a reason`() {
        let bomb = gzip([UInt8](repeating: 0, count: 40 << 20))
        #expect(message { _ = try load(bomb) } == "kernel FILE: unpacks to more than 32M: give more memory with -m")
        let large = gzip([UInt8](repeating: 0, count: 257 << 20))
        #expect(
            message { _ = try load(large, megabytes: 512) }
                == "kernel FILE: unpacks to more than 256M: unpack it with gunzip")
        #expect(message { _ = try load(gzip([])) } == "kernel FILE: is compressed with gzip, and empty: copy it again")
        #expect(message { _ = try load(Array(gzip(bzImage()).dropLast())) } == "kernel FILE: is truncated: copy it again")
        #expect(message { _ = try load(gzip(gzip(bzImage()))) } == "kernel FILE: is compressed with gzip twice: unpack it with gunzip")
        var damaged = gzip(bzImage())
        damaged[damaged.count - 1] ^= 1
        #expect(message { _ = try load(damaged) } == "kernel FILE: is compressed with gzip, and damaged: copy it again")
    }
}
