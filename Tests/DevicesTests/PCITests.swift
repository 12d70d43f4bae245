import Devices
import Testing
import VMM

/// A function with ports in base address 0 and memory in base address 1, which answers with its name and remembers
/// writes.
final class Card: PCIFunction {
    struct Access: Equatable, Sendable {
        let index: Int
        let offset: UInt64
        let value: UInt64
    }

    private let space: Lock<PCIConfigurationSpace>
    private let initial: PCIConfigurationSpace
    private let log = Lock<[Access]>([])
    private let name: UInt64
    var writes: [Access] { log { $0 } }

    init(name: UInt64 = 0, ports: UInt32 = 0x1000, memory: UInt32 = 0xF000_0000) {
        var space = PCIConfigurationSpace(
            vendor: 0x1AF4, device: 0x1044, classCode: 0x08_80_01, revision: 1, subsystemVendor: 0x0B5D, subsystem: 4)
        space.addBaseAddress(0, .ports, byteCount: 0x1000, at: ports)
        space.addBaseAddress(1, .memory, byteCount: 0x1_0000, at: memory)
        initial = space
        self.space = Lock(space)
        self.name = name
    }
    func readConfiguration(_ offset: UInt8, _ width: AccessWidth) -> UInt32 { space { $0.read(offset, width) } }
    func writeConfiguration(_ offset: UInt8, _ width: AccessWidth, _ value: UInt32) {
        space { $0.write(offset, width, value) }
    }
    var windows: [PCIConfigurationSpace.Window] { space { $0.windows } }
    func read(_ index: Int, _ offset: UInt64, _ width: AccessWidth) -> UInt64 {
        name << 16 | UInt64(index) << 12 | offset & 0xFFF
    }
    func write(_ index: Int, _ offset: UInt64, _ width: AccessWidth, _ value: UInt64) {
        log { $0.append(Access(index: index, offset: offset, value: value)) }
    }
    func reset() {
        let initial = initial
        space { $0 = initial }
    }
    func save() -> PCIConfigurationSpace { space { $0 } }
    func restore(_ saved: PCIConfigurationSpace) { space { $0.adopt(saved) } }
}

@Suite("PCI base addresses") struct PCIBaseAddressTests {
    /// A fixed device among PCI's ports, as ACPI's is.
    private final class Fixed: PortDevice {
        func read(_ offset: UInt16, _ width: AccessWidth) -> UInt32 { 0xF1 }
        func write(_ offset: UInt16, _ width: AccessWidth, _ value: UInt32) {}
    }

    private struct Bench {
        let first = Card(name: 1)
        let second = Card(name: 2, ports: 0x2000, memory: 0xF001_0000)
        let bridge: PCIHostBridge
        let ports: PortBus
        let memory: MMIOBus

        init() {
            bridge = PCIHostBridge(
                resetControl: ResetControl(power: PowerRecorder()),
                functions: [PCIAddress(device: 1): first, PCIAddress(device: 2): second])
            ports = PortBus(bridge.claims + [.init(0xB000...0xB00F, Fixed())], remainder: bridge.bus.portClaim)
            memory = MMIOBus([], remainder: bridge.bus.memoryClaim)
        }

        func set(_ device: UInt32, _ register: UInt32, _ value: UInt32, _ width: AccessWidth = .dword) {
            ports.write(0xCF8, .dword, 0x8000_0000 | device << 11 | register)
            ports.write(0xCFC, width, value)
        }

        func get(_ device: UInt32, _ register: UInt32) -> UInt32 {
            ports.write(0xCF8, .dword, 0x8000_0000 | device << 11 | register)
            return ports.read(0xCFC, .dword)
        }

        /// Which card answers at a port, 0 for nobody.
        func owner(_ port: UInt16) -> UInt32 {
            let value = ports.read(port, .dword)
            return value == .max ? 0 : value >> 16
        }
        func owner(at address: UInt64) -> UInt64 {
            let value = memory.read(address, .dword)
            return value == 0xFFFF_FFFF ? 0 : value >> 16
        }
    }

    @Test func `each base address leads to its function, from its first byte to its last`() {
        let bench = Bench()
        #expect(bench.ports.read(0x1000, .dword) == 0x1_0000)
        #expect(bench.ports.read(0x1FFF, .dword) == 0x1_0FFF)
        #expect(bench.ports.read(0x2000, .dword) == 0x2_0000)
        #expect(bench.owner(0x3000) == 0)
        #expect(bench.memory.read(0xF000_0FFF, .qword) == 0x1_1FFF)
        #expect(bench.owner(at: 0xF001_0000) == 2)
        #expect(bench.owner(at: 0xF002_0000) == 0)
        bench.ports.write(0x2004, .word, 0x1234)
        bench.memory.write(0xF001_0008, .qword, 5)
        #expect(
            bench.second.writes == [
                .init(index: 0, offset: 4, value: 0x1234), .init(index: 1, offset: 8, value: 5),
            ])
        #expect(bench.first.writes == [])
    }

    @Test func `sizing shows the size and the kind, and answers nowhere meanwhile`() {
        let bench = Bench()
        bench.set(1, 0x10, .max)
        bench.set(1, 0x14, .max)
        #expect(bench.get(1, 0x10) == 0xFFFF_F001)
        #expect(bench.get(1, 0x14) == 0xFFFF_0000)
        for port in stride(from: 0x1000, through: 0xF000, by: 0x1000) { #expect(bench.owner(UInt16(port)) != 1) }
        #expect(bench.owner(at: 0xF000_0000) == 0)
        for register: UInt32 in [0x18, 0x1C, 0x20, 0x24, 0x30] {
            bench.set(1, register, .max)
            #expect(bench.get(1, register) == 0)
        }
    }

    @Test func `moved base address is followed`() {
        let bench = Bench()
        bench.set(1, 0x10, 0x8001)
        bench.set(1, 0x14, 0xF0F0_0000)
        #expect(bench.owner(0x1000) == 0)
        #expect(bench.owner(0x8000) == 1)
        #expect(bench.owner(at: 0xF000_0000) == 0)
        #expect(bench.owner(at: 0xF0F0_0000) == 1)
        // A byte at a time, as a driver may.
        bench.set(1, 0x10, 0x01, .byte)
        bench.ports.write(0xCFD, .byte, 0x90)
        #expect(bench.owner(0x9000) == 1)
    }

    @Test func `command register switches ports and memory on and off`() {
        let bench = Bench()
        #expect(bench.get(1, 4) & 3 == 3)
        bench.set(1, 4, 2, .word)
        #expect(bench.owner(0x1000) == 0)
        #expect(bench.owner(at: 0xF000_0000) == 1)
        bench.set(1, 4, 1, .word)
        #expect(bench.owner(0x1000) == 1)
        #expect(bench.owner(at: 0xF000_0000) == 0)
        #expect(bench.owner(0x2000) == 2)
    }

    @Test func `fixed ports win, and the lower slot of two`() {
        let bench = Bench()
        bench.set(2, 0x10, 0xB001)
        #expect(bench.ports.read(0xB000, .byte) == 0xF1)
        #expect(bench.ports.read(0xB00F, .byte) == 0xF1)
        #expect(bench.owner(0xB010) == 2)
        bench.set(2, 0x10, 0x1001)
        #expect(bench.owner(0x1000) == 1)
        bench.set(1, 0x10, 0x7001)
        #expect(bench.owner(0x1000) == 2)
    }

    @Test(arguments: [0, 0xFFFF_F000, 0x1_1000, 0x8000_0000, 0x0000_0001] as [UInt32])
    func `base address outside of the windows answers nowhere`(value: UInt32) {
        let bench = Bench()
        bench.set(1, 0x10, value)
        bench.set(1, 0x14, value)
        #expect((0...15).allSatisfy { bench.owner($0 << 12) != 1 })
        #expect(bench.ports.read(0x3F8, .byte) == 0xFF)
        #expect(bench.owner(at: 0xF000_0000) == 0)
        #expect(bench.owner(at: 0xFFBF_FFFC) == 0)
        #expect(bench.owner(at: UInt64(value)) == 0)
    }

    @Test func `reset puts them back`() {
        let bench = Bench()
        bench.set(1, 0x10, 0x8001)
        bench.set(1, 4, 0, .word)
        bench.bridge.reset()
        #expect(bench.owner(0x1000) == 1)
        #expect(bench.owner(0x8000) == 0)
    }

    @Test func `restored functions answer where the saved ones did`() {
        let bench = Bench()
        bench.set(1, 0x10, 0x8001)
        bench.set(2, 4, 0, .word)
        let other = Bench()
        other.first.restore(bench.first.save())
        other.second.restore(bench.second.save())
        other.bridge.restore(bench.bridge.save())
        #expect(other.owner(0x8000) == 1)
        #expect(other.owner(0x1000) == 0)
        #expect(other.owner(0x2000) == 0)
        #expect(other.get(1, 0x10) == 0x8001)
    }

    @Test func `forged space changes nothing that a guest could not`() {
        let card = Card()
        var forged = PCIConfigurationSpace(vendor: 0xFFFF, device: 0xFFFF, classCode: 0xFF_FFFF)
        for offset in stride(from: 0, to: 256, by: 4) { forged.set(UInt8(offset), UInt32.max) }
        card.restore(forged)
        #expect(card.readConfiguration(0, .dword) == 0x1044_1AF4)
        #expect(card.readConfiguration(0x10, .dword) == 0xFFFF_F001)
        #expect(card.readConfiguration(0x3D, .byte) == 0)
    }
}

@Suite("Shared interrupt line") struct SharedInterruptLineTests {
    @Test func `line is up while one of its devices pulls it`() {
        let lines = LineRecorder()
        let shared = SharedInterruptLine(lines.line(9))
        let a = shared.connect()
        let b = shared.connect()
        a.set(true)
        b.set(true)
        b.set(true)
        a.set(false)
        #expect(lines.level(9))
        b.set(false)
        #expect(!lines.level(9))
        #expect(lines.changes.count == 2)
    }

    @Test func `level-triggered lines stay requested until they fall`() {
        let pair = I8259Pair()
        let bus = PortBus(pair.claims)
        pair.setLevelTriggered([3, 9])
        #expect(bus.read(0x4D0, .byte) == 0x08)
        #expect(bus.read(0x4D1, .byte) == 0x02)
        for (port, value) in [(0x20, 0x11), (0x21, 0x20), (0x21, 4), (0x21, 1), (0x21, 0)] as [(UInt16, UInt32)] {
            bus.write(port, .byte, value)
        }
        pair.setLine(3, true)
        #expect(pair.acknowledge() == 0x23)
        bus.write(0x20, .byte, 0x20)
        #expect(pair.isPending)
        pair.setLine(3, false)
        #expect(!pair.isPending)
    }
}
