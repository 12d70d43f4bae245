public import DiskImage
public import Linux
import Synchronization

/// The block device (virtio 1.2, section 5.2): a disk image behind request queues.
///
/// A request's memory goes to `DiskQueue` as it lies in the guest. What the host has in memory is read on the vCPU's own thread,
/// which costs less than waking another; everything that may wait does so on the disk queue's threads.
///
/// Written data is safe from a crash of the host when a later flush is acknowledged; at once for a driver that turned write-back off
/// or cannot flush (section 5.2.6.2).
///
/// A hostile driver: a request without header or status byte breaks the device; ranges outside of the disk, odd lengths and more
/// than 128 MB at once are I/O errors.
public final class VirtioBlock: VirtioDevice {
    /// What is saved beside the transport's state.
    public struct State: Codable, Hashable, Sendable {
        public var writeback: Bool
        public init(writeback: Bool = true) { self.writeback = writeback }
    }

    public static let queueSize: UInt16 = 128

    private let transport: VirtioTransport
    private let configuration: [UInt8]
    private let requests: VirtioBlockRequests
    private let disk: DiskQueue

    /// - Parameter queueCount: request queues, 1 to 64; one for each virtual CPU is enough.
    public static func profile(_ image: any BlockImage, queueCount: Int = 1) -> VirtioProfile {
        typealias Feature = VirtioBlockFormat.Feature
        var features: VirtioFeatures = [
            Feature.sizeMax, Feature.segMax, Feature.blockSize, Feature.flush, Feature.topology, Feature.configWriteback,
        ]
        features.formUnion(image.isReadOnly ? Feature.readOnly : [Feature.discard, Feature.writeZeroes])
        if queueCount > 1 { features.formUnion(Feature.multiqueue) }
        return VirtioProfile(
            deviceType: 2, transitionalID: 0x1001, classCode: 0x01_00_00, features: features,
            queueSizes: Array(repeating: queueSize, count: queueCount),
            configurationByteCount: VirtioBlockFormat.configurationByteCount)
    }

    /// - Parameters:
    ///   - transport: of `profile` for this image.
    ///   - identifier: what the guest finds as the disk's serial number; 20 bytes of it count.
    public init(
        _ transport: VirtioTransport, _ image: any BlockImage, identifier: String, method: DiskQueue.Method = .automatic
    ) throws(SystemError) {
        self.transport = transport
        configuration = VirtioBlockFormat.configuration(
            byteCount: image.byteCount, queueSize: Self.queueSize, queueCount: transport.queues.count)
        let requests = VirtioBlockRequests(transport, image, identifier)
        self.requests = requests
        disk = try DiskQueue(image, depth: requests.depth, method: method) { tag, result in requests.completed(tag, result) }
        requests.disk.withLock { [disk] in $0.queue = disk }
    }

    // Requests' memory is the guest's and the slots': nothing may be under way when they go.
    deinit { disk.drain() }

    public func notified(_ queue: Int) {
        if requests.take(transport.queues[queue], disk) { disk.submitBatchEnd(completesHere: true) }
    }

    public func drain() { disk.drain() }

    // MARK: Configuration

    public func readConfiguration(_ offset: Int) -> UInt8 {
        offset == VirtioBlockFormat.writeback ? (requests.state.withLock { $0.writeback ? 1 : 0 }) : configuration[offset]
    }

    public func writeConfiguration(_ offset: Int, _ value: UInt8) {
        guard offset == VirtioBlockFormat.writeback else { return }
        requests.change { $0.writeback = value & 1 != 0 }
    }

    public func activate(_ features: VirtioFeatures) { requests.change { $0.features = features } }

    public func reset() { requests.change { $0 = .init() } }

    public func save() -> State { State(writeback: requests.state.withLock { $0.writeback }) }
    public func restore(_ saved: State) { requests.change { $0.writeback = saved.writeback } }
}
