import Devices
import DiskImage
import Foundation
import Linux
import Testing
import VMM

@Suite("Virtio block device", .timeLimit(.minutes(2))) struct VirtioBlockTests {
    private enum Kind {
        static let read: UInt32 = 0
        static let write: UInt32 = 1
        static let flush: UInt32 = 4
        static let identifier: UInt32 = 8
        static let discard: UInt32 = 11
        static let writeZeroes: UInt32 = 13
    }

    private static let ok: UInt8 = 0
    private static let ioError: UInt8 = 1
    private static let unsupported: UInt8 = 2
    private static let flushFeature: UInt64 = 1 << 9
    private static let writebackFeature: UInt64 = 1 << 11

    /// 64 sectors, a driver, and places in guest memory for what it sends.
    private struct Bench {
        let image: FakeImage
        let bench: VirtioBench
        let device: VirtioBlock
        let function: VirtioPCIFunction<VirtioBlock>
        let driver: VirtioDriver

        init(
            _ interface: VirtioDriver.Interface = .modern, features: UInt64 = .max, isReadOnly: Bool = false, queues: Int = 1
        ) throws {
            image = FakeImage(byteCount: 64 * 512, isReadOnly: isReadOnly)
            bench = try VirtioBench(VirtioBlock.profile(image, queueCount: queues))
            device = try VirtioBlock(bench.transport, image, identifier: "serial", method: .threads)
            function = VirtioPCIFunction(bench.transport, device)
            driver = VirtioDriver(function, bench.memory, interface)
            driver.start(features: features, queues: queues)
        }

        static let header: UInt64 = 0x1000
        static let status: UInt64 = 0x2000
        static let data: UInt64 = 0x20_0000

        func putHeader(_ kind: UInt32, _ sector: UInt64, at place: UInt64 = header) {
            bench.memory.store(place, kind)
            bench.memory.store(place + 4, 0 as UInt32)
            bench.memory.store(place + 8, sector)
        }

        /// Sends a request and waits for its end.
        func request(
            _ kind: UInt32, _ sector: UInt64 = 0, out: [UInt8] = [], into byteCount: Int = 0, queue: Int = 0
        ) -> (status: UInt8?, written: UInt32) {
            putHeader(kind, sector)
            bench.memory.store(Self.status, 0xEE as UInt8)
            bench.memory.write(out, at: Self.data)
            var buffers: [VirtioDriver.Buffer] = [.out(Self.header, 16)]
            if !out.isEmpty { buffers.append(.out(Self.data, out.count)) }
            if byteCount > 0 { buffers.append(.into(Self.data, byteCount)) }
            buffers.append(.into(Self.status, 1))
            driver.send(buffers, on: queue)
            device.drain()
            let used = driver.takeUsed(queue)
            return (bench.memory.load(Self.status, as: UInt8.self), used?.byteCount ?? .max)
        }

        func data(_ count: Int) -> [UInt8]? { bench.memory.read(Self.data, count: count) }
    }

    private static func pattern(_ count: Int) -> [UInt8] { (0..<count).map { UInt8(truncatingIfNeeded: $0 &* 7 &+ $0 >> 8) } }

    @Test(arguments: VirtioDriver.Interface.allCases)
    func `what is written is read back`(interface: VirtioDriver.Interface) throws {
        let bench = try Bench(interface)
        let bytes = Self.pattern(4096)
        #expect(bench.request(Kind.write, 3, out: bytes) == (Self.ok, 1))
        #expect(Array(bench.image.bytes[1536..<5632]) == bytes)
        bench.bench.memory.write([UInt8](repeating: 0, count: 4096), at: Bench.data)
        #expect(bench.request(Kind.read, 3, into: 4096) == (Self.ok, 4097))
        #expect(bench.data(4096) == bytes)
        #expect(bench.bench.isInterrupting)
    }

    @Test func `configuration says what the disk is`() throws {
        let bench = try Bench(queues: 3)
        let driver = bench.driver
        #expect(driver.configuration(0, .qword) == 64)
        #expect(driver.configuration(8, .dword) == 1 << 20)
        #expect(driver.configuration(12, .dword) == 126)
        #expect(driver.configuration(20, .dword) == 512)
        #expect(driver.configuration(24, .dword) == 0x0008_0003)
        #expect(driver.configuration(32, .byte) == 1)
        #expect(driver.configuration(34, .word) == 3)
        #expect(driver.configuration(36, .dword) == 1 << 22)
        #expect(driver.configuration(40, .dword) == 1)
        #expect(driver.configuration(48, .dword) == 1 << 22)
        #expect(driver.configuration(52, .dword) == 1)
        #expect(driver.configuration(56, .byte) == 1)
        #expect(driver.features & 0xFFFF == 0x7E46)
        #expect(try Bench(isReadOnly: true).driver.features & 0xFFFF == 0x0E66)
    }

    @Test func `request may be cut into descriptors anywhere`() throws {
        let bench = try Bench()
        let bytes = Self.pattern(1024)
        bench.image.bytes.replaceSubrange(0..<1024, with: bytes)
        bench.putHeader(Kind.read, 0)
        bench.driver.send([
            .out(Bench.header, 3), .out(Bench.header + 3, 13), .into(Bench.data, 1), .into(Bench.data + 1, 600),
            .into(Bench.data + 601, 424),
        ])
        bench.device.drain()
        #expect(bench.driver.takeUsed()?.byteCount == 1025)
        #expect(bench.data(1025) == bytes + [0])
        // Header and data of a write in one descriptor.
        bench.putHeader(Kind.write, 8, at: Bench.data)
        bench.bench.memory.write(bytes, at: Bench.data + 16)
        bench.driver.send([.out(Bench.data, 1040), .into(Bench.status, 1)])
        bench.device.drain()
        #expect(Array(bench.image.bytes[4096..<5120]) == bytes)
    }

    @Test func `flush, discard and zeros reach the image`() throws {
        let bench = try Bench()
        func segment(_ sector: UInt64, _ count: UInt32, _ flags: UInt32) -> [UInt8] {
            (0..<8).map { UInt8(truncatingIfNeeded: sector >> ($0 * 8)) } + (0..<4).map { UInt8(truncatingIfNeeded: count >> ($0 * 8)) }
                + (0..<4).map { UInt8(truncatingIfNeeded: flags >> ($0 * 8)) }
        }
        #expect(bench.request(Kind.flush) == (Self.ok, 1))
        #expect(bench.request(Kind.discard, out: segment(8, 16, 0)) == (Self.ok, 1))
        #expect(bench.request(Kind.writeZeroes, out: segment(1, 2, 0)) == (Self.ok, 1))
        #expect(bench.request(Kind.writeZeroes, out: segment(3, 4, 1)) == (Self.ok, 1))
        #expect(bench.image.calls == [
            .flush, .discard(4096, 8192), .writeZeroes(512, 1024, mayDiscard: false),
            .writeZeroes(1536, 2048, mayDiscard: true),
        ])
        #expect(bench.request(Kind.discard, out: segment(0, 1, 1)).status == Self.unsupported)
        #expect(bench.request(Kind.writeZeroes, out: segment(0, 1, 2)).status == Self.unsupported)
        #expect(bench.request(Kind.discard, out: segment(60, 5, 0)).status == Self.ioError)
        #expect(bench.request(Kind.discard, out: segment(.max, 5, 0)).status == Self.ioError)
        #expect(bench.request(Kind.discard, out: segment(0, .max, 0)).status == Self.ioError)
        #expect(bench.request(Kind.discard, out: segment(0, 1, 0) + segment(2, 1, 0)).status == Self.ioError)
        #expect(bench.request(Kind.discard, out: [0]).status == Self.ioError)
        #expect(bench.request(Kind.discard, out: segment(0, 0, 0)).status == Self.ok)
        #expect(bench.image.calls.count == 4)
    }

    @Test func `identifier is cut to the room there is`() throws {
        let bench = try Bench()
        #expect(bench.request(Kind.identifier, into: 20) == (Self.ok, 21))
        #expect(bench.data(20) == Array("serial".utf8) + [UInt8](repeating: 0, count: 14))
        bench.bench.memory.write([UInt8](repeating: 0xFF, count: 64), at: Bench.data)
        #expect(bench.request(Kind.identifier, into: 4).status == Self.ok)
        #expect(bench.data(5) == Array("seri".utf8) + [0xFF])
        #expect(bench.request(Kind.identifier, into: 40).status == Self.ok)
        #expect(bench.data(21)?.last == 0xFF)
    }

    @Test(arguments: [
        (0, 64, 512), (0, 63, 1024), (0, .max, 512), (0, .max / 512 + 1, 512), (0, 0, 100), (0, 0, 0), (1, 64, 512), (1, 0, 513),
    ] as [(UInt32, UInt64, Int)])
    func `range that is not on the disk is an error`(kind: UInt32, sector: UInt64, byteCount: Int) throws {
        let bench = try Bench()
        let result = kind == Kind.read
            ? bench.request(kind, sector, into: byteCount) : bench.request(kind, sector, out: Self.pattern(byteCount))
        #expect(result.status == Self.ioError)
        #expect(bench.image.calls.isEmpty)
        #expect(bench.request(Kind.read, 63, into: 512).status == Self.ok)
    }

    @Test func `unknown request and failing disk have their answers`() throws {
        let bench = try Bench()
        #expect(bench.request(99, into: 8).status == Self.unsupported)
        #expect(bench.request(99, out: [1, 2, 3]).status == Self.unsupported)
        bench.image.failure = .system(SystemError("pread", errno: 5))
        // Not even the first byte is certain.
        #expect(bench.request(Kind.read, 0, into: 512) == (Self.ioError, 0))
        #expect(bench.request(Kind.flush) == (Self.ioError, 1))
    }

    @Test func `read-only disk is not written`() throws {
        let bench = try Bench(isReadOnly: true)
        #expect(bench.request(Kind.write, 0, out: Self.pattern(512)).status == Self.ioError)
        #expect(bench.request(Kind.discard, 0, out: [UInt8](repeating: 0, count: 16)).status == Self.ioError)
        #expect(bench.image.calls.isEmpty)
        #expect(bench.request(Kind.read, 0, into: 512).status == Self.ok)
    }

    @Test(arguments: [
        (UInt64.max, false), (~flushFeature & ~writebackFeature, true), (~writebackFeature, false),
    ] as [(UInt64, Bool)])
    func `driver that cannot flush has its writes flushed`(features: UInt64, flushes: Bool) throws {
        let bench = try Bench(features: features)
        #expect(bench.request(Kind.write, 0, out: Self.pattern(512)) == (Self.ok, 1))
        #expect(bench.image.calls == (flushes ? [.write(0, 512), .flush] : [.write(0, 512)]))
    }

    @Test func `write-back is the driver's to turn off`() throws {
        let bench = try Bench()
        bench.driver.setConfiguration(32, 0, .byte)
        #expect(bench.driver.configuration(32, .byte) == 0)
        #expect(bench.request(Kind.write, 0, out: Self.pattern(512)).status == Self.ok)
        #expect(bench.image.calls == [.write(0, 512), .flush])
        #expect(bench.function.save().device == VirtioBlock.State(writeback: false))
        bench.driver.setConfiguration(32, 1, .byte)
        #expect(bench.request(Kind.write, 0, out: Self.pattern(512)).status == Self.ok)
        #expect(bench.image.calls.count == 3)
        // A reset turns it on again.
        bench.driver.setConfiguration(32, 0, .byte)
        bench.driver.start()
        #expect(bench.driver.configuration(32, .byte) == 1)
    }

    @Test(arguments: 0..<3) func `each queue is served`(queue: Int) throws {
        let bench = try Bench(queues: 3)
        bench.image.bytes.replaceSubrange(512..<1024, with: Self.pattern(512))
        #expect(bench.request(Kind.read, 1, into: 512, queue: queue) == (Self.ok, 513))
        #expect(bench.data(512) == Self.pattern(512))
    }

    @Test func `full queue of requests is served, with tables`() throws {
        let bench = try Bench()
        let bytes = Self.pattern(64 * 512)
        bench.image.bytes = bytes
        for round in 0..<3 as Range<UInt64> {
            for index in 0..<128 as Range<UInt64> {
                bench.putHeader(Kind.read, index % 64, at: 0x3_0000 + index * 16)
                let head = bench.driver.putChain(
                    [.out(0x3_0000 + index * 16, 16), .into(Bench.data + index * 512, 512), .into(0x4_0000 + index, 1)],
                    indirectAt: 0x5_0000 + index * 48)
                bench.driver.offer(head)
            }
            bench.driver.notify()
            bench.device.drain()
            #expect(bench.driver.usedIndex() == UInt16((round + 1) * 128))
            #expect(bench.data(128 * 512) == bytes + bytes)
            bench.bench.memory.write([UInt8](repeating: 0, count: 128 * 512), at: Bench.data)
        }
        #expect(bench.bench.memory.read(0x4_0000, count: 128) == [UInt8](repeating: 0, count: 128))
    }

    @Test(arguments: [[], [.out(0x1000, 15), .into(0x2000, 1)], [.out(0x1000, 16)], [.into(0x2000, 512)]] as [[VirtioDriver.Buffer]])
    func `request without header or status breaks the device`(buffers: [VirtioDriver.Buffer]) throws {
        let bench = try Bench()
        bench.driver.send(buffers.isEmpty ? [.out(0x1000, 0)] : buffers)
        #expect(bench.driver.status & 0x40 != 0)
        bench.driver.start()
        #expect(bench.request(Kind.read, 0, into: 512).status == Self.ok)
    }

    @Test func `reset with requests at the disk waits for them`() throws {
        let bench = try Bench()
        bench.image.gate.shut()
        bench.putHeader(Kind.read, 0)
        bench.driver.send([.out(Bench.header, 16), .into(Bench.data, 512), .into(Bench.status, 1)])
        bench.driver.status = 0
        #expect(bench.driver.status == 0xF)
        bench.image.gate.open()
        bench.device.drain()
        #expect(bench.driver.status == 0)
        #expect(bench.driver.usedIndex() == 0)
        #expect(!bench.bench.isInterrupting)
        bench.driver.start()
        #expect(bench.request(Kind.read, 0, into: 512).status == Self.ok)
    }
}
