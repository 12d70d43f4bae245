import DiskImage
import Glibc
import Linux
import Synchronization

/// A disk in memory that a test can slow down, break, and cut into extents.
final class FakeImage: BlockImage {
    /// What was asked of it, in order, when it began.
    enum Call: Hashable, Sendable {
        case read(UInt64, UInt64), write(UInt64, UInt64), flush, discard(UInt64, UInt64)
        case writeZeroes(UInt64, UInt64, mayDiscard: Bool)
    }

    /// Where bytes lie, for `beginTransfer`.
    enum Place: Hashable, Sendable { case unknown, zeros, file(offset: UInt64) }

    private struct State {
        var bytes: [UInt8]
        var calls: [Call] = []
        var failure: ImageError.Kind?
        var running = 0
        var mostRunning = 0
        var held = 0
    }

    let byteCount: UInt64
    let isReadOnly: Bool
    /// By piece of the disk.
    let places: [Place]
    let pieceByteCount: UInt64
    private let file: FileDescriptor
    /// Whoever takes the file's descriptor fails; the image itself knows better.
    private let isFileUseless: Bool
    private let state: Mutex<State>
    /// Every blocking call waits while it is shut.
    let gate = Gate()

    init(
        byteCount: Int, isReadOnly: Bool = false, places: [Place] = [], pieceByteCount: Int = 4096,
        file: consuming FileDescriptor = FileDescriptor(owning: -1), isFileUseless: Bool = false
    ) {
        self.isFileUseless = isFileUseless
        self.byteCount = UInt64(byteCount)
        self.isReadOnly = isReadOnly
        self.places = places
        self.pieceByteCount = UInt64(pieceByteCount)
        self.file = file
        state = Mutex(State(bytes: [UInt8](repeating: 0, count: byteCount)))
    }

    var calls: [Call] { state.withLock { $0.calls } }
    /// Most blocking calls at the same time.
    var mostRunning: Int { state.withLock { $0.mostRunning } }
    /// Extents begun and not ended.
    var heldExtents: Int { state.withLock { $0.held } }
    var failure: ImageError.Kind? {
        get { state.withLock { $0.failure } }
        set { state.withLock { $0.failure = newValue } }
    }
    var bytes: [UInt8] {
        get { state.withLock { $0.bytes } }
        set { state.withLock { $0.bytes = newValue } }
    }

    private func perform(
        _ call: Call, _ offset: UInt64, _ count: UInt64, _ body: (inout [UInt8]) -> Void
    ) throws(ImageError) {
        let failure = state.withLock { state in
            state.calls.append(call)
            state.running += 1
            state.mostRunning = max(state.mostRunning, state.running)
            return state.failure
        }
        gate.pass()
        defer { state.withLock { $0.running -= 1 } }
        if let failure { throw ImageError(failure, "fake", "as the test wants it") }
        guard offset <= byteCount, byteCount - offset >= count else { throw ImageError(.outOfRange, "fake", "out of range") }
        state.withLock { body(&$0.bytes) }
    }

    func read(into buffers: IOBuffers, at offset: UInt64) throws(ImageError) {
        try perform(.read(offset, buffers.byteCount), offset, buffers.byteCount) { bytes in
            var place = Int(offset)
            for vector in buffers.vectors {
                let part = pieces(place, vector.iov_len).flatMap { range, offset in
                    offset.map { inFile(range.count, $0) } ?? Array(bytes[range])
                }
                UnsafeMutableRawBufferPointer(start: vector.iov_base, count: vector.iov_len).copyBytes(from: part)
                place += vector.iov_len
            }
        }
    }

    func write(_ buffers: IOBuffers, at offset: UInt64) throws(ImageError) {
        if isReadOnly { throw ImageError(.readOnly, "fake", "is read-only") }
        try perform(.write(offset, buffers.byteCount), offset, buffers.byteCount) { bytes in
            var place = Int(offset)
            for vector in buffers.vectors {
                put([UInt8](UnsafeRawBufferPointer(start: vector.iov_base, count: vector.iov_len)), at: place, &bytes)
                place += vector.iov_len
            }
        }
    }

    private func put(_ new: [UInt8], at place: Int, _ bytes: inout [UInt8]) {
        for (range, offset) in pieces(place, new.count) {
            let part = Array(new[range.lowerBound - place..<range.upperBound - place])
            if let offset {
                _ = pwrite(file.raw, part, part.count, offset)
            } else {
                bytes.replaceSubrange(range, with: part)
            }
        }
    }

    /// A range in parts, each with where it is in the file, if it is there.
    private func pieces(_ start: Int, _ count: Int) -> [(Range<Int>, off_t?)] {
        var parts: [(Range<Int>, off_t?)] = []
        var place = start
        while place < start + count {
            let piece = place / Int(pieceByteCount)
            let end = min(start + count, (piece + 1) * Int(pieceByteCount))
            if piece < places.count, !isFileUseless, case .file(let offset) = places[piece] {
                parts.append((place..<end, off_t(offset) + off_t(place % Int(pieceByteCount))))
            } else {
                parts.append((place..<end, nil))
            }
            place = end
        }
        return parts
    }

    private func inFile(_ count: Int, _ offset: off_t) -> [UInt8] {
        var bytes = [UInt8](repeating: 0, count: count)
        _ = pread(file.raw, &bytes, count, offset)
        return bytes
    }

    func flush() throws(ImageError) { try perform(.flush, 0, 0) { _ in } }

    func discard(at offset: UInt64, count: UInt64) throws(ImageError) {
        try perform(.discard(offset, count), offset, count) { _ in }
    }

    func writeZeroes(at offset: UInt64, count: UInt64, mayDiscard: Bool) throws(ImageError) {
        try perform(.writeZeroes(offset, count, mayDiscard: mayDiscard), offset, count) { bytes in
            put([UInt8](repeating: 0, count: Int(count)), at: Int(offset), &bytes)
        }
    }

    func beginTransfer(_ direction: TransferDirection, at offset: UInt64, count: UInt64) -> Extent? {
        let piece = Int(offset / pieceByteCount)
        guard piece < places.count, offset < byteCount, count > 0 else { return nil }
        let inside = offset % pieceByteCount
        let length = min(count, pieceByteCount - inside, byteCount - offset)
        switch places[piece] {
        case .unknown: return nil
        case .zeros: return direction == .read ? Extent(.zeros, byteCount: length) : nil
        case .file(let start):
            state.withLock { $0.held += 1 }
            return Extent(.file(descriptor: file.raw, offset: start + inside), byteCount: length)
        }
    }

    func endTransfer(_ direction: TransferDirection, _ extent: Extent) {
        if case .file = extent.place { state.withLock { $0.held -= 1 } }
    }
}

/// Threads pass when it is open, and wait when it is shut.
final class Gate: Sendable {
    private let isOpen = Monitor(true)
    func shut() { isOpen.withLock { $0 = false } }
    func open() {
        isOpen.withLock { $0 = true }
        isOpen.broadcast()
    }
    func pass() { isOpen.withLock(waitingWhile: { !$0 }) { _ in } }
}
