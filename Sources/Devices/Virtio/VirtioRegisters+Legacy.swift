import VMM

/// The legacy interface's registers (virtio 1.2, section 4.1.4.8), in ports. With MSI-X on there are two more, and the device's
/// configuration lies behind them.
///
/// A queue has one address, in pages; its three areas follow one another (section 2.7.2), its size is fixed.
extension VirtioRegisters {
    enum Legacy {
        static let deviceFeatures: UInt64 = 0x00
        static let driverFeatures: UInt64 = 0x04
        static let queueAddress: UInt64 = 0x08
        static let queueSize: UInt64 = 0x0C
        static let queueSelect: UInt64 = 0x0E
        static let queueNotify: UInt64 = 0x10
        static let status: UInt64 = 0x12
        static let interruptStatus: UInt64 = 0x13
        static let configurationVector: UInt64 = 0x14
        static let queueVector: UInt64 = 0x16
        static let end: UInt64 = 0x14
        static let endWithVectors: UInt64 = 0x18
    }

    private static let pageShift: UInt64 = 12

    /// A byte, the ISR's without clearing it. The device's configuration is not here.
    func legacyByte(_ offset: UInt64, _ profile: VirtioProfile) -> UInt8 {
        func part(_ value: UInt64, of register: UInt64) -> UInt8 {
            UInt8(truncatingIfNeeded: value >> ((offset - register) * 8))
        }
        let queue = selected.map { queues[$0] }
        switch offset {
        case Legacy.deviceFeatures..<Legacy.driverFeatures: return part(profile.legacyOffered.rawValue, of: Legacy.deviceFeatures)
        case Legacy.driverFeatures..<Legacy.queueAddress: return part(features.rawValue, of: Legacy.driverFeatures)
        case Legacy.queueAddress..<Legacy.queueSize:
            return part((queue?.descriptors ?? 0) >> Self.pageShift, of: Legacy.queueAddress)
        case Legacy.queueSize..<Legacy.queueSelect: return part(UInt64(queue?.size ?? 0), of: Legacy.queueSize)
        case Legacy.queueSelect..<Legacy.queueNotify: return part(UInt64(queueSelect), of: Legacy.queueSelect)
        case Legacy.status: return status.rawValue
        case Legacy.interruptStatus: return interruptStatus.rawValue
        case Legacy.configurationVector..<Legacy.queueVector:
            return part(UInt64(configurationVector), of: Legacy.configurationVector)
        case Legacy.queueVector..<Legacy.endWithVectors:
            return part(UInt64(queue?.vector ?? MSIX.noVector), of: Legacy.queueVector)
        default: return 0
        }
    }

    /// - Parameter vectorCount: 0 while MSI-X is off.
    mutating func writeLegacy(
        _ offset: UInt64, _ width: AccessWidth, _ value: UInt64, _ profile: VirtioProfile, vectorCount: Int
    ) -> Effect {
        switch (offset, width) {
        case (Legacy.driverFeatures, .dword):
            guard !status.contains(.driverOK) else { break }
            features = VirtioFeatures(rawValue: value).intersection(profile.legacyOffered)
        case (Legacy.queueAddress, .dword): return writeAddress(value << Self.pageShift)
        case (Legacy.queueSelect, .word): queueSelect = UInt16(truncatingIfNeeded: value)
        case (Legacy.status, .byte):
            // From the first bit on: which interface it is stays until the reset.
            if status.isEmpty { isLegacy = true }
            if !isLegacy, value != 0 { break }
            return writeStatus(UInt8(truncatingIfNeeded: value), profile)
        case (Legacy.configurationVector, .word) where vectorCount > 0:
            configurationVector = Self.vector(value, vectorCount)
        case (Legacy.queueVector, .word) where vectorCount > 0:
            if let index = selected { queues[index].vector = Self.vector(value, vectorCount) }
        default: break
        }
        return .nothing
    }

    private mutating func writeAddress(_ address: UInt64) -> Effect {
        // Drivers that never write the status byte first do not exist, but the standard does not forbid them (section 3.1.2).
        if status.isEmpty { isLegacy = true }
        guard isLegacy, let index = selected else { return .nothing }
        if address == 0 {
            guard queues[index].isEnabled else { return .nothing }
            queues[index].isEnabled = false
            queues[index].descriptors = 0
            return .disable(index)
        }
        guard !queues[index].isEnabled else { return .nothing }
        let size = UInt64(queues[index].size)
        queues[index].descriptors = address
        queues[index].driver = address + 16 * size
        // Used ring at the next page (section 2.7.2).
        queues[index].device = (address + 18 * size + 6 + 0xFFF) & ~0xFFF
        queues[index].isEnabled = true
        return .enable(index)
    }
}
