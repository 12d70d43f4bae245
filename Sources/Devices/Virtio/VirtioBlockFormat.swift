import DiskImage

/// What block device and driver say to each other (virtio 1.2, section 5.2).
enum VirtioBlockFormat {
    static let sector: UInt64 = 512
    static let headerByteCount: UInt64 = 16
    static let identifierByteCount = 20

    enum Feature {
        static let sizeMax = VirtioFeatures.bit(1)
        static let segMax = VirtioFeatures.bit(2)
        static let readOnly = VirtioFeatures.bit(5)
        static let blockSize = VirtioFeatures.bit(6)
        static let flush = VirtioFeatures.bit(9)
        static let topology = VirtioFeatures.bit(10)
        static let configWriteback = VirtioFeatures.bit(11)
        static let multiqueue = VirtioFeatures.bit(12)
        static let discard = VirtioFeatures.bit(13)
        static let writeZeroes = VirtioFeatures.bit(14)
    }

    enum Kind: UInt32 {
        case read = 0
        case write = 1
        case flush = 4
        case identifier = 8
        case discard = 11
        case writeZeroes = 13
    }

    enum Status: UInt8, Sendable { case ok, ioError, unsupported }

    /// The header of a request.
    struct Header {
        let kind: UInt32
        let sector: UInt64

        /// `nil` when there are too few bytes.
        init?(_ buffers: VirtioBuffers) {
            guard let bits = buffers.load(as: UInt128.self) else { return nil }
            kind = UInt32(truncatingIfNeeded: bits)
            sector = UInt64(truncatingIfNeeded: bits >> 64)
        }
    }

    /// What discard and write zeroes are for.
    struct Segment {
        static let byteCount: UInt64 = 16
        static let unmap: UInt32 = 1
        let sector: UInt64
        let sectorCount: UInt32
        let flags: UInt32

        init?(_ buffers: VirtioBuffers) {
            guard let bits = buffers.load(as: UInt128.self) else { return nil }
            sector = UInt64(truncatingIfNeeded: bits)
            sectorCount = UInt32(truncatingIfNeeded: bits >> 64)
            flags = UInt32(truncatingIfNeeded: bits >> 96)
        }
    }

    // MARK: The device's configuration

    static let configurationByteCount = 60
    static let writeback = 32

    /// Bytes of one descriptor, and all of a request: what bounds the time that one takes.
    static let largestSegment: UInt32 = 1 << 20
    static let largestRequest: UInt64 = 128 << 20
    /// Sectors of a discard: 2 GB.
    static let largestDiscard: UInt32 = 1 << 22
    /// 4 KB: what host file systems like to give and take.
    private static let physicalBlockExponent: UInt8 = 3
    private static let sectorsPerBlock: UInt32 = 8

    static func configuration(byteCount: UInt64, queueSize: UInt16, queueCount: Int) -> [UInt8] {
        var bytes = littleEndianBytes(byteCount / sector)
        bytes += littleEndianBytes(largestSegment)
        // Without header and status.
        bytes += littleEndianBytes(UInt32(queueSize) - 2)
        // Geometry is not offered.
        bytes += [0, 0, 0, 0]
        bytes += littleEndianBytes(UInt32(sector))
        // Alignment offset, minimum and optimal size.
        bytes += [physicalBlockExponent, 0] + littleEndianBytes(UInt16(sectorsPerBlock)) + [0, 0, 0, 0]
        bytes += [1, 0] + littleEndianBytes(UInt16(queueCount))
        // Sectors, segments and alignment of discard; sectors and segments of write zeroes, which may discard.
        bytes += littleEndianBytes(largestDiscard) + littleEndianBytes(1 as UInt32) + littleEndianBytes(sectorsPerBlock)
        bytes += littleEndianBytes(largestDiscard) + littleEndianBytes(1 as UInt32) + [1, 0, 0, 0]
        return bytes
    }
}
