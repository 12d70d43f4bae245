import Devices
import Foundation
import TestSupport
import Testing
import VMM

/// Drivers that do anything: whatever it is, nothing traps, and the device works again after a reset.
///
/// `VMD_FUZZ_SECONDS=n` goes on with new seeds for so long.
@Suite(.serialized) struct VirtioFuzzTests {
    private struct Attack<Device: VirtioDevice> {
        let bench: VirtioBench
        let function: VirtioPCIFunction<Device>
        let driver: VirtioDriver
        var random: SplitMix64

        private static var places: [UInt64] { [0, 0x1000, 0x2000, 0x10_0000, 0x3F_FFF0, 0x5F_FFFF, 0x60_0000, 0x1_0000_0000, .max - 8] }

        mutating func number(_ range: Range<UInt64>) -> UInt64 { .random(in: range, using: &random) }
        mutating func pick<T>(_ values: [T]) -> T { values[Int(number(0..<UInt64(values.count)))] }
        mutating func value() -> UInt64 {
            switch number(0..<4) {
            case 0: number(0..<16)
            case 1: pick([0, 1, 0xFF, 0xFFFF, 0x8000, 0xFFFF_FFFF, .max])
            case 2: pick(Self.places)
            default: random.next()
            }
        }

        /// A register, anywhere or where it counts.
        mutating func touchRegister() {
            let width = pick(AccessWidth.allCases)
            let index = Int(number(0..<2))
            let offset = number(0..<4) == 0
                ? number(0..<0x9000)
                : index == 0 ? number(0..<0x40) : pick([0, 0x1000, 0x2000, 0x3000, 0x4000, 0x5000]) + number(0..<0x40)
            switch number(0..<8) {
            case 0..<4: function.write(index, offset, width, value() & width.allOnes)
            case 4..<6: _ = function.read(index, offset, width)
            case 6: function.writeConfiguration(UInt8(number(0..<64) * 4), pick([.byte, .word, .dword]), UInt32(truncatingIfNeeded: value()))
            default: _ = function.readConfiguration(UInt8(number(0..<64) * 4), .dword)
            }
        }

        /// Descriptors of any kind, mostly such that lead somewhere.
        mutating func scribble() {
            guard !driver.queues.isEmpty else { return }
            let queue = Int(number(0..<UInt64(driver.queues.count)))
            let ring = driver.queues[queue]
            let table = number(0..<4) == 0 ? 0x5000 : ring.descriptors
            if driver.interface == .packed { return scribblePacked(queue, table) }
            for _ in 0..<number(1..<8) {
                let address = number(0..<8) == 0 ? value() : 0x20_0000 &+ number(0..<0x1000)
                let count = number(0..<8) == 0 ? UInt32(truncatingIfNeeded: value()) : UInt32(pick([1, 8, 16, 32, 512, 1024]))
                let flags = UInt16(number(0..<16) == 0 ? number(0..<8) : number(0..<4))
                driver.putDescriptor(
                    table, UInt16(number(0..<UInt64(ring.size))), address, count, flags, UInt16(number(0..<UInt64(ring.size))))
            }
            // Headers of block requests, among others.
            driver.memory.store(0x20_0000 + number(0..<0x1000), UInt32(truncatingIfNeeded: number(0..<16)))
            driver.memory.store(0x20_0000 + number(0..<0x1000), UInt64(truncatingIfNeeded: number(0..<80)))
            if number(0..<6) == 0 {
                driver.memory.store(ring.driver + number(0..<32), UInt16(truncatingIfNeeded: value()))
            } else {
                driver.offer(UInt16(number(0..<UInt64(ring.size))), on: queue)
            }
            driver.notify(queue)
        }

        /// The same for a packed ring: mostly such that are available, from where the driver is on.
        private mutating func scribblePacked(_ queue: Int, _ table: UInt64) {
            let ring = driver.queues[queue]
            let start = number(0..<4) == 0 ? number(0..<UInt64(ring.size)) : UInt64(ring.nextDescriptor)
            for index in 0..<number(1..<8) {
                let address = number(0..<8) == 0 ? value() : pick([0x5000, 0x20_0000 &+ number(0..<0x1000)])
                let count = number(0..<8) == 0 ? UInt32(truncatingIfNeeded: value()) : UInt32(pick([1, 8, 16, 32, 512, 1024]))
                var flags = UInt16(number(0..<16) == 0 ? number(0..<8) : number(0..<4))
                flags |= number(0..<16) == 0 ? UInt16(truncatingIfNeeded: value()) : VirtioDriver.lap(ring.packed.availableWrap)
                driver.putPacked(
                    table, UInt16((start + index) % UInt64(ring.size)), address, count, id: UInt16(truncatingIfNeeded: value()), flags)
            }
            driver.memory.store(0x20_0000 + number(0..<0x1000), UInt32(truncatingIfNeeded: number(0..<16)))
            if number(0..<6) == 0 { driver.memory.store(ring.driver, UInt32(truncatingIfNeeded: value())) }
            driver.notify(queue)
        }

        /// A chain as it should be, so that something is in flight when the rest comes.
        mutating func behave() {
            driver.memory.store(0x1000, UInt64(pick([0, 1, 4, 8, 11, 13])))
            driver.memory.store(0x1008, number(0..<70))
            driver.send([.out(0x1000, 16), .out(0x20_0000, Int(pick([0, 16, 512, 1024]))), .into(0x21_0000, Int(pick([0, 20, 512]))), .into(0x2000, 1)])
            guard driver.queues.count > 2 else { return }
            // The same for SCSI: unit 0 mostly, any command.
            driver.memory.write([1, UInt8(number(0..<8) == 0 ? 1 : 0), 0x40, 0, 0, 0, 0, 0], at: 0x3000)
            driver.memory.write((0..<32).map { _ in UInt8(number(0..<3) == 0 ? number(0..<256) : 0) }, at: 0x3013)
            driver.memory.store(0x3013, pick([0, 3, 8, 0x12, 0x1A, 0x1B, 0x25, 0x28, 0x43, 0x46, 0x4A, 0x88, 0xA8, 0xBE] as [UInt8]))
            driver.send([.out(0x3000, 51), .into(0x4000, 108), .into(0x21_0000, Int(pick([0, 36, 2048, 8192])))], on: 2)
        }

        mutating func run(_ count: Int) throws {
            for _ in 0..<count {
                switch number(0..<32) {
                case 0: driver.start(features: number(0..<2) == 0 ? .max : random.next() | 1 << 32, queues: driver.queues.count)
                case 1: function.reset()
                case 2:
                    let state = function.save()
                    #expect(try JSONDecoder().decode(VirtioPCIFunction<Device>.State.self, from: JSONEncoder().encode(state)) == state)
                    function.restore(state)
                case 3..<18: touchRegister()
                case 18..<24: if !driver.queues.isEmpty { behave() }
                default: scribble()
                }
            }
        }
    }

    /// - Parameter probe: what the device must still answer: a queue and a chain.
    private func attack<Device: VirtioDevice>(
        _ seed: UInt64, _ profile: VirtioProfile,
        probe: (queue: Int, chain: [VirtioDriver.Buffer]) = (0, [.out(0x1000, 16), .into(0x2000, 1)]),
        _ make: (VirtioTransport) throws -> Device
    ) throws {
        for interface in VirtioDriver.Interface.allCases {
            let bench = try VirtioBench(profile, hasMessages: seed % 2 == 0)
            let function = VirtioPCIFunction(bench.transport, try make(bench.transport))
            let driver = VirtioDriver(function, bench.memory, interface)
            driver.start(queues: profile.queueSizes.count)
            var attack = Attack(bench: bench, function: function, driver: driver, random: SplitMix64(seed: seed))
            try attack.run(400)
            // It still serves who behaves. Rings are where they were; the function may be anywhere.
            function.reset()
            let other = VirtioDriver(function, bench.memory, interface)
            other.start(queues: probe.queue + 1)
            other.send(probe.chain, on: probe.queue)
            function.device.drain()
            #expect(other.usedIndex(probe.queue) == 1, "seed \(seed)")
            #expect(other.status & 0x40 == 0, "seed \(seed)")
        }
    }

    private func attackAll(_ seed: UInt64) throws {
        try attack(seed, EchoDevice.profile(queues: [8, 4])) { EchoDevice($0) }
        try attack(seed, VirtioEntropy.profile) { VirtioEntropy($0) }
        let image = FakeImage(byteCount: 64 * 512, isReadOnly: seed % 8 == 7)
        try attack(seed, VirtioBlock.profile(image, queueCount: 2)) {
            try VirtioBlock($0, image, identifier: "fuzz", method: .threads)
        }
        let disc = FakeImage(byteCount: 64 * 512 - 100)
        try attack(seed, VirtioSCSI.profile, probe: (2, [.out(0x1000, 51), .into(0x2000, 108)])) {
            try VirtioSCSI($0, seed % 8 == 3 ? nil : disc, method: .threads)
        }
    }

    @Test(arguments: 1...16 as ClosedRange<UInt64>)
    func `hostile driver breaks only itself`(seed: UInt64) throws { try attackAll(seed) }

    private static let seconds = ProcessInfo.processInfo.environment["VMD_FUZZ_SECONDS"].flatMap(Double.init)

    @Test(.enabled(if: seconds != nil, "VMD_FUZZ_SECONDS says for how long"))
    func `hostile drivers go on`() throws {
        let end = Date(timeIntervalSinceNow: Self.seconds ?? 0)
        var seed = UInt64.random(in: 1000...UInt64.max / 2)
        while Date() < end {
            try attackAll(seed)
            seed += 1
        }
    }
}
