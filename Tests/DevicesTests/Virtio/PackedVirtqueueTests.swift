import Devices
import TestSupport
import Testing
import VMM

/// Packed rings, where they are not like split ones: `VirtqueueTests` has what both do.
@Suite("Packed virtqueue") struct PackedVirtqueueTests {
    private struct Bench {
        let bench: VirtioBench
        let device: EchoDevice
        let function: VirtioPCIFunction<EchoDevice>
        let driver: VirtioDriver

        /// - Parameter size: the driver's choice, where it is not the device's.
        init(features: UInt64 = .max, size: UInt16? = nil) throws {
            bench = try VirtioBench(EchoDevice.profile(queues: [8]))
            device = EchoDevice(bench.transport)
            function = VirtioPCIFunction(bench.transport, device)
            driver = VirtioDriver(function, bench.memory, .packed)
            driver.start(features: features, size: size)
        }

        var memory: GuestMemory { bench.memory }
        var isBroken: Bool { driver.status & 0x40 != 0 }
        var ring: VirtioDriver.Queue { driver.queues[0] }
        /// Place and flags of an event structure.
        func event(_ address: UInt64) -> [UInt16?] { [memory.load(address, as: UInt16.self), memory.load(address + 2, as: UInt16.self)] }
    }

    private static let source: UInt64 = 0x1000
    private static let target: UInt64 = 0x8000
    private static let available = VirtioDriver.available
    private static let used = VirtioDriver.used

    @Test func `used descriptor has the id, the length and the flags of its lap`() throws {
        let bench = try Bench(size: 3)
        #expect(bench.ring.size == 3)
        // Place by place: id, length, flags.
        for (place, lap) in [(0, true), (1, true), (2, true), (0, false), (1, false), (2, false), (0, true)] as [(UInt64, Bool)] {
            bench.driver.putPacked(bench.ring.descriptors, UInt16(place), Self.source, 4, id: 0xABCD, VirtioDriver.lap(lap))
            bench.driver.notify()
            let at = bench.ring.descriptors + 16 * place
            #expect(bench.memory.load(at + 12, as: UInt16.self) == 0xABCD)
            #expect(bench.memory.load(at + 8, as: UInt32.self) == 0)
            // Nothing was written, so no WRITE.
            #expect(bench.memory.load(at + 14, as: UInt16.self) == (lap ? Self.available | Self.used : 0))
        }
        bench.driver.putPacked(bench.ring.descriptors, 1, Self.source, 4, VirtioDriver.next | VirtioDriver.lap(true))
        bench.driver.putPacked(bench.ring.descriptors, 2, Self.target, 9, id: 7, VirtioDriver.write | VirtioDriver.lap(true))
        bench.driver.notify()
        let at = bench.ring.descriptors + 16
        #expect(bench.memory.load(at + 8, as: UInt32.self) == 4)
        #expect(bench.memory.load(at + 12, as: UInt16.self) == 7)
        #expect(bench.memory.load(at + 14, as: UInt16.self) == VirtioDriver.write | Self.available | Self.used)
        #expect(!bench.isBroken)
    }

    @Test func `descriptor of another lap is not taken`() throws {
        let bench = try Bench()
        for flags in [0, Self.used, Self.available | Self.used] {
            bench.driver.putPacked(bench.ring.descriptors, 0, Self.source, 4, flags)
            bench.driver.notify()
            #expect(bench.memory.load(bench.ring.descriptors + 14, as: UInt16.self) == flags)
        }
        #expect(!bench.isBroken)
    }

    /// Sizes that are no powers of two, chains of any length, completed in any order.
    @Test(arguments: [1, 2, 3, 5, 8] as [UInt16])
    func `every chain is echoed once, with its id`(size: UInt16) throws {
        let bench = try Bench(size: size)
        var random = SplitMix64(seed: UInt64(size))
        bench.device.hold()
        var expected: Set<UInt32> = []
        var sent = 0, taken = 0
        for _ in 0..<400 {
            var room = size
            while room > 0 {
                let isIndirect = random.next() % 3 == 0
                let count = UInt16(truncatingIfNeeded: random.next() % UInt64(size) + 1)
                let length = isIndirect ? 1 : min(count, room)
                room -= length
                let buffers = (0..<(isIndirect ? count : length)).map { index in
                    index < count / 2 ? VirtioDriver.Buffer.out(Self.source, 5) : .into(Self.target + 8 * UInt64(index), 8)
                }
                let head = bench.driver.putChain(buffers, indirectAt: isIndirect ? 0x5000 + 0x100 * UInt64(sent % 8) : nil)
                #expect(expected.insert(UInt32(head)).inserted)
                bench.driver.offer(head)
                bench.driver.notify()
                sent += 1
                if random.next() % 4 == 0 { break }
            }
            bench.device.release(Int(random.next() % 3))
            bench.device.release()
            while let used = bench.driver.takeUsed() {
                #expect(expected.remove(used.head) != nil)
                taken += 1
            }
            #expect(expected.isEmpty)
        }
        #expect(taken == sent)
        #expect(!bench.isBroken)
    }

    // MARK: Events

    @Test func `driver's flags refuse interrupts or want all`() throws {
        for features in [UInt64.max, ~VirtioDriver.eventIndex] {
            let bench = try Bench(features: features)
            bench.memory.store(bench.ring.driver, 0x1_0000 as UInt32)
            bench.driver.send([.into(Self.target, 1)])
            #expect(!bench.bench.isInterrupting)
            bench.memory.store(bench.ring.driver, 0 as UInt32)
            for _ in 0..<3 {
                bench.driver.send([.into(Self.target, 1)])
                #expect(bench.driver.interruptStatus == 1)
            }
        }
    }

    @Test func `an event in the middle of a chain's descriptors interrupts, also of the next lap`() throws {
        // Place and counter of the event; chains of 3 in a ring of 8: places 0, 3, 6 and 9 - 8 on the next lap.
        for (event, expected) in [
            (0x8000, [true, false, false, false]), (0x8002, [true, false, false, false]), (0x8003, [false, true, false, false]),
            (0x8007, [false, false, true, false]), (0x0000, [false, false, true, false]), (0x0001, [false, false, false, true]),
            (0x0004, [false, false, false, false]), (0xFFFF, [false, false, false, false]),
        ] as [(UInt32, [Bool])] {
            let bench = try Bench()
            bench.memory.store(bench.ring.driver, 0x2_0000 | event)
            let seen = (0..<4).map { _ in
                bench.driver.send((0..<3).map { .into(Self.target + $0, 1) })
                return bench.driver.interruptStatus != 0
            }
            #expect(seen == expected, "event \(event)")
        }
    }

    @Test func `device says for which descriptor it wants a notification`() throws {
        let bench = try Bench(size: 3)
        bench.driver.send([.into(Self.target, 1)])
        #expect(bench.event(bench.ring.device) == [0x8001, 2])
        bench.driver.send([.into(Self.target, 1), .into(Self.target, 1)])
        #expect(bench.event(bench.ring.device) == [0x0000, 2])
        let queue = bench.bench.transport.queues[0]
        queue.setNotifications(false)
        #expect(bench.event(bench.ring.device)[1] == 1)
        bench.driver.send([.into(Self.target, 1)])
        #expect(bench.event(bench.ring.device)[1] == 1)
        queue.setNotifications(true)
        #expect(bench.event(bench.ring.device)[1] == 0)
        // Without event index the flags alone count.
        let plain = try Bench(features: ~VirtioDriver.eventIndex)
        plain.driver.send([.into(Self.target, 1)])
        #expect(plain.event(plain.ring.device) == [0, 0])
    }

    // MARK: Drivers that break the standard

    private static func one(_ address: UInt64, _ byteCount: UInt32, _ flags: UInt16) -> @Sendable (VirtioDriver) -> Void {
        { $0.putPacked($0.queues[0].descriptors, 0, address, byteCount, flags | available) }
    }

    /// A table with one entry, which may not stand in one.
    private static func table(_ byteCount: UInt32, _ flags: UInt16, entry: UInt16) -> @Sendable (VirtioDriver) -> Void {
        { driver in
            for index in 0..<9 as Range<UInt16> { driver.putPacked(0x5000, index, 0x1000, 1, index == 0 ? entry : 0) }
            driver.putPacked(driver.queues[0].descriptors, 0, 0x5000, byteCount, flags | VirtioDriver.indirect | available)
        }
    }

    static let violations: [VirtqueueTests.Violation] = [
        .init("buffer behind the end of memory", one(0x60_0000, 1, 0)),
        .init("buffer over the end of memory", one(0x5F_FFFF, 2, 0)),
        .init("buffer over the end of addresses", one(.max - 1, 4096, VirtioDriver.write)),
        .init("chain that is longer than the ring") { driver in
            for index in (0..<8 as Range<UInt16>).reversed() {
                driver.putPacked(driver.queues[0].descriptors, index, 0x1000, 1, VirtioDriver.next | available)
            }
        },
        .init("table that goes on", table(16, VirtioDriver.next, entry: 0)),
        .init("table behind another descriptor") { driver in
            driver.putPacked(driver.queues[0].descriptors, 1, 0x5000, 16, VirtioDriver.indirect | available)
            driver.putPacked(driver.queues[0].descriptors, 0, 0x1000, 1, VirtioDriver.next | available)
        },
        .init("table in a table", table(16, 0, entry: VirtioDriver.indirect)),
        .init("table of no bytes", table(0, 0, entry: 0)),
        .init("table of 17 bytes", table(17, 0, entry: 0)),
        .init("table longer than the ring", table(16 * 9, 0, entry: 0)),
        .init("table over the end of memory", one(0x5F_FFF0, 32, VirtioDriver.indirect)),
        .init("readable behind writable") { driver in
            driver.offer(driver.putChain([.into(0x8000, 1), .out(0x1000, 1)]))
        },
        .init("readable behind writable in a table", table(32, 0, entry: VirtioDriver.write)),
    ]

    @Test(arguments: violations)
    func `violation ends in a device that needs a reset`(violation: VirtqueueTests.Violation) throws {
        let bench = try Bench()
        violation.commit(bench.driver)
        bench.driver.notify()
        #expect(bench.isBroken)
        #expect(bench.driver.interruptStatus == 2)
        #expect(bench.driver.usedIndex() == 0)
        bench.driver.start()
        #expect(!bench.isBroken)
        bench.driver.send([.into(Self.target, 1)])
        #expect(bench.driver.usedIndex() == 1)
    }

    @Test func `flags in a table other than WRITE do not count`() throws {
        let bench = try Bench()
        bench.memory.write([1, 2, 3, 4], at: Self.source)
        bench.driver.putPacked(0x5000, 0, Self.source, 4, VirtioDriver.next)
        bench.driver.putPacked(0x5000, 1, Self.target, 4, VirtioDriver.write | VirtioDriver.next)
        bench.driver.putPacked(bench.ring.descriptors, 0, 0x5000, 32, id: 3, VirtioDriver.indirect | Self.available)
        bench.driver.notify()
        #expect(bench.memory.read(Self.target, count: 4) == [1, 2, 3, 4])
        #expect(!bench.isBroken)
    }

    @Test(arguments: [1, 4]) func `descriptors of chains in flight are not taken again`(length: Int) throws {
        let bench = try Bench()
        bench.device.hold()
        for _ in 0..<8 / length { bench.driver.send((0..<length).map { .into(Self.target + UInt64($0), 1) }) }
        #expect(bench.device.heldCount == 8 / length)
        #expect(!bench.isBroken)
        // The next lap, while the first one's are in flight.
        bench.driver.putPacked(bench.ring.descriptors, 0, Self.target, 1, VirtioDriver.lap(false))
        bench.driver.notify()
        #expect(bench.isBroken)
        bench.device.release()
        #expect(bench.memory.load(bench.ring.descriptors + 14, as: UInt16.self) == VirtioDriver.lap(false))
    }

    @Test(arguments: [(1 << 15 | 8, 0), (0, 9), (0x7FFF, 0xFFFF)] as [(UInt16, UInt16)])
    func `saved place behind the ring needs a reset`(available: UInt16, used: UInt16) throws {
        let bench = try Bench()
        var state = bench.function.save()
        (state.positions[0].available, state.positions[0].used) = (available, used)
        bench.function.restore(state)
        #expect(bench.isBroken)
    }
}
