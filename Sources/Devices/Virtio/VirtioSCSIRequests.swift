import DiskImage
import Linux

/// The requests of a SCSI host device: from the request queue's chains to a disc's queue and back.
final class VirtioSCSIRequests: Sendable {
    private typealias Format = VirtioSCSIFormat

    /// A request, taken apart.
    struct Request: Sendable {
        let chain: VirtqueueChain
        let address: VirtioSCSIFormat.Address
        let command: SCSICommandBlock
        /// Where the response goes, sense data included.
        let response: VirtioBuffers
        /// Where what is read goes.
        let data: VirtioBuffers

        /// - Returns: `nil` when there is too little room for header or response.
        init?(_ chain: VirtqueueChain, senseSize: Int, commandSize: Int) {
            let headerByteCount = VirtioSCSIFormat.headerByteCount
            var header: [51 of UInt8] = .init(repeating: 0)
            let count = unsafe withUnsafeMutableBytes(of: &header) { unsafe chain.readable.copyOut($0) }
            var writable = chain.writable
            let responseByteCount = UInt64(VirtioSCSIFormat.responseByteCount + senseSize)
            guard count >= headerByteCount + commandSize, writable.byteCount >= responseByteCount else { return nil }
            self.chain = chain
            address = .init { header[$0] }
            command = SCSICommandBlock(count: commandSize) { header[headerByteCount + $0] }
            response = writable.takeFirst(responseByteCount)
            data = writable
        }
    }

    private struct Pending: Sendable {
        let request: Request
        let byteCount: UInt64
        let isWhole: Bool
    }

    /// max_sectors, 0xFFFF, in blocks of a disc.
    private static let largestRead: UInt64 = 0xFFFF * 2048

    private let transport: VirtioTransport
    private let readings = VirtioSlots<Pending>(count: Int(VirtioSCSI.queueSize))

    init(_ transport: VirtioTransport) { self.transport = transport }

    /// What a read comes to at first.
    enum Reading {
        /// The disc's queue has it; `submitBatchEnd` must follow.
        case submitted
        /// There is nothing to wait for: the caller finishes it.
        case over(VirtioSCSIFormat.Response, dataByteCount: UInt64)
    }

    /// Reads from a disc. Behind the image's end, in the disc's last block, are zeros. Completes nothing by itself, so the device's
    /// lock may be held.
    func read(_ request: Request, _ disc: VirtioSCSI.Disc, offset: UInt64, byteCount: UInt64) -> Reading {
        // The limit that the adapter tells. Memory can be named many times over in one request, so its size is none.
        guard byteCount <= Self.largestRead else { return .over(.overrun, dataByteCount: 0) }
        let wanted = min(byteCount, request.data.byteCount)
        let inImage = offset < disc.image.byteCount ? min(wanted, disc.image.byteCount - offset) : 0
        let buffers = request.data.ioBuffers
        if inImage < wanted {
            var position = IOBuffers.Position()
            buffers.advance(&position, by: inImage)
            buffers.zero(from: position, byteCount: wanted - inImage)
        }
        let isWhole = wanted == byteCount
        guard inImage > 0 else { return .over(isWhole ? .ok : .overrun, dataByteCount: wanted) }
        let tag = UInt32(request.chain.slot)
        readings[tag] = Pending(request: request, byteCount: wanted, isWhole: isWhole)
        disc.queue.submit(DiskRequest(.read, tag: tag, offset: offset, byteCount: inImage, buffers: buffers))
        return .submitted
    }

    /// The disc's queue is done with a request. Any thread, without locks.
    func completed(_ tag: UInt32, _ result: DiskResult) {
        guard let reading = readings[tag] else { return }
        readings[tag] = nil
        guard result == .done else { return finish(reading.request, sense: .unrecoveredReadError) }
        finish(reading.request, response: reading.isWhole ? .ok : .overrun, dataByteCount: reading.byteCount)
    }

    /// Answers a request.
    /// - Parameter dataByteCount: how much of the room for data is filled.
    func finish(
        _ request: Request, response: VirtioSCSIFormat.Response = .ok, sense: SCSISense? = nil, dataByteCount: UInt64 = 0
    ) {
        var bytes: [108 of UInt8] = .init(repeating: 0)
        let residual = UInt32(clamping: request.data.byteCount - dataByteCount)
        for index in 0..<4 { bytes[4 + index] = UInt8(truncatingIfNeeded: residual >> UInt32(8 * index)) }
        bytes[11] = response.rawValue
        if let sense {
            let fixed = sense.fixed
            let room = Int(request.response.byteCount) - Format.responseByteCount
            let count = min(fixed.count, room)
            bytes[0] = UInt8(truncatingIfNeeded: count)
            bytes[10] = SCSIStatus.checkCondition.rawValue
            for index in 0..<count { bytes[Format.responseByteCount + index] = fixed[index] }
        }
        let responseByteCount = Int(request.response.byteCount)
        unsafe withUnsafeBytes(of: bytes) { all in
            _ = unsafe request.response.copyIn(UnsafeRawBufferPointer(rebasing: all[..<responseByteCount]))
        }
        transport.complete(
            transport.queues[Format.Queue.request], request.chain,
            written: UInt32(clamping: request.response.byteCount + dataByteCount))
    }
}
