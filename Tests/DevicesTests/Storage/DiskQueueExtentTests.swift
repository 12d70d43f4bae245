import Devices
import DiskImage
import Glibc
import Linux
import TestSupport
import Testing

/// Requests that the queue transfers itself, by where their bytes lie.
@Suite("Disk queue, extents", .timeLimit(.minutes(5))) struct DiskQueueExtentTests {
    /// How requests get to the disk.
    static let ways: [(DiskQueue.Method, completesHere: Bool)] =
        DiskQueueTests.methods.flatMap { [($0, false), ($0, true)] }

    /// A disk whose pieces lie backwards in a file, with zeros, and pieces that only the image can find, in between.
    private struct Scattered {
        static let piece = 4096
        static let count = 16
        let image: FakeImage
        /// What the disk holds.
        var model: [UInt8]

        /// - Parameter missing: bytes that the file is shorter than it should be.
        init(missing: Int = 0, _ place: (Int) -> FakeImage.Place) throws {
            var random = SplitMix64(seed: 5)
            let file = try Self.file()
            model = [UInt8](repeating: 0, count: Self.piece * Self.count)
            var inMemory = model
            var places: [FakeImage.Place] = []
            for index in 0..<Self.count {
                let place = place(index)
                places.append(place)
                let bytes = (0..<Self.piece).map { _ in UInt8.random(in: 1...255, using: &random) }
                let range = index * Self.piece..<(index + 1) * Self.piece
                switch place {
                case .zeros: break
                case .unknown:
                    inMemory.replaceSubrange(range, with: bytes)
                    model.replaceSubrange(range, with: bytes)
                case .file(let offset):
                    #expect(pwrite(file.raw, bytes, bytes.count, off_t(offset)) == bytes.count)
                    model.replaceSubrange(range, with: bytes)
                }
            }
            if missing > 0 {
                var status = stat()
                fstat(file.raw, &status)
                #expect(ftruncate(file.raw, status.st_size - off_t(missing)) == 0)
            }
            image = FakeImage(byteCount: model.count, places: places, pieceByteCount: Self.piece, file: file)
            image.bytes = inMemory
        }

        /// A file without a name.
        static func file() throws -> FileDescriptor {
            try FileDescriptor(open: "/tmp", flags: O_RDWR | 0o20200000 /* O_TMPFILE */)
        }

        static func mixed(_ index: Int) -> FakeImage.Place {
            switch index % 4 {
            case 0, 1: .file(offset: UInt64((count - index) * piece))
            case 2: .zeros
            default: .unknown
            }
        }

        static func backwards(_ index: Int) -> FakeImage.Place { .file(offset: UInt64((count - 1 - index) * piece)) }
    }

    @Test(arguments: ways)
    func `a read over extents of every kind is whole`(method: DiskQueue.Method, completesHere: Bool) throws {
        let disk = try Scattered(Scattered.mixed)
        let client = try DiskClient(disk.image, method: method)
        for (tag, (offset, lengths)) in [
            (0, [65536]), (100, [5000, 1, 6999]), (4095, [2]), (8192, [4096]), (12287, [1, 1, 1, 4096, 9000]), (65535, [1]),
            (0, [Int](repeating: 64, count: 1024)), (1, [Int](repeating: 40, count: 1500)),
        ].enumerated() {
            let memory = Pieces(lengths)
            let request = DiskRequest(.read, tag: UInt32(tag), offset: UInt64(offset), buffers: memory.buffers)
            #expect(client.run(request, completesHere: completesHere) == .done)
            #expect(memory.bytes == Array(disk.model[offset..<offset + memory.byteCount]), "\(offset) \(lengths.count)")
        }
        #expect(disk.image.heldExtents == 0)
    }

    @Test(arguments: ways)
    func `a write over extents of every kind is whole`(method: DiskQueue.Method, completesHere: Bool) throws {
        var disk = try Scattered(Scattered.mixed)
        let client = try DiskClient(disk.image, method: method)
        // Up to the zeros, which the image must find room for: the rest is its own.
        let memory = Pieces([1000, 3000, 3192])
        memory.bytes = (0..<7192).map { UInt8(truncatingIfNeeded: $0 &* 13 &+ 1) }
        #expect(client.run(DiskRequest(.write, tag: 1, offset: 1000, buffers: memory.buffers), completesHere: completesHere) == .done)
        disk.model.replaceSubrange(1000..<8192, with: memory.bytes)
        let whole = Pieces([disk.model.count])
        #expect(client.run(DiskRequest(.read, tag: 2, buffers: whole.buffers), completesHere: completesHere) == .done)
        #expect(whole.bytes == disk.model)
        #expect(disk.image.heldExtents == 0)
    }

    @Test(arguments: ways)
    func `what lies behind the end of a short file reads as zeros`(method: DiskQueue.Method, completesHere: Bool) throws {
        var disk = try Scattered(missing: 6000, Scattered.backwards)
        // Backwards: the first pieces are at the end.
        disk.model.replaceSubrange(4096 - 4096..<4096, with: [UInt8](repeating: 0, count: 4096))
        disk.model.replaceSubrange(8192 - 1904..<8192, with: [UInt8](repeating: 0, count: 1904))
        let client = try DiskClient(disk.image, method: method)
        let memory = Pieces([disk.model.count])
        #expect(client.run(DiskRequest(.read, tag: 1, buffers: memory.buffers), completesHere: completesHere) == .done)
        #expect(memory.bytes == disk.model)
        #expect(disk.image.heldExtents == 0)
    }

    @Test(.enabled(if: DiskQueueTests.hasRing, "needs io_uring"))
    func `the ring reads extents itself`() throws {
        let disk = try Scattered(Scattered.backwards)
        let client = try DiskClient(disk.image, method: .ring)
        #expect(client.queue.usesRing)
        let memory = Pieces([disk.model.count])
        #expect(client.run(DiskRequest(.read, tag: 1, buffers: memory.buffers)) == .done)
        #expect(memory.bytes == disk.model)
        #expect(disk.image.calls.isEmpty)
    }

    /// Whether the file system of the temporary folder can tell what is in memory: tmpfs cannot (RWF_NOWAIT, preadv2(2)).
    static let readsWithoutWaiting: Bool = {
        guard let file = try? Scattered.file() else { return false }
        let memory = Pieces([4096])
        return pwrite(file.raw, memory.bytes, 4096, 0) == 4096 && memory.buffers.readWithoutWaiting(from: file.raw, at: 0) == 4096
    }()

    @Test(.enabled(if: readsWithoutWaiting, "the temporary folder's file system knows no RWF_NOWAIT"), arguments: DiskQueueTests.methods)
    func `what is in the page cache is done on the caller's thread`(method: DiskQueue.Method) throws {
        let disk = try Scattered(Scattered.backwards)
        let client = try DiskClient(disk.image, method: method)
        let memory = Pieces([10000])
        client.start(DiskRequest(.read, tag: 1, offset: 500, buffers: memory.buffers), completesHere: true)
        #expect(client.finished == [1])
        #expect(memory.bytes == Array(disk.model[500..<10500]))
        #expect(disk.image.heldExtents == 0)
    }

    @Test(arguments: ways)
    func `an extent whose file fails is left to the image, whose word counts`(
        method: DiskQueue.Method, completesHere: Bool
    ) throws {
        // A descriptor that cannot be read at an offset.
        let folder = try FileDescriptor(open: "/", flags: O_RDONLY | O_DIRECTORY)
        let image = FakeImage(
            byteCount: 8192, places: [.file(offset: 0), .file(offset: 4096)], file: folder,
            isFileUseless: true)
        let client = try DiskClient(image, method: method)
        let memory = Pieces([8192])
        #expect(client.run(DiskRequest(.read, tag: 1, buffers: memory.buffers), completesHere: completesHere) == .done)
        #expect(client.run(DiskRequest(.write, tag: 2, buffers: memory.buffers), completesHere: completesHere) == .done)
        image.failure = .system(SystemError("pread", errno: EIO))
        #expect(client.run(DiskRequest(.read, tag: 3, buffers: memory.buffers), completesHere: completesHere) == .failed)
        #expect(client.run(DiskRequest(.write, tag: 4, buffers: memory.buffers), completesHere: completesHere) == .failed)
        #expect(image.heldExtents == 0)
    }

    @Test(arguments: ways)
    func `random requests at random agree with a model`(method: DiskQueue.Method, completesHere: Bool) throws {
        let seed: UInt64 = 0xD15C
        var random = SplitMix64(seed: seed)
        var disk = try Scattered { index in
            // No zeros: the fake cannot find room. Writes to its own pieces and to the file are the same to a reader.
            index % 3 == 2 ? .unknown : .file(offset: UInt64((Scattered.count - index) * Scattered.piece))
        }
        let client = try DiskClient(disk.image, depth: 16, method: method)
        for round in 0..<200 {
            var memory: [(Pieces, Range<Int>, DiskOperation)] = []
            var free = Array(0..<16).shuffled(using: &random)
            for tag in 0..<Int.random(in: 1...16, using: &random) {
                // Each in a part of the disk of its own, since requests have no order.
                guard let part = free.popLast() else { break }
                let start = part * 4096 + Int.random(in: 0..<2000, using: &random)
                let count = Int.random(in: 1...2096, using: &random)
                let first = Int.random(in: 0...count, using: &random)
                let pieces = Pieces([first, count - first])
                let range = start..<start + count
                switch Int.random(in: 0..<4, using: &random) {
                case 0:
                    pieces.bytes = (0..<count).map { _ in UInt8.random(in: 0...255, using: &random) }
                    disk.model.replaceSubrange(range, with: pieces.bytes)
                    memory.append((pieces, range, .write))
                case 1:
                    disk.model.replaceSubrange(range, with: [UInt8](repeating: 0, count: count))
                    memory.append((pieces, range, .writeZeroes))
                default: memory.append((pieces, range, .read))
                }
                let (_, _, operation) = memory[tag]
                client.queue.submit(
                    DiskRequest(
                        operation, tag: UInt32(tag), offset: UInt64(start), byteCount: UInt64(count),
                        buffers: operation == .writeZeroes ? .none : pieces.buffers))
            }
            client.queue.submitBatchEnd(completesHere: completesHere)
            if round % 3 == 0 { client.queue.drain() }
            for (tag, (pieces, range, operation)) in memory.enumerated() {
                #expect(client.result(of: UInt32(tag)) == .done, "seed \(seed) round \(round)")
                if operation == .read {
                    let isRight = pieces.bytes == Array(disk.model[range])
                    #expect(isRight, "seed \(seed) round \(round) \(range)")
                }
            }
        }
        client.queue.drain()
        #expect(disk.image.heldExtents == 0)
    }
}
