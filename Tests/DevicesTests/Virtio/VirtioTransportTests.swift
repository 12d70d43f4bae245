import Devices
import Foundation
import Testing
import VMM

@Suite("Virtio transport") struct VirtioTransportTests {
    private struct Bench {
        let bench: VirtioBench
        let device: EchoDevice
        let function: VirtioPCIFunction<EchoDevice>
        let driver: VirtioDriver

        init(
            _ interface: VirtioDriver.Interface = .modern, hasMessages: Bool = false, queues: [UInt16] = [8, 16],
            starts: Bool = true
        ) throws {
            bench = try VirtioBench(EchoDevice.profile(queues: queues), hasMessages: hasMessages)
            device = EchoDevice(bench.transport)
            function = VirtioPCIFunction(bench.transport, device)
            driver = VirtioDriver(function, bench.memory, interface)
            if starts { driver.start(queues: queues.count) }
        }

        func configuration(_ offset: UInt8, _ width: AccessWidth = .dword) -> UInt32 {
            function.readConfiguration(offset, width)
        }
        func setConfiguration(_ offset: UInt8, _ value: UInt32, _ width: AccessWidth = .dword) {
            function.writeConfiguration(offset, width, value)
        }

        /// Capabilities by their offset: identifier and, of vendors' own, type.
        var capabilities: [(offset: UInt8, identifier: UInt8, type: UInt8)] {
            var found: [(UInt8, UInt8, UInt8)] = []
            var place = UInt8(configuration(0x34, .byte))
            while place != 0, found.count < 20 {
                found.append((place, UInt8(configuration(place, .byte)), UInt8(configuration(place + 3, .byte))))
                place = UInt8(configuration(place + 1, .byte))
            }
            return found
        }
    }

    private static let target: UInt64 = 0x8000

    @Test func `configuration space says what it is and where`() throws {
        let bench = try Bench(starts: false)
        #expect(bench.configuration(0) == 0x1009_1AF4)
        #expect(bench.configuration(8) == 0x0880_0000)
        #expect(bench.configuration(0x2C) == 0x002A_0B5D)
        #expect(bench.configuration(0x10) == 0x1001)
        #expect(bench.configuration(0x14) == 0xF000_0000)
        #expect(bench.configuration(0x3C, .word) == 0x0105)
        #expect(bench.configuration(6, .word) & 0x10 != 0)
        #expect(bench.capabilities.map(\.identifier) == [9, 9, 9, 9, 9])
        #expect(bench.capabilities.map(\.type) == [1, 2, 3, 5, 4])
        let sized = bench.function.windows
        #expect(sized.map(\.addresses) == [0x1000..<0x1100, 0xF000_0000..<0xF000_8000])
    }

    @Test func `capability of messages is there only with somebody to take them`() throws {
        let bench = try Bench(hasMessages: true, starts: false)
        let messages = try #require(bench.capabilities.last)
        #expect(messages.identifier == 0x11)
        // A vector for each queue and one for the configuration; table and pending bits behind base address 1.
        #expect(bench.configuration(messages.offset + 2, .word) == 2)
        #expect(bench.configuration(messages.offset + 4) == 0x4001)
        #expect(bench.configuration(messages.offset + 8) == 0x5001)
    }

    // MARK: Negotiation

    @Test func `features are refused when they are no subset or lack version 1`() throws {
        let bench = try Bench(starts: false)
        let driver = bench.driver
        #expect(driver.offered == 1 << 34 | 1 << 32 | 1 << 29 | 1 << 28 | 1)
        func negotiate(_ low: UInt64, _ high: UInt64) -> UInt64 {
            driver.status = 0
            driver.status = 3
            driver.setCommon(8, 0)
            driver.setCommon(0xC, low)
            driver.setCommon(8, 1)
            driver.setCommon(0xC, high)
            driver.status = 0xB
            return driver.status
        }
        #expect(negotiate(2, 1) == 3)
        #expect(negotiate(1, 0) == 3)
        #expect(negotiate(1, 3) == 3)
        #expect(negotiate(1, 1) == 0xB)
        // They stand from then on.
        driver.setCommon(8, 0)
        driver.setCommon(0xC, 0)
        #expect(driver.common(0xC) == 1)
        // Other words of features are empty, and take nothing.
        driver.setCommon(0, 2)
        driver.setCommon(8, 2)
        driver.setCommon(0xC, 5)
        #expect(driver.common(4) == 0)
        #expect(driver.common(0xC) == 0)
    }

    @Test func `status keeps its bits, and is not ready without features`() throws {
        let bench = try Bench(starts: false)
        bench.driver.status = 7
        #expect(bench.driver.status == 3)
        bench.driver.status = 0x41
        #expect(bench.driver.status == 3)
        bench.driver.status = 0x80
        #expect(bench.driver.status == 0x83)
        bench.driver.status = 0
        #expect(bench.driver.status == 0)
        #expect(bench.device.activations.isEmpty)
    }

    @Test func `legacy driver sees 32 bits of features and any layout`() throws {
        let bench = try Bench(.legacy, starts: false)
        #expect(bench.driver.offered == 1 << 29 | 1 << 28 | 1 << 27 | 1)
        bench.driver.setPort(4, 0xFFFF_FFFF)
        #expect(bench.driver.port(4) == bench.driver.offered)
    }

    @Test func `interfaces do not mix until a reset`() throws {
        let bench = try Bench()
        bench.driver.setPort(0x12, 0x80, .byte)
        bench.driver.setPort(8, 0x200)
        #expect(bench.driver.status == 0xF)
        bench.driver.setPort(0x12, 0, .byte)
        #expect(bench.driver.status == 0)
        bench.driver.setPort(0x12, 1, .byte)
        bench.driver.setCommon(0x14, 0xB, .byte)
        #expect(bench.driver.status == 1)
    }

    // MARK: Queues

    @Test func `queue registers stand once the queue is enabled`() throws {
        let bench = try Bench(starts: false)
        let driver = bench.driver
        driver.setCommon(0x16, 1, .word)
        #expect(driver.common(0x18, .word) == 16)
        #expect(driver.common(0x1E, .word) == 1)
        #expect(driver.common(0x12, .word) == 2)
        for wrong in [0, 3, 32, 0x8000] as [UInt64] {
            driver.setCommon(0x18, wrong, .word)
            #expect(driver.common(0x18, .word) == 16)
        }
        driver.setCommon(0x18, 4, .word)
        #expect(driver.common(0x18, .word) == 4)
        // Not before the features are agreed upon.
        driver.setCommon(0x1C, 1, .word)
        #expect(driver.common(0x1C, .word) == 0)
        driver.start(queues: 2)
        driver.setCommon(0x18, 2, .word)
        driver.setCommon(0x20, 0)
        driver.setCommon(0x1C, 0, .word)
        #expect(driver.common(0x18, .word) == 16)
        #expect(driver.common(0x20) == driver.queues[1].descriptors)
        #expect(driver.common(0x1C, .word) == 1)
        // There is no third.
        driver.setCommon(0x16, 2, .word)
        #expect(driver.common(0x18, .word) == 0)
        driver.setCommon(0x1C, 1, .word)
        #expect(driver.common(0x1C, .word) == 0)
    }

    @Test func `queue may be made smaller`() throws {
        let bench = try Bench(queues: [16], starts: false)
        bench.driver.start(size: 2)
        for _ in 0..<5 { bench.driver.send([.into(Self.target, 1)]) }
        #expect(bench.driver.usedIndex() == 5)
    }

    @Test(arguments: [(0x20, 0x7FFF_FFF0), (0x20, 8), (0x28, 0x10_0001), (0x30, 0x10_0002), (0x24, 0xFFFF_FFFF)] as [(UInt64, UInt64)])
    func `ring that is not in memory or not aligned needs a reset`(register: UInt64, value: UInt64) throws {
        let bench = try Bench(queues: [8], starts: false)
        let driver = bench.driver
        driver.status = 3
        driver.setCommon(8, 1)
        driver.setCommon(0xC, 1)
        driver.status = 0xB
        for (field, address) in [(0x20, 0x1000), (0x28, 0x2000), (0x30, 0x3000)] as [(UInt64, UInt64)] { driver.setCommon(field, address) }
        driver.setCommon(register, value)
        driver.setCommon(0x1C, 1, .word)
        #expect(driver.status & 0x40 != 0)
    }

    @Test func `nothing is taken before the driver is ready`() throws {
        let bench = try Bench(queues: [8])
        let driver = bench.driver
        driver.status = 0
        driver.status = 3
        driver.setCommon(8, 1)
        driver.setCommon(0xC, 1)
        driver.status = 0xB
        let queue = driver.queues[0]
        for (field, address) in [(0x20, queue.descriptors), (0x28, queue.driver), (0x30, queue.device)] as [(UInt64, UInt64)] {
            driver.setCommon(field, address)
        }
        driver.setCommon(0x1C, 1, .word)
        driver.send([.into(Self.target, 1)])
        #expect(driver.usedIndex() == 0)
        driver.status = 0xF
        driver.notify()
        #expect(driver.usedIndex() == 1)
    }

    @Test func `legacy driver may use a queue before it is ready, and take it back`() throws {
        let bench = try Bench(.legacy, queues: [8])
        #expect(bench.driver.port(8) == bench.driver.queues[0].descriptors >> 12)
        bench.driver.send([.into(Self.target, 1)])
        #expect(bench.driver.usedIndex() == 1)
        bench.driver.setPort(8, 0)
        #expect(bench.driver.port(8) == 0)
        bench.driver.send([.into(Self.target, 1)])
        #expect(bench.driver.usedIndex() == 1)
    }

    // MARK: Reset

    @Test func `reset waits for chains in flight without stopping the CPU`() throws {
        let bench = try Bench(queues: [8])
        bench.device.hold()
        bench.driver.send([.into(Self.target, 1)])
        bench.driver.send([.into(Self.target, 1)])
        bench.driver.status = 0
        #expect(bench.driver.status == 0xF)
        // Nothing is taken any more, and a driver that does not wait is not heard.
        bench.driver.send([.into(Self.target, 1)])
        #expect(bench.device.heldCount == 2)
        bench.driver.status = 3
        #expect(bench.driver.status == 0xF)
        bench.device.release(1)
        #expect(bench.driver.status == 0xF)
        bench.device.release()
        #expect(bench.driver.status == 0)
        // One was before the start.
        #expect(bench.device.resets == 2)
        #expect(bench.driver.usedIndex() == 0)
        #expect(!bench.bench.isInterrupting)
    }

    @Test func `legacy reset is over when the write returns`() throws {
        let bench = try Bench(.legacy, queues: [8])
        bench.device.hold()
        bench.driver.send([.into(Self.target, 1)])
        bench.driver.status = 0
        #expect(bench.driver.status == 0)
        #expect(bench.device.heldCount == 0)
        // One was before the start.
        #expect(bench.device.resets == 2)
        #expect(bench.driver.usedIndex() == 0)
    }

    @Test func `legacy resets wait for what another CPU has popped, and drop what a third writes meanwhile`() throws {
        let bench = try Bench(.legacy, queues: [8])
        bench.device.hold(drainReleases: false)
        bench.driver.send([.into(Self.target, 1)])
        let ring = bench.driver.port(8)
        let drains = bench.device.drains
        let isOver = DispatchSemaphore(value: 0)
        let function = bench.function
        for _ in 0..<2 {
            Thread.detachNewThread {
                function.write(0, 0x12, .byte, 0)
                isOver.signal()
            }
        }
        let deadline = Date(timeIntervalSinceNow: 20)
        while bench.device.drains < drains + 2, Date() < deadline { Thread.sleep(forTimeInterval: 0.001) }
        #expect(bench.device.drains == drains + 2)
        // Both wait; what is written is neither seen now nor found behind the reset.
        bench.driver.setPort(4, 1)
        bench.driver.setPort(8, 0)
        bench.driver.setPort(8, ring + 8)
        bench.driver.setPort(0x12, 0x83, .byte)
        bench.driver.setConfiguration(4, 0x55, .byte)
        #expect(bench.driver.status == 7)
        #expect(bench.driver.port(8) == ring)
        #expect(isOver.wait(timeout: .now() + 0.05) == .timedOut)
        bench.device.release()
        #expect(isOver.wait(timeout: .now() + 20) == .success)
        #expect(isOver.wait(timeout: .now() + 20) == .success)
        #expect(bench.driver.status == 0)
        #expect(bench.driver.port(4) == 0)
        #expect(bench.driver.port(8) == 0)
        #expect(bench.driver.configuration(4, .byte) == 0)
        #expect(bench.driver.usedIndex() == 0)
        #expect(!bench.bench.isInterrupting)
        // The next driver finds a device as after power-on.
        bench.device.hold()
        bench.driver.start()
        bench.driver.send([.into(Self.target, 1)])
        bench.device.release()
        #expect(bench.driver.status == 7)
        #expect(bench.driver.usedIndex() == 1)
    }

    /// Each CPU drives the device as it likes: nothing hangs, and whoever resets it last has it to himself.
    @Test(arguments: VirtioDriver.Interface.allCases)
    func `two CPUs that reset and set up at once leave a device that works`(interface: VirtioDriver.Interface) throws {
        let bench = try Bench(interface, queues: [8])
        let isOver = DispatchSemaphore(value: 0)
        let (function, memory) = (bench.function, bench.bench.memory)
        for number in 0..<2 as Range<UInt64> {
            Thread.detachNewThread {
                let driver = VirtioDriver(function, memory, interface, rings: 0x10_0000 + number * 0x10_0000)
                for _ in 0..<100 {
                    driver.start()
                    // The other may have reset the device in the middle of it.
                    guard let queue = driver.queues.first, queue.size > 0 else { continue }
                    driver.send([.into(Self.target, 1)])
                }
                isOver.signal()
            }
        }
        #expect(isOver.wait(timeout: .now() + 60) == .success)
        #expect(isOver.wait(timeout: .now() + 60) == .success)
        bench.driver.start()
        bench.driver.send([.into(Self.target, 1)])
        #expect(bench.driver.usedIndex() == 1)
        #expect(bench.driver.status & 0x40 == 0)
    }

    @Test func `machine's reset brings all back, with chains in flight`() throws {
        let bench = try Bench(hasMessages: true, queues: [8])
        bench.device.hold()
        bench.driver.send([.into(Self.target, 1)])
        bench.setConfiguration(0x10, 0x5000)
        bench.function.reset()
        #expect(bench.device.heldCount == 0)
        #expect(bench.driver.status == 0)
        #expect(bench.configuration(0x10) == 0x1001)
    }

    // MARK: Interrupts

    @Test(arguments: VirtioDriver.Interface.allCases)
    func `wire follows ISR status and INTx disable`(interface: VirtioDriver.Interface) throws {
        let bench = try Bench(interface, queues: [8])
        bench.setConfiguration(4, 0x407, .word)
        bench.driver.send([.into(Self.target, 1)])
        #expect(!bench.bench.isInterrupting)
        #expect(bench.configuration(6, .word) & 8 != 0)
        bench.setConfiguration(4, 7, .word)
        #expect(bench.bench.isInterrupting)
        #expect(bench.driver.interruptStatus == 1)
        #expect(!bench.bench.isInterrupting)
        #expect(bench.driver.interruptStatus == 0)
    }

    @Test func `changed configuration has another generation and interrupts`() throws {
        let bench = try Bench()
        #expect(bench.driver.configuration(0, .dword) == 7)
        let before = bench.driver.common(0x15, .byte)
        bench.device.setCounter(0x1234)
        #expect(bench.driver.configuration(0, .word) == 0x1234)
        #expect(bench.driver.common(0x15, .byte) != before)
        #expect(bench.driver.interruptStatus == 2)
        bench.driver.setConfiguration(4, 0xAB, .byte)
        #expect(bench.driver.configuration(4, .byte) == 0xAB)
        #expect(bench.driver.configuration(8, .dword) == 0)
    }

    private func entry(_ bench: Bench, _ vector: UInt64, address: UInt64, data: UInt64, masked: Bool) {
        bench.driver.setCommon(0x4000 + vector * 16, address & 0xFFFF_FFFF)
        bench.driver.setCommon(0x4004 + vector * 16, address >> 32)
        bench.driver.setCommon(0x4008 + vector * 16, data)
        bench.driver.setCommon(0x400C + vector * 16, masked ? 1 : 0)
    }

    private static let control: UInt8 = 0x8A

    @Test(arguments: VirtioDriver.Interface.allCases)
    func `messages go out, wait while masked, and leave the wire alone`(interface: VirtioDriver.Interface) throws {
        let bench = try Bench(interface, hasMessages: true, queues: [8])
        let messages = try #require(bench.bench.messages)
        let driver = bench.driver
        bench.setConfiguration(Self.control, 0x8000, .word)
        #expect(bench.configuration(Self.control, .word) == 0x8001)
        if interface != .legacy {
            driver.setCommon(0x16, 0, .word)
            driver.setCommon(0x1A, 1, .word)
            #expect(driver.common(0x1A, .word) == 1)
        } else {
            driver.setPort(0x16, 1, .word)
            #expect(driver.port(0x16, .word) == 1)
            // The device's configuration has moved.
            #expect(driver.port(0x18) == 7)
        }
        entry(bench, 1, address: 0x1_FEE0_0000, data: 0x41, masked: false)
        driver.send([.into(Self.target, 1)])
        #expect(messages.messages == [.init(address: 0x1_FEE0_0000, data: 0x41)])
        #expect(!bench.bench.isInterrupting)
        #expect(driver.common(0x5000) == 0)

        entry(bench, 1, address: 0xFEE0_0000, data: 0x42, masked: true)
        driver.setUsedEvent(1)
        driver.send([.into(Self.target, 1)])
        #expect(messages.messages.count == 1)
        #expect(driver.common(0x5000) == 2)
        driver.setCommon(0x401C, 0)
        #expect(messages.messages.last == .init(address: 0xFEE0_0000, data: 0x42))
        #expect(messages.messages.count == 2)
        #expect(driver.common(0x5000, .qword) == 0)

        bench.setConfiguration(Self.control, 0xC000, .word)
        driver.setUsedEvent(2)
        driver.send([.into(Self.target, 1)])
        #expect(messages.messages.count == 2)
        bench.setConfiguration(Self.control, 0x8000, .word)
        #expect(messages.messages.count == 3)
    }

    @Test func `vector that is not there reads back as none and signals nothing`() throws {
        let bench = try Bench(hasMessages: true, queues: [8])
        bench.setConfiguration(Self.control, 0x8000, .word)
        bench.driver.setCommon(0x16, 0, .word)
        bench.driver.setCommon(0x1A, 2, .word)
        #expect(bench.driver.common(0x1A, .word) == 0xFFFF)
        bench.driver.setCommon(0x10, 1, .word)
        #expect(bench.driver.common(0x10, .word) == 1)
        bench.driver.send([.into(Self.target, 1)])
        #expect(bench.bench.messages?.messages == [])
        let without = try Bench(queues: [8])
        without.driver.setCommon(0x10, 0, .word)
        #expect(without.driver.common(0x10, .word) == 0xFFFF)
    }

    @Test func `registers are reached by configuration space`() throws {
        let bench = try Bench(starts: false)
        let place = try #require(bench.capabilities.first { $0.type == 5 }).offset
        func point(_ offset: UInt32, _ length: UInt32, baseAddress: UInt32 = 1) {
            bench.setConfiguration(place + 4, baseAddress, .byte)
            bench.setConfiguration(place + 8, offset)
            bench.setConfiguration(place + 12, length)
        }
        point(0x14, 1)
        bench.setConfiguration(place + 16, 3, .byte)
        #expect(bench.driver.status == 3)
        #expect(bench.configuration(place + 16, .byte) == 3)
        point(0x2000, 4)
        #expect(bench.configuration(place + 16) == 7)
        // What cannot be is not.
        for (offset, length, baseAddress) in [(0x2002, 4, 1), (0x2000, 3, 1), (0x2000, 0, 1), (0x2000, 8, 1), (0x14, 1, 0), (0xFFFF_FFFC, 4, 1)] as [(UInt32, UInt32, UInt32)] {
            point(offset, length, baseAddress: baseAddress)
            bench.setConfiguration(place + 16, 0x80)
            _ = bench.configuration(place + 16)
        }
        #expect(bench.driver.status == 3)
    }

    // MARK: State

    @Test(arguments: VirtioDriver.Interface.allCases)
    func `saved device goes on elsewhere`(interface: VirtioDriver.Interface) throws {
        let bench = try Bench(interface, queues: [8, 8])
        for _ in 0..<13 { bench.driver.send([.into(Self.target, 1)]) }
        bench.driver.setConfiguration(4, 0x77, .byte)
        bench.device.hold()
        bench.driver.send([.into(Self.target, 1)])
        let data = try JSONEncoder().encode(bench.function.save())
        #expect(bench.driver.usedIndex() == 14)

        let transport = VirtioTransport(
            EchoDevice.profile(queues: [8, 8]), memory: bench.bench.memory,
            .init(ports: 0x2000, memory: 0xF001_0000, line: bench.bench.lines.line(6), lineNumber: 6))
        let device = EchoDevice(transport)
        let function = VirtioPCIFunction(transport, device)
        function.restore(try JSONDecoder().decode(VirtioPCIFunction<EchoDevice>.State.self, from: data))
        #expect(bench.bench.lines.level(6))
        let driver = VirtioDriver(function, bench.bench.memory, interface)
        driver.queues = bench.driver.queues
        #expect(driver.configuration(4, .byte) == 0x77)
        driver.send([.into(Self.target, 1)])
        #expect(driver.usedIndex() == 15)
        #expect(function.save().registers == bench.function.save().registers)
    }
}
