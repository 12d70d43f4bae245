import DiskImage
import DiskTestSupport
import Glibc
import Linux
import Synchronization
import TestSupport
import Testing

/// What others may do while a flush waits for the medium. The system tells of a lost write only once, whoever asks: so only one asks
/// at a time.
@Suite("qcow2 beside a flush", .timeLimit(.minutes(3))) struct QCOW2FlushTests {
    private final class Count: Sendable { let value = Atomic(0) }

    /// Runs `body` while a flush is held up, and lets that one go when `body` is through or has had time to be.
    /// - Returns: how many others asked meanwhile.
    private func beside(
        _ image: QCOW2Image, _ gate: Gate, _ count: Count, _ body: @escaping @Sendable () -> Void
    ) throws -> Int {
        count.value.store(0, ordering: .relaxed)
        gate.arm()
        let flusher = try PosixThread("flusher") { try? image.flush() }
        #expect(gate.awaitChange())
        let isDone = Monitor(false)
        let other = try PosixThread("other") {
            body()
            isDone.withLock { $0 = true }
            isDone.broadcast()
        }
        isDone.withLock(waitingWhile: { !$0 }, until: SystemTime.monotonic() + 2_000_000_000) { _ in }
        let asked = count.value.load(ordering: .relaxed) - 1
        gate.open()
        flusher.join()
        other.join()
        #expect(!gate.timedOut)
        return asked
    }

    private func make(_ options: QCOW2Options) throws -> (QCOW2Image, ImageFile, Gate, Count) {
        let count = Count()
        let gate = Gate {
            guard case .synchronize = $0 else { return false }
            count.value.add(1, ordering: .relaxed)
            return true
        }
        let file = try ImageFile.memory(gate)
        try QCOW2Image.create(file, options)
        return (try QCOW2Image(file), file, gate, count)
    }

    @Test func `flush that has no tables to write is alone too`() throws {
        let (image, file, gate, count) = try make(QCOW2Options(byteCount: 16 << 20))
        try image.put([1], at: 0)
        try image.flush()
        let asked = try beside(image, gate, count) {
            try? image.put([2], at: 1 << 20)
            try? image.flush()
        }
        #expect(asked == 0)
        #expect(try QCOW2Image(file, for: .check).bytes(at: 1 << 20, count: 1) == [2])
    }

    /// Only what follows each other is remembered together.
    @Test func `what is freed waits for a flush when it is much`() throws {
        var options = QCOW2Options(byteCount: 256 << 20)
        options.clusterSize = 512
        let (image, file, gate, count) = try make(options)
        let bytes = [UInt8](repeating: 1, count: 1 << 20)
        for place in 0..<140 { try image.put(bytes, at: UInt64(place) << 20) }
        try image.flush()
        try image.put([1], at: 200 << 20)
        let done = Count()
        let freedAtMost = 2 * 65536 + 1
        count.value.store(0, ordering: .relaxed)
        gate.arm()
        let flusher = try PosixThread("flusher") { try? image.flush() }
        #expect(gate.awaitChange())
        let other = try PosixThread("other") {
            for cluster in 0..<UInt64(140_000) {
                try? image.discard(at: cluster * 1024, count: 512)
                done.value.add(1, ordering: .relaxed)
            }
        }
        let hasMany = waitUntil { done.value.load(ordering: .relaxed) >= freedAtMost }
        #expect(hasMany)
        // Time to go on, if it did not wait.
        usleep(300_000)
        #expect(done.value.load(ordering: .relaxed) <= freedAtMost)
        gate.open()
        flusher.join()
        other.join()
        #expect(done.value.load(ordering: .relaxed) == 140_000)
        try image.close()
        #expect(try QCOW2Image(file, for: .check).check().isClean)
    }
}
