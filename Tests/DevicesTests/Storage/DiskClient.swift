import Devices
import DiskImage
import Glibc
import Linux
import Testing

/// Somebody with memory and requests, as a device is.
final class DiskClient: Sendable {
    let queue: DiskQueue
    private let results: Monitor<[UInt32: [DiskResult]]>

    init(_ image: any BlockImage, depth: Int = 8, method: DiskQueue.Method = .threads) throws {
        let results = Monitor<[UInt32: [DiskResult]]>([:])
        self.results = results
        queue = try DiskQueue(image, depth: depth, method: method) { tag, result in
            results.withLock { $0[tag, default: []].append(result) }
            results.broadcast()
        }
    }

    func start(_ requests: DiskRequest..., completesHere: Bool = false) {
        for request in requests { queue.submit(request) }
        queue.submitBatchEnd(completesHere: completesHere)
    }

    /// Waits for one request's result.
    func result(of tag: UInt32, sourceLocation: SourceLocation = #_sourceLocation) -> DiskResult? {
        let found = results.withLock(waitingWhile: { $0[tag] == nil }, until: SystemTime.monotonic() + 30_000_000_000) {
            $0.removeValue(forKey: tag)
        }
        #expect(found?.count == 1, "request \(tag): \(found ?? [])", sourceLocation: sourceLocation)
        return found?.first
    }

    /// Tags that are done.
    var finished: Set<UInt32> { results.withLock { Set($0.keys) } }

    func run(_ request: DiskRequest, completesHere: Bool = false) -> DiskResult? {
        start(request, completesHere: completesHere)
        return result(of: request.tag)
    }
}

/// Memory in pieces, for requests.
final class Pieces: @unchecked Sendable {
    // `@unchecked Sendable`: a test looks at it only when its request is over.
    private let base: UnsafeMutableRawPointer
    private let vectors: UnsafeMutableBufferPointer<iovec>
    let byteCount: Int

    /// - Parameter lengths: of the pieces, which do not touch each other.
    init(_ lengths: [Int], fill: UInt8 = 0xEE) {
        byteCount = lengths.reduce(0, +)
        base = .allocate(byteCount: byteCount + 16 * lengths.count + 1, alignment: 16)
        base.initializeMemory(as: UInt8.self, repeating: fill, count: byteCount + 16 * lengths.count + 1)
        vectors = .allocate(capacity: lengths.count)
        var place = base
        for (index, length) in lengths.enumerated() {
            vectors.initializeElement(at: index, to: iovec(iov_base: place, iov_len: length))
            place += length + 16
        }
    }

    deinit {
        base.deallocate()
        vectors.deallocate()
    }

    var buffers: IOBuffers { IOBuffers(UnsafeBufferPointer(vectors), byteCount: UInt64(byteCount)) }

    var bytes: [UInt8] {
        get { vectors.flatMap { [UInt8](UnsafeRawBufferPointer(start: $0.iov_base, count: $0.iov_len)) } }
        set {
            var rest = newValue[...]
            for vector in vectors {
                UnsafeMutableRawBufferPointer(start: vector.iov_base, count: vector.iov_len).copyBytes(from: rest.prefix(vector.iov_len))
                rest = rest.dropFirst(vector.iov_len)
            }
        }
    }
}
