import DiskImage
import Synchronization

/// The requests of a block device: from a queue's chains to the disk's queue and back.
final class VirtioBlockRequests: Sendable {
    private typealias Format = VirtioBlockFormat

    struct State {
        var features: VirtioFeatures = []
        var writeback = true

        /// Whether a write is acknowledged only when it is on the medium (virtio 1.2, section 5.2.6.2).
        var writesThrough: Bool {
            typealias Feature = VirtioBlockFormat.Feature
            return features.contains(Feature.configWriteback) ? !writeback : !features.contains(Feature.flush)
        }
    }

    private struct Request: Sendable {
        let chain: VirtqueueChain
        let status: VirtioBuffers
        /// What a read fills.
        let payloadByteCount: UInt64
        /// A flush follows before the acknowledgement.
        var flushesBehind: Bool
    }

    struct WeakDisk { weak var queue: DiskQueue? }

    private let transport: VirtioTransport
    private let sectorCount: UInt64
    private let isReadOnly: Bool
    private let identifier: [UInt8]
    private let slots: VirtioSlots<Request>
    let state = Mutex(State())
    private let writesThrough = Atomic(false)
    /// The queue that calls `completed`, for what has to follow a request.
    let disk = Mutex(WeakDisk())

    init(_ transport: VirtioTransport, _ image: any BlockImage, _ identifier: String) {
        self.transport = transport
        sectorCount = image.byteCount / Format.sector
        isReadOnly = image.isReadOnly
        self.identifier = Array(identifier.utf8.prefix(Format.identifierByteCount))
        slots = VirtioSlots(count: transport.queues.count * Int(VirtioBlock.queueSize))
    }

    /// The most requests in flight.
    var depth: Int { slots.count }

    func change(_ body: (inout State) -> Void) {
        state.withLock { state in
            body(&state)
            writesThrough.store(state.writesThrough, ordering: .relaxed)
        }
    }

    // MARK: From the guest

    /// Takes what a queue has.
    /// - Returns: whether something went to the disk's queue.
    func take(_ queue: Virtqueue, _ disk: DiskQueue) -> Bool {
        var hasSubmitted = false
        while true {
            switch queue.pop() {
            case .empty: return hasSubmitted
            case .broken:
                transport.requestReset()
                return hasSubmitted
            case .chain(let chain):
                if start(queue, chain, disk) { hasSubmitted = true }
            }
        }
    }

    private func start(_ queue: Virtqueue, _ chain: VirtqueueChain, _ disk: DiskQueue) -> Bool {
        var (readable, writable) = (chain.readable, chain.writable)
        guard readable.byteCount >= Format.headerByteCount, writable.byteCount >= 1,
            let header = Format.Header(readable.takeFirst(Format.headerByteCount))
        else {
            transport.requestReset()
            transport.complete(queue, chain, written: 0)
            return false
        }
        let payload = writable.takeFirst(writable.byteCount - 1)
        let answer: Format.Status
        switch plan(header, readable, payload) {
        case .answer(let status): answer = status
        case .submit(var request):
            let isWrite = request.operation != .read && request.operation != .flush && request.operation != .discard
            request.tag = UInt32(queue.index) * UInt32(VirtioBlock.queueSize) + UInt32(chain.slot)
            slots[request.tag] = Request(
                chain: chain, status: writable, payloadByteCount: request.operation == .read ? payload.byteCount : 0,
                flushesBehind: isWrite && writesThrough.load(ordering: .relaxed))
            disk.submit(request)
            return true
        }
        let isIdentifier = header.kind == Format.Kind.identifier.rawValue && answer == .ok
        finish(queue, chain, writable, answer, written: isIdentifier ? min(payload.byteCount, UInt64(Format.identifierByteCount)) : 0)
        return false
    }

    private enum Plan {
        case answer(Format.Status)
        case submit(DiskRequest)
    }

    private func plan(_ header: Format.Header, _ readable: VirtioBuffers, _ payload: VirtioBuffers) -> Plan {
        switch Format.Kind(rawValue: header.kind) {
        case .read:
            guard let offset = offset(header.sector, byteCount: payload.byteCount) else { return .answer(.ioError) }
            return .submit(DiskRequest(.read, tag: 0, offset: offset, buffers: payload.ioBuffers))
        case .write:
            guard !isReadOnly, let offset = offset(header.sector, byteCount: readable.byteCount) else { return .answer(.ioError) }
            return .submit(DiskRequest(.write, tag: 0, offset: offset, buffers: readable.ioBuffers))
        case .flush: return .submit(DiskRequest(.flush, tag: 0))
        case .identifier:
            // Cut to the room; zeros behind it (section 5.2.6).
            let room = Int(min(payload.byteCount, UInt64(Format.identifierByteCount)))
            payload.store(Array((identifier + Array(repeating: 0, count: Format.identifierByteCount)).prefix(room)))
            return .answer(.ok)
        case .discard: return planSegment(readable, allowed: 0) { _ in .discard }
        case .writeZeroes:
            return planSegment(readable, allowed: Format.Segment.unmap) { flags in
                flags & Format.Segment.unmap != 0 ? .writeZeroesDiscarding : .writeZeroes
            }
        case nil: return .answer(.unsupported)
        }
    }

    private func planSegment(_ readable: VirtioBuffers, allowed: UInt32, _ operation: (UInt32) -> DiskOperation) -> Plan {
        guard !isReadOnly, readable.byteCount == Format.Segment.byteCount, let segment = Format.Segment(readable) else {
            return .answer(.ioError)
        }
        guard segment.flags & ~allowed == 0 else { return .answer(.unsupported) }
        guard segment.sectorCount <= Format.largestDiscard,
            let offset = range(segment.sector, count: UInt64(segment.sectorCount))
        else { return .answer(.ioError) }
        guard segment.sectorCount > 0 else { return .answer(.ok) }
        return .submit(
            DiskRequest(
                operation(segment.flags), tag: 0, offset: offset, byteCount: UInt64(segment.sectorCount) * Format.sector))
    }

    /// The place of a transfer on the disk; `nil` when it is not all there, or not whole sectors, or too much.
    private func offset(_ sector: UInt64, byteCount: UInt64) -> UInt64? {
        guard byteCount > 0, byteCount % Format.sector == 0, byteCount <= Format.largestRequest else { return nil }
        return range(sector, count: byteCount / Format.sector)
    }

    private func range(_ sector: UInt64, count: UInt64) -> UInt64? {
        sector <= sectorCount && count <= sectorCount - sector ? sector * Format.sector : nil
    }

    // MARK: From the disk

    /// Any thread, without locks.
    func completed(_ tag: UInt32, _ result: DiskResult) {
        guard var request = slots[tag] else { return }
        if request.flushesBehind, result == .done, let queue = disk.withLock({ $0.queue }) {
            request.flushesBehind = false
            slots[tag] = request
            queue.submit(DiskRequest(.flush, tag: tag))
            return queue.submitBatchEnd()
        }
        slots[tag] = nil
        let status: Format.Status
        switch result {
        case .done: status = .ok
        case .unsupported: status = .unsupported
        case .failed, .outOfRange, .readOnly: status = .ioError
        }
        let queue = transport.queues[Int(tag) / Int(VirtioBlock.queueSize)]
        finish(queue, request.chain, request.status, status, written: request.payloadByteCount)
    }

    /// - Parameter written: bytes in front of the status that are written when it is good; otherwise nothing is certain, not
    ///   even the first of them.
    private func finish(
        _ queue: Virtqueue, _ chain: VirtqueueChain, _ status: VirtioBuffers, _ value: Format.Status, written: UInt64
    ) {
        status.store(value.rawValue)
        let isCertain = value == .ok || chain.writable.byteCount == 1
        transport.complete(queue, chain, written: isCertain ? UInt32(truncatingIfNeeded: written + 1) : 0)
    }
}
