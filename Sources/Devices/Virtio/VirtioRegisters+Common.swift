import VMM

/// Common configuration (virtio 1.2, section 4.1.4.3): little-endian, each field in an access of its own width; those of 64 bits
/// in two of 32.
extension VirtioRegisters {
    /// Offsets.
    enum Common {
        static let deviceFeatureSelect: UInt64 = 0x00
        static let deviceFeature: UInt64 = 0x04
        static let driverFeatureSelect: UInt64 = 0x08
        static let driverFeature: UInt64 = 0x0C
        static let configurationVector: UInt64 = 0x10
        static let queueCount: UInt64 = 0x12
        static let status: UInt64 = 0x14
        static let generation: UInt64 = 0x15
        static let queueSelect: UInt64 = 0x16
        static let queueSize: UInt64 = 0x18
        static let queueVector: UInt64 = 0x1A
        static let queueEnable: UInt64 = 0x1C
        static let queueNotifyOffset: UInt64 = 0x1E
        static let queueDescriptors: UInt64 = 0x20
        static let queueDriver: UInt64 = 0x28
        static let queueDevice: UInt64 = 0x30
        static let byteCount: UInt64 = 0x38
    }

    private static func half(_ features: VirtioFeatures, _ select: UInt32) -> UInt64 {
        select < 2 ? features.rawValue >> (UInt64(select) * 32) & 0xFFFF_FFFF : 0
    }

    /// The aligned eight bytes at `offset`.
    private func commonWord(_ offset: UInt64, _ profile: VirtioProfile) -> UInt64 {
        let queue = selected.map { queues[$0] }
        switch offset {
        case 0x00: return UInt64(deviceFeatureSelect) | Self.half(profile.offered, deviceFeatureSelect) << 32
        case 0x08: return UInt64(driverFeatureSelect) | Self.half(features, driverFeatureSelect) << 32
        case 0x10:
            return UInt64(configurationVector) | UInt64(queues.count) << 16 | UInt64(status.rawValue) << 32
                | UInt64(generation) << 40 | UInt64(queueSelect) << 48
        case 0x18:
            // A queue that is not there has size 0.
            guard let queue, let index = selected else { return 0xFFFF << 16 }
            return UInt64(queue.size) | UInt64(queue.vector) << 16 | (queue.isEnabled ? 1 << 32 : 0)
                | UInt64(index) << 48
        case 0x20: return queue?.descriptors ?? 0
        case 0x28: return queue?.driver ?? 0
        case 0x30: return queue?.device ?? 0
        default: return 0
        }
    }

    func readCommon(_ offset: UInt64, _ width: AccessWidth, _ profile: VirtioProfile) -> UInt64 {
        let shift = offset % 8 * 8
        let low = commonWord(offset & ~7, profile) >> shift
        guard shift > 0, shift / 8 + UInt64(width.rawValue) > 8 else { return low & width.allOnes }
        return (low | commonWord((offset & ~7) + 8, profile) << (64 - shift)) & width.allOnes
    }

    mutating func writeCommon(
        _ offset: UInt64, _ width: AccessWidth, _ value: UInt64, _ profile: VirtioProfile, vectorCount: Int
    ) -> Effect {
        let word = UInt16(truncatingIfNeeded: value)
        let dword = UInt32(truncatingIfNeeded: value)
        switch (offset, width) {
        case (Common.deviceFeatureSelect, .dword): deviceFeatureSelect = dword
        case (Common.driverFeatureSelect, .dword): driverFeatureSelect = dword
        case (Common.driverFeature, .dword):
            // Not after they were agreed upon (section 3.1.1, step 5).
            guard !status.contains(.featuresOK), driverFeatureSelect < 2 else { break }
            let shift = UInt64(driverFeatureSelect) * 32
            features = VirtioFeatures(rawValue: features.rawValue & ~(0xFFFF_FFFF << shift) | UInt64(dword) << shift)
        case (Common.configurationVector, .word): configurationVector = Self.vector(UInt64(word), vectorCount)
        case (Common.status, .byte):
            if isLegacy, value != 0 { break }
            return writeStatus(UInt8(truncatingIfNeeded: value), profile)
        case (Common.queueSelect, .word): queueSelect = word
        case (Common.queueSize...Common.byteCount, _): return writeQueue(offset, width, value, profile, vectorCount)
        default: break
        }
        return .nothing
    }

    private mutating func writeQueue(
        _ offset: UInt64, _ width: AccessWidth, _ value: UInt64, _ profile: VirtioProfile, _ vectorCount: Int
    ) -> Effect {
        guard let index = selected else { return .nothing }
        if offset == Common.queueVector, width == .word {
            queues[index].vector = Self.vector(value, vectorCount)
            return .nothing
        }
        // The rest stands once the queue is enabled (section 4.1.4.3.2).
        guard !queues[index].isEnabled else { return .nothing }
        func merge(_ old: UInt64, _ half: UInt64) -> UInt64 {
            switch width {
            case .qword where half == 0: return value
            case .dword: return old & ~(0xFFFF_FFFF << (half * 32)) | value << (half * 32)
            case .byte, .word, .qword: return old
            }
        }
        switch offset {
        case Common.queueSize where width == .word:
            guard isSize(value), value <= UInt64(profile.queueSizes[index]) else { break }
            queues[index].size = UInt16(truncatingIfNeeded: value)
        case Common.queueEnable where width == .word:
            guard value == 1, status.contains(.featuresOK), !isLegacy else { break }
            queues[index].isEnabled = true
            return .enable(index)
        case Common.queueDescriptors, Common.queueDescriptors + 4:
            queues[index].descriptors = merge(queues[index].descriptors, (offset - Common.queueDescriptors) / 4)
        case Common.queueDriver, Common.queueDriver + 4:
            queues[index].driver = merge(queues[index].driver, (offset - Common.queueDriver) / 4)
        case Common.queueDevice, Common.queueDevice + 4:
            queues[index].device = merge(queues[index].device, (offset - Common.queueDevice) / 4)
        default: break
        }
        return .nothing
    }
}
