/// What SCSI host device and driver say to each other (virtio 1.2, section 5.6).
enum VirtioSCSIFormat {
    enum Queue {
        static let control = 0
        static let event = 1
        static let request = 2
    }

    enum Feature {
        /// VIRTIO_SCSI_F_CHANGE: events tell of changes of a unit.
        static let change = VirtioFeatures.bit(2)
    }

    /// Section 5.6.6.1.
    enum Response: UInt8 {
        case ok = 0
        /// The command had more data than room.
        case overrun = 1
        case badTarget = 3
        case functionSucceeded = 10
        case functionRejected = 11
        case incorrectUnit = 12
    }

    // MARK: Requests

    /// lun[8], id, task_attr, prio, crn; the command block follows.
    static let headerByteCount = 19
    /// sense_len, residual, status_qualifier, status, response; the sense data follow.
    static let responseByteCount = 12

    /// Where a request goes.
    enum Address {
        /// A logical unit of the one target that there is.
        case unit(UInt64)
        case nowhere

        /// - Parameter byte: of lun[8]: 1, the target, and a logical unit of one level (section 5.6.6.1).
        init(_ byte: (Int) -> UInt8) {
            guard byte(0) == 1, byte(1) == 0, byte(2) & 0x80 == 0 else {
                self = .nowhere
                return
            }
            self = .unit(UInt64(byte(2) & 0x3F) << 8 | UInt64(byte(3)))
        }
    }

    // MARK: Control requests

    enum Control {
        static let taskManagement: UInt32 = 0
        static let asynchronousQuery: UInt32 = 1
        static let asynchronousSubscribe: UInt32 = 2
        static let taskManagementByteCount: UInt64 = 24
        static let asynchronousByteCount: UInt64 = 16
    }

    enum TaskManagement: UInt32 {
        case abortTask, abortTaskSet, clearACA, clearTaskSet, nexusReset, unitReset, queryTask, queryTaskSet
    }

    // MARK: Events

    enum Event {
        static let byteCount = 16
        static let none: UInt32 = 0
        static let parameterChange: UInt32 = 3
        static let missed: UInt32 = 0x8000_0000
        /// Additional sense code 28/00: the medium may have changed.
        static let mediumChanged: UInt32 = 0x28
    }

    // MARK: The device's configuration

    static let configurationByteCount = 36
    static let senseSizeOffset = 20
    static let commandSizeOffset = 24
    static let largestSense: UInt32 = 96
    static let largestCommand: UInt32 = 32

    /// Without what a driver may change. Target 1 is one more than there is: OpenBSD's drivers ask for the number of targets
    /// here, others for the last one, and both find the drive.
    static func configuration(queueSize: UInt16) -> [UInt8] {
        // num_queues, seg_max (without header and response), max_sectors, cmd_per_lun, event_info_size
        var bytes = littleEndianBytes(1 as UInt32) + littleEndianBytes(UInt32(queueSize) - 2)
        bytes += littleEndianBytes(0xFFFF as UInt32) + littleEndianBytes(64 as UInt32)
        bytes += littleEndianBytes(UInt32(Event.byteCount))
        bytes += littleEndianBytes(largestSense) + littleEndianBytes(largestCommand)
        // max_channel, max_target, max_lun
        bytes += littleEndianBytes(0 as UInt16) + littleEndianBytes(1 as UInt16) + littleEndianBytes(0 as UInt32)
        return bytes
    }
}
