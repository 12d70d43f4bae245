/// Why a command failed, or what has happened since the last one (SPC-4, section 4.5).
public struct SCSISense: Codable, Hashable, Sendable {
    public enum Key: UInt8, Codable, Sendable {
        case noSense = 0
        case notReady = 2
        case mediumError = 3
        case illegalRequest = 5
        case unitAttention = 6
    }

    public let key: Key
    /// Additional sense code and its qualifier.
    public let code: UInt8
    public let qualifier: UInt8

    public init(_ key: Key, _ code: UInt8, _ qualifier: UInt8) {
        self.key = key
        self.code = code
        self.qualifier = qualifier
    }

    public static let none = SCSISense(.noSense, 0x00, 0x00)
    public static let mediumNotPresent = SCSISense(.notReady, 0x3A, 0x01)
    public static let trayOpen = SCSISense(.notReady, 0x3A, 0x02)
    public static let unrecoveredReadError = SCSISense(.mediumError, 0x11, 0x00)
    public static let invalidOperation = SCSISense(.illegalRequest, 0x20, 0x00)
    public static let addressOutOfRange = SCSISense(.illegalRequest, 0x21, 0x00)
    public static let invalidField = SCSISense(.illegalRequest, 0x24, 0x00)
    public static let unitNotSupported = SCSISense(.illegalRequest, 0x25, 0x00)
    public static let incompatibleFormat = SCSISense(.illegalRequest, 0x30, 0x02)
    public static let savingNotSupported = SCSISense(.illegalRequest, 0x39, 0x00)
    public static let removalPrevented = SCSISense(.illegalRequest, 0x53, 0x02)
    public static let mediumMayHaveChanged = SCSISense(.unitAttention, 0x28, 0x00)

    /// Fixed format (section 4.5.3).
    public var fixed: [UInt8] {
        [0x70, 0, key.rawValue, 0, 0, 0, 0, 10, 0, 0, 0, 0, code, qualifier, 0, 0, 0, 0]
    }
    /// Descriptor format without descriptors (section 4.5.2).
    var descriptor: [UInt8] { [0x72, key.rawValue, code, qualifier, 0, 0, 0, 0] }
}

/// What a device answers to a command.
public enum SCSIReply: Hashable, Sendable {
    /// Nothing but that it worked.
    case done
    /// These bytes, at most as many as there is room for.
    case data([UInt8])
    /// Bytes of the medium, from an offset on. The last block may reach beyond the medium's end: zeros.
    case medium(offset: UInt64, byteCount: UInt64)
    case failed(SCSISense)
}

/// SAM-5, section 5.3.1.
public enum SCSIStatus: UInt8, Sendable {
    case good = 0x00
    case checkCondition = 0x02
}
