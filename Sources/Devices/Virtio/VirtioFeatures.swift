/// What device and driver agree upon (virtio 1.2, sections 2.2 and 6). Bits 0 to 23 are the device's own.
public struct VirtioFeatures: OptionSet, Codable, Hashable, Sendable {
    public let rawValue: UInt64
    public init(rawValue: UInt64) { self.rawValue = rawValue }
    public static func bit(_ number: UInt64) -> VirtioFeatures { .init(rawValue: 1 << number) }

    /// VIRTIO_F_ANY_LAYOUT: a legacy driver may cut a request into descriptors as it likes.
    public static let anyLayout = bit(27)
    /// VIRTIO_F_INDIRECT_DESC
    public static let indirectDescriptors = bit(28)
    /// VIRTIO_F_EVENT_IDX
    public static let eventIndex = bit(29)
    /// VIRTIO_F_VERSION_1: not a legacy driver.
    public static let version1 = bit(32)
    /// VIRTIO_F_RING_PACKED
    public static let packedRing = bit(34)

    /// What the transport and the rings offer for every device.
    static let common: VirtioFeatures = [.indirectDescriptors, .eventIndex, .version1, .packedRing]
}

/// Device status (virtio 1.2, section 2.1).
public struct VirtioStatus: OptionSet, Codable, Hashable, Sendable {
    public let rawValue: UInt8
    public init(rawValue: UInt8) { self.rawValue = rawValue }
    public static let acknowledge = VirtioStatus(rawValue: 0x01)
    public static let driver = VirtioStatus(rawValue: 0x02)
    public static let driverOK = VirtioStatus(rawValue: 0x04)
    public static let featuresOK = VirtioStatus(rawValue: 0x08)
    public static let needsReset = VirtioStatus(rawValue: 0x40)
    public static let failed = VirtioStatus(rawValue: 0x80)
    /// What a driver can set.
    static let writable: VirtioStatus = [.acknowledge, .driver, .driverOK, .featuresOK, .failed]
}

/// What kind of virtio device it is and what it has; fixed for its life.
public struct VirtioProfile: Hashable, Sendable {
    /// The device's number in virtio 1.2, section 5: 1 network, 2 block, 4 entropy, 8 SCSI.
    public let deviceType: UInt8
    /// The PCI id of its transitional form (section 4.1.2.1).
    public let transitionalID: UInt16
    /// PCI's class, subclass and programming interface.
    public let classCode: UInt32
    /// The device's own feature bits.
    public let features: VirtioFeatures
    /// The largest size of each queue: powers of two, at most `Virtqueue.largestSize`.
    public let queueSizes: [UInt16]
    /// Bytes of the device's configuration.
    public let configurationByteCount: Int

    public init(
        deviceType: UInt8, transitionalID: UInt16, classCode: UInt32, features: VirtioFeatures, queueSizes: [UInt16],
        configurationByteCount: Int
    ) {
        precondition(queueSizes.allSatisfy { $0.nonzeroBitCount == 1 && $0 <= Virtqueue.largestSize })
        precondition(queueSizes.count <= 256)
        self.deviceType = deviceType
        self.transitionalID = transitionalID
        self.classCode = classCode
        self.features = features
        self.queueSizes = queueSizes
        self.configurationByteCount = configurationByteCount
    }

    /// Everything that a driver of the current standard is offered.
    public var offered: VirtioFeatures { features.union(.common) }
    /// And a legacy driver.
    var legacyOffered: VirtioFeatures {
        .init(rawValue: offered.union(.anyLayout).rawValue & 0xFFFF_FFFF)
    }
}
