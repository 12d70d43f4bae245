import TestSupport
import Testing
import VMM

@testable import Machine

/// Loads files into a fresh guest of so many megabytes.
func load(
    _ kernel: [UInt8], initrd: [UInt8]? = nil, commandLine: String? = nil, megabytes: UInt64 = 32
) throws -> (memory: GuestMemory, state: CPUState) {
    let kernelFile = TemporaryFile(kernel)
    let initrdFile = initrd.map { TemporaryFile($0) }
    let map = try MemoryMap(byteCount: megabytes << 20)
    let memory = try GuestMemory(ranges: map.ranges)
    return try withExtendedLifetime((kernelFile, initrdFile)) {
        let loader = try KernelLoader(kernel: kernelFile.path, initrd: initrdFile?.path, commandLine: commandLine)
        return (memory, try loader.load(into: memory, map, rsdp: 0x9_D000))
    }
}

/// The message of an error, with the temporary file's name taken out.
func message(_ body: () throws -> Void) -> String {
    do {
        try body()
        return "no error"
    } catch {
        return "\(error)".replacing(#//tmp/vmd-test-\w+/#, with: "FILE")
    }
}

@Suite("Linux bzImage") struct LinuxImageTests {
    @Test func `payload lies at the preferred address and is entered 0x200 bytes into it`() throws {
        let (memory, state) = try load(bzImage())
        #expect(memory.read(0x100_0000, count: 4) == [0, 1, 2, 3])
        #expect(memory.load(0x100_0000 + 8191, as: UInt8.self) == 0xFF)
        #expect(memory.load(0x100_0000 + 8192, as: UInt8.self) == 0)
        #expect(state.rip == 0x100_0200)
        #expect(state[.rsi] == 0x7000)
    }

    @Test func `kernel gets a random seed, another one at each start`() throws {
        var seeds: Set<[UInt8]> = []
        for _ in 0..<2 {
            let (memory, state) = try load(bzImage())
            let node = try #require(memory.load(state[.rsi] + 0x250, as: UInt64.self))
            #expect(memory.load(node, as: UInt64.self) == 0)
            // SETUP_RNG_SEED
            #expect(memory.load(node + 8, as: UInt32.self) == 9)
            #expect(memory.load(node + 12, as: UInt32.self) == 32)
            seeds.insert(memory.read(node + 16, count: 32) ?? [])
        }
        #expect(seeds.count == 2)
    }

    @Test func `CPU is in long mode with flat segments and interrupts off`() throws {
        let (_, state) = try load(bzImage())
        #expect(state.modeName == "long mode")
        #expect(state.cr0 & 0x8000_0001 == 0x8000_0001)
        #expect(state.cr4 & 0x20 != 0)
        #expect(state.msr.efer == 0x500)
        #expect(state.rflags == 2)
        #expect(state.cs.selector == 0x10)
        #expect([state.ds, state.es, state.ss].allSatisfy { $0.selector == 0x18 && $0.base == 0 })
    }

    @Test(arguments: [
        bzImage { $0.set(0x236, UInt16(0)) },
        // The field that tells of a 64-bit entry came with 2.12.
        bzImage { $0.set(0x206, UInt16(0x20B)) },
        bzImage { $0.set(0x206, UInt16(0x20A)) },
    ])
    func `kernel without a 64-bit entry is entered at its first byte in protected mode`(kernel: [UInt8]) throws {
        let (memory, state) = try load(kernel)
        #expect(state.modeName == "protected mode")
        #expect(state.cr0 & 0x8000_0001 == 1)
        #expect(state.cr4 == 0)
        #expect(state.msr.efer == 0)
        #expect(state.rip == 0x100_0000)
        #expect(state[.rsi] == 0x7000)
        #expect([.rbx, .rbp, .rdi].allSatisfy { state[$0] == 0 })
        #expect(state.rflags == 2)
        #expect(state.cs.selector == 0x10 && state.cs.isBig && !state.cs.isLong && state.cs.limit == .max)
        #expect([state.ds, state.es, state.ss].allSatisfy { $0.selector == 0x18 && $0.base == 0 && $0.limit == .max })
        #expect(memory.load(state.gdtr.base + 0x10, as: UInt64.self) == 0x00CF_9B00_0000_FFFF)
        // code32_start
        #expect(memory.load(0x7214, as: UInt32.self) == 0x100_0000)
    }

    @Test func `page tables map the first 4 GB to themselves`() throws {
        let (memory, state) = try load(bzImage())
        for address: UInt64 in [0, 0x7000, 0x100_0200, 0x4000_0000, 0xEFFF_0000, 0xFFFF_FFFF] {
            let pml4 = try #require(memory.load(state.cr3 + (address >> 39 & 511) * 8, as: UInt64.self))
            let pdpt = try #require(memory.load(pml4 & ~0xFFF + (address >> 30 & 511) * 8, as: UInt64.self))
            let directory = try #require(memory.load(pdpt & ~0xFFF + (address >> 21 & 511) * 8, as: UInt64.self))
            #expect(pml4 & 3 == 3 && pdpt & 3 == 3)
            #expect(directory == address & ~0x1F_FFFF | 0x83)
        }
    }

    @Test func `GDT holds the descriptors that the segments were loaded from`() throws {
        let (memory, state) = try load(bzImage())
        #expect(memory.load(state.gdtr.base + 0x10, as: UInt64.self) == 0x00AF_9B00_0000_FFFF)
        #expect(memory.load(state.gdtr.base + 0x18, as: UInt64.self) == 0x00CF_9300_0000_FFFF)
        #expect(state.gdtr.limit == 31)
    }

    @Test func `zero page holds header, command line, ACPI and memory map`() throws {
        let (memory, _) = try load(bzImage())
        #expect(memory.read(0x7202, count: 4) == Array("HdrS".utf8))
        #expect(memory.load(0x7210, as: UInt8.self) == 0xFF)
        let commandLine = try #require(memory.load(0x7228, as: UInt32.self))
        #expect(memory.read(UInt64(commandLine), count: 14) == Array("console=ttyS0".utf8) + [0])
        #expect(memory.load(0x7070, as: UInt64.self) == 0x9_D000)
        #expect(memory.load(0x71E8, as: UInt8.self) == 4)
        #expect(memory.load(0x71EF, as: UInt8.self) == 0)
        #expect(memory.load(0x72D0 + 8, as: UInt64.self) == 0x9_0000)
        #expect(memory.load(0x72D0 + 40 + 8, as: UInt64.self) == 31 << 20)
    }

    @Test func `initrd lies page aligned at the end of memory`() throws {
        let (memory, _) = try load(bzImage(), initrd: [UInt8](repeating: 0xA5, count: 5000))
        let base = try #require(memory.load(0x7218, as: UInt32.self))
        #expect(base == 32 << 20 - 8192)
        #expect(memory.load(0x721C, as: UInt32.self) == 5000)
        #expect(memory.read(UInt64(base) + 4999, count: 2) == [0xA5, 0])
    }

    @Test func `initrd lies below the highest address that the kernel reads`() throws {
        let kernel = bzImage { $0.set(0x22C, UInt32(0x17F_FFFF)) }
        let (memory, _) = try load(kernel, initrd: [1, 2, 3])
        #expect(memory.load(0x7218, as: UInt32.self) == 0x17F_F000)
    }

    @Test func `kernel without a preference is loaded at the first aligned address`() throws {
        let (_, state) = try load(bzImage { $0.set(0x258, UInt64(0)) })
        #expect(state.rip == 0x20_0200)
    }

    @Test func `last bytes of the payload may be missing from its last paragraph`() throws {
        let (_, state) = try load(Array(bzImage().dropLast(15)))
        #expect(state.rip == 0x100_0200)
    }

    @Test func `bytes behind the payload are not loaded`() throws {
        let (memory, _) = try load(bzImage() + [UInt8](repeating: 0xEE, count: 4096))
        #expect(memory.load(0x100_0000 + 8192, as: UInt8.self) == 0)
    }

    @Test(arguments: [
        (255, nil),
        (256, "command line: has 256 bytes, the kernel takes at most 255: shorten --cmdline"),
    ])
    func `command line has the length that the header allows`(count: Int, error: String?) {
        let text = String(repeating: "x", count: count)
        #expect(message { _ = try load(bzImage(), commandLine: text) } == error ?? "no error")
    }

    @Test func `command line is limited even when the header is not`() {
        let kernel = bzImage { $0.set(0x238, UInt32.max) }
        let text = String(repeating: "x", count: 0x10000)
        #expect(message { _ = try load(kernel, commandLine: text) }.contains("at most 65535"))
    }

    static let damaged: [(String, [UInt8])] = [
        ("kernel FILE: is truncated: copy it again", Array(bzImage().dropLast(16))),
        ("kernel FILE: is truncated: copy it again", Array(bzImage().prefix(1024))),
        ("kernel FILE: is truncated: copy it again", Array(bzImage().prefix(0x210))),
        ("kernel FILE: has a damaged setup header: copy it again", bzImage { $0.set(0x1FE, UInt16(0)) }),
        ("kernel FILE: has a damaged setup header: copy it again", bzImage { $0.set(0x230, UInt32(0)) }),
        ("kernel FILE: has a damaged setup header: copy it again", bzImage { $0.set(0x230, UInt32(3)) }),
        ("kernel FILE: has a damaged setup header: copy it again", bzImage { $0.set(0x201, UInt8(0x10)) }),
        ("kernel FILE: has a damaged setup header: copy it again", bzImage { $0.set(0x201, UInt8(0xFF)) }),
        ("kernel FILE: speaks boot protocol 2.9 and needs a BIOS: boot it from a disk or CD, or give Linux 2.6.31 or newer", bzImage { $0.set(0x206, UInt16(0x209)) }),
        ("kernel FILE: speaks boot protocol 0.0 and needs a BIOS: boot it from a disk or CD, or give Linux 2.6.31 or newer", bzImage { $0.set(0x206, UInt16(0)) }),
        ("kernel FILE: is a zImage: give a bzImage", bzImage { $0.set(0x211, UInt8(0)) }),
        ("kernel FILE: is truncated: copy it again", bzImage { $0.set(0x1F1, UInt8(0xFF)) }),
        ("kernel FILE: is truncated: copy it again", bzImage { $0.set(0x1F4, UInt32.max) }),
        ("kernel FILE: is truncated: copy it again", bzImage { $0.set(0x1F4, UInt32(0)) }),
        (
            "kernel FILE: wants to be loaded at 0xffffffffffff0000, where no memory can be: copy it again",
            bzImage { $0.set(0x258, UInt64(0xFFFF_FFFF_FFFF_0000)) }
        ),
        (
            "kernel FILE: wants to be loaded at 0x100000000, where no memory can be: copy it again",
            bzImage { $0.set(0x258, UInt64(1 << 32)) }
        ),
        (
            "kernel FILE: does not fit in 32M of memory: give at least -m 80M",
            bzImage { $0.set(0x260, UInt32(64 << 20)) }
        ),
        (
            "kernel FILE: wants to be loaded at 0x1000000, where no memory can be: copy it again",
            bzImage { $0.set(0x260, UInt32.max) }
        ),
    ]

    @Test(arguments: damaged)
    func `damaged kernel is refused with a reason`(expected: String, kernel: [UInt8]) {
        #expect(message { _ = try load(kernel) } == expected)
    }

    @Test func `kernel cut off anywhere is refused or loaded, and never traps`() {
        let whole = bzImage(payloadByteCount: 1024)
        for count in stride(from: 1, through: whole.count, by: 7) {
            let result = message { _ = try load(Array(whole.prefix(count))) }
            #expect(result.hasPrefix("kernel FILE: is ") || (count > whole.count - 16 && result == "no error"))
        }
    }

    @Test func `header of random bytes never traps`() {
        var random = SplitMix64(seed: 0x5EED)
        for _ in 0..<500 {
            var image = bzImage(payloadByteCount: 1024)
            for _ in 0..<Int.random(in: 1...8, using: &random) {
                image[Int.random(in: 0x1F1..<0x270, using: &random)] = .random(in: 0...255, using: &random)
            }
            _ = message { _ = try load(image, initrd: [1, 2, 3]) }
        }
    }

    @Test func `initrd that does not fit says how much memory would do`() {
        let error = message { _ = try load(bzImage(), initrd: [UInt8](repeating: 0, count: 16 << 20)) }
        #expect(
            error == "initrd FILE: its 16M do not fit beside the kernel, there is room for 15M: give at least -m 34M")
    }
}
