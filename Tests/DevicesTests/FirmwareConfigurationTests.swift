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
