import DiskImage
import Glibc
import Linux

/// A request under way, and how far it has come.
///
/// Safe: the vectors' room is its own from the first cut to `free`, and what it hands out of it is used before the next.
@safe struct DiskTransfer {
    var request: DiskRequest
    /// Bytes that are done.
    var done: UInt64 = 0
    /// Where the first byte that is not done goes.
    var position = IOBuffers.Position()
    /// What `beginTransfer` gave, while it is held.
    var extent: Extent?
    /// Bytes of the extent that are done.
    var extentDone: UInt64 = 0
    /// Room for the vectors of a part of the request; made when a request has to be cut for the first time.
    private var vectors: UnsafeMutableBufferPointer<iovec>?

    init(_ request: DiskRequest) { self.request = request }

    var left: UInt64 { request.byteCount - done }
    var offset: UInt64 { request.offset &+ done }

    /// The most vectors of one call (IOV_MAX).
    private static let mostVectors = 1024
    private static let partVectors = 64

    mutating func start(_ request: DiskRequest) {
        self.request = request
        done = 0
        position = IOBuffers.Position()
        extent = nil
        extentDone = 0
    }

    mutating func advance(by byteCount: UInt64) {
        let step = min(byteCount, left)
        request.buffers.advance(&position, by: step)
        done += step
        extentDone += step
    }

    /// Memory for the next bytes: as many as asked for, or fewer when they lie in too many pieces for one call.
    mutating func nextBuffers(_ byteCount: UInt64) -> IOBuffers {
        let whole = unsafe request.buffers.vectors
        if position.isStart, byteCount == request.buffers.byteCount, whole.count <= Self.mostVectors { return request.buffers }
        let room = unsafe vectors ?? .allocate(capacity: Self.partVectors)
        unsafe vectors = room
        return unsafe request.buffers.slice(from: position, byteCount: min(byteCount, left), in: room)
    }

    /// The next bytes are zeros.
    mutating func zero(_ byteCount: UInt64) {
        request.buffers.zero(from: position, byteCount: min(byteCount, left))
        advance(by: byteCount)
    }

    func free() { unsafe vectors?.deallocate() }
}

/// Transfers at fixed places, by number.
///
/// `@unchecked Sendable`: the pointer never changes. A transfer belongs to one thread at a time: whoever took its number
/// out of a queue of `DiskQueueCore`, or out of the ring.
@safe final class DiskTransferTable: @unchecked Sendable {
    private let transfers: UnsafeMutableBufferPointer<DiskTransfer>

    init(count: Int) {
        unsafe transfers = .allocate(capacity: count)
        unsafe transfers.initialize(repeating: DiskTransfer(DiskRequest(.flush, tag: 0)))
    }

    deinit {
        for index in 0..<count { self[index].free() }
        unsafe transfers.deinitialize()
        unsafe transfers.deallocate()
    }

    var count: Int { unsafe transfers.count }

    subscript(_ index: Int) -> DiskTransfer {
        _read {
            precondition(index >= 0 && index < count)
            // SAFETY: in range; the table owns the memory.
            yield unsafe transfers[index]
        }
        _modify {
            precondition(index >= 0 && index < count)
            // SAFETY: in range; the table owns the memory.
            yield unsafe &transfers[index]
        }
    }
}
