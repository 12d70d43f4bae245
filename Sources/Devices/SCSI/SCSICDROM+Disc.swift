/// What the drive says of the disc in it: one session with one track of data.
extension SCSICDROM {
    private static let track: UInt8 = 1
    private static let leadOut: UInt8 = 0xAA
    /// Q sub-channel with the position; a track of data (MMC-6).
    private static let control: UInt8 = 0x14

    /// SBC-3, section 5.15: the last block's address. That of a disc too large for the answer is all ones.
    func readCapacity10() -> SCSIReply {
        ready { .data(bytes(min(blockCount - 1, 0xFFFF_FFFF), 4) + bytes(Self.blockByteCount, 4)) }
    }

    /// SBC-3, section 5.16; the only service action.
    func readCapacity16(_ command: SCSICommandBlock) -> SCSIReply {
        guard command[1] & 0x1F == 0x10 else { return .failed(.invalidField) }
        return ready {
            answer(
                bytes(blockCount - 1, 8) + bytes(Self.blockByteCount, 4) + [UInt8](repeating: 0, count: 20),
                upTo: command.number(10, byteCount: 4))
        }
    }

    // MARK: Table of contents

    /// An address of 4 bytes: blocks, or minutes, seconds and blocks, which count from 2 s before the first (MMC-6).
    private func address(_ block: UInt64, isTime: Bool) -> [UInt8] {
        guard isTime else { return bytes(min(block, 0xFFFF_FFFF), 4) }
        let (minute, second, frame) = time(block)
        return [0, minute, second, frame]
    }

    /// A DVD has more minutes than there is room for.
    private func time(_ block: UInt64) -> (minute: UInt8, second: UInt8, frame: UInt8) {
        let frames = block + 150
        guard frames / (60 * 75) <= 255 else { return (255, 59, 74) }
        return (
            UInt8(truncatingIfNeeded: frames / (60 * 75)), UInt8(truncatingIfNeeded: frames / 75 % 60),
            UInt8(truncatingIfNeeded: frames % 75)
        )
    }

    /// READ TOC/PMA/ATIP (MMC-6).
    func readTOC(_ command: SCSICommandBlock) -> SCSIReply {
        let isTime = command[1] & 2 != 0
        // Older drivers say the format in the control byte.
        let format = command[2] & 0xF != 0 ? command[2] & 0xF : command[9] >> 6
        let start = command[6]
        return ready {
            let list: [UInt8]
            switch format {
            case 0:
                guard start <= Self.track || start == Self.leadOut else { return .failed(.invalidField) }
                let first = start <= Self.track ? [0, Self.control, Self.track, 0] + address(0, isTime: isTime) : []
                list = first + [0, Self.control, Self.leadOut, 0] + address(blockCount, isTime: isTime)
            case 1: list = [0, Self.control, Self.track, 0] + address(0, isTime: isTime)
            case 2: list = rawTOC()
            default: return .failed(.invalidField)
            }
            // First and last track, or session.
            return answer(bytes(UInt64(list.count) + 2, 2) + [1, 1] + list, upTo: command.number(7, byteCount: 2))
        }
    }

    /// What the lead-in holds: first and last track, where the lead-out is, the track; times always.
    private func rawTOC() -> [UInt8] {
        func entry(_ point: UInt8, _ minute: UInt8, _ second: UInt8, _ frame: UInt8) -> [UInt8] {
            [1, Self.control, 0, point, 0, 0, 0, 0, minute, second, frame]
        }
        let end = time(blockCount)
        let start = time(0)
        return entry(0xA0, Self.track, 0, 0) + entry(0xA1, Self.track, 0, 0) + entry(0xA2, end.minute, end.second, end.frame)
            + entry(Self.track, start.minute, start.second, start.frame)
    }

    /// READ SUB-CHANNEL (MMC-6): no sound plays, and the head is at the start.
    func readSubChannel(_ command: SCSICommandBlock) -> SCSIReply {
        let isTime = command[1] & 2 != 0
        let noAudio: UInt8 = 0x15
        return ready {
            let data: [UInt8]
            switch (command[2] & 0x40 != 0, command[3]) {
            case (false, _): data = []
            case (true, 1):
                data = [1, Self.control, Self.track, 1] + address(0, isTime: isTime) + (isTime ? [0, 0, 0, 0] : address(0, isTime: false))
            default: return .failed(.invalidField)
            }
            return answer([0, noAudio] + bytes(UInt64(data.count), 2) + data, upTo: command.number(7, byteCount: 2))
        }
    }

    /// READ DISC INFORMATION (MMC-6): finalised, complete, unrestricted use.
    func readDiscInformation(_ command: SCSICommandBlock) -> SCSIReply {
        guard command[1] & 7 == 0 else { return .failed(.invalidField) }
        return ready {
            answer(
                [0, 32, 0x0E, 1, 1, 1, 1, 0x20] + [UInt8](repeating: 0, count: 26), upTo: command.number(7, byteCount: 2))
        }
    }

    /// READ DVD STRUCTURE (MMC-6): the layer, and that nothing is protected.
    func readDVDStructure(_ command: SCSICommandBlock) -> SCSIReply {
        let (layer, format) = (command[6], command[7])
        return ready {
            guard !isCD else { return .failed(.incompatibleFormat) }
            let data: [UInt8]
            switch format {
            case 0x00:
                guard layer == 0 else { return .failed(.invalidField) }
                // DVD-ROM of 120 mm; one layer, embossed; data from 0x30000 on, to its last block, and no second layer.
                data =
                    [0x01, 0x0F, 0x01, 0x00, 0] + bytes(0x30000, 3) + [0]
                    + bytes(min(0x30000 + blockCount - 1, 0xFF_FFFF), 3) + [0, 0, 0, 0, 0]
            case 0x01: data = [0, 0, 0, 0]
            // Manufacturing information: none.
            case 0x04: data = [UInt8](repeating: 0, count: 2048)
            default: return .failed(.invalidField)
            }
            return answer(bytes(UInt64(data.count) + 2, 2) + [0, 0] + data, upTo: command.number(8, byteCount: 2))
        }
    }
}
