/// What the drive says it is.
extension SCSICDROM {
    private static let vendor = Array("OpenBSD ".utf8)
    private static let product = Array("VMM CD-ROM      ".utf8)
    private static let revision = Array("001 ".utf8)
    private static let serial = Array("cd0     ".utf8)
    /// CD or DVD device, connected.
    private static let deviceType: UInt8 = 5

    /// SPC-4, section 6.4.
    func inquiry(_ command: SCSICommandBlock) -> SCSIReply {
        let length = command.number(3, byteCount: 2)
        guard command[1] & 1 != 0 else {
            guard command[2] == 0 else { return .failed(.invalidField) }
            // Removable; SPC-3; response format 2; 31 bytes follow; queues commands.
            let head: [UInt8] = [Self.deviceType, 0x80, 5, 2, 31, 0, 0, 2]
            return answer(head + Self.vendor + Self.product + Self.revision, upTo: length)
        }
        let page: [UInt8]
        switch command[2] {
        case 0x00: page = [0x00, 0x80, 0x83]
        case 0x80: page = Self.serial
        case 0x83:
            // One designator: ASCII, of the unit, by its vendor (section 7.8.6).
            let name = Self.vendor + Self.product + Self.serial
            page = [2, 1, 0, UInt8(truncatingIfNeeded: name.count)] + name
        default: return .failed(.invalidField)
        }
        return answer([Self.deviceType, command[2]] + bytes(UInt64(page.count), 2) + page, upTo: length)
    }

    /// Logical unit 0 (SPC-4, section 6.33).
    func reportLUNs(_ command: SCSICommandBlock) -> SCSIReply {
        answer([0, 0, 0, 8] + [UInt8](repeating: 0, count: 12), upTo: command.number(6, byteCount: 4))
    }

    // MARK: Features

    private enum Profile {
        static let none: UInt64 = 0x0000
        static let cd: UInt64 = 0x0008
        static let dvd: UInt64 = 0x0010
    }

    /// GET CONFIGURATION (MMC-6, section 6.5).
    func getConfiguration(_ command: SCSICommandBlock) -> SCSIReply {
        let first = command.number(2, byteCount: 2)
        let (hasCD, hasDVD) = (isReady && isCD, isReady && !isCD)
        // Number, version, persistent, current, data (section 5.3).
        let features: [(UInt64, UInt8, Bool, Bool, [UInt8])] = [
            // The profiles it knows.
            (0x0000, 0, true, true, bytes(Profile.dvd, 2) + [hasDVD ? 1 : 0, 0] + bytes(Profile.cd, 2) + [hasCD ? 1 : 0, 0]),
            // Core: SCSI; tells of device busy events.
            (0x0001, 2, true, true, [0, 0, 0, 1, 1, 0, 0, 0]),
            // Removable medium: a tray, ejects, locks.
            (0x0003, 0, true, true, [0x29, 0, 0, 0]),
            // Random readable: blocks of 2048 bytes, one at a time.
            (0x0010, 0, false, isReady, bytes(Self.blockByteCount, 4) + bytes(1, 2) + [0, 0]),
            (0x001E, 2, false, hasCD, [0, 0, 0, 0]),
            (0x001F, 1, false, hasDVD, [0, 0, 0, 0]),
        ]
        let list: [UInt8]
        switch command[1] & 3 {
        case 0: list = features.filter { $0.0 >= first }.flatMap(descriptor)
        case 1: list = features.filter { $0.0 >= first && $0.3 }.flatMap(descriptor)
        case 2: list = features.filter { $0.0 == first }.flatMap(descriptor)
        default: return .failed(.invalidField)
        }
        let profile = hasCD ? Profile.cd : hasDVD ? Profile.dvd : Profile.none
        // The length counts what is behind it.
        return answer(bytes(UInt64(list.count) + 4, 4) + [0, 0] + bytes(profile, 2) + list, upTo: command.number(7, byteCount: 2))
    }

    private func descriptor(_ number: UInt64, _ version: UInt8, _ isPersistent: Bool, _ isCurrent: Bool, _ data: [UInt8]) -> [UInt8] {
        bytes(number, 2) + [version << 2 | (isPersistent ? 2 : 0) | (isCurrent ? 1 : 0), UInt8(truncatingIfNeeded: data.count)]
            + data
    }

    // MARK: Modes

    /// MODE SENSE (SPC-4, sections 6.11 and 6.12), without block descriptors.
    func modeSense(_ command: SCSICommandBlock, isShort: Bool) -> SCSIReply {
        let (control, page) = (command[2] >> 6, command[2] & 0x3F)
        guard control != 3 else { return .failed(.savingNotSupported) }
        guard command[3] == 0 || command[3] == 0xFF else { return .failed(.invalidField) }
        let pages: [UInt8]
        switch page {
        case 0x3F: pages = Self.modePages.flatMap { modePage($0, isMask: control == 1) ?? [] }
        default:
            guard let found = modePage(page, isMask: control == 1) else { return .failed(.invalidField) }
            pages = found
        }
        return isShort
            ? answer([UInt8(truncatingIfNeeded: pages.count + 3), 0, 0, 0] + pages, upTo: UInt64(command[4]))
            : answer(bytes(UInt64(pages.count) + 6, 2) + [0, 0, 0, 0, 0, 0] + pages, upTo: command.number(7, byteCount: 2))
    }

    private static let modePages: [UInt8] = [0x01, 0x08, 0x2A]

    /// - Parameter isMask: what a driver could change, which is nothing.
    private func modePage(_ page: UInt8, isMask: Bool) -> [UInt8]? {
        var content: [UInt8]
        switch page {
        // Read error recovery: five attempts (MMC-6, section 7.3).
        case 0x01: content = [0x00, 5] + [UInt8](repeating: 0, count: 8)
        // Caching: no write cache, the read cache is on.
        case 0x08: content = [UInt8](repeating: 0, count: 10)
        // Capabilities and mechanical status (MMC-3, section 6.3.11), as drives have kept it: reads CD-R, CD-RW and DVD;
        // several sessions, mode 2; a tray that locks and ejects; 50 times a CD's 176 KB/s; a buffer of 2 MB.
        case 0x2A:
            let speed = bytes(50 * 176, 2)
            content = [0x0B, 0x00, 0x70, 0x00, 0x29 | (isLocked ? 2 : 0), 0x00] + speed + [0, 0] + bytes(2048, 2) + speed
            content += [0, 0, 0, 0]
        default: return nil
        }
        if isMask { content = [UInt8](repeating: 0, count: content.count) }
        return [page, UInt8(truncatingIfNeeded: content.count)] + content
    }

    /// A number, big-endian.
    func bytes(_ value: UInt64, _ count: Int) -> [UInt8] {
        (0..<count).reversed().map { UInt8(truncatingIfNeeded: value >> UInt64(8 * $0)) }
    }
}
