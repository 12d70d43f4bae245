import Linux
import Synchronization

/// Where the pieces of a conversion go. Called by several threads, each with another piece.
protocol ConversionSink: AnyObject, Sendable {
    /// A multiple of what the format gives room in.
    var pieceByteCount: Int { get }
    /// Whether a piece costs more thinking than waiting.
    var compresses: Bool { get }
    /// - Parameter bytes: `nil` for zeros.
    func put(_ bytes: UnsafeRawBufferPointer?, at offset: UInt64, piece: Int) throws(ImageError)
    /// Another thread has failed: nobody is to wait for it.
    func abandon()
    func finish() throws(ImageError)
}

/// A disk that is written in any order.
final class DiskSink: ConversionSink {
    let pieceByteCount = 2 << 20
    let compresses = false
    private let image: any BlockImage
    private let block: Int
    private let close: @Sendable () throws(ImageError) -> Void

    /// - Parameter block: so many zeros together are left out.
    init(_ image: any BlockImage, block: Int, close: @escaping @Sendable () throws(ImageError) -> Void = {}) {
        self.image = image
        self.block = block
        self.close = close
    }

    func put(_ bytes: UnsafeRawBufferPointer?, at offset: UInt64, piece: Int) throws(ImageError) {
        guard let bytes else { return }
        try ZeroScan.forEachData(in: bytes, block: block) { part throws(ImageError) in
            try image.write(UnsafeRawBufferPointer(rebasing: bytes[part]), at: offset + UInt64(part.lowerBound))
        }
    }

    func abandon() {}
    func finish() throws(ImageError) { try close() }
}

/// A qcow2 image of compressed clusters: each thread compresses its own.
final class CompressedSink: ConversionSink {
    let pieceByteCount: Int
    let compresses = true
    private let image: QCOW2Image
    private let cluster: Int

    init(_ image: QCOW2Image, cluster: Int) {
        self.image = image
        self.cluster = cluster
        pieceByteCount = max(cluster, 1 << 20)
    }

    func put(_ bytes: UnsafeRawBufferPointer?, at offset: UInt64, piece: Int) throws(ImageError) {
        guard let bytes else { return }
        var position = 0
        while position < bytes.count {
            let part = UnsafeRawBufferPointer(rebasing: bytes[position..<min(position + cluster, bytes.count)])
            if Compressibility.isHopeless(part) {
                try image.write(part, at: offset + UInt64(position))
            } else if !ZeroScan.isZero(part) {
                try image.writeCompressed(part, at: offset + UInt64(position))
            }
            position += cluster
        }
    }

    func abandon() {}
    func finish() throws(ImageError) { try image.close() }
}

/// A stream-optimised VMDK file: grains are compressed by all threads, and written in their order.
///
/// `@unchecked Sendable`: `writer` is touched only by the thread whose turn it is, and by `finish` when all are done.
final class StreamSink: ConversionSink, @unchecked Sendable {
    private struct Turn {
        var next = 0
        var isAbandoned = false
    }

    let pieceByteCount = 16 * VMDKStreamWriter.grainByteCount
    let compresses = true
    private let writer: VMDKStreamWriter
    private let turn = Monitor(Turn())

    init(_ writer: sending VMDKStreamWriter) { self.writer = writer }

    func put(_ bytes: UnsafeRawBufferPointer?, at offset: UInt64, piece: Int) throws(ImageError) {
        var grains: [(number: UInt64, packed: [UInt8])] = []
        if let bytes {
            let size = VMDKStreamWriter.grainByteCount
            var position = 0
            while position < bytes.count {
                let end = min(position + size, bytes.count)
                let part = UnsafeRawBufferPointer(rebasing: bytes[position..<end])
                if !ZeroScan.isZero(part) {
                    // The last grain of a disk is a whole one too.
                    let whole = HeapBytes(count: part.count < size ? size : 0)
                    if part.count < size { whole.bytes.copyMemory(from: part) }
                    let number = (offset + UInt64(position)) / UInt64(size)
                    guard
                        let packed = VMDKStreamWriter.pack(
                            part.count < size ? whole.readable : part, number: number, level: 6)
                    else { throw ImageError(.system(SystemError("deflate", errno: 12)), "image", "no memory to compress") }
                    grains.append((number, packed))
                }
                position = end
            }
        }
        let isMine = turn.withLock(waitingWhile: { $0.next != piece && !$0.isAbandoned }) { !$0.isAbandoned }
        guard isMine else { return }
        for grain in grains { try writer.append(grain.packed, number: grain.number) }
        turn.withLock { $0.next = piece + 1 }
        turn.broadcast()
    }

    func abandon() {
        turn.withLock { $0.isAbandoned = true }
        turn.broadcast()
    }

    func finish() throws(ImageError) { try writer.finish() }
}
