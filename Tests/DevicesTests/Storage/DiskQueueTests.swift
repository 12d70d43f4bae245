import Devices
import DiskImage
import Glibc
import Linux
import Synchronization
import TestSupport
import Testing

@Suite("Disk queue", .timeLimit(.minutes(5))) struct DiskQueueTests {
    /// Where a container forbids io_uring, its tests fall away; `ring or threads` says so.
    static let methods: [DiskQueue.Method] = hasRing ? [.threads, .ring] : [.threads]
    static let hasRing = (try? DiskQueue(FakeImage(byteCount: 512), depth: 1, method: .ring) { _, _ in }) != nil

    @Test(arguments: methods)
    func `what is written is read back, in pieces of other sizes`(method: DiskQueue.Method) throws {
        let image = FakeImage(byteCount: 1 << 16)
        let client = try DiskClient(image, method: method)
        let written = Pieces([512, 1, 3583])
        written.bytes = (0..<4096).map { UInt8(truncatingIfNeeded: $0 * 7) }
        #expect(client.run(DiskRequest(.write, tag: 1, offset: 1000, buffers: written.buffers)) == .done)
        let read = Pieces([4000, 96])
        #expect(client.run(DiskRequest(.read, tag: 2, offset: 1000, buffers: read.buffers)) == .done)
        #expect(read.bytes == written.bytes)
        #expect(Array(image.bytes[1000..<5096]) == written.bytes)
    }

    @Test(arguments: methods)
    func `every other operation reaches the image`(method: DiskQueue.Method) throws {
        let image = FakeImage(byteCount: 1 << 16)
        let client = try DiskClient(image, method: method)
        #expect(client.run(DiskRequest(.flush, tag: 1)) == .done)
        #expect(client.run(DiskRequest(.discard, tag: 2, offset: 4096, byteCount: 512)) == .done)
        #expect(client.run(DiskRequest(.writeZeroes, tag: 3, offset: 0, byteCount: 4096)) == .done)
        #expect(client.run(DiskRequest(.writeZeroesDiscarding, tag: 4, offset: 0, byteCount: 65536)) == .done)
        #expect(
            image.calls == [
                .flush, .discard(4096, 512), .writeZeroes(0, 4096, mayDiscard: false), .writeZeroes(0, 65536, mayDiscard: true),
            ])
    }

    @Test(arguments: [
        (.system(SystemError("pread", errno: EIO)), .failed), (.malformed, .failed), (.readOnly, .readOnly),
        (.outOfRange, .outOfRange), (.unsupported, .unsupported), (.refused, .unsupported), (.inUse, .failed),
    ] as [(ImageError.Kind, DiskResult)])
    func `an image's error becomes a result`(kind: ImageError.Kind, result: DiskResult) throws {
        for method in Self.methods {
            let image = FakeImage(byteCount: 4096)
            image.failure = kind
            let client = try DiskClient(image, method: method)
            let memory = Pieces([512])
            #expect(client.run(DiskRequest(.read, tag: 1, buffers: memory.buffers)) == result)
            #expect(client.run(DiskRequest(.flush, tag: 2)) == result)
        }
    }

    @Test(arguments: methods)
    func `what lies outside of the disk is refused, whatever the numbers`(method: DiskQueue.Method) throws {
        let client = try DiskClient(FakeImage(byteCount: 4096), method: method)
        let memory = Pieces([512])
        for (tag, offset) in [3585, 4096, 1 << 40, UInt64.max - 511, .max].enumerated() {
            let tag = UInt32(tag) * 2
            #expect(client.run(DiskRequest(.read, tag: tag, offset: offset, buffers: memory.buffers)) == .outOfRange, "\(offset)")
            #expect(client.run(DiskRequest(.discard, tag: tag + 1, offset: offset, byteCount: 512)) == .outOfRange, "\(offset)")
        }
        #expect(client.run(DiskRequest(.writeZeroes, tag: 100, offset: 512, byteCount: .max)) == .outOfRange)
    }

    @Test(arguments: methods)
    func `a write to a read-only image says so`(method: DiskQueue.Method) throws {
        let client = try DiskClient(FakeImage(byteCount: 4096, isReadOnly: true), method: method)
        let memory = Pieces([512])
        #expect(client.run(DiskRequest(.write, tag: 1, buffers: memory.buffers)) == .readOnly)
    }

    @Test(arguments: methods)
    func `submitting waits for no disk, and at most four requests wait for it at a time`(method: DiskQueue.Method) throws {
        let image = FakeImage(byteCount: 1 << 16)
        image.gate.shut()
        let client = try DiskClient(image, depth: 32, method: method)
        let memory = (0..<32).map { _ in Pieces([512]) }
        for tag in 0..<32 { client.queue.submit(DiskRequest(.read, tag: UInt32(tag), buffers: memory[tag].buffers)) }
        client.queue.submitBatchEnd()
        #expect(client.finished.isEmpty)
        image.gate.open()
        for tag in 0..<32 { #expect(client.result(of: UInt32(tag)) == .done) }
        #expect((1...4).contains(image.mostRunning))
    }

    @Test(arguments: methods)
    func `a request beyond the depth fails, and the others are done`(method: DiskQueue.Method) throws {
        let image = FakeImage(byteCount: 1 << 16)
        image.gate.shut()
        let client = try DiskClient(image, depth: 2, method: method)
        let memory = Pieces([512])
        client.start(
            DiskRequest(.flush, tag: 1), DiskRequest(.flush, tag: 2), DiskRequest(.read, tag: 3, buffers: memory.buffers),
            DiskRequest(.flush, tag: 4))
        #expect(client.result(of: 3) == .failed)
        #expect(client.result(of: 4) == .failed)
        image.gate.open()
        #expect(client.result(of: 1) == .done)
        #expect(client.result(of: 2) == .done)
        #expect(image.calls == [.flush, .flush])
    }

    @Test(arguments: methods)
    func `draining waits for all that is in flight`(method: DiskQueue.Method) throws {
        let image = FakeImage(byteCount: 1 << 16)
        image.gate.shut()
        let client = try DiskClient(image, method: method)
        client.queue.drain()
        let memory = Pieces([512])
        for tag: UInt32 in 0..<6 { client.queue.submit(DiskRequest(.read, tag: tag, buffers: memory.buffers)) }
        client.queue.submitBatchEnd()
        let isDrained = Atomic(false)
        let thread = try PosixThread("drain") {
            client.queue.drain()
            isDrained.store(true, ordering: .releasing)
        }
        let deadline = SystemTime.monotonic() + 30_000_000_000
        while image.calls.count < 4, SystemTime.monotonic() < deadline { usleep(100) }
        let isEarly = isDrained.load(ordering: .acquiring)
        #expect(!isEarly)
        image.gate.open()
        thread.join()
        #expect(client.finished.count == 6)
    }

    @Test(arguments: methods)
    func `a queue that is let go of finishes what it has`(method: DiskQueue.Method) throws {
        let image = FakeImage(byteCount: 1 << 16)
        let results = Monitor(0)
        let memory = Pieces([512])
        image.gate.shut()
        do {
            let queue = try DiskQueue(image, depth: 8, method: method) { _, _ in
                results.withLock { $0 += 1 }
                results.broadcast()
            }
            for tag: UInt32 in 0..<8 { queue.submit(DiskRequest(.read, tag: tag, buffers: memory.buffers)) }
            queue.submitBatchEnd()
        }
        image.gate.open()
        let count = results.withLock(waitingWhile: { $0 < 8 }, until: SystemTime.monotonic() + 30_000_000_000) { $0 }
        #expect(count == 8)
    }

    @Test(arguments: methods)
    func `its threads are gone when it is`(method: DiskQueue.Method) throws {
        weak var image: FakeImage?
        do {
            let strong = FakeImage(byteCount: 4096)
            image = strong
            let client = try DiskClient(strong, method: method)
            for tag: UInt32 in 0..<8 { client.queue.submit(DiskRequest(.flush, tag: tag)) }
            client.queue.submitBatchEnd()
            client.queue.drain()
        }
        // The threads hold the image as long as they run.
        let deadline = SystemTime.monotonic() + 30_000_000_000
        while image != nil, SystemTime.monotonic() < deadline { usleep(100) }
        #expect(image == nil)
    }
}
