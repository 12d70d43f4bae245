import TestSupport
import Testing
import VMM

@testable import Machine

/// A header tag: its type, whether it may be passed over, and its fields.
private struct Tag {
    var type: UInt16
    var isOptional = false
    var fields: [UInt32] = []
}

private let end = Tag(type: 0)
/// A file's first byte at 2 MB, 4 KB of it, and 4 KB of zeros behind.
private let addresses = Tag(type: 2, fields: [0x20_0040, 0x20_0000, 0x20_1000, 0x20_2000])
private let entry = Tag(type: 3, fields: [0x20_0000])

private func header(_ tags: [Tag], architecture: UInt32 = 0, byteCount: UInt32? = nil) -> [UInt8] {
    var body = ByteWriter()
    for tag in tags {
        body.append(tag.type)
        body.append(UInt16(tag.isOptional ? 1 : 0))
        body.append(UInt32(8 + tag.fields.count * 4))
        for field in tag.fields { body.append(field) }
        body.pad(to: 8)
    }
    let magic: UInt32 = 0xE852_50D6
    let byteCount = byteCount ?? UInt32(16 + body.bytes.count)
    var header = ByteWriter()
    for word in [magic, architecture, byteCount, 0 &- magic &- architecture &- byteCount] { header.append(word) }
    return header.bytes + body.bytes
}

private func flat(_ tags: [Tag], at offset: Int = 0x40, byteCount: Int = 0x1000) -> [UInt8] {
    var image = [UInt8](repeating: 0x90, count: byteCount)
    let bytes = header(tags)
    image.replaceSubrange(offset..<offset + bytes.count, with: bytes)
    return image
}

private func elf(_ tags: [Tag] = [end], _ builder: ELFBuilder = ELFBuilder(parts: [ELFBuilder.Part()])) -> [UInt8] {
    var image = builder.bytes
    let bytes = header(tags)
    image.replaceSubrange(0x400..<0x400 + bytes.count, with: bytes)
    return image
}

/// What the kernel is told, tag by tag.
private func tags(_ memory: GuestMemory, _ state: CPUState) throws -> [(type: UInt32, body: ByteReader)] {
    let start = state[.rbx]
    #expect(start % 8 == 0)
    let total = UInt64(try #require(memory.load(start, as: UInt32.self)))
    #expect(memory.load(start + 4, as: UInt32.self) == 0)
    var result: [(type: UInt32, body: ByteReader)] = []
    var at = start + 8
    while at < start + total {
        let type = try #require(memory.load(at, as: UInt32.self))
        let size = try #require(memory.load(at + 4, as: UInt32.self))
        try #require(size >= 8)
        result.append((type, ByteReader(bytes: try #require(memory.read(at + 8, count: Int(size) - 8)))))
        at += (UInt64(size) + 7) / 8 * 8
    }
    #expect(at == start + total)
    return result
}

private func text(_ bytes: some Sequence<UInt8>) -> String { String(decoding: bytes.prefix { $0 != 0 }, as: UTF8.self) }

@Suite("Multiboot 2 image") struct Multiboot2ImageTests {
    @Test(arguments: [flat([addresses, entry, end]), elf(), elf([end], ELFBuilder(is64: false, parts: [ELFBuilder.Part()]))])
    func `kernel is loaded and entered in protected mode with the magic number`(kernel: [UInt8]) throws {
        let (memory, state) = try load(kernel)
        #expect(memory.load(0x20_0FFF, as: UInt8.self) == 0x90)
        #expect(memory.load(0x20_1000, as: UInt8.self) == 0)
        #expect(state.rip & ~0x10 == 0x20_0000)
        #expect(state.modeName == "protected mode")
        #expect(state.cr0 & 0x8000_0001 == 1)
        #expect(state[.rax] == 0x36D7_6289)
        #expect(state.cs.isBig && state.cs.limit == .max)
    }

    @Test func `information is command line, loader, memory and its map, and ACPI's root pointer`() throws {
        let (memory, state) = try load(elf(), commandLine: "one two")
        let all = try tags(memory, state)
        #expect(all.map(\.type) == [1, 2, 4, 6, 14, 15, 0])
        #expect(text(all[0].body.bytes).hasSuffix(" one two"))
        #expect(text(all[1].body.bytes) == "vmd")
        #expect(all[2].body.load(0) == UInt32(576))
        #expect(all[2].body.load(4) == UInt32(31 << 10))
        let map = all[3].body
        #expect(map.load(0) == UInt32(24))
        #expect(map.load(4) == UInt32(0))
        #expect(map.bytes.count == 8 + 4 * 24)
        #expect(map.load(8 + 48) == UInt64(1 << 20))
        #expect(map.load(8 + 56) == UInt64(31 << 20))
        #expect(map.load(8 + 64) == UInt32(1))
        #expect(all[4].body.bytes.count == 20)
        #expect(all[5].body.bytes.count == 36)
        #expect(all[6].body.bytes.isEmpty)
    }

    @Test func `ramdisk and modules are told in order with their arguments`() throws {
        let kernel = TemporaryFile(elf())
        let files = [[1, 2, 3], [UInt8](repeating: 7, count: 5000)].map { TemporaryFile($0) }
        let map = try MemoryMap(byteCount: 32 << 20)
        let memory = try GuestMemory(ranges: map.ranges)
        let loader = try KernelLoader(
            kernel: kernel.path, initrd: files[0].path, modules: ["\(files[1].path),a=1,b c"], commandLine: "")
        let modules = try tags(memory, try loader.load(into: memory, map, rsdp: nil)).filter { $0.type == 3 }.map(\.body)
        #expect(modules.count == 2)
        #expect(modules[0].load(0) == UInt32(0x20_3000) && modules[0].load(4) == UInt32(0x20_3003))
        #expect(modules[1].load(0) == UInt32(0x20_4000) && modules[1].load(4) == UInt32(0x20_5388))
        #expect(text(modules[0].bytes.dropFirst(8)) == files[0].path)
        #expect(text(modules[1].bytes.dropFirst(8)) == files[1].path + " a=1,b c")
        #expect(memory.read(0x20_5387, count: 2) == [7, 0])
    }

    @Test(arguments: [true, false])
    func `sections that are in no segment are loaded behind it, and the table says where`(is64: Bool) throws {
        let builder = ELFBuilder(is64: is64, parts: [ELFBuilder.Part()], sections: ELFBuilder.symbols)
        let bytes = elf([end], builder)
        let (memory, state) = try load(bytes)
        let table = try #require(try tags(memory, state).first { $0.type == 9 }).body
        let size: UInt32 = is64 ? 64 : 40
        #expect(table.load(0) == UInt32(7) && table.load(4) == size && table.load(8) == UInt32(1))
        var next: UInt64 = 0x20_3000
        for (index, section) in ELFBuilder.symbols.enumerated() {
            let at = 12 + index * Int(size) + (is64 ? 16 : 12)
            let address: UInt64? = is64 ? table.load(at) : table.load(at, as: UInt32.self).map { UInt64($0) }
            guard (1...4).contains(index) else {
                #expect(address == section.address, "\(index)")
                continue
            }
            #expect(address == next, "\(index)")
            let (from, count) = (Int(section.offset), Int(section.byteCount))
            #expect(memory.read(next, count: count) == Array(bytes[from..<from + count]), "\(index)")
            next = (next + section.byteCount + 15) / 16 * 16
        }
    }

    @Test(arguments: [
        // The lowest and the highest address, the alignment, the preference; where it goes then.
        ([0x30_0000, 0x1FF_FFFF, 0x1000, 0], 0x30_0000), ([0x10_0000, 0x1FF_FFFF, 0x1000, 0], 0x20_0000),
        ([0x10_0000, 0x1FF_FFFF, 0x40_0000, 0], 0x40_0000), ([0x12_3456, 0x1FF_FFFF, 0x1000, 1], 0x12_4000),
        ([0, 0x1FF_FFFF, 0, 1], 0x10_0000), ([0, .max, 0x10_0000, 2], 0x1F0_0000), ([0, 0x2F_FFFF, 0x1000, 2], 0x2F_D000),
        ([0, 0x2F_FFFE, 0x1000, 2], 0x2F_C000), ([0x30_0000, 0x30_2FFF, 0x1000, 9], 0x30_0000),
    ] as [([UInt32], UInt64)])
    func `kernel that may be moved lies where it wants to, and is told`(wish: [UInt32], base: UInt64) throws {
        let (memory, state) = try load(elf([Tag(type: 10, fields: wish), end]))
        #expect(state.rip == base + 0x10)
        #expect(memory.read(base + 0xFFF, count: 2) == [0x90, 0])
        #expect(try tags(memory, state).first { $0.type == 21 }?.body.load(0) == UInt32(base))
    }

    @Test func `modules of a kernel at the end of the memory lie below it`() throws {
        let kernel = elf([Tag(type: 10, fields: [0, .max, 0x1000, 2]), end])
        let (memory, state) = try load(kernel, initrd: [1, 2])
        #expect(try tags(memory, state).first { $0.type == 3 }?.body.load(0) == UInt32(0x10_0000))
    }

    @Test func `file may be loaded from its first byte on`() throws {
        let kernel = flat([Tag(type: 2, fields: [0x30_0040, .max, 0, 0]), Tag(type: 3, fields: [0x30_0000]), end])
        let (memory, state) = try load(kernel)
        #expect(state.rip == 0x30_0000)
        #expect(memory.load(0x30_0040, as: UInt32.self) == 0xE852_50D6)
    }

    @Test func `entry tag rules over the ELF header's entry`() throws {
        #expect(try load(elf([Tag(type: 3, fields: [0x20_0123]), end])).state.rip == 0x20_0123)
    }

    @Test func `header may end at the 32768th byte and no later`() throws {
        let tags = [Tag(type: 2, fields: [0x20_7FC0, 0x20_0000, 0, 0]), entry, end]
        #expect(try load(flat(tags, at: 32768 - 64, byteCount: 32768)).state.rip == 0x20_0000)
        #expect(
            message { _ = try load(flat(tags, at: 32768 - 56, byteCount: 40960)) }
                == "kernel FILE: has its multiboot 2 header at 0x7fc8, which ends behind the first 32768 bytes: link it again")
        #expect(message { _ = try load(flat(tags, at: 32768, byteCount: 40960)) }.contains("is not a kernel"))
    }

    @Test func `version 2 comes before version 1`() throws {
        var image = Fields(bytes: elf())
        for (index, word) in ([0x1BAD_B002, 3, 0 &- 0x1BAD_B005] as [UInt32]).enumerated() { image.set(0x600 + index * 4, word) }
        #expect(try load(image.bytes).state[.rax] == 0x36D7_6289)
    }

    static let refused: [(String, [UInt8])] = [
        ("demands a frame buffer, and there is no screen: mark that tag as optional", elf([Tag(type: 5, fields: [0, 0, 0]), end])),
        ("demands a console on a screen, and there is none: mark that tag as optional", elf([Tag(type: 4, fields: [3]), end])),
        (
            "demands multiboot 2 information 22, which does not exist: mark that tag as optional",
            elf([Tag(type: 1, fields: [1, 22]), end])
        ),
        ("demands what multiboot 2 tag 11 says, which does not exist: mark that tag as optional", elf([Tag(type: 11), end])),
        ("has a multiboot 2 header for another processor: give one for x86", elf().withHeader(header([end], architecture: 4))),
        ("has multiboot 2 tags without an end: link it again", elf([])),
        ("has multiboot 2 tags without an end: link it again", elf([entry])),
        ("has multiboot 2 tags without an end: link it again", elf().withHeader(header([end], byteCount: 20))),
        (
            "has its multiboot 2 header at 0x400, which ends behind the first 32768 bytes: link it again",
            elf().withHeader(header([end], byteCount: 15))
        ),
        (
            "has its multiboot 2 header at 0x400, which ends behind the first 32768 bytes: link it again",
            elf().withHeader(header([end], byteCount: .max))
        ),
        ("has a multiboot 2 tag 2 that is too short: link it again", elf([Tag(type: 2, fields: [1, 2, 3]), end])),
        ("has a multiboot 2 tag 3 that is too short: link it again", elf([Tag(type: 3), end])),
        ("has a multiboot 2 tag 10 that is too short: link it again", elf([Tag(type: 10, fields: [0, 0, 0]), end])),
        (
            "has a multiboot 2 header with addresses and without an entry point: link it again", flat([addresses, end])
        ),
        ("has a multiboot 2 header without addresses and is no ELF file: link it again", flat([entry, end])),
        (
            "has a multiboot header whose entry_addr 0x202000 lies outside of what is loaded: link it again",
            flat([addresses, Tag(type: 3, fields: [0x20_2000]), end])
        ),
        (
            "has a multiboot header whose header_addr 0x3f leaves no room for the file before it: link it again",
            flat([Tag(type: 2, fields: [0x3F, .max, 0, 0]), entry, end])
        ),
        (
            "wants to be aligned to 0x3000, which is no power of two: link it again",
            elf([Tag(type: 10, fields: [0, .max, 0x3000, 0]), end])
        ),
        (
            "has 12K, which do not fit between 0x300000 and 0x302fff: give more memory with -m",
            elf([Tag(type: 10, fields: [0x30_0000, 0x30_2FFE, 1, 1]), end])
        ),
        (
            "has 12K, which do not fit between 0x80000000 and 0x2000000: give more memory with -m",
            elf([Tag(type: 10, fields: [0x10_0000, .max, 0x8000_0000, 2]), end])
        ),
    ]

    @Test(arguments: refused)
    func `kernel that cannot be served is refused with a reason`(expected: String, kernel: [UInt8]) {
        #expect(message { _ = try load(kernel) } == "kernel FILE: \(expected)")
    }

    @Test func `the same wishes are passed over when they are optional`() throws {
        let wishes = [
            Tag(type: 5, isOptional: true, fields: [0, 0, 0]), Tag(type: 4, isOptional: true, fields: [3]),
            Tag(type: 1, isOptional: true, fields: [22]), Tag(type: 11, isOptional: true), Tag(type: 6), Tag(type: 7),
            Tag(type: 8, fields: [1]), Tag(type: 9, fields: [1]), Tag(type: 4, fields: [2]), Tag(type: 1, fields: [1, 8, 21]),
        ]
        #expect(try load(elf(wishes + [end])).state.rip == 0x20_0010)
    }

    @Test func `information that is endless is refused`() {
        let many = ELFBuilder(
            parts: [ELFBuilder.Part()], sections: ELFBuilder.symbols, sectionOffset: 0x3000, sectionCount: 5000)
        let error = message { _ = try load(elf([end], many) + [UInt8](repeating: 0, count: 5000 * 64)) }
        #expect(error.hasPrefix("multiboot information: has 320"))
    }

    @Test func `headers of random bytes never trap`() {
        var random = SplitMix64(seed: 0xB002)
        let wish = Tag(type: 10, fields: [0x10_0000, 0x1FF_FFFF, 0x1000, 2])
        let images = [
            elf([Tag(type: 1, fields: [1, 9]), wish, end], ELFBuilder(parts: [ELFBuilder.Part()], sections: ELFBuilder.symbols)),
            elf([wish, end], ELFBuilder(is64: false, parts: [ELFBuilder.Part()], sections: ELFBuilder.symbols)),
            flat([addresses, entry, wish, end]),
        ]
        for round in 0..<1500 {
            var image = Fields(bytes: images[round % 3])
            let ranges = round % 3 == 2 ? [0x50..<0x98] : [0x10..<0x40, 0x100..<0x138, 0x410..<0x448, 0x3000..<0x31C0]
            for _ in 0..<Int.random(in: 1...6, using: &random) {
                let range = ranges.randomElement(using: &random) ?? 0..<8
                let values: [UInt32] = [0, 1, 2, 10, 0xFFF, 0x20_0000, 0x7FFF_FFFF, .max, .random(in: 0...(.max), using: &random)]
                image.set(Int.random(in: range, using: &random) & ~3, values.randomElement(using: &random) ?? 0)
            }
            _ = message { _ = try load(image.bytes, initrd: [1]) }
        }
    }
}

extension [UInt8] {
    /// The same ELF file with another header.
    fileprivate func withHeader(_ header: [UInt8]) -> [UInt8] {
        var copy = self
        copy.replaceSubrange(0x400..<0x400 + header.count, with: header)
        return copy
    }
}
