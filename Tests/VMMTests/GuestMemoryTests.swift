import Linux
import Testing
import VMM

@Suite("Guest memory") struct GuestMemoryTests {
    static let page: UInt64 = 4096
    /// Two ranges side by side, a hole, and one above 4 GB.
    func memory() throws -> GuestMemory {
        try GuestMemory(ranges: [(0, 0xA000), (0xA000, 0x1000), (0x10_0000, 0x2000), (1 << 32, 0x1000)])
    }

    @Test func `ranges lie one after the other in the mapping`() throws {
        let memory = try memory()
        #expect(memory.byteCount == 0xE000)
        #expect(memory.ranges.map(\.offset) == [0, 0xA000, 0xB000, 0xD000])
        #expect(memory.ranges.map(\.end) == [0xA000, 0xB000, 0x10_2000, 1 << 32 + 0x1000])
    }

    @Test(arguments: [
        (0, 1, true), (0, 0xA000, true), (0, 0xA001, false), (0x9FFF, 1, true), (0x9FFF, 2, false), (0xAFFF, 1, true),
        (0xB000, 1, false), (0xF_FFFF, 1, false), (0xF_FFFF, 2, false), (0x10_0000, 0x2000, true), (0x10_1FF8, 8, true),
        (0x10_1FF9, 8, false), (1 << 32, 0x1000, true), ((1 << 32) + 0xFFF, 2, false), ((1 << 32) + 0x1000, 1, false),
        (.max, 1, false), (.max, .max, false), (0, .max, false), (1, .max, false), (.max - 7, 8, false),
        (.max - 7, 9, false),
    ] as [(UInt64, UInt64, Bool)])
    func `address and length are RAM only inside one range`(address: UInt64, count: UInt64, expected: Bool) throws {
        let memory = try memory()
        #expect(memory.contains(address, count: count) == expected)
        #expect((memory.hostAddress(of: address, count: count) != nil) == expected)
    }

    @Test func `integers are little-endian, unaligned and refused across an edge`() throws {
        let memory = try memory()
        #expect(memory.store(0x1FFD, UInt64(0x0102_0304_0506_0708)))
        #expect(memory.load(0x1FFD, as: UInt8.self) == 8)
        #expect(memory.load(0x1FFE, as: UInt32.self) == 0x0405_0607)
        #expect(memory.read(0x1FFD, count: 8) == [8, 7, 6, 5, 4, 3, 2, 1])
        #expect(!memory.store(0xAFFD, UInt32.max))
        #expect(memory.read(0xAFFD, count: 3) == [0, 0, 0], "nothing is written of a store that does not fit")
        #expect(memory.load(0xAFFD, as: UInt32.self) == nil)
        #expect(memory.load(.max, as: UInt16.self) == nil)
        #expect(!memory.store(.max - 3, UInt64(1)))
    }

    @Test func `bytes that do not fit are refused whole`() throws {
        let memory = try memory()
        #expect(!memory.write(Array(repeating: 0xEE, count: 17), at: 0xAFF0))
        #expect(memory.read(0xAFF0, count: 16) == Array(repeating: 0, count: 16))
        #expect(memory.write(Array(repeating: 0xEE, count: 16), at: 0xAFF0))
        #expect(memory.write([], at: .max), "nothing fits everywhere")
        #expect(memory.read(.max, count: 0) == [])
        #expect(memory.read(0, count: -1) == nil)
        #expect(memory.read(0, count: .max) == nil)
        #expect(memory.read(.max, count: 1) == nil)
    }

    @Test func `ROM is read like RAM and written by its owner alone`() throws {
        let memory = try GuestMemory(ranges: [(0, 0x2000), (1 << 32, 0x1000)], rom: (0xFFFF_F000, 0x1000))
        #expect(memory.ranges.map(\.base) == [0, 0xFFFF_F000, 1 << 32])
        #expect(memory.ranges.map(\.isReadOnly) == [false, true, false])
        #expect(memory.writeROM([1, 2, 3, 4], at: 0xFFFF_FFFC))
        #expect(!memory.writeROM([1, 2], at: 0xFFFF_FFFF), "not over its end")
        #expect(!memory.write([9], at: 0xFFFF_FFFC) && !memory.store(0xFFFF_FFFC, UInt32.max))
        #expect(memory.load(0xFFFF_FFFC, as: UInt32.self) == 0x0403_0201)
        #expect(memory.read(0xFFFF_FFFC, count: 4) == [1, 2, 3, 4])
        #expect(memory.hostAddress(of: 0xFFFF_F000, count: 1) == nil && !memory.contains(0xFFFF_F000, count: 1))
        #expect(memory.readableAddress(of: 0xFFFF_F000, count: 0x1000) != nil)
        #expect(memory.readableAddress(of: 0xFFFF_F000, count: 0x1001) == nil)
        let file = try RegularFile(#filePath)
        #expect(try memory.fill(0xFFFF_F000, count: 4, from: file, at: 0) == nil)
    }

    @Test func `cleared memory reads zero and stays usable`() throws {
        let memory = try memory()
        memory.store(0x3000, UInt64.max)
        memory.store(1 << 32, UInt64.max)
        memory.clear()
        #expect(memory.load(0x3000, as: UInt64.self) == 0)
        #expect(memory.load(1 << 32, as: UInt64.self) == 0)
        #expect(memory.store(0x3000, UInt8(1)))
        #expect(memory.load(0x3000, as: UInt8.self) == 1)
    }

    @Test func `range at the top of the address space does not wrap to the bottom`() throws {
        let base = UInt64.max - 0x1FFF
        let memory = try GuestMemory(ranges: [(base, 0x1000)])
        #expect(memory.contains(base + 0xFF8, count: 8))
        #expect(!memory.contains(base + 0xFF9, count: 8))
        #expect(!memory.contains(0, count: 1))
        #expect(!memory.contains(base, count: .max))
    }

    @Test func `more memory than there are addresses is an error, not a trap`() {
        #expect(throws: SystemError.self) { try GuestMemory(ranges: [(0, 1 << 63)]) }
        #expect(throws: SystemError.self) { try GuestMemory(ranges: [(0, 1 << 50)]) }
    }
}
