import Foundation
import Glibc
import Linux
import Testing

@Suite("Memory mapping") struct MemoryMappingTests {
    /// The protection that the kernel gives for an address, as /proc/self/maps writes it; `nil` when nothing is there.
    private func protection(_ address: UnsafeMutableRawPointer) throws -> String? {
        let wanted = UInt(bitPattern: address)
        for line in try String(contentsOfFile: "/proc/self/maps", encoding: .utf8).split(separator: "\n") {
            let fields = line.split(separator: " ")
            let ends = fields[0].split(separator: "-").compactMap { UInt($0, radix: 16) }
            if ends.count == 2 && ends[0] <= wanted && wanted < ends[1] { return String(fields[1]) }
        }
        return nil
    }

    @Test func `guards on both sides cannot be touched`() throws {
        let guardByteCount = 1 << 20
        let mapping = try MemoryMapping(
            byteCount: 3 * 4096, protection: PROT_READ | PROT_WRITE, flags: MAP_PRIVATE | MAP_ANONYMOUS,
            guardByteCount: guardByteCount)
        for place in [-guardByteCount, -1, 3 * 4096, 3 * 4096 + guardByteCount - 1] {
            #expect(try protection(mapping.base + place)?.hasPrefix("---") == true, "\(place)")
        }
        for place in [0, 3 * 4096 - 1] { #expect(try protection(mapping.base + place)?.hasPrefix("rw-") == true) }
        mapping.base.storeBytes(of: 7, as: UInt8.self)
    }

    @Test func `a mapping without guards has none`() throws {
        let mapping = try MemoryMapping(byteCount: 4096, protection: PROT_READ, flags: MAP_PRIVATE | MAP_ANONYMOUS)
        #expect(mapping.guardByteCount == 0)
        #expect(try protection(mapping.base)?.hasPrefix("r--") == true)
        // It lives until here.
        #expect(mapping.byteCount == 4096)
    }
}
