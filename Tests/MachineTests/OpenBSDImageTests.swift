import TestSupport
import Testing
import VMM

@testable import Machine

/// An ELF file of either class, made of parts that tests may change.
struct ELFBuilder {
    struct Part {
        var type: UInt32 = 1
        var offset: UInt64 = 0x1000
        var virtual: UInt64 = 0x20_0000
        var physical: UInt64 = 0x20_0000
        var fileByteCount: UInt64 = 0x1000
        var memoryByteCount: UInt64 = 0x3000
        var flags: UInt32 = 7

        /// Memory in the first part that wants random bytes.
        static let random = Part(type: 0x65A3_DBE6, physical: 0x20_0800, fileByteCount: 64, memoryByteCount: 64)
        /// The note that names OpenBSD.
        static let note = Part(type: 4, offset: 0x800, fileByteCount: 24, memoryByteCount: 24)
    }
    struct Section {
        var name: UInt32 = 0
        var type: UInt32 = 0
        var flags: UInt64 = 0
        var address: UInt64 = 0
        var offset: UInt64 = 0
        var byteCount: UInt64 = 0
    }

    var is64 = true
    var parts: [Part] = [Part(), .random]
    var entry: UInt64 = 0x20_0010
    var sections: [Section] = []
    var sectionOffset: UInt64 = 0x3000
    var sectionEntrySize: UInt16?
    var sectionCount: UInt16?
    var nameIndex: UInt16 = 1

    /// Symbols, their names, line numbers and what OpenBSD calls CTF, as a linker leaves them: nothing allocated.
    static let symbols: [Section] = [
        Section(),
        Section(name: 1, type: 3, offset: 0x2000, byteCount: 0x40),
        Section(name: 11, type: 2, offset: 0x2100, byteCount: 0x33),
        Section(name: 19, type: 1, offset: 0x2200, byteCount: 0x21),
        Section(name: 31, type: 1, offset: 0x2300, byteCount: 0x10),
        Section(name: 41, type: 1, flags: 2, address: 0x20_0000, offset: 0x1000, byteCount: 0x1000),
        Section(name: 47, type: 8, flags: 3, address: 0x20_1000, byteCount: 0x2000),
    ]
    private static let names = "\0.shstrtab\0.symtab\0.debug_line\0.SUNW_ctf\0.text\0.bss\0"

    var bytes: [UInt8] {
        var image = Fields(bytes: [UInt8](repeating: 0, count: 0x4000))
        func set(_ offset: Int, _ value: UInt64, _ image: inout Fields) {
            if is64 { image.set(offset, value) } else { image.set(offset, UInt32(truncatingIfNeeded: value)) }
        }
        image.bytes.replaceSubrange(0..<7, with: [0x7F, 0x45, 0x4C, 0x46, is64 ? 2 : 1, 1, 1])
        image.set(16, UInt16(2))
        image.set(18, UInt16(is64 ? 62 : 3))
        set(24, entry, &image)
        set(is64 ? 32 : 28, 0x100, &image)
        set(is64 ? 40 : 32, sections.isEmpty ? 0 : sectionOffset, &image)
        let counts: [UInt16] = [
            is64 ? 64 : 52, is64 ? 56 : 32, UInt16(parts.count), sectionEntrySize ?? (is64 ? 64 : 40),
            sectionCount ?? UInt16(sections.count), nameIndex,
        ]
        for (index, count) in counts.enumerated() { image.set((is64 ? 52 : 40) + index * 2, count) }
        for (index, part) in parts.enumerated() {
            let at = 0x100 + index * (is64 ? 56 : 32)
            image.set(at, part.type)
            image.set(at + (is64 ? 4 : 24), part.flags)
            let fields = [part.offset, part.virtual, part.physical, part.fileByteCount, part.memoryByteCount]
            for (field, value) in fields.enumerated() { set(at + (is64 ? 8 + field * 8 : 4 + field * 4), value, &image) }
        }
        for (index, section) in sections.enumerated() {
            let at = Int(min(sectionOffset, 0x4000)) + index * (is64 ? 64 : 40)
            guard at + 64 <= image.bytes.count else { break }
            image.set(at, section.name)
            image.set(at + 4, section.type)
            let fields = [section.flags, section.address, section.offset, section.byteCount]
            for (field, value) in fields.enumerated() { set(at + 8 + field * (is64 ? 8 : 4), value, &image) }
        }
        for (offset, byte) in [(0x800, 8), (0x804, 4), (0x808, 1)] { image.bytes[offset] = UInt8(byte) }
        image.bytes.replaceSubrange(0x80C..<0x814, with: Array("OpenBSD\0".utf8))
        for index in 0x1000..<0x2000 { image.bytes[index] = 0x90 }
        for index in 0x2000..<0x2400 { image.bytes[index] = UInt8(truncatingIfNeeded: index &* 7) }
        image.bytes.replaceSubrange(0x2000..<0x2000 + Self.names.utf8.count, with: Array(Self.names.utf8))
        return image.bytes
    }

    func with(_ change: (inout ELFBuilder) -> Void) -> ELFBuilder {
        var copy = self
        change(&copy)
        return copy
    }
}

private let amd64 = ELFBuilder()
private let i386 = ELFBuilder(is64: false)

@Suite("OpenBSD image") struct OpenBSDImageTests {
    /// The words that the kernel finds behind the return address.
    private static func arguments(_ memory: GuestMemory, _ state: CPUState) -> [UInt32?] {
        (1...8).map { memory.load(state[.rsp] + UInt64($0) * 4, as: UInt32.self) }
    }

    @Test func `64-bit kernel is entered in compatibility mode, the first gigabyte mapped to itself`() throws {
        let (memory, state) = try load(amd64.bytes)
        #expect(state.rip == 0x20_0010)
        #expect(state.rflags == 2)
        #expect(state.cr0 & 0x8000_0001 == 0x8000_0001)
        #expect(state.cr3 == 0x1_1000)
        #expect(state.cr4 == 0x30)
        #expect(state.msr.efer == 0x500)
        #expect(state.cs.selector == 8 && state.cs.isBig && !state.cs.isLong && state.cs.limit == .max)
        #expect([state.ds, state.es, state.fs, state.gs, state.ss].allSatisfy { $0.selector == 0x10 && $0.limit == .max })
        #expect(state.gdtr.base == 0x1_0000 && state.gdtr.limit == 31)
        #expect(memory.load(0x1_0018, as: UInt64.self) == 0x00AF_9B00_0000_FFFF)
        #expect(memory.load(0x1_1000, as: UInt64.self) == 0x1_2003)
        #expect(memory.load(0x1_2000, as: UInt64.self) == 0x1_3003)
        #expect(memory.load(0x1_2008, as: UInt64.self) == 0)
        #expect(memory.load(0x1_3000 + 511 * 8, as: UInt64.self) == 0x3FE0_0083)
    }

    @Test func `32-bit kernel is entered with 4 MB pages over all addresses`() throws {
        let (memory, state) = try load(i386.bytes)
        #expect(state.rip == 0x20_0010)
        #expect(state.cr0 & 0x8000_0001 == 0x8000_0001)
        #expect(state.cr3 == 0x1_2000)
        #expect(state.cr4 == 0x10)
        #expect(state.msr.efer == 0)
        #expect(memory.load(0x1_2000, as: UInt32.self) == 0x83)
        #expect(memory.load(0x1_2FFC, as: UInt32.self) == 0xFFC0_0083)
    }

    @Test(arguments: [amd64, i386])
    func `stack holds what boot gives the kernel, below the return address's slot`(kernel: ELFBuilder) throws {
        let (memory, state) = try load(kernel.bytes)
        #expect(state[.rsp] == 0x1_0000 - 36)
        let header: UInt32 = kernel.is64 ? 64 : 52
        // Behind the segment's 12 KB there is the header only.
        let size: UInt32 = 12 + 5 * 20 + 12 + 32 + 4
        #expect(Self.arguments(memory, state) == [0, 0xA000_0004, 0x0E, 0x20_3000 + header, 0, 0, size, 0x2000])
    }

    @Test func `boot arguments are memory map and console, then the end`() throws {
        let (memory, _) = try load(amd64.bytes)
        var at: UInt64 = 0x2000
        func word() -> UInt32? {
            defer { at += 4 }
            return memory.load(at, as: UInt32.self)
        }
        func words(_ count: Int) -> [UInt32?] { (0..<count).map { _ in word() } }
        #expect(words(3) == [0, 112, 112])
        #expect(words(10) == [0, 0, 0x9_0000, 0, 1, 0x9_0000, 0, 0x7_0000, 0, 2])
        #expect(words(10) == [0x10_0000, 0, 0x1F0_0000, 0, 1, 0xEFFF_0000, 0, 0x1_0000, 0, 2])
        #expect(words(5) == [0, 0, 0, 0, 0])
        #expect(words(3) == [5, 44, 44])
        #expect(words(8) == [0x800, 115200, 0x3F8, 0, 0, 0, 0, 0])
        #expect(word() == .max)
    }

    @Test func `address of the interface that it boots from is an argument too`() throws {
        let file = TemporaryFile(amd64.bytes)
        let map = try MemoryMap(byteCount: 32 << 20)
        let memory = try GuestMemory(ranges: map.ranges)
        func load(_ address: [UInt8]) throws -> CPUState {
            try KernelLoader(kernel: .path(file.path), initrd: nil, commandLine: nil, bootAddress: address)
                .load(into: memory, map, rsdp: nil)
        }
        let state = try load([0xFE, 0xE1, 0xBA, 1, 2, 3])
        let start: UInt64 = 0x2000 + 112 + 44
        #expect(memory.read(start, count: 24) == [7, 0, 0, 0, 20, 0, 0, 0, 20, 0, 0, 0, 0xFE, 0xE1, 0xBA, 1, 2, 3, 0, 0, 255, 255, 255, 255])
        let size: UInt32 = 112 + 44 + 20 + 4
        #expect(Self.arguments(memory, state)[6] == size)
        #expect(message { _ = try load([1]) } == "boot device: an interface's address of 1 bytes: give one of 6")
    }

    @Test(arguments: [(amd64, UInt64(64), UInt64(64)), (i386, 52, 40)])
    func `symbols lie behind the kernel, their sections counted from the header's copy`(
        kernel: ELFBuilder, header: UInt64, entrySize: UInt64
    ) throws {
        let bytes = kernel.with { $0.sections = ELFBuilder.symbols }.bytes
        let (memory, state) = try load(bytes)
        let start: UInt64 = 0x20_3000
        let word: UInt64 = kernel.is64 ? 8 : 4
        func aligned(_ value: UInt64) -> UInt64 { (value + word - 1) / word * word }
        func field(_ at: UInt64) -> UInt64? {
            kernel.is64 ? memory.load(at, as: UInt64.self) : memory.load(at, as: UInt32.self).map(UInt64.init)
        }
        #expect(memory.read(start, count: 28) == Array(bytes[..<28]))
        #expect(field(start + (kernel.is64 ? 32 : 28)) == 0)
        #expect(field(start + (kernel.is64 ? 40 : 32)) == header)
        #expect(memory.load(start + (kernel.is64 ? 54 : 42), as: UInt32.self) == 0)
        #expect(memory.load(start + (kernel.is64 ? 60 : 48), as: UInt16.self) == 7)

        var offset = header + 7 * entrySize
        // CTF is for 64 bits only; code and what is cleared are where they are.
        for (index, section) in ELFBuilder.symbols.enumerated() {
            let at = start + header + UInt64(index) * entrySize
            let (flags, place) = (field(at + 8), field(at + (kernel.is64 ? 24 : 16)))
            guard [1, 2, 3].contains(index) || index == 4 && kernel.is64 else {
                #expect(flags == section.flags && place == section.offset, "\(index)")
                continue
            }
            #expect(flags == 2 && place == offset, "\(index)")
            let (from, count) = (Int(section.offset), Int(section.byteCount))
            #expect(memory.read(start + offset, count: count) == Array(bytes[from..<from + count]), "\(index)")
            offset = aligned(offset + section.byteCount)
        }
        #expect(Self.arguments(memory, state)[3] == UInt32(start + offset))
    }

    @Test func `names without symbols are counted but not loaded`() throws {
        let sections = ELFBuilder.symbols.filter { $0.type != 2 }
        let (memory, state) = try load(amd64.with { $0.sections = sections }.bytes)
        let offset = UInt64(64 + 6 * 64)
        #expect(memory.read(0x20_3000 + offset, count: 0x40) == [UInt8](repeating: 0, count: 0x40))
        #expect(Self.arguments(memory, state)[3] == UInt32(0x20_3000 + offset + 0x40 + 0x28 + 0x10))
    }

    @Test func `random data are other ones at each start, and only where they are wanted`() throws {
        let first = try load(amd64.bytes).memory.read(0x20_0800, count: 65) ?? []
        let second = try load(amd64.bytes).memory.read(0x20_0800, count: 65) ?? []
        #expect(first.dropLast() != second.dropLast())
        #expect(Set(first.dropLast()).count > 8)
        #expect(first.last == 0x90 && second.last == 0x90)
    }

    @Test func `note alone makes a kernel OpenBSD's`() throws {
        #expect(try load(amd64.with { $0.parts = [ELFBuilder.Part(), .note] }.bytes).state.cs.selector == 8)
        let unknown = amd64.with { $0.parts = [ELFBuilder.Part()] }.bytes
        #expect(message { _ = try load(unknown) }.hasPrefix("kernel FILE: has no PVH entry note"))
    }

    @Test func `entry point is the lower 28 bits of what the file says`() throws {
        #expect(try load(amd64.with { $0.entry = 0xFFFF_FFFF_8020_0FFF }.bytes).state.rip == 0x20_0FFF)
        #expect(try load(i386.with { $0.entry = 0xD020_2FFF }.bytes).state.rip == 0x20_2FFF)
    }

    @Test func `what other kernels take is refused`() throws {
        let file = TemporaryFile(amd64.bytes)
        let other = TemporaryFile([1])
        let map = try MemoryMap(byteCount: 32 << 20)
        let memory = try GuestMemory(ranges: map.ranges)
        func error(initrd: String? = nil, modules: [String] = [], commandLine: String? = nil) -> String {
            message {
                let loader = try KernelLoader(
                    kernel: file.path, initrd: initrd, modules: modules, commandLine: commandLine)
                _ = try loader.load(into: memory, map, rsdp: nil)
            }
        }
        #expect(error(initrd: other.path) == "initrd FILE: the kernel is OpenBSD's and takes none: leave it out")
        #expect(error(modules: [other.path]).hasPrefix("module FILE: the kernel is OpenBSD's and takes no modules"))
        #expect(error(commandLine: "-s") == "command line: the kernel is OpenBSD's and takes none: leave --cmdline out")
        #expect(error(commandLine: "") == "no error")
    }

    /// A section of symbols changed.
    private static func section(_ index: Int, _ change: (inout ELFBuilder.Section) -> Void) -> ELFBuilder {
        amd64.with {
            $0.sections = ELFBuilder.symbols
            change(&$0.sections[index])
        }
    }

    static let damaged: [(String, ELFBuilder)] = [
        ("has its entry point 0x203000 outside of its segments: link it again", amd64.with { $0.entry = 0x20_3000 }),
        (
            "wants 64 bytes of random data at 0x202fc1, outside of its segments: link it again",
            amd64.with { $0.parts[1].physical = 0x20_2FC1 }
        ),
        (
            "wants 64 bytes of random data at 0x7c00, outside of its segments: link it again",
            amd64.with { $0.parts[1].physical = 0x7C00 }
        ),
        (
            "wants 2M of random data at 0x200800, outside of its segments: link it again",
            amd64.with {
                $0.parts[0].memoryByteCount = 4 << 20
                $0.parts[1].fileByteCount = 2 << 20
            }
        ),
        ("has section headers of 63 bytes: link it again, or strip it", section(0) { _ in }.with { $0.sectionEntrySize = 63 }),
        ("is truncated: copy it again", section(0) { _ in }.with { $0.sectionCount = 65 }),
        ("is truncated: copy it again", section(0) { _ in }.with { $0.sectionOffset = .max }),
        (
            "has no section 7 with the names of sections: link it again, or strip it",
            section(0) { _ in }.with { $0.nameIndex = 7 }
        ),
        ("is truncated: copy it again", section(1) { $0.byteCount = .max }),
        ("is truncated: copy it again", section(1) { $0.offset = 0x3FC1 }),
        ("is truncated: copy it again", section(2) { $0.byteCount = 0x1F01 }),
        ("is truncated: copy it again", section(2) { $0.offset = .max }),
        ("is truncated: copy it again", section(3) { $0.byteCount = 1 << 40 }),
        (
            "and its symbols do not fit in 32M of memory: give more memory with -m, or strip it",
            amd64.with { $0.parts[0].memoryByteCount = 30 << 20 }
        ),
        (
            "has 64 bytes of symbols, which do not fit behind it: give more memory with -m, or strip it",
            section(0) { _ in }.with { $0.parts[0].memoryByteCount = 30 << 20 - 0x200 }
        ),
        (
            "has a segment at 0x202fff that overlaps another: link it again",
            amd64.with { $0.parts.append(ELFBuilder.Part(physical: 0x20_2FFF)) }
        ),
    ]

    @Test(arguments: damaged)
    func `damaged kernel is refused with a reason`(expected: String, kernel: ELFBuilder) {
        #expect(message { _ = try load(kernel.bytes) } == "kernel FILE: \(expected)")
    }

    @Test func `kernel that reaches beyond 256 MB is refused`() {
        let kernel = amd64.with { $0.parts.append(ELFBuilder.Part(physical: 0x0FFF_F000)) }
        #expect(
            message { _ = try load(kernel.bytes, megabytes: 512) }
                == "kernel FILE: reaches to 0x10002040: link and strip it so that it ends below 256 MB")
    }

    @Test func `headers of random bytes never trap`() {
        var random = SplitMix64(seed: 0xB5D)
        for round in 0..<1000 {
            let kernel = (round % 2 == 0 ? amd64 : i386).with { $0.sections = ELFBuilder.symbols }
            var image = Fields(bytes: kernel.bytes)
            for _ in 0..<Int.random(in: 1...6, using: &random) {
                // ELF header, program headers, note or section headers.
                let range = [0x10..<0x40, 0x100..<0x170, 0x800..<0x814, 0x3000..<0x31C0].randomElement(using: &random) ?? 0..<8
                let values: [UInt32] = [0, 1, 2, 3, 0xFFF, 0x20_0000, 0x7FFF_FFFF, .max, .random(in: 0...(.max), using: &random)]
                image.set(Int.random(in: range, using: &random) & ~3, values.randomElement(using: &random) ?? 0)
            }
            _ = message { _ = try load(image.bytes) }
        }
    }
}
