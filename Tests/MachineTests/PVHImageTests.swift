import TestSupport
import Testing
import VMM

@testable import Machine

@Suite("PVH image") struct PVHImageTests {
    @Test func `segment lies at its physical address and the note's entry is entered in protected mode`() throws {
        let (memory, state) = try load(pvhImage())
        #expect(memory.read(0x20_0000, count: 2) == [0x90, 0x90])
        #expect(memory.load(0x20_1000, as: UInt8.self) == 0)
        #expect(state.rip == 0x20_0000)
        #expect(state.modeName == "protected mode")
        #expect(state.cr0 & 0x8000_0001 == 1)
        #expect(state.cr4 == 0)
        #expect(state.msr.efer == 0)
        #expect(state.cs.isBig && state.cs.base == 0 && state.cs.limit == .max)
        #expect(state.tr.limit == 0x67)
    }

    @Test func `start info holds command line, ramdisk, ACPI and memory map`() throws {
        let (memory, state) = try load(pvhImage(), initrd: [7, 8, 9])
        let info = state[.rbx]
        #expect(memory.load(info, as: UInt32.self) == 0x336E_C578)
        #expect(memory.load(info + 4, as: UInt32.self) == 1)
        #expect(memory.load(info + 12, as: UInt32.self) == 1)
        let module = try #require(memory.load(info + 16, as: UInt64.self))
        let base = try #require(memory.load(module, as: UInt64.self))
        #expect(memory.load(module + 8, as: UInt64.self) == 3)
        #expect(memory.read(base, count: 3) == [7, 8, 9])
        let commandLine = try #require(memory.load(info + 24, as: UInt64.self))
        #expect(memory.read(commandLine, count: 8) == Array("console=".utf8))
        #expect(memory.load(info + 32, as: UInt64.self) == 0x9_D000)
        let table = try #require(memory.load(info + 40, as: UInt64.self))
        #expect(memory.load(info + 48, as: UInt32.self) == 4)
        #expect(memory.load(table + 48, as: UInt64.self) == 0x10_0000)
        #expect(memory.load(table + 48 + 16, as: UInt32.self) == 1)
    }

    @Test func `entry may be given in 64 bits`() throws {
        let image = pvhImage {
            $0.set(120 + 32, UInt64(44))
            $0.set(0x218, UInt32(8))
            $0.set(0x224, UInt64(0x20_0010))
        }
        #expect(try load(image).state.rip == 0x20_0010)
    }

    @Test func `32-bit file is entered the same way`() throws {
        let image = pvhImage {
            $0.bytes[4] = 1
            $0.set(18, UInt16(3))
            for offset in stride(from: 28, to: 64, by: 4) { $0.set(offset, UInt32(0)) }
            $0.set(28, UInt32(64))
            $0.set(42, UInt16(32))
            $0.set(44, UInt16(2))
            for (start, fields) in [
                (64, [1, 0x1000, 0, 0x20_0000, 0x1000, 0x3000]), (96, [4, 0x200, 0, 0, 40, 40]),
            ] as [(Int, [UInt32])] {
                for (index, field) in fields.enumerated() { $0.set(start + index * 4, field) }
            }
        }
        #expect(try load(image).state.rip == 0x20_0000)
    }

    static let damaged: [(String, [UInt8])] = [
        ("kernel FILE: has no PVH entry note: give the bzImage, or build with CONFIG_PVH", pvhImage { $0.set(0x21C, UInt32(17)) }),
        ("kernel FILE: has no PVH entry note: give the bzImage, or build with CONFIG_PVH", pvhImage { $0.set(0x200, UInt32.max) }),
        ("kernel FILE: is an ELF file for another processor: give one for x86", pvhImage { $0.set(18, UInt16(183)) }),
        ("kernel FILE: is an ELF file for another processor: give one for x86", pvhImage { $0.bytes[5] = 2 }),
        ("kernel FILE: has a damaged ELF header: copy it again", pvhImage { $0.bytes[4] = 3 }),
        ("kernel FILE: is truncated: copy it again", Array(pvhImage().dropLast())),
        ("kernel FILE: is truncated: copy it again", Array(pvhImage().prefix(100))),
        ("kernel FILE: is truncated: copy it again", Array(pvhImage().prefix(10))),
        ("kernel FILE: is truncated: copy it again", pvhImage { $0.set(64 + 32, UInt64.max) }),
        ("kernel FILE: is truncated: copy it again", pvhImage { $0.set(32, UInt64.max) }),
        (
            "kernel FILE: has no usable program headers: give a linked kernel, not an object file",
            pvhImage { $0.set(56, UInt16(0)) }
        ),
        ("kernel FILE: has a segment longer than its memory: copy it again", pvhImage { $0.set(64 + 40, UInt64(1)) }),
        (
            "kernel FILE: has a segment at 0x0, where no memory can be: link it between 1 MB and 0xefff0000",
            pvhImage {
                $0.set(64 + 24, UInt64(0))
                $0.set(0x224, UInt32(0))
            }
        ),
        (
            "kernel FILE: has its entry point outside of its segments: copy it again",
            pvhImage { $0.set(0x224, UInt32(0x20_1000)) }
        ),
        (
            "kernel FILE: does not fit in 32M of memory: give at least -m 66M",
            pvhImage { $0.set(64 + 40, UInt64(64 << 20)) }
        ),
        (
            "kernel FILE: has a segment at 0x200000, where no memory can be: link it between 1 MB and 0xefff0000",
            pvhImage { $0.set(64 + 40, UInt64.max) }
        ),
    ]

    @Test(arguments: damaged)
    func `damaged kernel is refused with a reason`(expected: String, kernel: [UInt8]) {
        #expect(message { _ = try load(kernel) } == expected)
    }

    @Test func `headers of random bytes never trap`() {
        var random = SplitMix64(seed: 0xE1F)
        for _ in 0..<1000 {
            var image = pvhImage()
            for _ in 0..<Int.random(in: 1...8, using: &random) {
                let range = Bool.random(using: &random) ? 4..<176 : 0x200..<0x228
                image[Int.random(in: range, using: &random)] = .random(in: 0...255, using: &random)
            }
            _ = message { _ = try load(image, initrd: [1]) }
        }
    }
}

@Suite("Boot files") struct BootFileTests {
    @Test(arguments: [
        ([0x1F, 0x8B, 8, 0], "is truncated: copy it again"),
        ([0xFD, 0x37, 0x7A, 0x58, 0x5A, 0], "is compressed with xz: unpack it with unxz"),
        ([0x4D, 0x5A] + [UInt8](repeating: 0, count: 0x36) + [0x41, 0x52, 0x4D, 0x64], "is an ARM64 kernel: give one for x86-64"),
        (Array("root:x:0:0".utf8), "is not a kernel: give a Linux bzImage, an OpenBSD kernel, or one with a multiboot header or a PVH note"),
        ([0x7F], "is not a kernel: give a Linux bzImage, an OpenBSD kernel, or one with a multiboot header or a PVH note"),
        ([], "is empty: copy it again"),
    ] as [([UInt8], String)])
    func `foreign file is refused with advice`(bytes: [UInt8], expected: String) {
        #expect(message { _ = try load(bytes) } == "kernel FILE: \(expected)")
    }

    @Test func `CD image is known by its first volume descriptor`() {
        let error = message { _ = try load([UInt8](repeating: 0, count: 0x8001) + Array("CD001".utf8)) }
        #expect(error == "kernel FILE: is a CD image: give the kernel inside it")
    }

    @Test func `missing file is named`() {
        let error = message {
            _ = try KernelLoader(kernel: "/nonexistent/kernel", initrd: nil, commandLine: "")
        }
        #expect(error == "kernel /nonexistent/kernel: No such file or directory: check the path")
    }

    @Test(arguments: [
        ("/tmp", "is a directory, not a regular file"), ("/dev/null", "is special, not a regular file"),
    ])
    func `file that is not regular is refused`(path: String, reason: String) {
        let alone = message { _ = try KernelLoader(kernel: path, initrd: nil, commandLine: "") }
        #expect(alone == "kernel \(path): \(reason): give the path of the kernel itself")
    }
}
