import Devices
import DiskImage
import Glibc
import Linux
import Synchronization
import TestSupport
import Testing

/// Snapshots of two qcow2 disks that are written by way of their queues, as a machine does it: nothing new is submitted meanwhile, and
/// nothing is under way.
@Suite("Snapshots of disks in use", .timeLimit(.minutes(2))) struct SnapshotTests {
    private final class Disk: Sendable {
        let image: QCOW2Image
        let client: DiskClient

        init(_ method: DiskQueue.Method) throws {
            let path = "/tmp/snapshot-tests-\(getpid())-\(UInt32.random(in: 0 ... .max))"
            let file = ImageFile(owning: try FileDescriptor(open: path, flags: O_RDWR | O_CREAT | O_EXCL), name: "disk", isReadOnly: false)
            unlink(path)
            try QCOW2Image.create(file, QCOW2Options(byteCount: 64 << 20))
            image = try QCOW2Image(file)
            client = try DiskClient(image, depth: 16, method: method)
        }

        func count() throws -> UInt64 {
            var value: UInt64 = 0
            try withUnsafeMutableBytes(of: &value) { bytes in
                var vector = iovec(iov_base: bytes.baseAddress, iov_len: 8)
                try withUnsafePointer(to: &vector) {
                    try image.read(into: IOBuffers(UnsafeBufferPointer(start: $0, count: 1), byteCount: 8), at: 0)
                }
            }
            return value
        }
    }

    /// Who submits has it.
    private final class Turn: Sendable {
        let lock = Mutex(())
        let isOver = Atomic(false)
    }

    @Test(arguments: [DiskQueue.Method.threads, .automatic])
    func `all are of one moment, whatever is written`(method: DiskQueue.Method) throws {
        let disks = [try Disk(method), try Disk(method)]
        let turn = Turn()
        // A count that goes to the first disk, then to the second.
        let counter = try PosixThread("counter") {
            let memory = Pieces([512])
            var number: UInt64 = 0
            while !turn.isOver.load(ordering: .relaxed) {
                number += 1
                memory.bytes = withUnsafeBytes(of: number) { Array($0) } + Array(repeating: 0, count: 504)
                for disk in disks {
                    turn.lock.withLock { _ in disk.client.start(DiskRequest(.write, tag: 1, offset: 0, buffers: memory.buffers), completesHere: true) }
                    #expect(disk.client.result(of: 1) == .done)
                }
            }
        }
        let others = try (0..<2).map { index in
            try PosixThread("other") {
                var random = SplitMix64(seed: UInt64(index))
                let memory = Pieces([65536])
                let tag = UInt32(2 + index)
                while !turn.isOver.load(ordering: .relaxed) {
                    let place = 65536 * UInt64.random(in: 16..<1000, using: &random)
                    let request = random.next() % 8 == 0 ? DiskRequest(.flush, tag: tag) : DiskRequest(.write, tag: tag, offset: place, buffers: memory.buffers)
                    let disk = disks[Int(random.next() % 2)]
                    turn.lock.withLock { _ in disk.client.start(request, completesHere: true) }
                    #expect(disk.client.result(of: tag) == .done)
                }
            }
        }
        let snapshots = try DiskSnapshots(disks.map(\.image))
        for round in 0..<20 {
            usleep(10_000)
            try snapshots.flush()
            try turn.lock.withLock { _ in
                for disk in disks { disk.client.queue.drain() }
                try snapshots.create("\(round)")
            }
            if round % 5 == 4 { try snapshots.delete("\(round - 2)") }
        }
        turn.isOver.store(true, ordering: .relaxed)
        for thread in [counter] + others { thread.join() }
        for disk in disks { #expect(try disk.image.check().isClean) }
        for name in disks[0].image.snapshots.map(\.name) {
            try snapshots.apply(name)
            let (first, second) = (try disks[0].count(), try disks[1].count())
            #expect(first == second || first == second + 1, "\(name): \(first), \(second)")
        }
    }
}
