import Devices
import DiskImage
import Foundation
import Linux
import Synchronization
import Testing
import VMM

@Suite("Virtio SCSI device", .timeLimit(.minutes(2))) struct VirtioSCSITests {
    private static let good: UInt8 = 0
    private static let checkCondition: UInt8 = 2

    /// What a request came to.
    private struct Answer: Equatable {
        var response: UInt8
        var status: UInt8
        /// Key, code and qualifier; `nil` without sense data.
        var sense: [UInt8]?
        var residual: UInt32
        var written: UInt32
    }

    /// A disc of 20 blocks, the last of which is not full, and a driver.
    private struct Bench {
        static let byteCount = 20 * 2048 - 500
        let image: FakeImage
        let bench: VirtioBench
        let device: VirtioSCSI
        let function: VirtioPCIFunction<VirtioSCSI>
        let driver: VirtioDriver

        init(_ interface: VirtioDriver.Interface = .modern, hasDisc: Bool = true, features: UInt64 = .max, method: DiskQueue.Method = .threads) throws {
            image = Self.disc(seed: 1)
            bench = try VirtioBench(VirtioSCSI.profile)
            device = try VirtioSCSI(bench.transport, hasDisc ? image : nil, method: method)
            function = VirtioPCIFunction(bench.transport, device)
            driver = VirtioDriver(function, bench.memory, interface)
            driver.start(features: features, queues: 3)
        }

        static func disc(seed: Int, byteCount: Int = byteCount) -> FakeImage {
            let image = FakeImage(byteCount: byteCount)
            image.bytes = (0..<byteCount).map { UInt8(truncatingIfNeeded: $0 &* 31 &+ $0 >> 8 &+ seed) }
            return image
        }

        static let header: UInt64 = 0x1000
        static let response: UInt64 = 0x2000
        static let data: UInt64 = 0x20_0000
        static let unit: [UInt8] = [1, 0, 0x40, 0, 0, 0, 0, 0]

        func putHeader(_ command: [UInt8], unit: [UInt8] = unit) {
            bench.memory.write([UInt8](repeating: 0, count: 51), at: Self.header)
            bench.memory.write(unit, at: Self.header)
            bench.memory.write(command, at: Self.header + 19)
            bench.memory.write([UInt8](repeating: 0xEE, count: 108), at: Self.response)
        }

        /// Sends a command and waits for its end.
        func command(_ command: [UInt8], into byteCount: Int = 0, unit: [UInt8] = unit) -> Answer? {
            putHeader(command, unit: unit)
            bench.memory.write([UInt8](repeating: 0xEE, count: byteCount), at: Self.data)
            var chain: [VirtioDriver.Buffer] = [.out(Self.header, 51), .into(Self.response, 108)]
            if byteCount > 0 { chain.append(.into(Self.data, byteCount)) }
            driver.send(chain, on: 2)
            device.drain()
            guard let used = driver.takeUsed(2), let bytes = bench.memory.read(Self.response, count: 108) else { return nil }
            func number(_ place: Int) -> UInt32 { (0..<4).reduce(0) { $0 | UInt32(bytes[place + $1]) << UInt32(8 * $1) } }
            return Answer(
                response: bytes[11], status: bytes[10], sense: number(0) == 0 ? nil : [bytes[12 + 2] & 0xF, bytes[12 + 12], bytes[12 + 13]],
                residual: number(4), written: used.byteCount)
        }

        func data(_ count: Int) -> [UInt8]? { bench.memory.read(Self.data, count: count) }
    }

    private static func read(_ address: UInt8, _ count: UInt8) -> [UInt8] { [0x28, 0, 0, 0, 0, address, 0, 0, count, 0] }

    @Test(arguments: VirtioDriver.Interface.allCases)
    func `configuration is what drivers look for`(interface: VirtioDriver.Interface) throws {
        let bench = try Bench(interface)
        let fields = [(0, 4, 1), (4, 4, 126), (8, 4, 0xFFFF), (12, 4, 64), (16, 4, 16), (20, 4, 96), (24, 4, 32), (28, 2, 0), (30, 2, 1), (32, 4, 0)]
        for (offset, count, value) in fields {
            #expect(bench.driver.configuration(UInt64(offset), count == 4 ? .dword : .word) == UInt64(value), "\(offset)")
        }
    }

    @Test(arguments: VirtioDriver.Interface.allCases)
    func `blocks are read into the guest's memory`(interface: VirtioDriver.Interface) throws {
        let bench = try Bench(interface)
        #expect(bench.command(Self.read(3, 2), into: 4096) == Answer(response: 0, status: Self.good, sense: nil, residual: 0, written: 108 + 4096))
        #expect(bench.data(4096) == Array(bench.image.bytes[3 * 2048..<5 * 2048]))
    }

    @Test func `the last block ends with zeros`() throws {
        let bench = try Bench()
        #expect(bench.command(Self.read(18, 2), into: 4096)?.status == Self.good)
        #expect(bench.data(4096) == Array(bench.image.bytes[18 * 2048..<20 * 2048 - 500]) + [UInt8](repeating: 0, count: 500))
    }

    @Test func `data in several pieces, over a hole of the memory's`() throws {
        let bench = try Bench()
        bench.putHeader(Self.read(0, 4))
        let places: [(UInt64, Int)] = [(0x3F_FF00, 512), (0x30_0000, 1), (0x1_0000_0000, 4000), (0x30_1000, 8192 - 4513)]
        bench.driver.send([.out(Bench.header, 20), .out(Bench.header + 20, 31), .into(Bench.response, 100), .into(Bench.response + 100, 8)] + places.map { .into($0.0, $0.1) }, on: 2)
        bench.device.drain()
        #expect(bench.driver.takeUsed(2)?.byteCount == 8300)
        // The memory is read a range at a time.
        let parts = [(0x3F_FF00, 256), (0x40_0000, 256)] + places.dropFirst()
        let found = parts.flatMap { bench.bench.memory.read($0.0, count: $0.1) ?? [] }
        let isRight = found == Array(bench.image.bytes[..<8192])
        #expect(isRight)
    }

    @Test func `answers are cut to the room, and the rest is residual`() throws {
        let bench = try Bench()
        #expect(bench.command([0x12, 0, 0, 0, 96, 0], into: 96) == Answer(response: 0, status: 0, sense: nil, residual: 60, written: 108 + 36))
        #expect(bench.data(36)?.prefix(5) == [0x05, 0x80, 0x05, 0x02, 31])
        #expect(bench.command([0x12, 0, 0, 0, 96, 0], into: 8)?.written == 116)
    }

    @Test func `a read with too little room is an overrun`() throws {
        let bench = try Bench()
        #expect(bench.command(Self.read(0, 2), into: 2048) == Answer(response: 1, status: 0, sense: nil, residual: 0, written: 108 + 2048))
        #expect(bench.data(2048) == Array(bench.image.bytes[..<2048]))
        #expect(bench.command(Self.read(0, 1)) == Answer(response: 1, status: 0, sense: nil, residual: 0, written: 108))
    }

    @Test func `what fails comes back with sense data`() throws {
        let bench = try Bench()
        let outside = Answer(response: 0, status: Self.checkCondition, sense: [5, 0x21, 0], residual: 2048, written: 108)
        #expect(bench.command(Self.read(20, 1), into: 2048) == outside)
        bench.image.failure = .malformed
        #expect(bench.command(Self.read(0, 1), into: 2048)?.sense == [3, 0x11, 0])
        #expect(bench.command([0x2A], into: 0)?.sense == [5, 0x20, 0])
    }

    @Test(arguments: [[1, 1, 0x40, 0, 0, 0, 0, 0], [1, 255, 0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0, 0, 0], [0xC1, 1, 0, 0, 0, 0, 0, 0]] as [[UInt8]])
    func `there is no other target`(unit: [UInt8]) throws {
        let bench = try Bench()
        #expect(bench.command([0x12, 0, 0, 0, 36, 0], into: 36, unit: unit) == Answer(response: 3, status: 0, sense: nil, residual: 36, written: 108))
    }

    @Test func `there is no other unit`() throws {
        let bench = try Bench()
        #expect(bench.command([0x00], unit: [1, 0, 0x40, 1, 0, 0, 0, 0])?.sense == [5, 0x25, 0])
        #expect(bench.command([0x12, 0, 0, 0, 36, 0], into: 36, unit: [1, 0, 0, 3, 0, 0, 0, 0])?.status == 0)
        #expect(bench.data(1) == [0x7F])
    }

    @Test func `sizes that the driver sets count, and impossible ones do not`() throws {
        let bench = try Bench()
        bench.driver.setConfiguration(20, 18, .dword)
        bench.driver.setConfiguration(24, 16, .dword)
        #expect(bench.driver.configuration(20, .dword) == 18)
        bench.putHeader(Self.read(20, 1))
        bench.driver.send([.out(Bench.header, 35), .into(Bench.response, 30), .into(Bench.data, 2048)], on: 2)
        #expect(bench.driver.takeUsed(2)?.byteCount == 30)
        #expect(bench.bench.memory.load(Bench.response, as: UInt32.self) == 18)
        bench.driver.setConfiguration(20, 0xFFFF_FFFF, .dword)
        bench.driver.setConfiguration(24, 4096, .dword)
        #expect(bench.command(Self.read(0, 1), into: 2048)?.status == Self.good)
    }

    @Test(arguments: [([.out(0x1000, 50), .into(0x2000, 108)]), ([.out(0x1000, 51), .into(0x2000, 107)]), ([.into(0x2000, 108)]), ([.out(0x1000, 51)])] as [[VirtioDriver.Buffer]])
    func `a request without room for header or response breaks the device`(chain: [VirtioDriver.Buffer]) throws {
        let bench = try Bench()
        bench.driver.send(chain, on: 2)
        #expect(bench.driver.status & 0x40 != 0)
        bench.driver.start(queues: 3)
        #expect(bench.command(Self.read(0, 1), into: 2048)?.status == Self.good)
    }

    @Test func `task management`() throws {
        let bench = try Bench()
        func manage(_ kind: UInt32, unit: [UInt8] = Bench.unit) -> UInt8? {
            bench.bench.memory.write([0, 0, 0, 0, UInt8(kind), 0, 0, 0] + unit + [UInt8](repeating: 0, count: 8), at: Bench.header)
            bench.driver.send([.out(Bench.header, 24), .into(Bench.response, 1)], on: 0)
            return bench.driver.takeUsed(0) == nil ? nil : bench.bench.memory.load(Bench.response, as: UInt8.self)
        }
        _ = bench.command([0x1E, 0, 0, 0, 1, 0])
        #expect(bench.device.drive.isLocked)
        #expect((0...8).map { manage($0) } == [0, 0, 11, 0, 0, 0, 0, 0, 11])
        #expect(!bench.device.drive.isLocked)
        #expect(manage(5, unit: [1, 2, 0x40, 0, 0, 0, 0, 0]) == 3)
        #expect(manage(5, unit: [1, 0, 0x40, 2, 0, 0, 0, 0]) == 12)
        // With a read under way nothing is aborted.
        bench.image.gate.shut()
        bench.putHeader(Self.read(0, 1))
        bench.driver.send([.out(Bench.header, 51), .into(Bench.response + 0x800, 108), .into(Bench.data, 2048)], on: 2)
        #expect(manage(0) == 11)
        #expect(manage(6) == 10)
        bench.image.gate.open()
        bench.device.drain()
        #expect(bench.driver.takeUsed(2)?.byteCount == 2156)
        // Asynchronous notifications: none.
        bench.bench.memory.write([1, 0, 0, 0] + Bench.unit + [0xFF, 0, 0, 0], at: Bench.header)
        bench.driver.send([.out(Bench.header, 16), .into(Bench.response, 5)], on: 0)
        #expect(bench.bench.memory.read(Bench.response, count: 5) == [0, 0, 0, 0, 0])
        bench.bench.memory.write([9, 0, 0, 0], at: Bench.header)
        bench.driver.send([.out(Bench.header, 24), .into(Bench.response, 5)], on: 0)
        #expect(bench.driver.status & 0x40 != 0)
    }

    // MARK: Changes of the disc

    @Test func `another disc is read, and the guest is told`() throws {
        let bench = try Bench()
        bench.driver.offer(bench.driver.putChain([.into(0x5000, 16)], on: 1), on: 1)
        bench.driver.notify(1)
        let other = Bench.disc(seed: 99, byteCount: 3 * 2048)
        #expect(try bench.device.insert(other))
        #expect(bench.driver.takeUsed(1)?.byteCount == 16)
        #expect(bench.bench.memory.read(0x5000, count: 16) == [3, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0x28, 0, 0, 0])
        #expect(bench.command(Self.read(0, 1), into: 2048)?.sense == [6, 0x28, 0])
        #expect(bench.command(Self.read(0, 3), into: 6144)?.status == Self.good)
        #expect(bench.data(6144) == other.bytes)
        #expect(bench.command(Self.read(3, 1), into: 2048)?.sense == [5, 0x21, 0])
        #expect(bench.device.eject())
        #expect(bench.command([0x00])?.sense == [6, 0x28, 0])
        #expect(bench.command(Self.read(0, 1), into: 2048)?.sense == [2, 0x3A, 1])
        // There was no buffer for that event.
        bench.driver.offer(bench.driver.putChain([.into(0x5000, 16)], on: 1), on: 1)
        bench.driver.notify(1)
        #expect(bench.bench.memory.read(0x5000, count: 4) == [0, 0, 0, 0x80])
    }

    @Test func `a locked disc stays until it is forced out`() throws {
        let bench = try Bench()
        _ = bench.command([0x1E, 0, 0, 0, 1, 0])
        let other = Bench.disc(seed: 99)
        #expect(try !bench.device.insert(other))
        #expect(!bench.device.eject())
        #expect(bench.command([0x4A, 1, 0, 0, 0x10, 0, 0, 0, 8, 0], into: 8)?.status == 0)
        #expect(bench.data(8) == [0, 6, 4, 0x10, 1, 2, 0, 0])
        #expect(bench.command(Self.read(0, 1), into: 2048)?.status == 0)
        #expect(try bench.device.insert(other, force: true))
        _ = bench.command([0x00])
        #expect(bench.command(Self.read(1, 1), into: 2048)?.status == 0)
        #expect(bench.data(2048) == Array(other.bytes[2048..<4096]))
    }

    @Test func `a change waits for reads of the disc that is there`() throws {
        let bench = try Bench()
        weak var old: FakeImage?
        let first = Bench.disc(seed: 5)
        old = first
        #expect(try bench.device.insert(first))
        _ = bench.command([0x00])
        first.gate.shut()
        bench.putHeader(Self.read(0, 1))
        bench.driver.send([.out(Bench.header, 51), .into(Bench.response, 108), .into(Bench.data, 2048)], on: 2)
        let opener = Thread { first.gate.open() }
        opener.start()
        #expect(bench.device.eject())
        #expect(bench.driver.takeUsed(2)?.byteCount == 2156)
        #expect(bench.data(2048) == Array(first.bytes[..<2048]))
        #expect(old != nil)
    }

    private final class Flag: Sendable {
        let value = Atomic(false)
        func set() { value.store(true, ordering: .sequentiallyConsistent) }
        var isSet: Bool { value.load(ordering: .sequentiallyConsistent) }
    }

    @Test func `a reset waits for reads of a disc that is being taken out`() throws {
        let bench = try Bench()
        let first = Bench.disc(seed: 5)
        #expect(try bench.device.insert(first))
        _ = bench.command([0x00])
        first.gate.shut()
        bench.putHeader(Self.read(0, 1))
        bench.driver.send([.out(Bench.header, 51), .into(Bench.response, 108), .into(Bench.data, 2048)], on: 2)
        let (device, function, isOver) = (bench.device, bench.function, Flag())
        let ejector = try PosixThread("ejector") { _ = device.eject() }
        while bench.device.drive.discByteCount != nil { usleep(100) }
        let resetter = try PosixThread("resetter") {
            function.reset()
            isOver.set()
        }
        usleep(50_000)
        // The guest's memory is written yet.
        #expect(!isOver.isSet)
        first.gate.open()
        resetter.join()
        ejector.join()
        #expect(isOver.isSet)
    }

    /// What a driver reads meanwhile is of one disc or refused, and it comes back.
    @Test(arguments: DiskQueue.Method.allCases)
    func `reads while discs come and go are all answered`(method: DiskQueue.Method) throws {
        let bench = try Bench(method: method == .ring && !Self.hasRing ? .threads : method)
        let (device, isOver) = (bench.device, Flag())
        let discs = [Bench.disc(seed: 1), Bench.disc(seed: 2)]
        let changer = try PosixThread("changer") {
            for round in 0..<150 {
                _ = try? device.insert(discs[round % 2])
                if round % 5 == 0 { _ = device.eject() }
            }
            isOver.set()
        }
        var (answers, reads) = (0, 0)
        while !isOver.isSet || answers < 100 {
            guard let answer = bench.command(Self.read(3, 4), into: 8192) else {
                Issue.record("no answer behind \(answers)")
                break
            }
            answers += 1
            guard answer.status == Self.good else { continue }
            reads += 1
            let data = bench.data(8192)
            let isWhole = discs.contains { data == Array($0.bytes[3 * 2048..<7 * 2048]) }
            #expect(isWhole)
        }
        changer.join()
        _ = try device.insert(discs[0])
        _ = bench.command([0x00])
        #expect(bench.command(Self.read(3, 4), into: 8192)?.status == Self.good)
    }

    private static let hasRing: Bool = {
        guard let queue = try? DiskQueue(FakeImage(byteCount: 512), depth: 1, onCompletion: { _, _ in }) else { return false }
        return queue.usesRing
    }()

    @Test func `a driver that resets the unit still hears of another disc`() throws {
        let bench = try Bench()
        #expect(try bench.device.insert(Bench.disc(seed: 3)))
        bench.bench.memory.write([0, 0, 0, 0, 5, 0, 0, 0] + Bench.unit + [UInt8](repeating: 0, count: 8), at: Bench.header)
        bench.driver.send([.out(Bench.header, 24), .into(Bench.response, 1)], on: 0)
        #expect(bench.driver.takeUsed(0) != nil)
        #expect(bench.command(Self.read(0, 1), into: 2048)?.sense == [6, 0x28, 0])
    }

    @Test func `a drive without a disc is there all the same`() throws {
        let bench = try Bench(hasDisc: false)
        #expect(bench.command([0x12, 0, 0, 0, 36, 0], into: 36)?.status == 0)
        #expect(bench.command([0x00])?.sense == [2, 0x3A, 1])
    }

    @Test func `state survives being saved, and a reset unlocks`() throws {
        let bench = try Bench()
        _ = bench.command([0x1E, 0, 0, 0, 1, 0])
        bench.driver.setConfiguration(20, 50, .dword)
        let state = bench.device.save()
        let copy = try JSONDecoder().decode(VirtioSCSI.State.self, from: JSONEncoder().encode(state))
        #expect(copy == state)
        bench.driver.start(queues: 3)
        #expect(!bench.device.drive.isLocked)
        #expect(bench.driver.configuration(20, .dword) == 96)
        bench.device.restore(copy)
        #expect(bench.device.save() == state)
    }
}
