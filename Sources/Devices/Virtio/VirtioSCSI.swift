public import DiskImage
public import Linux
import Synchronization

/// The SCSI host device (virtio 1.2, section 5.6) with one drive for CDs and DVDs, target 0.
///
/// The drive decides what a command means (`SCSICDROM`); what it reads goes from the image to the guest's memory through a
/// `DiskQueue`, as a disk's requests do.
///
/// A hostile driver: requests with too little room for header or response break the device; other targets and units are
/// answered as SCSI wants it; the sizes that a driver may set are held to what they start with.
public final class VirtioSCSI: VirtioDevice {
    private typealias Format = VirtioSCSIFormat

    /// What is saved beside the transport's state.
    public struct State: Codable, Hashable, Sendable {
        public var drive: SCSICDROM
        /// As the driver wrote them.
        public var senseSize = VirtioSCSIFormat.largestSense
        public var commandSize = VirtioSCSIFormat.largestCommand
        /// An event found no buffer.
        public var hasMissedEvent = false
    }

    static let queueSize: UInt16 = 128

    public static let profile = VirtioProfile(
        deviceType: 8, transitionalID: 0x1004, classCode: 0x01_00_00, features: Format.Feature.change,
        queueSizes: [queueSize, queueSize, queueSize], configurationByteCount: Format.configurationByteCount)

    struct Live {
        var state: State
        var features: VirtioFeatures = []
        var disc: Disc?
        /// Discs that were taken out while something read them; they go when nothing does any more.
        var leaving: [Disc] = []
    }

    /// An image with whoever reads it.
    final class Disc: Sendable {
        let image: any BlockImage
        let queue: DiskQueue
        init(_ image: any BlockImage, _ queue: DiskQueue) {
            self.image = image
            self.queue = queue
        }
    }

    let transport: VirtioTransport
    let requests: VirtioSCSIRequests
    let live: Mutex<Live>
    private let method: DiskQueue.Method
    private let configuration = Format.configuration(queueSize: queueSize)

    /// - Parameters:
    ///   - transport: of `profile`.
    ///   - image: the disc that is in the drive; only read.
    public init(
        _ transport: VirtioTransport, _ image: (any BlockImage)? = nil, method: DiskQueue.Method = .automatic
    ) throws(SystemError) {
        self.transport = transport
        self.method = method
        requests = VirtioSCSIRequests(transport)
        var disc: Disc?
        if let image, image.byteCount > 0 { disc = try Self.makeDisc(image, requests, method) }
        live = Mutex(Live(state: State(drive: SCSICDROM(discByteCount: disc?.image.byteCount)), disc: disc))
    }

    // Requests' memory is the guest's and the slots': nothing may be under way when they go.
    deinit { drain() }

    private static func makeDisc(
        _ image: any BlockImage, _ requests: VirtioSCSIRequests, _ method: DiskQueue.Method
    ) throws(SystemError) -> Disc {
        Disc(
            image,
            try DiskQueue(image, depth: Int(queueSize), method: method) { tag, result in requests.completed(tag, result) })
    }

    // MARK: The host's side

    /// Puts a disc in, in place of the one that is there. Waits until nothing reads that any more. Any thread, several at a time;
    /// not a virtual CPU's, which may have to end what is waited for.
    /// - Parameters:
    ///   - image: larger than nothing.
    ///   - force: even when the guest has locked the drive.
    /// - Returns: `false` when the guest has locked it; it was asked to give the disc back.
    public func insert(_ image: any BlockImage, force: Bool = false) throws(SystemError) -> Bool {
        try change(to: Self.makeDisc(image, requests, method), force: force)
    }

    /// Takes the disc out; otherwise as `insert`.
    public func eject(force: Bool = false) -> Bool { change(to: nil, force: force) }

    private func change(to disc: Disc?, force: Bool) -> Bool {
        let (isDone, old): (Bool, Disc?) = live.withLock { live in
            let isDone =
                if let disc {
                    live.state.drive.insert(byteCount: disc.image.byteCount, force: force)
                } else {
                    live.state.drive.eject(force: force)
                }
            guard isDone else { return (false, nil) }
            let old = live.disc
            live.disc = disc
            // A reset must find its reads until they have ended.
            if let old { live.leaving.append(old) }
            return (true, old)
        }
        if let old {
            old.queue.drain()
            live.withLock { $0.leaving.removeAll { $0 === old } }
        }
        if isDone { announceChange() }
        return isDone
    }

    /// The drive, as it is now.
    public var drive: SCSICDROM { live.withLock { $0.state.drive } }

    // MARK: The guest's side

    public func notified(_ queue: Int) {
        switch queue {
        case Format.Queue.control: serveControl()
        case Format.Queue.event: if live.withLock({ $0.state.hasMissedEvent }) { sendEvent(Format.Event.none, 0) }
        default: serveRequests()
        }
    }

    private func serveRequests() {
        let queue = transport.queues[Format.Queue.request]
        var batch: DiskQueue?
        while true {
            switch queue.pop() {
            case .empty:
                batch?.submitBatchEnd(completesHere: true)
                return
            case .broken:
                batch?.submitBatchEnd()
                return transport.requestReset()
            case .chain(let chain):
                // One notification seldom sees two discs.
                if let used = start(queue, chain), used !== batch {
                    batch?.submitBatchEnd()
                    batch = used
                }
            }
        }
    }

    /// - Returns: the queue that the request waits in, if it does.
    private func start(_ queue: Virtqueue, _ chain: VirtqueueChain) -> DiskQueue? {
        let (senseSize, commandSize) = live.withLock { ($0.state.validSenseSize, $0.state.validCommandSize) }
        guard let request = VirtioSCSIRequests.Request(chain, senseSize: senseSize, commandSize: commandSize) else {
            transport.requestReset()
            transport.complete(queue, chain, written: 0)
            return nil
        }
        guard case .unit(let unit) = request.address else {
            requests.finish(request, response: .badTarget)
            return nil
        }
        // What is to be read is with its disc's queue before the lock is let go: whoever takes that disc out, or resets the device,
        // waits for it.
        let (reply, reading, disc): (SCSIReply, VirtioSCSIRequests.Reading?, Disc?) = live.withLock { live in
            let reply = live.state.drive.execute(request.command, unit: unit)
            guard case .medium(let offset, let byteCount) = reply, let disc = live.disc else { return (reply, nil, nil) }
            return (reply, requests.read(request, disc, offset: offset, byteCount: byteCount), disc)
        }
        switch reply {
        case .done: requests.finish(request)
        case .failed(let sense): requests.finish(request, sense: sense)
        case .data(let bytes):
            request.data.store(bytes)
            requests.finish(request, dataByteCount: min(UInt64(bytes.count), request.data.byteCount))
        case .medium:
            switch reading {
            case .submitted: return disc?.queue
            case .over(let response, let byteCount): requests.finish(request, response: response, dataByteCount: byteCount)
            case nil: requests.finish(request, sense: .mediumNotPresent)
            }
        }
        return nil
    }

    /// Nothing is in flight then, of a disc that is just being taken out neither.
    public func drain() {
        let discs = live.withLock { live in live.leaving + (live.disc.map { [$0] } ?? []) }
        for disc in discs { disc.queue.drain() }
    }

    // MARK: Configuration

    public func readConfiguration(_ offset: Int) -> UInt8 {
        let (sense, command) = (Format.senseSizeOffset, Format.commandSizeOffset)
        return switch offset {
        case sense..<sense + 4: live.withLock { UInt8(truncatingIfNeeded: $0.state.senseSize >> UInt32(8 * (offset - sense))) }
        case command..<command + 4:
            live.withLock { UInt8(truncatingIfNeeded: $0.state.commandSize >> UInt32(8 * (offset - command))) }
        default: configuration[offset]
        }
    }

    public func writeConfiguration(_ offset: Int, _ value: UInt8) {
        func put(_ number: inout UInt32, _ index: Int) {
            let shift = UInt32(8 * index)
            number = number & ~(0xFF << shift) | UInt32(value) << shift
        }
        let (sense, command) = (Format.senseSizeOffset, Format.commandSizeOffset)
        switch offset {
        case sense..<sense + 4: live.withLock { put(&$0.state.senseSize, offset - sense) }
        case command..<command + 4: live.withLock { put(&$0.state.commandSize, offset - command) }
        default: break
        }
    }

    public func activate(_ features: VirtioFeatures) { live.withLock { $0.features = features } }

    public func reset() {
        live.withLock { live in
            live.features = []
            live.state.drive.reset()
            live.state = State(drive: live.state.drive)
        }
    }

    public func save() -> State { live.withLock { $0.state } }

    public func restore(_ saved: State) {
        live.withLock { live in
            live.state = saved
            live.state.drive.restoreDisc(byteCount: live.disc?.image.byteCount)
        }
    }
}

extension VirtioSCSI.State {
    /// What a driver writes counts only when it is a size that there is room for.
    fileprivate var validSenseSize: Int {
        Int(senseSize <= VirtioSCSIFormat.largestSense ? senseSize : VirtioSCSIFormat.largestSense)
    }
    fileprivate var validCommandSize: Int {
        Int((6...VirtioSCSIFormat.largestCommand).contains(commandSize) ? commandSize : VirtioSCSIFormat.largestCommand)
    }
}
