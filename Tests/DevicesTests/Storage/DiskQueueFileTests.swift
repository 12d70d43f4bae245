import Devices
import DiskImage
import Glibc
import Linux
import TestSupport
import Testing

/// The queue on files of the host's.
@Suite("Disk queue, raw files", .timeLimit(.minutes(5))) struct DiskQueueFileTests {
    private static func image(byteCount: Int, isReadOnly: Bool = false, fill: (CInt) -> Void = { _ in }) throws -> RawImage {
        // O_TMPFILE: a file without a name.
        let file = try FileDescriptor(open: "/tmp", flags: O_RDWR | 0o20200000)
        #expect(ftruncate(file.raw, byteCount) == 0)
        fill(file.raw)
        return try RawImage(ImageFile(owning: file, name: "test", isReadOnly: isReadOnly))
    }

    @Test(arguments: DiskQueueExtentTests.ways)
    func `random requests, many at a time, agree with a model`(method: DiskQueue.Method, completesHere: Bool) throws {
        let seed: UInt64 = 0xF11E
        var random = SplitMix64(seed: seed)
        let part = 64 << 10
        let parts = 64
        let image = try Self.image(byteCount: part * parts)
        var model = [UInt8](repeating: 0, count: part * parts)
        let client = try DiskClient(image, depth: parts, method: method)
        for round in 0..<60 {
            var reads: [(Int, Pieces, Range<Int>)] = []
            var free = Array(0..<parts).shuffled(using: &random)
            let count = Int.random(in: 1...parts, using: &random)
            for tag in 0..<count {
                guard let place = free.popLast() else { break }
                let start = place * part + Int.random(in: 0..<part / 2, using: &random)
                let length = Int.random(in: 1...part / 2, using: &random)
                let first = Int.random(in: 0...length, using: &random)
                let pieces = Pieces([first, length - first])
                let range = start..<start + length
                let number = UInt32(tag)
                switch Int.random(in: 0..<8, using: &random) {
                case 0, 1, 2:
                    let byte = UInt8.random(in: 0...255, using: &random)
                    pieces.bytes = (0..<length).map { UInt8(truncatingIfNeeded: $0) ^ byte }
                    model.replaceSubrange(range, with: pieces.bytes)
                    client.queue.submit(DiskRequest(.write, tag: number, offset: UInt64(start), buffers: pieces.buffers))
                    reads.append((tag, pieces, 0..<0))
                case 3:
                    model.replaceSubrange(range, with: repeatElement(0, count: length))
                    client.queue.submit(
                        DiskRequest(
                            round % 2 == 0 ? .writeZeroes : .writeZeroesDiscarding, tag: number, offset: UInt64(start),
                            byteCount: UInt64(length)))
                    reads.append((tag, pieces, 0..<0))
                case 4:
                    client.queue.submit(DiskRequest(.flush, tag: number))
                    reads.append((tag, pieces, 0..<0))
                default:
                    client.queue.submit(DiskRequest(.read, tag: number, offset: UInt64(start), buffers: pieces.buffers))
                    reads.append((tag, pieces, range))
                }
            }
            client.queue.submitBatchEnd(completesHere: completesHere)
            // Sometimes from the medium, as far as the host lets go of its cache.
            if round % 4 == 0 { posix_fadvise(image.file.descriptor, 0, 0, POSIX_FADV_DONTNEED) }
            for (tag, pieces, range) in reads {
                #expect(client.result(of: UInt32(tag)) == .done, "seed \(seed) round \(round)")
                guard !range.isEmpty else { continue }
                let isRight = pieces.bytes == Array(model[range])
                #expect(isRight, "seed \(seed) round \(round) \(range)")
            }
        }
        let whole = Pieces([model.count])
        #expect(client.run(DiskRequest(.read, tag: 1, buffers: whole.buffers)) == .done)
        let isSame = whole.bytes == model
        #expect(isSame)
    }

    @Test(arguments: DiskQueueExtentTests.ways)
    func `what is not in memory is read from the medium`(method: DiskQueue.Method, completesHere: Bool) throws {
        let bytes = (0..<1 << 20).map { UInt8(truncatingIfNeeded: $0 &* 31 &+ $0 >> 10) }
        let image = try Self.image(byteCount: bytes.count) { file in
            #expect(pwrite(file, bytes, bytes.count, 0) == bytes.count)
            fsync(file)
            posix_fadvise(file, 0, 0, POSIX_FADV_DONTNEED)
        }
        let client = try DiskClient(image, depth: 64, method: method)
        let memory = (0..<64).map { _ in Pieces([4000, 96]) }
        for tag in 0..<64 {
            client.queue.submit(DiskRequest(.read, tag: UInt32(tag), offset: UInt64(tag * 37 % 64 * 16384), buffers: memory[tag].buffers))
        }
        client.queue.submitBatchEnd(completesHere: completesHere)
        for tag in 0..<64 {
            #expect(client.result(of: UInt32(tag)) == .done)
            let start = tag * 37 % 64 * 16384
            let isRight = memory[tag].bytes == Array(bytes[start..<start + 4096])
            #expect(isRight, "\(tag)")
        }
    }

    @Test(arguments: DiskQueueExtentTests.ways)
    func `a file that is no whole number of sectors ends with zeros`(method: DiskQueue.Method, completesHere: Bool) throws {
        let bytes = [UInt8](repeating: 7, count: 1000)
        let image = try Self.image(byteCount: 1000) { #expect(pwrite($0, bytes, 1000, 0) == 1000) }
        let client = try DiskClient(image, method: method)
        let memory = Pieces([600, 424])
        #expect(client.run(DiskRequest(.read, tag: 1, buffers: memory.buffers), completesHere: completesHere) == .done)
        #expect(memory.bytes == bytes + [UInt8](repeating: 0, count: 24))
    }

    @Test(arguments: DiskQueueExtentTests.ways)
    func `a read-only file is not written`(method: DiskQueue.Method, completesHere: Bool) throws {
        let image = try Self.image(byteCount: 4096, isReadOnly: true)
        let client = try DiskClient(image, method: method)
        let memory = Pieces([512])
        #expect(client.run(DiskRequest(.write, tag: 1, buffers: memory.buffers), completesHere: completesHere) == .readOnly)
        #expect(client.run(DiskRequest(.read, tag: 2, buffers: memory.buffers), completesHere: completesHere) == .done)
        #expect(memory.bytes == [UInt8](repeating: 0, count: 512))
    }
}
