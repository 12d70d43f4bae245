import Devices
import Synchronization
import Testing
import VMM

@Suite("Firmware configuration") struct FirmwareConfigurationTests {
    private static let uuid = (1...16).map { UInt8($0) }

    private func read(_ key: UInt16, _ count: Int) -> [UInt8] {
        var chip = FirmwareConfiguration(memoryByteCount: 0x1_2345_6000, processors: 1, uuid: Self.uuid)
        chip.select(key)
        return (0..<count).map { _ in chip.readData() }
    }

    @Test(arguments: [
        (0x00, Array("QEMU".utf8)), (0x01, [1, 0, 0, 0]), (0x02, uuid), (0x03, [0, 0x60, 0x45, 0x23, 1, 0, 0, 0]),
        (0x04, [1, 0]), (0x05, [1, 0]), (0x0E, [0, 0]), (0x0F, [1, 0]), (0x19, [0, 0, 0, 0]),
    ] as [(UInt16, [UInt8])])
    func `item has its bytes, and zeros behind them`(key: UInt16, bytes: [UInt8]) {
        #expect(read(key, bytes.count + 3) == bytes + [0, 0, 0])
    }

    @Test(arguments: [0x06, 0x10, 0x15, 0x1A, 0x20, 0x3FFF, 0x8000, 0xBFFF] as [UInt16])
    func `item that does not exist is zeros`(key: UInt16) {
        #expect(read(key, 4) == [0, 0, 0, 0])
    }

    @Test func `write channel means nothing`() {
        #expect(read(0x4000, 4) == Array("QEMU".utf8))
        #expect(read(0xC000, 4) == [0, 0, 0, 0])
    }

    private struct Bench {
        let port = FirmwareConfigurationPort(FirmwareConfiguration(memoryByteCount: 1 << 30, processors: 1))
        let bus: PortBus
        init() { bus = PortBus(port.claims) }
        func bytes(_ count: Int) -> [UInt32] { (0..<count).map { _ in bus.read(0x511, .byte) } }
    }

    @Test func `signature is selected after power-on and after a reset`() {
        let bench = Bench()
        #expect(bench.bytes(4) == [0x51, 0x45, 0x4D, 0x55])
        bench.bus.write(0x510, .word, 5)
        bench.port.reset()
        #expect(bench.bytes(4) == [0x51, 0x45, 0x4D, 0x55])
    }

    @Test func `selecting again starts at the first byte`() {
        let bench = Bench()
        bench.bus.write(0x510, .word, 0)
        #expect(bench.bytes(2) == [0x51, 0x45])
        bench.bus.write(0x510, .word, 0)
        #expect(bench.bytes(2) == [0x51, 0x45])
    }

    @Test func `bytes written change nothing`() {
        let bench = Bench()
        bench.bus.write(0x511, .byte, 0xFF)
        bench.bus.write(0x510, .byte, 3)
        bench.bus.write(0x510, .dword, 3)
        #expect(bench.bytes(2) == [0x51, 0x45])
    }

    @Test func `wide reads are not decoded and take no byte`() {
        let bench = Bench()
        #expect(bench.bus.read(0x511, .word) == 0xFFFF)
        #expect(bench.bus.read(0x510, .dword) == 0xFFFF_FFFF)
        #expect(bench.bytes(1) == [0x51])
    }

    @Test func `restored port goes on where the saved one was`() {
        let bench = Bench()
        bench.bus.write(0x510, .word, 3)
        _ = bench.bytes(3)
        let other = Bench()
        other.port.restore(bench.port.save())
        #expect(other.bytes(2) == [0x40, 0])
    }
}

@Suite("Firmware configuration's files and transfers") struct FirmwareTransferTests {
    private static let files: [FirmwareConfiguration.File] = [
        .init("etc/second", Array("second".utf8)), .init("etc/first", 0x0102_0304 as UInt32),
    ]
    /// Where a transfer's description is.
    private static let description: UInt64 = 0x1000

    private let memory: GuestMemory
    private let port: FirmwareConfigurationPort
    private let bus: PortBus

    init() throws {
        memory = try GuestMemory(ranges: [(0, 1 << 20), (1 << 32, 0x1000)], rom: (0xFFFF_F000, 0x1000))
        port = FirmwareConfigurationPort(
            FirmwareConfiguration(memoryByteCount: 1 << 20, processors: 1, files: Self.files, hasTransfers: true), memory: memory)
        bus = PortBus(port.claims)
    }

    private func bytes(_ count: Int) -> [UInt8] { (0..<count).map { _ in UInt8(truncatingIfNeeded: bus.read(0x511, .byte)) } }

    /// - Returns: the control word afterwards.
    private func transfer(
        _ control: UInt32, _ count: UInt32, _ address: UInt64, description: UInt64 = description
    ) -> UInt32? {
        memory.store(description, control.bigEndian)
        memory.store(description + 4, count.bigEndian)
        memory.store(description + 8, address.bigEndian)
        bus.write(0x514, .dword, UInt32(truncatingIfNeeded: description >> 32).bigEndian)
        bus.write(0x518, .dword, UInt32(truncatingIfNeeded: description).bigEndian)
        return memory.load(description, as: UInt32.self)?.bigEndian
    }

    @Test func `directory names files by their keys`() {
        bus.write(0x510, .word, 0x19)
        #expect(bytes(4) == [0, 0, 0, 2])
        let first = bytes(64), second = bytes(64)
        #expect(first.prefix(8) == [0, 0, 0, 4, 0, 0x20, 0, 0])
        #expect(first.dropFirst(8).starts(with: Array("etc/first".utf8) + [0]))
        #expect(second.prefix(8) == [0, 0, 0, 6, 0, 0x21, 0, 0])
        bus.write(0x510, .word, 0x20)
        #expect(bytes(5) == [4, 3, 2, 1, 0])
        bus.write(0x510, .word, 0x21)
        #expect(bytes(7) == Array("second".utf8) + [0])
    }

    @Test func `transfers are announced, and only with memory`() {
        bus.write(0x510, .word, 1)
        #expect(bytes(4) == [3, 0, 0, 0])
        #expect(bus.read(0x514, .dword) == 0x554D_4551 && bus.read(0x518, .dword) == 0x4746_4320)
        #expect(bus.read(0x51B, .byte) == 0x47 && bus.read(0x51A, .dword) == 0xFFFF_4746)
        let other = PortBus(
            FirmwareConfigurationPort(FirmwareConfiguration(memoryByteCount: 1, processors: 1)).claims)
        #expect(other.read(0x514, .dword) == .max)
    }

    @Test func `transfer selects and reads, with zeros behind the end`() {
        memory.write(Array(repeating: 0xEE, count: 12), at: 0x2000)
        #expect(transfer(0x21_0000 | 8 | 2, 8, 0x2000) == 0)
        #expect(memory.read(0x2000, count: 9) == Array("second".utf8) + [0, 0, 0xEE])
    }

    @Test func `transfers go on where the last one was, also above 4 GB`() {
        #expect(transfer(0x21_0000 | 8 | 4, 2, 0) == 0)
        #expect(transfer(2, 2, 1 << 32, description: 1 << 32 + 0x800) == 0)
        #expect(memory.read(1 << 32, count: 2) == Array("co".utf8))
        #expect(bytes(2) == Array("nd".utf8))
    }

    @Test(arguments: [
        (0x21_0000 | 8 | 2, 8, 0xF_FFFC), (0x21_0000 | 8 | 2, 8, .max), (2, .max, 0x2000), (2, 1, 0x10_0000),
        // ROM; a transfer to the guest's memory that is nobody's; writing.
        (2, 4, 0xFFFF_F000), (2, 1, 1 << 52), (16, 1, 0x2000), (0x20_0000 | 8 | 16, 4, 0x2000),
    ] as [(UInt32, UInt32, UInt64)])
    func `transfer that cannot be is an error and moves nothing`(control: UInt32, count: UInt32, address: UInt64) {
        memory.write(Array(repeating: 0xEE, count: 4), at: 0xF_FFFC)
        #expect(transfer(control, count, address) == 1)
        #expect(memory.read(0xF_FFFC, count: 4) == Array(repeating: 0xEE, count: 4))
        bus.write(0x510, .word, 0x20)
        #expect(bytes(4) == [4, 3, 2, 1])
    }

    @Test(arguments: [0, 4, 8, 2] as [UInt32])
    func `transfer of nothing is done`(control: UInt32) { #expect(transfer(control, 0, .max) == 0) }

    @Test(arguments: [0xF_FFF8, 0x10_0000, .max - 3, 0xFFFF_FFF8] as [UInt64])
    func `description that is not in memory starts nothing`(address: UInt64) {
        memory.write(Array(repeating: 0xFF, count: 8), at: 0xF_FFF8)
        bus.write(0x514, .dword, UInt32(truncatingIfNeeded: address >> 32).bigEndian)
        bus.write(0x518, .dword, UInt32(truncatingIfNeeded: address).bigEndian)
        #expect(memory.read(0xF_FFF8, count: 8) == Array(repeating: 0xFF, count: 8))
        #expect(bytes(1) == [0x51])
    }

    @Test func `description is read once and may be what the transfer overwrites`() {
        #expect(transfer(0x21_0000 | 8 | 2, 16, Self.description) == 0)
        #expect(memory.read(Self.description + 4, count: 3) == [UInt8(ascii: "n"), UInt8(ascii: "d"), 0])
    }

    @Test func `address's high half counts for one transfer`() {
        #expect(transfer(0x20_0000 | 8 | 2, 4, 0x3000, description: 1 << 32) == 0)
        memory.store(Self.description, (0x21_0000 | 8 as UInt32).bigEndian)
        memory.store(Self.description + 4, 0 as UInt32)
        bus.write(0x518, .dword, UInt32(Self.description).bigEndian)
        #expect(memory.load(Self.description, as: UInt32.self) == 0)
    }
}

@Suite("Debug port") struct DebugPortTests {
    private final class Lines: Sendable {
        let all = Mutex<[String]>([])
        func add(_ line: String) { all.withLock { $0.append(line) } }
    }

    private let lines = Lines()
    private let port: DebugPort

    init() {
        let lines = lines
        port = DebugPort { lines.add($0) }
    }

    private func write(_ text: String) { for byte in text.utf8 { port.writeByte(0, byte) } }

    @Test func `whole lines are told, and that somebody listens`() {
        #expect(port.readByte(0) == 0xE9)
        write("one\n\ntwo\u{1B}[2J\nthree")
        #expect(lines.all.withLock { $0 } == ["one", "two?[2J"])
    }

    @Test func `endless lines are cut and endless text ends`() {
        write(String(repeating: "x", count: 3 << 19))
        let seen = lines.all.withLock { $0 }
        #expect(seen.allSatisfy { $0.utf8.count <= 240 })
        #expect(seen.reduce(0) { $0 + $1.utf8.count } < 1 << 20 + 100)
        #expect(seen.last?.contains("dropped") == true)
    }

    @Test func `guest that resets itself for ever does not fill the log`() {
        for _ in 0..<4 {
            write("boot\n" + String(repeating: "x", count: 3 << 18))
            port.reset()
        }
        let seen = lines.all.withLock { $0 }
        #expect(seen.reduce(0) { $0 + $1.utf8.count } < 1 << 20 + 100)
        // What a reset cut off is not a part of the next line.
        #expect(seen.filter { $0 == "boot" }.count == 2)
        #expect(seen.filter { $0.contains("dropped") }.count == 1)
    }
}

@Suite("Debug exit") struct DebugExitTests {
    @Test(arguments: [
        (.byte, 0, 1), (.byte, 0x15, 0x2B), (.byte, 0xFF, 0xFF), (.word, 0x1203, 7), (.dword, 0xFFFF_FF80, 1),
    ] as [(AccessWidth, UInt32, UInt8)])
    func `status is twice the value and one`(width: AccessWidth, value: UInt32, status: UInt8) {
        let seen = Mutex<[UInt8]>([])
        let exit = DebugExit { status in seen.withLock { $0.append(status) } }
        let bus = PortBus([exit.claim(0xF4)])
        #expect(bus.read(0xF4, width) == 0)
        bus.write(0xF3, width, value)
        bus.write(0xF4, width, value)
        #expect(seen.withLock { $0 } == [status])
    }
}
