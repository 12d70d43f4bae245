/// A drive for CDs and DVDs that can only be read, at logical unit 0, as its driver sees it: a value that takes commands and
/// knows no transport and no file.
///
/// Modelled: MMC-6's read-only drives with a tray. A disc is one data track in one session, a CD up to 80 minutes and a DVD
/// beyond, all of it user data in blocks of 2048 bytes. Not modelled: raw sectors, sound, sub-channels but the position, writing,
/// and a unit attention after power-on (OpenBSD's drive has none either, and some boot loaders do not ask twice).
///
/// A hostile driver sees no more than what is on the disc: every address and every length of a command is checked here.
public struct SCSICDROM: Codable, Hashable, Sendable {
    public static let blockByteCount: UInt64 = 2048
    /// 80 minutes of 60 seconds of 75 blocks; what is larger cannot be a CD.
    static let largestCD: UInt64 = 80 * 60 * 75

    /// What GET EVENT STATUS NOTIFICATION tells once (MMC-6).
    public enum MediaEvent: UInt8, Codable, Sendable {
        case none = 0
        /// Somebody wants the disc back.
        case ejectRequest = 1
        case newMedia = 2
        case mediaRemoval = 3
    }

    /// Bytes of the disc in the drive; `nil` without one.
    public private(set) var discByteCount: UInt64?
    public private(set) var isTrayOpen = false
    /// The guest wants the disc to stay.
    public private(set) var isLocked = false
    public private(set) var mediaEvent = MediaEvent.none
    /// What the next command but a few fails with.
    public private(set) var attention: SCSISense?

    /// - Parameter discByteCount: of the disc that is in the drive from the start on.
    public init(discByteCount: UInt64? = nil) { self.discByteCount = discByteCount.flatMap { $0 > 0 ? $0 : nil } }

    // MARK: The host's side

    /// Takes the disc out, unless the guest has locked it: then the guest is asked.
    /// - Parameter force: against the guest's will, as with a needle in the hole.
    /// - Returns: whether it is out.
    public mutating func eject(force: Bool = false) -> Bool {
        guard !isLocked || force else {
            mediaEvent = .ejectRequest
            return false
        }
        let wasThere = discByteCount != nil
        discByteCount = nil
        isLocked = false
        if wasThere {
            mediaEvent = .mediaRemoval
            attention = .mediumMayHaveChanged
        }
        return true
    }

    /// Puts a disc in, in place of the one that is there.
    /// - Parameter byteCount: more than 0.
    /// - Returns: `false` when the guest has locked the one that is there; it is asked to give it back.
    public mutating func insert(byteCount: UInt64, force: Bool = false) -> Bool {
        guard byteCount > 0, eject(force: force) else { return false }
        discByteCount = byteCount
        isTrayOpen = false
        mediaEvent = .newMedia
        attention = .mediumMayHaveChanged
        return true
    }

    /// What holds after a saved drive has got the host's disc, which may be another one.
    public mutating func restoreDisc(byteCount: UInt64?) {
        let byteCount = byteCount.flatMap { $0 > 0 ? $0 : nil }
        guard byteCount != discByteCount else { return }
        discByteCount = byteCount
        mediaEvent = byteCount == nil ? .mediaRemoval : .newMedia
        attention = .mediumMayHaveChanged
    }

    /// A reset of the unit by its driver, which still has to hear of another disc: the lock is off.
    public mutating func resetUnit() { isLocked = false }

    /// A new driver, which knows of no disc yet: the lock is off and the tray as it is.
    public mutating func reset() {
        isLocked = false
        attention = nil
        mediaEvent = .none
    }

    // MARK: The disc

    /// Whether there is something to read.
    var isReady: Bool { discByteCount != nil && !isTrayOpen }

    /// Blocks of the disc, the last one perhaps in part; 0 when it cannot be read.
    var blockCount: UInt64 {
        guard isReady, let discByteCount else { return 0 }
        return (discByteCount - 1) / Self.blockByteCount + 1
    }

    var isCD: Bool { blockCount <= Self.largestCD }

    // MARK: The guest's side

    /// Executes a command.
    /// - Parameter unit: which logical unit it is for; there is none but 0.
    public mutating func execute(_ command: SCSICommandBlock, unit: UInt64 = 0) -> SCSIReply {
        guard let operation = SCSIOperation(rawValue: command.operation) else {
            return .failed(unit == 0 ? takeAttention() ?? .invalidOperation : .unitNotSupported)
        }
        guard unit == 0 else { return executeWithoutUnit(operation, command) }
        switch operation {
        // These never report a unit attention (SPC-4, MMC-6).
        case .inquiry: return inquiry(command)
        case .reportLUNs: return reportLUNs(command)
        case .requestSense: return requestSense(command)
        case .getConfiguration: return getConfiguration(command)
        case .getEventStatusNotification: return getEventStatus(command)
        default: break
        }
        if let attention = takeAttention() { return .failed(attention) }
        switch operation {
        case .inquiry, .reportLUNs, .requestSense, .getConfiguration, .getEventStatusNotification: return .done
        case .testUnitReady: return ready { .done }
        case .read6:
            let count = command[4] == 0 ? 256 : UInt64(command[4])
            return read(command.number(1, byteCount: 3) & 0x1F_FFFF, count)
        case .read10: return read(command.number(2, byteCount: 4), command.number(7, byteCount: 2))
        case .read12: return read(command.number(2, byteCount: 4), command.number(6, byteCount: 4))
        case .read16: return read(command.number(2, byteCount: 8), command.number(10, byteCount: 4))
        case .readCD: return readCD(command)
        case .seek10: return read(command.number(2, byteCount: 4), 0)
        case .readCapacity10: return readCapacity10()
        case .serviceActionIn16: return readCapacity16(command)
        case .readTOC: return readTOC(command)
        case .readSubChannel: return readSubChannel(command)
        case .readDiscInformation: return readDiscInformation(command)
        case .readDVDStructure: return readDVDStructure(command)
        case .modeSense6: return modeSense(command, isShort: true)
        case .modeSense10: return modeSense(command, isShort: false)
        case .mechanismStatus:
            // A changer of one slot, whose door is the tray (MMC-6).
            return answer([0, isTrayOpen ? 0x10 : 0, 0, 0, 0, 1, 0, 0], upTo: command.number(8, byteCount: 2))
        // Discs turn as fast as the host's memory.
        case .setCDSpeed: return .done
        case .startStopUnit: return startStop(command)
        case .preventAllowMediumRemoval:
            isLocked = command[4] & 1 != 0
            return .done
        }
    }

    private mutating func takeAttention() -> SCSISense? {
        defer { attention = nil }
        return attention
    }

    /// SPC-4, section 4.6.4: what is answered for units that do not exist.
    private func executeWithoutUnit(_ operation: SCSIOperation, _ command: SCSICommandBlock) -> SCSIReply {
        switch operation {
        case .inquiry: answer([0x7F, 0, 5, 2, 31] + [UInt8](repeating: 0, count: 31), upTo: command.number(3, byteCount: 2))
        case .reportLUNs: reportLUNs(command)
        case .requestSense: answer(SCSISense.unitNotSupported.fixed, upTo: UInt64(command[4]))
        default: .failed(.unitNotSupported)
        }
    }

    /// The answer cut to the command's allocation length.
    func answer(_ bytes: [UInt8], upTo length: UInt64) -> SCSIReply {
        .data(length < UInt64(bytes.count) ? Array(bytes.prefix(Int(length))) : bytes)
    }

    func ready(_ body: () -> SCSIReply) -> SCSIReply {
        guard isReady else { return .failed(isTrayOpen ? .trayOpen : .mediumNotPresent) }
        return body()
    }

    private func read(_ address: UInt64, _ count: UInt64) -> SCSIReply {
        ready {
            guard address <= blockCount, blockCount - address >= count, address < blockCount || count == 0 else {
                return .failed(.addressOutOfRange)
            }
            guard count > 0 else { return .done }
            return .medium(offset: address * Self.blockByteCount, byteCount: count * Self.blockByteCount)
        }
    }

    /// READ CD (MMC-6), of which only user data of blocks of 2048 bytes: mode 1, or whatever the disc has.
    private func readCD(_ command: SCSICommandBlock) -> SCSIReply {
        let type = command[1] >> 2 & 7
        guard type == 0 || type == 2, command[10] & 7 == 0 else { return .failed(.invalidField) }
        switch command[9] {
        case 0x00: return read(command.number(2, byteCount: 4), 0)
        case 0x10: return read(command.number(2, byteCount: 4), command.number(6, byteCount: 3))
        default: return .failed(.invalidField)
        }
    }

    private mutating func requestSense(_ command: SCSICommandBlock) -> SCSIReply {
        let sense = takeAttention() ?? .none
        return answer(command[1] & 1 != 0 ? sense.descriptor : sense.fixed, upTo: UInt64(command[4]))
    }

    /// START STOP UNIT (MMC-6): bit 1 is LoEj, bit 0 Start.
    private mutating func startStop(_ command: SCSICommandBlock) -> SCSIReply {
        // Power conditions: it has only one.
        guard command[4] >> 4 == 0 else { return .done }
        switch command[4] & 3 {
        case 2:
            guard !isLocked else { return .failed(.removalPrevented) }
            if !isTrayOpen, discByteCount != nil { mediaEvent = .mediaRemoval }
            isTrayOpen = true
        case 3:
            if isTrayOpen, discByteCount != nil {
                mediaEvent = .newMedia
                attention = .mediumMayHaveChanged
            }
            isTrayOpen = false
        default: break
        }
        return .done
    }

    // MARK: Events

    /// GET EVENT STATUS NOTIFICATION (MMC-6), polled, of the class of media.
    private mutating func getEventStatus(_ command: SCSICommandBlock) -> SCSIReply {
        guard command[1] & 1 != 0 else { return .failed(.invalidField) }
        let length = command.number(7, byteCount: 2)
        let supported: UInt8 = 1 << 4
        guard command[4] & supported != 0 else { return answer([0, 2, 0x80, supported], upTo: length) }
        let status: UInt8 = isTrayOpen ? 1 : discByteCount != nil ? 2 : 0
        let event = mediaEvent
        // One that does not get as far as the event has not been told of it.
        if length >= 5 { mediaEvent = .none }
        return answer([0, 6, 4, supported, event.rawValue, status, 0, 0], upTo: length)
    }
}
