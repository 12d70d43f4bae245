import VMM

/// What a transitional virtio function shows on the PCI bus (virtio 1.2, sections 4.1.2 and 4.1.4).
///
///     base address 0   ports    the legacy interface
///     base address 1   memory   +0x0000 common configuration   +0x1000 ISR status   +0x2000 device configuration
///                               +0x3000 notifications, 4 bytes a queue
///                               +0x4000 MSI-X table            +0x5000 MSI-X pending bits
///
/// Each has a page of its own.
enum VirtioLayout {
    static let portIndex = 0
    static let memoryIndex = 1
    static let portByteCount: UInt32 = 0x100
    static let memoryByteCount: UInt32 = 0x8000

    enum Region: UInt64 { case common, interruptStatus, device, notify, table, pending }

    static let notifyMultiplier: UInt64 = 4

    static func region(_ offset: UInt64) -> Region? { Region(rawValue: offset >> 12) }
    private static func start(_ region: Region) -> UInt32 { UInt32(region.rawValue) << 12 }

    /// Offsets in configuration space.
    private static let common: UInt8 = 0x40
    private static let notify: UInt8 = 0x50
    private static let interruptStatus: UInt8 = 0x64
    private static let access: UInt8 = 0x74
    private static let messages: UInt8 = 0x88
    private static let device: UInt8 = 0x94

    /// In the capability for access by configuration space (section 4.1.4.9): which base address, where, how many bytes, and
    /// the bytes.
    enum Access {
        static let baseAddress = access + 4
        static let offset = access + 8
        static let length = access + 12
        static let data = access + 16
    }

    static let messageControl = messages + 2

    /// A vendor's capability (section 4.1.4) without identifier and pointer.
    private static func structure(
        _ type: UInt8, baseAddress: Int = memoryIndex, _ offset: UInt32, _ length: UInt32, more: [UInt8] = []
    ) -> [UInt8] {
        [UInt8(16 + more.count), type, UInt8(baseAddress), 0, 0, 0] + littleEndianBytes(offset) + littleEndianBytes(length)
            + more
    }

    static func space(
        _ profile: VirtioProfile, _ placement: VirtioTransport.Placement, _ vectors: MSIX
    ) -> PCIConfigurationSpace {
        precondition(vectors.vectorCount <= 0x1000 / MSIX.entryByteCount)
        let vendorSpecific: UInt8 = 0x09
        var space = PCIConfigurationSpace(
            vendor: 0x1AF4, device: profile.transitionalID, classCode: profile.classCode, subsystemVendor: 0x0B5D,
            subsystem: UInt16(profile.deviceType))
        space.addBaseAddress(portIndex, .ports, byteCount: portByteCount, at: UInt32(placement.ports))
        space.addBaseAddress(memoryIndex, .memory, byteCount: memoryByteCount, at: placement.memory)
        space.addInterrupt(line: placement.lineNumber)
        space.addCapability(
            vendorSpecific, at: common, structure(1, start(.common), UInt32(VirtioRegisters.Common.byteCount)))
        let multiplier = UInt32(notifyMultiplier)
        space.addCapability(
            vendorSpecific, at: notify,
            structure(
                2, start(.notify), UInt32(profile.queueSizes.count) * multiplier, more: littleEndianBytes(multiplier)))
        space.addCapability(vendorSpecific, at: interruptStatus, structure(3, start(.interruptStatus), 1))
        space.addCapability(vendorSpecific, at: access, structure(5, baseAddress: 0, 0, 0, more: [0, 0, 0, 0]))
        space.allowWrites(Access.baseAddress, 0xFF as UInt8)
        space.allowWrites(Access.offset, ~0 as UInt32)
        space.allowWrites(Access.length, ~0 as UInt32)
        space.allowWrites(Access.data, ~0 as UInt32)
        if profile.configurationByteCount > 0 {
            space.addCapability(
                vendorSpecific, at: device, structure(4, start(.device), UInt32(profile.configurationByteCount)))
        }
        if placement.messages != nil {
            space.addCapability(
                MSIX.capability, at: messages,
                vectors.capabilityBody(
                    baseAddress: UInt8(memoryIndex), table: start(.table), pendingBits: start(.pending)))
            space.allowWrites(messageControl, MSIX.Control.writable.rawValue)
        }
        return space
    }
}
