import Synchronization
import TestSupport
import Testing
import VMM

/// Remembers what it was asked and answers all ones, more than any width asks for.
final class Recorder: PortDevice, MMIODevice {
    struct Access: Hashable {
        var offset: UInt64
        var width: AccessWidth
        var value: UInt64?
    }
    private let log = Mutex<[Access]>([])
    var accesses: [Access] { log.withLock { $0 } }

    func read(_ offset: UInt16, _ width: AccessWidth) -> UInt32 {
        log.withLock { $0.append(Access(offset: UInt64(offset), width: width)) }
        return ~0
    }
    func write(_ offset: UInt16, _ width: AccessWidth, _ value: UInt32) {
        log.withLock { $0.append(Access(offset: UInt64(offset), width: width, value: UInt64(value))) }
    }
    func read(_ offset: UInt64, _ width: AccessWidth) -> UInt64 {
        log.withLock { $0.append(Access(offset: offset, width: width)) }
        return ~0
    }
    func write(_ offset: UInt64, _ width: AccessWidth, _ value: UInt64) {
        log.withLock { $0.append(Access(offset: offset, width: width, value: value)) }
    }
}

@Suite("Port bus") struct PortBusTests {
    @Test(arguments: [(.byte, 0xFF), (.word, 0xFFFF), (.dword, 0xFFFF_FFFF)] as [(AccessWidth, UInt32)])
    func `port nobody claims reads all ones at the width and swallows writes`(width: AccessWidth, ones: UInt32) {
        let bus = PortBus([])
        for port: UInt16 in [0, 0x80, 0xFFFF] {
            bus.write(port, width, 0x1234)
            #expect(bus.read(port, width) == ones)
        }
    }

    @Test func `device sees offsets from its first port to its last`() {
        let device = Recorder()
        let bus = PortBus([.init(0x3F8...0x3FF, device)])
        bus.write(0x3F7, .byte, 1)
        bus.write(0x3F8, .byte, 2)
        bus.write(0x3FF, .byte, 3)
        bus.write(0x400, .byte, 4)
        #expect(
            device.accesses == [
                .init(offset: 0, width: .byte, value: 2), .init(offset: 7, width: .byte, value: 3),
            ])
    }

    @Test func `values are cut to the width in both directions`() {
        let device = Recorder()
        let bus = PortBus([.init(0x10...0x10, device)])
        bus.write(0x10, .byte, 0xAABB_CCDD)
        bus.write(0x10, .word, 0xAABB_CCDD)
        bus.write(0x10, .dword, 0xAABB_CCDD)
        #expect(device.accesses.map(\.value) == [0xDD, 0xCCDD, 0xAABB_CCDD])
        #expect(bus.read(0x10, .byte) == 0xFF)
        #expect(bus.read(0x10, .word) == 0xFFFF)
        #expect(bus.read(0x10, .dword) == 0xFFFF_FFFF)
    }

    @Test func `first and last port of the space can be claimed`() {
        let first = Recorder()
        let last = Recorder()
        let bus = PortBus([.init(0...0, first), .init(0xFFFF...0xFFFF, last)])
        _ = bus.read(0, .dword)
        _ = bus.read(0xFFFF, .dword)
        #expect(first.accesses == [.init(offset: 0, width: .dword)])
        #expect(last.accesses == [.init(offset: 0, width: .dword)])
    }

    @Test func `as many claims as there can be are all found`() {
        let devices = (0..<254).map { _ in Recorder() }
        let bus = PortBus(devices.enumerated().map { .init(UInt16($0 * 2)...UInt16($0 * 2 + 1), $1) })
        for (index, device) in devices.enumerated() {
            bus.write(UInt16(index * 2 + 1), .byte, UInt32(index))
            #expect(device.accesses == [.init(offset: 1, width: .byte, value: UInt64(index))])
        }
    }
}

@Suite("Memory bus") struct MMIOBusTests {
    @Test(arguments: [(.byte, 0xFF), (.word, 0xFFFF), (.dword, 0xFFFF_FFFF), (.qword, .max)] as [(AccessWidth, UInt64)])
    func `address nobody claims reads all ones at the width and swallows writes`(width: AccessWidth, ones: UInt64) {
        let bus = MMIOBus([.init(0x1000..<0x2000, Recorder())])
        for address: UInt64 in [0, 0xFFF, 0x2000, 1 << 52, .max] {
            bus.write(address, width, 5)
            #expect(bus.read(address, width) == ones)
        }
    }

    @Test func `claims given in any order are found at both ends`() {
        let low = Recorder()
        let middle = Recorder()
        let high = Recorder()
        let bus = MMIOBus([
            .init(0xFED0_0000..<0xFED0_0400, high), .init(0x1000..<0x1001, low), .init(0x1001..<0x2000, middle),
        ])
        for address: UInt64 in [0x1000, 0x1001, 0x1FFF, 0xFED0_0000, 0xFED0_03FF, 0xFED0_0400] {
            bus.write(address, .byte, address & 0xFF)
        }
        #expect(low.accesses.map(\.offset) == [0])
        #expect(middle.accesses.map(\.offset) == [0, 0xFFE])
        #expect(high.accesses.map(\.offset) == [0, 0x3FF])
    }

    @Test func `claim up to the last address does not wrap`() {
        let device = Recorder()
        let bus = MMIOBus([.init(UInt64.max - 16..<UInt64.max, device)])
        bus.write(.max - 1, .qword, 1)
        bus.write(.max, .qword, 2)
        bus.write(0, .qword, 3)
        #expect(device.accesses == [.init(offset: 15, width: .qword, value: 1)])
    }

    @Test func `random addresses among many claims go where a plain search says`() {
        var noise = SplitMix64(seed: 4)
        let device = Recorder()
        let starts = (0..<64).map { UInt64($0) * 0x1000 + noise.next() % 0x400 }
        let ranges = starts.map { $0..<$0 + 1 + noise.next() % 0x800 }
        let bus = MMIOBus(ranges.shuffled(using: &noise).map { .init($0, device) })
        for _ in 0..<5000 {
            let address = noise.next() % 0x41000
            let before = device.accesses.count
            bus.write(address, .byte, 0)
            if let range = ranges.first(where: { $0.contains(address) }) {
                #expect(device.accesses.last?.offset == address - range.lowerBound)
                #expect(device.accesses.count == before + 1)
            } else {
                #expect(device.accesses.count == before)
            }
        }
    }
}
