import DiskImage
import DiskTestSupport
import Glibc
import Linux
import Synchronization
import TestSupport
import Testing

/// A crash of the host at any point, with any of the writes lost that were not flushed: the image is sound, and what was flushed is
/// there.
@Suite("qcow2: crashes and failing hosts") struct QCOW2CrashTests {
    /// What was done between two points of the recording.
    struct Step {
        var start: Int
        var end: Int
        /// Bytes of the disk that may have changed; all, when `nil`.
        var range: Range<Int>?
        /// Everything before its end is on the medium then, and is this.
        var flushed: [UInt8]?
    }

    @Test(arguments: 1...4) func `at every point of the writes the image is sound`(seed: UInt64) throws {
        var random = SplitMix64(seed: seed)
        let size = 512 * UInt64.random(in: 200...900, using: &random)
        var options = QCOW2Options.random(byteCount: size, &random)
        // Narrower ones cannot count three snapshots.
        options.refcountBits = max(options.refcountBits, 8)
        options.clusterSize = min(options.clusterSize, 16384)
        options.extendedL2 = options.extendedL2 && options.clusterSize == 16384
        let recorder = Recorder()
        let steps = try work(options, recorder, &random)
        let changes = recorder.changes
        let first = steps[0].start
        // Anywhere; and where most is on its way, in front of what waits for the medium.
        let stride = max(1, (changes.count - first) / 40)
        let flushes = changes.indices.filter { if case .synchronize = changes[$0] { $0 > first } else { false } }
        let cuts = Array(Swift.stride(from: first, through: changes.count, by: stride)) + flushes.shuffled(using: &random).prefix(60)
        for (number, cut) in cuts.enumerated() {
            // All is there, or a random part of it, or only the last of it, or all but that.
            let kind = Int.random(in: 0...3, using: &random)
            let share = Int.random(in: 2...4, using: &random)
            var left = cut - (changes[..<cut].lastIndex { if case .synchronize = $0 { true } else { false } } ?? 0) - 1
            let file = try Recorder.replay(changes[..<cut]) {
                left -= 1
                return switch kind {
                case 0: true
                case 1: left < 1
                case 2: left >= 1
                default: Int.random(in: 0..<share, using: &random) == 0
                }
            }
            try look(
                file, cut, steps, options, "seed \(seed), cut \(cut) of \(changes.count), kind \(kind), \(options)", asksPeer: number % 10 == 0)
        }
    }

    /// Everything that a disk does.
    private func work(_ options: QCOW2Options, _ recorder: Recorder, _ random: inout SplitMix64) throws -> [Step] {
        let file = try ImageFile.memory(recorder)
        try QCOW2Image.create(file, options)
        try file.synchronize()
        let image = try QCOW2Image(file)
        var model = DiskModel(byteCount: Int(options.byteCount))
        var steps = [Step(start: recorder.count, end: recorder.count, range: 0..<0, flushed: model.bytes)]
        var snapshots: [(name: String, bytes: [UInt8])] = []
        for number in 0..<70 {
            let start = recorder.count
            var range: Range<Int>? = 0..<0
            var flushed = false
            switch UInt8.random(in: 0...19, using: &random) {
            case 0:
                try image.flush()
                flushed = true
            case 1...2:
                // Others write meanwhile: before its first or its second wait, or after it, where it keeps them off.
                let before = model.bytes
                let offset = Int.random(in: 0..<model.bytes.count, using: &random)
                let count = min(model.bytes.count - offset, 1 << Int.random(in: 9...15, using: &random))
                let byte = UInt8.random(in: 1...255, using: &random)
                try flush(image, recorder, skips: Int.random(in: 0...1, using: &random)) {
                    try? image.put([UInt8](repeating: byte, count: count), at: UInt64(offset))
                }
                model.fill(offset, count, byte)
                steps.append(Step(start: start, end: recorder.count, range: 0..<0, flushed: before))
                range = offset..<(offset + count)
            case 3 where snapshots.count < 3:
                try image.createSnapshot(name: "s\(number)")
                snapshots.append(("s\(number)", model.bytes))
                flushed = true
            case 4 where !snapshots.isEmpty:
                let chosen = snapshots.remove(at: Int.random(in: 0..<snapshots.count, using: &random))
                try image.deleteSnapshot(chosen.name)
                flushed = true
            case 5 where !snapshots.isEmpty:
                let chosen = snapshots[Int.random(in: 0..<snapshots.count, using: &random)]
                try image.applySnapshot(chosen.name)
                model = DiskModel(bytes: chosen.bytes)
                range = nil
                flushed = true
            case 6:
                let cluster = options.clusterSize
                let offset = UInt64.random(in: 0...(options.byteCount - 1) / cluster, using: &random) * cluster
                let bytes = [UInt8](repeating: UInt8.random(in: 1...255, using: &random), count: Int(min(cluster, options.byteCount - offset)))
                try bytes.withUnsafeBytes { try image.writeCompressed($0, at: offset) }
                model.replace(Int(offset), bytes)
                range = Int(offset)..<(Int(offset) + bytes.count)
            case 7:
                let offset = Int.random(in: 0..<model.bytes.count, using: &random)
                let count = Int.random(in: 0...(model.bytes.count - offset), using: &random)
                try image.discard(at: UInt64(offset), count: UInt64(count))
                model.replace(offset, try image.bytes(at: UInt64(offset), count: count))
                range = offset..<(offset + count)
            default:
                let offset = Int.random(in: 0..<model.bytes.count, using: &random)
                let count = min(model.bytes.count - offset, 1 << Int.random(in: 0...15, using: &random))
                let byte = UInt8.random(in: 0...255, using: &random)
                if byte < 40 {
                    try image.writeZeroes(at: UInt64(offset), count: UInt64(count), mayDiscard: byte < 20)
                    model.fill(offset, count, 0)
                } else {
                    try image.put([UInt8](repeating: byte, count: count), at: UInt64(offset))
                    model.fill(offset, count, byte)
                }
                range = offset..<(offset + count)
            }
            steps.append(Step(start: start, end: recorder.count, range: range, flushed: flushed ? model.bytes : nil))
        }
        #expect(DiskModel.difference(try DiskModel.contents(of: image), model.bytes) == nil)
        let start = recorder.count
        try image.close()
        steps.append(Step(start: start, end: recorder.count, range: 0..<0, flushed: model.bytes))
        return steps
    }

    /// - Parameter skips: how many waits for the medium pass before `body` happens in one.
    private func flush(_ image: QCOW2Image, _ recorder: Recorder, skips: Int, _ body: @escaping @Sendable () -> Void) throws {
        let done = Monitor(false)
        let isStarted = Mutex(false)
        let thread = Mutex<PosixThread?>(nil)
        @Sendable func start() {
            isStarted.withLock { $0 = true }
            let new = try? PosixThread("writer") {
                body()
                done.withLock { $0 = true }
                done.broadcast()
            }
            thread.withLock { $0 = new }
            done.withLock(waitingWhile: { !$0 }, until: SystemTime.monotonic() + 20_000_000) { _ in }
        }
        recorder.duringNextSynchronize(skips == 0 ? start : { recorder.duringNextSynchronize(start) })
        try image.flush()
        recorder.duringNextSynchronize(nil)
        if !isStarted.withLock({ $0 }) { body() }
        thread.withLock { $0.take() }?.join()
    }

    @Test func `a write that finds room does not wait for a flush`() throws {
        let gate = Gate { if case .synchronize = $0 { true } else { false } }
        let file = ImageFile(owning: try FileDescriptor.memory("disk", byteCount: 0), name: "disk", isReadOnly: false, observer: gate)
        try QCOW2Image.create(file, QCOW2Options(byteCount: 16 << 20))
        let image = try QCOW2Image(file)
        try image.put([1], at: 0)
        gate.arm()
        let flusher = try PosixThread("flusher") { try? image.flush() }
        #expect(gate.awaitChange())
        try image.put([2], at: 1 << 20)
        try image.discard(at: 0, count: 65536)
        #expect(try image.bytes(at: 1 << 20, count: 1) == [2])
        gate.open()
        flusher.join()
        #expect(!gate.timedOut)
        // What it did not have is in the next one.
        try image.flush()
        let again = try QCOW2Image(file, for: .check)
        #expect(try again.bytes(at: 1 << 20, count: 1) == [2] && again.bytes(at: 0, count: 1) == [0])
        #expect(try again.check().corruptions == 0)
    }

    /// The first write to a part of the disk that has no L2 table yet, at the file's end.
    @Test(arguments: 0...3) func `a table whose write fails is in the file all the same`(failing: Int) throws {
        let recorder = Recorder()
        let file = try ImageFile.memory(recorder)
        try QCOW2Image.create(file, QCOW2Options(byteCount: 4 << 30))
        let image = try QCOW2Image(file)
        try image.put([1], at: 0)
        recorder.fail(after: failing, with: ENOSPC, times: 100)
        try? image.put([2, 2, 2], at: 1 << 30)
        recorder.heal()
        try image.close()
        let again = try QCOW2Image(file)
        let byte = try again.bytes(at: 1 << 30, count: 1)
        #expect(byte == [0] || byte == [2])
        #expect(try again.check().corruptions == 0)
    }

    @Test func `requests wait when a flush has all tables in memory`() throws {
        let gate = Gate { if case .synchronize = $0 { true } else { false } }
        let file = ImageFile(owning: try FileDescriptor.memory("disk", byteCount: 0), name: "disk", isReadOnly: false, observer: gate)
        // 1024 slices of 16 KB are kept, each for 32 MB of the disk.
        var options = QCOW2Options(byteCount: 40 << 30)
        options.clusterSize = 16384
        try QCOW2Image.create(file, options)
        let image = try QCOW2Image(file)
        for place in 0..<1018 { try image.put([1], at: UInt64(place) << 25) }
        gate.arm()
        let flusher = try PosixThread("flusher") { try? image.flush() }
        #expect(gate.awaitChange())
        let failures = Monitor((count: 0, isDone: false))
        let writer = try PosixThread("writer") {
            for place in 1018..<1080 {
                do { try image.put([2], at: UInt64(place) << 25) } catch { failures.withLock { $0.count += 1 } }
            }
            failures.withLock { $0.isDone = true }
            failures.broadcast()
        }
        // Time to fail, if it did not wait.
        failures.withLock(waitingWhile: { !$0.isDone }, until: SystemTime.monotonic() + 300_000_000) { _ in }
        gate.open()
        flusher.join()
        writer.join()
        #expect(failures.withLock { $0.count } == 0)
        try image.flush()
        let again = try QCOW2Image(file, for: .check)
        #expect(try again.bytes(at: 1017 << 25, count: 1) == [1] && again.bytes(at: 1079 << 25, count: 1) == [2])
        #expect(try again.check().corruptions == 0)
    }

    @Test(arguments: [0, 1, 2]) func `a flush that fails while others write is done whole the next time`(failing: Int) throws {
        let recorder = Recorder()
        let file = try ImageFile.memory(recorder)
        try QCOW2Image.create(file, QCOW2Options(byteCount: 16 << 20))
        let image = try QCOW2Image(file)
        for place in 0..<8 { try image.put([UInt8(place + 1)], at: UInt64(place) << 20) }
        recorder.duringNextSynchronize {
            try? image.put([77], at: 9 << 20)
            recorder.fail(after: failing, with: EIO)
        }
        #expect(throws: ImageError.self) { try image.flush() }
        recorder.heal()
        try image.put([78], at: 10 << 20)
        try image.flush()
        let crashed = ImageFile(owning: try Recorder.replay(recorder.changes[...]), name: "crashed", isReadOnly: false)
        let found = try QCOW2Image(crashed)
        for place in 0..<8 { #expect(try found.bytes(at: UInt64(place) << 20, count: 1) == [UInt8(place + 1)]) }
        #expect(try found.bytes(at: 9 << 20, count: 1) == [77] && found.bytes(at: 10 << 20, count: 1) == [78])
        #expect(try found.check().corruptions == 0)
    }

    private func look(
        _ crashed: consuming FileDescriptor, _ cut: Int, _ steps: [Step], _ options: QCOW2Options, _ says: String, asksPeer: Bool
    ) throws {
        let file = ImageFile(owning: crashed, name: "crashed", isReadOnly: false)
        if !options.lazyRefcounts {
            let result = try QCOW2Image(file, for: .check).check()
            try #require(result.corruptions == 0 && result.errors == 0, "\(says): \(result.messages)")
        }
        if asksPeer, Peer.hasQEMU, !options.lazyRefcounts {
            let folder = try ScratchFolder()
            try folder.write("crashed", try file.contents())
            let result = try Peer.run(["qemu-img", "check", "-f", "qcow2", folder["crashed"]])
            // 3 is leaks and nothing else.
            try #require(result.status == 0 || result.status == 3, "\(says): \(result.output)")
        }
        let image = try QCOW2Image(file)
        // What was flushed last, and what may have changed since.
        guard let last = steps.lastIndex(where: { $0.flushed != nil && $0.end <= cut }), let expected = steps[last].flushed else { return }
        var isOpen = [Bool](repeating: false, count: expected.count)
        for step in steps[(last + 1)...] where step.start < cut {
            guard let range = step.range else { return }
            for i in range { isOpen[i] = true }
        }
        let found = try DiskModel.contents(of: image)
        try #require(found.count == expected.count, Comment(rawValue: says))
        let wrong = found.indices.first { !isOpen[$0] && found[$0] != expected[$0] }
        try #require(wrong == nil, "\(says): byte \(wrong ?? 0) is \(found[wrong ?? 0]), not \(expected[wrong ?? 0])")
        // And it goes on.
        try image.put([1, 2, 3], at: 100)
        try image.close()
        let result = try image.check()
        try #require(result.corruptions == 0 && result.errors == 0, "\(says): \(result.messages)")
    }

    @Test(arguments: 1...4) func `after calls that failed the image is sound and goes on`(seed: UInt64) throws {
        var random = SplitMix64(seed: seed &+ 1000)
        let size = 512 * UInt64.random(in: 200...2000, using: &random)
        var options = QCOW2Options.random(byteCount: size, &random)
        options.clusterSize = min(options.clusterSize, 4096)
        options.extendedL2 = false
        options.lazyRefcounts = false
        if options.refcountBits == 1 { options.refcountBits = 2 }
        let recorder = Recorder()
        let file = try ImageFile.memory(recorder)
        try QCOW2Image.create(file, options)
        let image = try QCOW2Image(file)
        var model = DiskModel(byteCount: Int(size))
        var failed = 0
        for number in 0..<80 {
            recorder.fail(after: Int.random(in: 0...12, using: &random), with: [ENOSPC, EIO].randomElement(using: &random) ?? EIO, times: Int.random(in: 1...3, using: &random))
            let offset = Int.random(in: 0..<model.bytes.count, using: &random)
            let count = min(model.bytes.count - offset, 1 << Int.random(in: 0...14, using: &random))
            do {
                switch UInt8.random(in: 0...9, using: &random) {
                case 0: try image.flush()
                case 1:
                    try image.createSnapshot(name: "s\(number)")
                    try image.deleteSnapshot("s\(number)")
                case 2:
                    try image.writeZeroes(at: UInt64(offset), count: UInt64(count), mayDiscard: true)
                    model.fill(offset, count, 0)
                default:
                    try image.put([UInt8](repeating: UInt8(number), count: count), at: UInt64(offset))
                    model.fill(offset, count, UInt8(number))
                }
                recorder.heal()
            } catch is ImageError {
                failed += 1
                recorder.heal()
                // What the request was for is undefined, and only that.
                model.replace(offset, try image.bytes(at: UInt64(offset), count: count))
            }
            try #require(DiskModel.difference(try DiskModel.contents(of: image), model.bytes) == nil, "seed \(seed), step \(number), \(options)")
        }
        #expect(failed > 10)
        try image.close()
        let result = try image.check()
        #expect(result.corruptions == 0 && result.errors == 0, "seed \(seed): \(result.messages)")
        #expect(DiskModel.difference(try DiskModel.contents(of: try QCOW2Image(file)), model.bytes) == nil)
    }
}
