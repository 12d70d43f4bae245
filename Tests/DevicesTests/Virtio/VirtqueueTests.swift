import Devices
import Testing
import VMM

@Suite("Virtqueue") struct VirtqueueTests {
    private struct Bench {
        let bench: VirtioBench
        let device: EchoDevice
        let function: VirtioPCIFunction<EchoDevice>
        let driver: VirtioDriver

        init(
            _ interface: VirtioDriver.Interface = .modern, features: UInt64 = .max, size: UInt16 = 8, queues: Int = 1
        ) throws {
            bench = try VirtioBench(EchoDevice.profile(queues: Array(repeating: size, count: queues)))
            device = EchoDevice(bench.transport)
            function = VirtioPCIFunction(bench.transport, device)
            driver = VirtioDriver(function, bench.memory, interface)
            driver.start(features: features, queues: queues)
        }

        var memory: GuestMemory { bench.memory }
        var lines: LineRecorder { bench.lines }
        var isBroken: Bool { driver.status & 0x40 != 0 }
    }

    private static let source: UInt64 = 0x1000
    private static let target: UInt64 = 0x8000
    private static let text = [UInt8]("The quick brown fox jumps over the lazy dog".utf8)
    private static let eventIndex = VirtioDriver.eventIndex
    private static let indirect: UInt64 = 1 << 28

    @Test(arguments: VirtioDriver.Interface.allCases)
    func `chain is served, shown as used and interrupts`(interface: VirtioDriver.Interface) throws {
        let bench = try Bench(interface)
        bench.memory.write(Self.text, at: Self.source)
        for round in 0..<20 {
            bench.memory.write([UInt8](repeating: 0, count: 64), at: Self.target)
            bench.driver.setUsedEvent(UInt16(round))
            bench.driver.send([.out(Self.source, Self.text.count), .into(Self.target, 64)])
            #expect(bench.memory.read(Self.target, count: Self.text.count) == Self.text)
            let used = try #require(bench.driver.takeUsed())
            #expect(used.head == UInt32(round * 2 % 8))
            #expect(used.byteCount == UInt32(Self.text.count))
            #expect(bench.bench.isInterrupting)
            #expect(bench.driver.interruptStatus == 1)
            #expect(!bench.bench.isInterrupting)
        }
        #expect(bench.lines.rises(5) == 20)
    }

    @Test(arguments: VirtioDriver.Interface.current)
    func `bytes may be cut into descriptors anywhere`(interface: VirtioDriver.Interface) throws {
        let bench = try Bench(interface)
        bench.memory.write(Self.text, at: Self.source)
        bench.driver.send([
            .out(Self.source, 3), .out(Self.source + 3, 0), .out(Self.source + 3, 17), .out(Self.source + 20, Self.text.count - 20),
            .into(Self.target, 1), .into(Self.target + 1, 40), .into(Self.target + 41, 23),
        ])
        #expect(bench.memory.read(Self.target, count: Self.text.count) == Self.text)
        #expect(bench.driver.takeUsed()?.byteCount == UInt32(Self.text.count))
    }

    @Test(arguments: VirtioDriver.Interface.current)
    func `buffer that crosses two ranges of memory is whole`(interface: VirtioDriver.Interface) throws {
        let bench = try Bench(interface)
        let source: UInt64 = 0x3F_FFF0
        bench.memory.write(Array(Self.text[..<16]), at: source)
        bench.memory.write(Array(Self.text[16...]), at: 0x40_0000)
        bench.driver.send([.out(source, Self.text.count), .into(Self.target, 64)])
        #expect(bench.memory.read(Self.target, count: Self.text.count) == Self.text)
    }

    @Test func `indirect table is followed, also behind other descriptors`() throws {
        let bench = try Bench()
        bench.memory.write(Self.text, at: Self.source)
        bench.driver.send([.out(Self.source, 20), .out(Self.source + 20, 23), .into(Self.target, 64)], indirectAt: 0x5000)
        #expect(bench.memory.read(Self.target, count: Self.text.count) == Self.text)

        let table = bench.driver.queues[0].descriptors
        bench.driver.putDescriptor(table, 5, Self.source, 10, VirtioDriver.next, 2)
        // WRITE counts for nothing on the descriptor of a table.
        bench.driver.putDescriptor(table, 2, 0x5000, 32, VirtioDriver.indirect | VirtioDriver.write)
        bench.driver.putDescriptor(0x5000, 0, Self.source + 10, 5, VirtioDriver.next, 1)
        bench.driver.putDescriptor(0x5000, 1, Self.target + 100, 64, VirtioDriver.write)
        bench.driver.offer(5)
        bench.driver.notify()
        #expect(bench.memory.read(Self.target + 100, count: 15) == Array(Self.text[..<15]))
        #expect(!bench.isBroken)
    }

    @Test(arguments: VirtioDriver.Interface.current)
    func `indices wrap at 65536`(interface: VirtioDriver.Interface) throws {
        let bench = try Bench(interface, features: ~Self.eventIndex, size: 2)
        for _ in 0..<65_540 { bench.driver.send([.into(Self.target, 1)]) }
        #expect(bench.driver.usedIndex() == 4)
        #expect(!bench.isBroken)
    }

    // MARK: Events

    @Test func `without event index a flag refuses interrupts`() throws {
        let bench = try Bench(features: ~Self.eventIndex)
        bench.memory.store(bench.driver.queues[0].driver, 1 as UInt16)
        bench.driver.send([.into(Self.target, 1)])
        #expect(!bench.bench.isInterrupting)
        bench.memory.store(bench.driver.queues[0].driver, 0 as UInt16)
        bench.driver.send([.into(Self.target, 1)])
        #expect(bench.bench.isInterrupting)
    }

    @Test(arguments: VirtioDriver.Interface.current)
    func `with event index an interrupt comes when the index passes the event`(interface: VirtioDriver.Interface) throws {
        let bench = try Bench(interface)
        bench.driver.setUsedEvent(2)
        var levels: [Bool] = []
        for _ in 0..<5 {
            bench.driver.send([.into(Self.target, 1)])
            levels.append(bench.driver.interruptStatus != 0)
        }
        #expect(levels == [false, false, true, false, false])
    }

    @Test func `device asks for a notification of the chain after those it took`() throws {
        let bench = try Bench()
        bench.driver.send([.into(Self.target, 1)])
        #expect(bench.driver.availableEvent() == 1)
        bench.driver.offer(bench.driver.putChain([.into(Self.target, 1)]))
        bench.driver.send([.into(Self.target, 1)])
        #expect(bench.driver.availableEvent() == 3)
        #expect(bench.driver.usedIndex() == 3)
    }

    @Test func `notifications can be turned off and on`() throws {
        let bench = try Bench(features: ~Self.eventIndex)
        let queue = bench.bench.transport.queues[0]
        queue.setNotifications(false)
        #expect(bench.memory.load(bench.driver.queues[0].device, as: UInt16.self) == 1)
        queue.setNotifications(true)
        #expect(bench.memory.load(bench.driver.queues[0].device, as: UInt16.self) == 0)
    }

    @Test(arguments: VirtioDriver.Interface.current)
    func `engines hear of what is written into watched pages`(interface: VirtioDriver.Interface) throws {
        let bench = try Bench(interface)
        let heard = Lock<[Range<Int>]>([])
        bench.memory.onWatchedWrite { range in heard { $0.append(range) } }
        bench.memory.setWatched(page: 0x9, true)
        bench.memory.write(Self.text, at: Self.source)
        bench.driver.send([.out(Self.source, 40), .into(0x8FF0, 16), .into(0x9000, 32)])
        #expect(heard { $0 } == [0x9000..<0x9020])
    }

    // MARK: Chains in flight

    @Test(arguments: VirtioDriver.Interface.current)
    func `chains are completed in any order`(interface: VirtioDriver.Interface) throws {
        let bench = try Bench(interface)
        bench.device.hold()
        for _ in 0..<8 { bench.driver.send([.into(Self.target, 1)]) }
        #expect(bench.device.heldCount == 8)
        #expect(bench.driver.usedIndex() == 0)
        bench.device.release(3)
        #expect(bench.driver.usedIndex() == 3)
        bench.device.release()
        #expect((0..<8).compactMap { _ in bench.driver.takeUsed()?.head } == [0, 1, 2, 3, 4, 5, 6, 7])
        #expect(!bench.isBroken)
    }

    // MARK: Drivers that break the standard

    struct Violation: Sendable, CustomTestStringConvertible {
        let testDescription: String
        /// Writes something into the table and makes it available.
        let commit: @Sendable (VirtioDriver) -> Void
        init(_ description: String, _ commit: @escaping @Sendable (VirtioDriver) -> Void) {
            testDescription = description
            self.commit = commit
        }
    }

    private static func one(_ address: UInt64, _ byteCount: UInt32, _ flags: UInt16, _ next: UInt16 = 0) -> @Sendable (VirtioDriver) -> Void {
        { driver in
            driver.putDescriptor(driver.queues[0].descriptors, 0, address, byteCount, flags, next)
            driver.offer(0)
        }
    }

    static let violations: [Violation] = [
        Violation("head behind the table") { $0.offer(8) },
        Violation("next behind the table", one(0x1000, 1, VirtioDriver.next, 8)),
        Violation("chain that leads to itself", one(0x1000, 1, VirtioDriver.next, 0)),
        Violation("buffer behind the end of memory", one(0x60_0000, 1, 0)),
        Violation("buffer over the end of memory", one(0x5F_FFFF, 2, 0)),
        Violation("buffer over the end of addresses", one(.max - 1, 4096, VirtioDriver.write)),
        Violation("table in a table") { driver in
            driver.putDescriptor(driver.queues[0].descriptors, 0, 0x5000, 16, VirtioDriver.indirect)
            driver.putDescriptor(0x5000, 0, 0x5000, 16, VirtioDriver.indirect)
            driver.offer(0)
        },
        Violation("table that goes on", one(0x5000, 16, VirtioDriver.indirect | VirtioDriver.next, 1)),
        Violation("table of no bytes", one(0x5000, 0, VirtioDriver.indirect)),
        Violation("table of 17 bytes", one(0x5000, 17, VirtioDriver.indirect)),
        Violation("table over the end of memory", one(0x5F_FFF0, 32, VirtioDriver.indirect)),
        Violation("next behind an indirect table") { driver in
            driver.putDescriptor(driver.queues[0].descriptors, 0, 0x5000, 32, VirtioDriver.indirect)
            driver.putDescriptor(0x5000, 0, 0x1000, 1, VirtioDriver.next, 2)
            driver.offer(0)
        },
        Violation("loop in an indirect table") { driver in
            driver.putDescriptor(driver.queues[0].descriptors, 0, 0x5000, 32, VirtioDriver.indirect)
            driver.putDescriptor(0x5000, 0, 0x1000, 1, VirtioDriver.next, 1)
            driver.putDescriptor(0x5000, 1, 0x1000, 1, VirtioDriver.next, 0)
            driver.offer(0)
        },
        Violation("chain in a table longer than the queue") { driver in
            driver.offer(driver.putChain((0..<9).map { _ in .into(0x8000, 1) }, indirectAt: 0x5000))
        },
        Violation("readable behind writable") { driver in
            driver.offer(driver.putChain([.into(0x8000, 1), .out(0x1000, 1)]))
        },
        Violation("index further than the queue is long") { driver in
            driver.memory.store(driver.queues[0].driver + 2, 9 as UInt16)
        },
        Violation("index that goes back") { driver in
            driver.memory.store(driver.queues[0].driver + 2, 0xFFFF as UInt16)
        },
    ]

    @Test(arguments: violations)
    func `violation ends in a device that needs a reset`(violation: Violation) throws {
        let bench = try Bench()
        violation.commit(bench.driver)
        bench.driver.notify()
        #expect(bench.isBroken)
        #expect(bench.driver.usedIndex() == 0)
        #expect(bench.bench.isInterrupting)
        #expect(bench.driver.interruptStatus == 2)
        // It serves nothing, whatever the driver does, until it is reset.
        bench.driver.queues[0].available = 0
        bench.driver.send([.into(Self.target, 1)])
        #expect(bench.driver.usedIndex() == 0)
        bench.driver.start()
        #expect(!bench.isBroken)
        bench.driver.send([.into(Self.target, 1)])
        #expect(bench.driver.usedIndex() == 1)
    }

    @Test func `violations cost the device nothing for good`() throws {
        let bench = try Bench()
        for _ in 0..<20 {
            bench.driver.offer(99)
            bench.driver.notify()
            #expect(bench.isBroken)
            bench.driver.start()
        }
        bench.device.hold()
        for _ in 0..<8 { bench.driver.send([.into(Self.target, 1)]) }
        bench.device.release()
        #expect(bench.driver.usedIndex() == 8)
    }

    @Test(arguments: VirtioDriver.Interface.current)
    func `longest chain that is allowed is served`(interface: VirtioDriver.Interface) throws {
        let bench = try Bench(interface)
        bench.driver.send((0..<8).map { .into(Self.target + UInt64($0), 1) }, indirectAt: 0x5000)
        #expect(bench.driver.usedIndex() == 1)
        bench.driver.send((0..<8).map { .into(Self.target + UInt64($0), 1) })
        #expect(bench.driver.usedIndex() == 2)
        #expect(!bench.isBroken)
    }

    @Test(arguments: VirtioDriver.Interface.current)
    func `table without the feature is a violation`(interface: VirtioDriver.Interface) throws {
        let bench = try Bench(interface, features: ~Self.indirect)
        bench.driver.send([.into(Self.target, 1)], indirectAt: 0x5000)
        #expect(bench.isBroken)
    }

    @Test func `more chains in flight than the queue has entries are a violation`() throws {
        let bench = try Bench()
        bench.device.hold()
        _ = bench.driver.putChain([.into(Self.target, 1)])
        for _ in 0..<8 { bench.driver.offer(0) }
        bench.driver.notify()
        #expect(!bench.isBroken)
        bench.driver.offer(0)
        bench.driver.notify()
        #expect(bench.isBroken)
        // What is in flight ends quietly.
        bench.device.release()
        #expect(bench.driver.usedIndex() == 0)
    }

    @Test func `violation on one queue stops the others`() throws {
        let bench = try Bench(queues: 2)
        bench.driver.offer(99)
        bench.driver.notify(0)
        bench.driver.send([.into(Self.target, 1)], on: 1)
        #expect(bench.driver.usedIndex(1) == 0)
    }
}
