import TestSupport
import Testing
import VMM

@testable import Machine

/// The twelve bytes of a header, or 32 with address fields, where the kernels below have it.
private func setHeader(_ image: inout Fields, at offset: Int = 0x20, flags: UInt32 = 3, addresses: [UInt32] = []) {
    image.set(offset, UInt32(0x1BAD_B002))
    image.set(offset + 4, flags)
    image.set(offset + 8, 0 &- 0x1BAD_B002 &- flags)
    for (index, address) in addresses.enumerated() { image.set(offset + 12 + index * 4, address) }
}

/// A flat file of 4 KB: its first byte goes to 2 MB, which is the entry, and 4 KB of zeros follow.
private func flat(
    header: UInt32 = 0x20_0020, load: UInt32 = 0x20_0000, loadEnd: UInt32 = 0x20_1000, bssEnd: UInt32 = 0x20_2000,
    entry: UInt32 = 0x20_0000, flags: UInt32 = 0x1_0003, at offset: Int = 0x20, byteCount: Int = 0x1000
) -> [UInt8] {
    var image = Fields(bytes: [UInt8](repeating: 0x90, count: byteCount))
    setHeader(&image, at: offset, flags: flags, addresses: [header, load, loadEnd, bssEnd, entry])
    return image.bytes
}

/// One part of an ELF file.
private struct Part {
    var offset: UInt32 = 0x1000
    var virtual: UInt32 = 0x20_0000
    var physical: UInt32 = 0x20_0000
    var fileByteCount: UInt32 = 0x1000
    var memoryByteCount: UInt32 = 0x3000
}

/// A 32-bit ELF file of 8 KB with a multiboot header.
private func elf32(_ parts: [Part] = [Part()], entry: UInt32 = 0x20_0000, flags: UInt32 = 3) -> [UInt8] {
    var image = Fields(bytes: [UInt8](repeating: 0, count: 0x1000) + [UInt8](repeating: 0x90, count: 0x1000))
    image.bytes.replaceSubrange(0..<7, with: [0x7F, 0x45, 0x4C, 0x46, 1, 1, 1])
    image.set(16, UInt16(2))
    image.set(18, UInt16(3))
    image.set(24, entry)
    image.set(28, UInt32(64))
    image.set(42, UInt16(32))
    image.set(44, UInt16(parts.count))
    for (index, part) in parts.enumerated() {
        for (field, value) in [
            1, part.offset, part.virtual, part.physical, part.fileByteCount, part.memoryByteCount, 7, 4096,
        ].enumerated() {
            image.set(64 + index * 32 + field * 4, value)
        }
    }
    setHeader(&image, at: 0x400, flags: flags)
    return image.bytes
}

/// A 64-bit one, with a PVH note beside the multiboot header.
private func elf64() -> [UInt8] {
    pvhImage {
        $0.set(24, UInt64(0x20_0000))
        setHeader(&$0, at: 0x800)
    }
}

/// The bytes up to a zero.
private func text(_ memory: GuestMemory, _ address: UInt32?) throws -> String {
    var at = UInt64(try #require(address))
    var bytes: [UInt8] = []
    while let byte = memory.load(at, as: UInt8.self), byte != 0 {
        bytes.append(byte)
        at += 1
    }
    return String(decoding: bytes, as: UTF8.self)
}

@Suite("Multiboot image") struct MultibootImageTests {
    @Test(arguments: [flat(), elf32(), elf64()])
    func `kernel is loaded and entered in protected mode with the magic number`(kernel: [UInt8]) throws {
        let (memory, state) = try load(kernel)
        #expect(memory.load(0x20_0FFF, as: UInt8.self) == 0x90)
        #expect(memory.load(0x20_1000, as: UInt8.self) == 0)
        #expect(state.rip == 0x20_0000)
        #expect(state.modeName == "protected mode")
        #expect(state.cr0 & 0x8000_0001 == 1)
        #expect(state.rflags == 2)
        #expect(state[.rax] == 0x2BAD_B002)
        #expect(state.cs.isBig && state.cs.base == 0 && state.cs.limit == .max)
        #expect([state.ds, state.es, state.fs, state.gs, state.ss].allSatisfy { $0.base == 0 && $0.limit == .max })
    }

    @Test func `information holds memory, command line, memory map and loader`() throws {
        let (memory, state) = try load(elf32(), commandLine: "one two")
        let info = state[.rbx]
        func field(_ offset: UInt64) -> UInt32? { memory.load(info + offset, as: UInt32.self) }
        #expect(field(0) == 0x24D)
        #expect(field(4) == 576)
        #expect(field(8) == 31 << 10)
        #expect(try text(memory, field(16)).hasSuffix(" one two"))
        #expect(field(20) == 0)
        #expect(try text(memory, field(64)) == "vmd")
        #expect(field(44) == 96)
        let map = UInt64(try #require(field(48)))
        #expect(memory.load(map + 48, as: UInt32.self) == 20)
        #expect(memory.load(map + 52, as: UInt64.self) == 1 << 20)
        #expect(memory.load(map + 60, as: UInt64.self) == 31 << 20)
        #expect(memory.load(map + 68, as: UInt32.self) == 1)
        for offset in [12, 28, 32, 36, 40, 52, 56, 60, 68, 72, 88, 112] as [UInt64] { #expect(field(offset) == 0) }
    }

    @Test func `kernel's path comes first on its command line`() throws {
        let file = TemporaryFile(elf32())
        let map = try MemoryMap(byteCount: 32 << 20)
        let memory = try GuestMemory(ranges: map.ranges)
        for (line, expected) in [("a b", "\(file.path) a b"), ("", file.path), (nil, file.path)] as [(String?, String)] {
            let state = try KernelLoader(kernel: file.path, initrd: nil, commandLine: line).load(into: memory, map, rsdp: nil)
            #expect(try text(memory, memory.load(state[.rbx] + 16, as: UInt32.self)) == expected)
        }
    }

    @Test func `ramdisk and modules lie on pages of their own, in order, with their arguments`() throws {
        let kernel = TemporaryFile(elf32())
        let files = [[1, 2, 3], [UInt8](repeating: 7, count: 5000), [9]].map { TemporaryFile($0) }
        let map = try MemoryMap(byteCount: 32 << 20)
        let memory = try GuestMemory(ranges: map.ranges)
        let loader = try KernelLoader(
            kernel: kernel.path, initrd: files[0].path, modules: ["\(files[1].path),a=1,b c", files[2].path + ","],
            commandLine: "")
        let state = try loader.load(into: memory, map, rsdp: nil)
        #expect(memory.load(state[.rbx] + 20, as: UInt32.self) == 3)
        let list = UInt64(try #require(memory.load(state[.rbx] + 24, as: UInt32.self)))
        let expected: [(UInt32, UInt32, String)] = [
            (0x20_3000, 0x20_3003, files[0].path), (0x20_4000, 0x20_5388, files[1].path + " a=1,b c"),
            (0x20_6000, 0x20_6001, files[2].path),
        ]
        for (index, module) in expected.enumerated() {
            let entry = list + UInt64(index) * 16
            #expect(memory.load(entry, as: UInt32.self) == module.0)
            #expect(memory.load(entry + 4, as: UInt32.self) == module.1)
            #expect(try text(memory, memory.load(entry + 8, as: UInt32.self)) == module.2)
            #expect(memory.load(entry + 12, as: UInt32.self) == 0)
        }
        #expect(memory.read(0x20_4000 + 4999, count: 2) == [7, 0])
    }

    @Test func `video wish is left open`() throws {
        let (memory, state) = try load(elf32(flags: 7))
        #expect(memory.load(state[.rbx], as: UInt32.self) == 0x24D)
    }

    @Test func `address fields rule over the ELF header`() throws {
        var image = Fields(bytes: elf32())
        setHeader(&image, at: 0x400, flags: 0x1_0000, addresses: [0x30_0400, 0x30_0000, 0, 0, 0x30_1000])
        let (memory, state) = try load(image.bytes)
        #expect(state.rip == 0x30_1000)
        #expect(memory.read(0x30_0000, count: 4) == [0x7F, 0x45, 0x4C, 0x46])
    }

    @Test func `flat kernel without ends is loaded to the end of the file`() throws {
        let (memory, _) = try load(flat(loadEnd: 0, bssEnd: 0))
        #expect(memory.read(0x20_0FFF, count: 2) == [0x90, 0])
    }

    @Test func `flat kernel may start inside the file`() throws {
        let (memory, state) = try load(flat(header: 0x20_0000, loadEnd: 0x20_0010, bssEnd: 0, entry: 0x20_000F))
        #expect(memory.load(0x20_0000, as: UInt32.self) == 0x1BAD_B002)
        #expect(state.rip == 0x20_000F)
    }

    @Test func `virtual entry point is entered where it was loaded`() throws {
        let image = elf32([Part(virtual: 0xC020_0000)], entry: 0xC020_0010)
        #expect(try load(image).state.rip == 0x20_0010)
    }

    @Test func `header may end at the 8192nd byte and no later`() throws {
        #expect(try load(flat(header: 0x20_1FE0, loadEnd: 0, bssEnd: 0, at: 8192 - 32, byteCount: 8192)).state.rip == 0x20_0000)
        let late = flat(header: 0x20_1FE4, loadEnd: 0, bssEnd: 0, at: 8192 - 28, byteCount: 12288)
        #expect(
            message { _ = try load(late) }
                == "kernel FILE: has its multiboot header at 0x1fe4, which ends behind the first 8192 bytes: link it again")
        // Found by nobody, it makes no kernel.
        let later = flat(at: 8192, byteCount: 12288)
        #expect(message { _ = try load(later) }.contains("is not a kernel"))
    }

    @Test func `file that has grown since it was opened is refused, its header behind the old end`() throws {
        let image = flat(header: 0x20_0000, at: 0x800)
        let file = TemporaryFile(Array(image[..<16]))
        let loader = try KernelLoader(kernel: file.path, initrd: nil, commandLine: nil)
        file.append(Array(image[16...]))
        let map = try MemoryMap(byteCount: 32 << 20)
        let memory = try GuestMemory(ranges: map.ranges)
        #expect(message { _ = try loader.load(into: memory, map, rsdp: nil) } == "kernel FILE: is truncated: copy it again")
    }

    @Test func `number without its checksum is no header`() {
        var image = Fields(bytes: flat())
        image.set(0x28, UInt32(1))
        #expect(message { _ = try load(image.bytes) }.contains("is not a kernel"))
    }

    static let damaged: [(String, [UInt8])] = [
        ("demands multiboot features 0xfff8, which do not exist: give a kernel for multiboot 1", elf32(flags: 0xFFFF)),
        ("has a multiboot header without addresses and is no ELF file: link it again", flat(flags: 3)),
        (
            "has a multiboot header whose header_addr 0x1fffff lies below load_addr 0x200000: link it again",
            flat(header: 0x1F_FFFF)
        ),
        (
            "has a multiboot header whose load_addr 0x200000 lies before the file's first byte: link it again",
            flat(header: 0x20_0021)
        ),
        (
            "has a multiboot header whose load_end_addr 0x1ff000 lies below load_addr 0x200000: link it again",
            flat(loadEnd: 0x1F_F000)
        ),
        ("is truncated: copy it again", flat(loadEnd: 0x20_1001)),
        ("is truncated: copy it again", flat(loadEnd: .max)),
        (
            "has a multiboot header whose bss_end_addr 0x200fff lies below the end of what is loaded: link it again",
            flat(bssEnd: 0x20_0FFF)
        ),
        (
            "has a multiboot header whose bss_end_addr 0x1 lies below the end of what is loaded: link it again",
            flat(loadEnd: 0, bssEnd: 1)
        ),
        (
            "has a multiboot header whose entry_addr 0x202000 lies outside of what is loaded: link it again",
            flat(entry: 0x20_2000)
        ),
        (
            "has a multiboot header whose entry_addr 0x0 lies outside of what is loaded: link it again",
            flat(entry: 0)
        ),
        (
            "has a segment at 0x7c00, where no memory can be: link it between 1 MB and 0xefff0000",
            flat(header: 0x7C20, load: 0x7C00, loadEnd: 0x8C00, bssEnd: 0, entry: 0x7C00)
        ),
        (
            "has a segment at 0xfffff000, where no memory can be: link it between 1 MB and 0xefff0000",
            flat(header: 0xFFFF_F020, load: 0xFFFF_F000, loadEnd: 0, bssEnd: 0, entry: 0xFFFF_F000)
        ),
        (
            "has a segment at 0x200000, where no memory can be: link it between 1 MB and 0xefff0000",
            flat(bssEnd: .max)
        ),
        ("does not fit in 32M of memory: give at least -m 48M", flat(bssEnd: 48 << 20)),
        (
            "has a segment at 0xffffffff, where no memory can be: link it between 1 MB and 0xefff0000",
            elf32([Part(), Part(physical: .max)])
        ),
        (
            "has a segment at 0xb8000, where no memory can be: link it between 1 MB and 0xefff0000",
            elf32([Part(), Part(physical: 0xB8000)])
        ),
        (
            "has a segment at 0x202fff that overlaps another: link it again",
            elf32([Part(), Part(physical: 0x20_2FFF)])
        ),
        ("has a segment at 0x200000 that overlaps another: link it again", elf32([Part(), Part()])),
        ("has a segment longer than its memory: copy it again", elf32([Part(memoryByteCount: 0xFFF)])),
        ("is truncated: copy it again", elf32([Part(fileByteCount: 0x1001)])),
        ("is truncated: copy it again", elf32([Part(offset: .max)])),
        ("has its entry point 0x203000 outside of its segments: link it again", elf32(entry: 0x20_3000)),
        ("has its entry point 0x200000 outside of its segments: link it again", elf32([Part(memoryByteCount: 0)])),
        ("has no usable program headers: give a linked kernel, not an object file", elf32([])),
    ]

    @Test(arguments: damaged)
    func `damaged kernel is refused with a reason`(expected: String, kernel: [UInt8]) {
        #expect(message { _ = try load(kernel) } == "kernel FILE: \(expected)")
    }

    @Test func `module that does not fit says how much memory would do`() throws {
        let error = message { _ = try load(elf32(), initrd: [UInt8](repeating: 0, count: 30 << 20)) }
        #expect(
            error == "initrd FILE: its 30M do not fit beside the kernel, there is room for 29.9M: give at least -m 33M")
    }

    @Test func `modules whose text is endless are refused`() throws {
        let kernel = TemporaryFile(elf32())
        let module = TemporaryFile([1])
        let map = try MemoryMap(byteCount: 32 << 20)
        let memory = try GuestMemory(ranges: map.ranges)
        let long = module.path + "," + String(repeating: "x", count: 0x10000)
        let loader = try KernelLoader(
            kernel: kernel.path, initrd: nil, modules: Array(repeating: long, count: 4), commandLine: "")
        #expect(message { _ = try loader.load(into: memory, map, rsdp: nil) }.hasPrefix("modules: 4 with "))
    }

    @Test(arguments: [(bzImage(), "is Linux"), (pvhImage(), "is entered by PVH")])
    func `modules for another kind of kernel are refused`(image: [UInt8], reason: String) throws {
        let kernel = TemporaryFile(image)
        let module = TemporaryFile([1])
        let map = try MemoryMap(byteCount: 32 << 20)
        let memory = try GuestMemory(ranges: map.ranges)
        let loader = try KernelLoader(kernel: kernel.path, initrd: nil, modules: [module.path], commandLine: "")
        #expect(
            message { _ = try loader.load(into: memory, map, rsdp: nil) }
                == "module FILE: the kernel \(reason) and takes no modules: give it as --initrd")
    }

    @Test func `missing module is named`() {
        let kernel = TemporaryFile(elf32())
        let error = message {
            _ = try KernelLoader(kernel: kernel.path, initrd: nil, modules: ["/nonexistent/m,x"], commandLine: "")
        }
        #expect(error == "module /nonexistent/m: No such file or directory: check the path")
    }

    @Test func `headers of random bytes never trap`() {
        var random = SplitMix64(seed: 0xB007)
        for round in 0..<1000 {
            var image = Fields(bytes: round % 2 == 0 ? elf32([Part(), Part(physical: 0x21_0000)]) : flat())
            for _ in 0..<Int.random(in: 1...6, using: &random) {
                // Program headers or address fields, most of them near a border.
                let offset = round % 2 == 0 ? Int.random(in: 24..<128, using: &random) : Int.random(in: 0x2C..<0x40, using: &random)
                let values: [UInt32] = [0, 1, 0xFFF, 0x20_0000, 0x7FFF_FFFF, 0x8000_0000, .max, .random(in: 0...(.max), using: &random)]
                image.set(offset & ~3, values.randomElement(using: &random) ?? 0)
            }
            _ = message { _ = try load(image.bytes, initrd: [1]) }
        }
    }
}
