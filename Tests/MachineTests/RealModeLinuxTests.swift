import Devices
import TestSupport
import Testing
import VMM

@testable import Machine

@Suite("Linux in real mode") struct RealModeLinuxTests {
    /// Two sectors of setup, then a page of payload.
    private func image(version: UInt16 = 0x207, setupSectors: UInt8 = 1, paragraphs: UInt32 = 0x100) -> [UInt8] {
        var image = Fields(bytes: (0..<0x1400).map { UInt8(truncatingIfNeeded: $0 >> 8 | 0x40) })
        image.set(0x1F1, setupSectors)
        image.set(0x1F4, paragraphs)
        image.set(0x1FE, UInt16(0xAA55))
        image.bytes.replaceSubrange(0x202..<0x206, with: Array("HdrS".utf8))
        image.set(0x206, version)
        image.set(0x211, UInt8(1))
        image.set(0x22C, UInt32(0x37FF_FFFF))
        return image.bytes
    }

    private func make(
        _ bytes: [UInt8], initrd: [UInt8]? = nil, commandLine: String? = nil, memory: UInt64 = 64 << 20
    ) throws -> RealModeLinux? {
        let file = TemporaryFile(bytes), disk = initrd.map { TemporaryFile($0) }
        return try withExtendedLifetime((file, disk)) {
            let loader = try KernelLoader(
                kernel: .path(file.path), initrd: disk.map { .path($0.path) }, commandLine: commandLine)
            return try RealModeLinux(loader, memoryByteCount: memory)
        }
    }

    /// Carries out what the ROM has the device do.
    private func transfers(_ kernel: RealModeLinux, _ memory: GuestMemory) {
        let sorted = (kernel.files + [.init("bootorder", []), .init("etc/e820", [])]).sorted { $0.name < $1.name }
        var device = FirmwareConfiguration(memoryByteCount: 64 << 20, processors: 1, files: sorted, hasTransfers: true)
        let rom = kernel.rom
        var place = 0x90
        while true {
            func number(_ offset: Int, _ count: Int) -> UInt64 {
                rom[place + offset..<place + offset + count].reduce(0) { $0 << 8 | UInt64($1) }
            }
            let control = number(0, 4)
            if control == 0 { break }
            guard control & 2 != 0, place + 16 < rom.count else {
                Issue.record("no transfer at \(place)")
                return
            }
            if control & 8 != 0 { device.select(UInt16(control >> 16)) }
            memory.write(Array(device.take(UInt32(number(4, 4)))), at: number(8, 8))
            place += 16
        }
    }

    @Test func `its parts go where the boot protocol has them`() throws {
        let bytes = image()
        // More than one transfer.
        let initrd = (0..<(8 << 20) + 5).map { UInt8(truncatingIfNeeded: $0 &* 5 ^ $0 >> 9) }
        let kernel = try #require(try make(bytes, initrd: initrd, commandLine: "some words"))
        let memory = try GuestMemory(ranges: MemoryMap(byteCount: 64 << 20, firmwareByteCount: 4096).ranges)
        transfers(kernel, memory)
        #expect(memory.read(0x9_0000, count: 0x1F0) == Array(bytes[..<0x1F0]))
        #expect(memory.read(0x9_0230, count: 0x1D0) == Array(bytes[0x230..<0x400]))
        #expect(memory.read(0x10_0000, count: 0x1000) == Array(bytes[0x400..<0x1400]))
        #expect(memory.read(0x10_1000, count: 16) == Array(repeating: 0, count: 16))
        let pointer = try #require(memory.load(0x9_0228, as: UInt32.self))
        #expect(memory.read(UInt64(pointer), count: 11) == Array("some words".utf8) + [0])
        let base = try #require(memory.load(0x9_0218, as: UInt32.self))
        #expect(memory.load(0x9_021C, as: UInt32.self) == UInt32(initrd.count))
        #expect(UInt64(base) + UInt64(initrd.count) <= 63 << 20)
        #expect(memory.read(UInt64(base), count: initrd.count) == initrd)
        // Type of loader, CAN_USE_HEAP beside LOADED_HIGH.
        #expect(memory.load(0x9_0210, as: UInt16.self) == 0x81FF)
    }

    /// PCI Firmware Specification 3.0, 5.1; Plug and Play BIOS Specification, 3.2.
    @Test func `the ROM is one`() throws {
        let rom = try #require(try make(image())).rom
        #expect(rom.starts(with: [0x55, 0xAA, UInt8(rom.count / 512)]))
        #expect(rom.reduce(0, &+) == 0)
        let header = Int(rom[0x1A])
        #expect(Array(rom[header..<header + 4]) == Array("$PnP".utf8))
    }

    @Test func `newer kernels and other files are none`() throws {
        for version in [0x20A, 0x20F, 0x201, 0] as [UInt16] { #expect(try make(image(version: version)) == nil) }
        #expect(try make(Array(repeating: 0x90, count: 0x1400)) == nil)
        #expect(try make(Array(image()[..<0x208])) == nil)
    }

    @Test func `what does not fit is refused`() throws {
        func message(_ body: () throws -> RealModeLinux?) -> String {
            do {
                _ = try body()
                return ""
            } catch { return "\(error)" }
        }
        #expect(message { try make(image(setupSectors: 64)) }.contains("has a damaged setup header: copy it again"))
        #expect(message { try make(image(setupSectors: 20)) }.contains("has a damaged setup header: copy it again"))
        #expect(message { try make(image(paragraphs: 0)) }.contains("has a damaged setup header: copy it again"))
        #expect(message { try make(image(), commandLine: String(repeating: "x", count: 4096)) }.contains("give at most 4095"))
        #expect(message { try make(image(), initrd: Array(repeating: 1, count: 15 << 20), memory: 16 << 20) }.contains("do not fit"))
        #expect(message { try make(image(), initrd: Array(repeating: 1, count: 12 << 20), memory: 16 << 20) } == "")
    }
}
