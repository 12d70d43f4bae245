import VMM

/// The transport's registers as a value: what common configuration (virtio 1.2, section 4.1.4.3) and the legacy interface
/// (section 4.1.4.8) show of the same device.
///
/// Modelled: feature negotiation, device status, set-up of queues, vectors, the configuration's generation. Not modelled:
/// resetting a single queue, notification data.
///
/// A hostile driver can write anything in any order. What the standard forbids is ignored, or ends in NEEDS_RESET where the device
/// could not go on.
public struct VirtioRegisters: Codable, Hashable, Sendable {
    public struct Queue: Codable, Hashable, Sendable {
        public var size: UInt16
        public var vector = MSIX.noVector
        public var isEnabled = false
        /// Guest-physical addresses of the three areas.
        public var descriptors: UInt64 = 0
        public var driver: UInt64 = 0
        public var device: UInt64 = 0
    }

    /// ISR status (section 4.1.4.5).
    public struct InterruptStatus: OptionSet, Codable, Hashable, Sendable {
        public let rawValue: UInt8
        public init(rawValue: UInt8) { self.rawValue = rawValue }
        public static let queue = InterruptStatus(rawValue: 0x01)
        public static let configuration = InterruptStatus(rawValue: 0x02)
    }

    /// What a write means to the transport.
    enum Effect: Hashable {
        case nothing
        case reset
        /// The queue's ring is to be found.
        case enable(Int)
        /// A legacy driver takes a queue back.
        case disable(Int)
        case driverReady
    }

    public internal(set) var status: VirtioStatus = []
    public internal(set) var features: VirtioFeatures = []
    /// The driver uses the legacy interface.
    public internal(set) var isLegacy = false
    var deviceFeatureSelect: UInt32 = 0
    var driverFeatureSelect: UInt32 = 0
    var queueSelect: UInt16 = 0
    var configurationVector = MSIX.noVector
    var generation: UInt8 = 0
    var interruptStatus: InterruptStatus = []
    public internal(set) var queues: [Queue]

    init(_ profile: VirtioProfile) { queues = profile.queueSizes.map { Queue(size: $0) } }

    /// Chains may be taken: a legacy driver uses queues before it says that it is ready (section 3.1.1).
    var isServing: Bool { !status.contains(.needsReset) && (isLegacy || status.contains(.driverOK)) }

    var selected: Int? { Int(queueSelect) < queues.count ? Int(queueSelect) : nil }

    /// - Parameter value: what the driver writes to device status through the current interface.
    mutating func writeStatus(_ value: UInt8, _ profile: VirtioProfile) -> Effect {
        guard value != 0 else { return .reset }
        var added = VirtioStatus(rawValue: value).intersection(.writable).subtracting(status)
        if !isLegacy {
            // Refused when it is no subset of what is offered (section 3.1.1, step 6); the standard's own bit is not optional
            // here.
            if !profile.offered.isSuperset(of: features) || !features.contains(.version1) { added.remove(.featuresOK) }
            if !status.union(added).contains(.featuresOK) { added.remove(.driverOK) }
        }
        // A driver does not clear bits (section 2.1.1).
        status.formUnion(added)
        return added.contains(.driverOK) ? .driverReady : .nothing
    }

    /// Packed rings have any size, split ones a power of two (sections 2.7 and 2.8.10.1).
    func isSize(_ value: UInt64) -> Bool {
        value.nonzeroBitCount == 1 || value > 0 && features.contains(.packedRing)
    }

    /// - Returns: the vector, or that there is none such.
    static func vector(_ value: UInt64, _ vectorCount: Int) -> UInt16 {
        value < UInt64(vectorCount) ? UInt16(truncatingIfNeeded: value) : MSIX.noVector
    }

    /// Makes a saved state one that this device can have got into; a forged one is no more than a hostile driver's.
    mutating func sanitize(_ profile: VirtioProfile, vectorCount: Int) {
        let initial = VirtioRegisters(profile)
        features.formIntersection(isLegacy ? profile.legacyOffered : profile.offered)
        configurationVector = Self.vector(UInt64(configurationVector), vectorCount)
        queues = initial.queues.enumerated().map { index, fresh in
            guard index < queues.count, isSize(UInt64(queues[index].size)), queues[index].size <= fresh.size else {
                return fresh
            }
            var queue = queues[index]
            queue.vector = Self.vector(UInt64(queue.vector), vectorCount)
            return queue
        }
    }
}
