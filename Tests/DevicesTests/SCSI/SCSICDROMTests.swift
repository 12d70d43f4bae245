import Devices
import Foundation
import TestSupport
import Testing

@Suite("SCSI CD-ROM") struct SCSICDROMTests {
    private static let block: UInt64 = 2048
    /// 1000 blocks, the last of which is not full.
    private static let cd = 1000 * block - 100
    private static let dvd: UInt64 = 5 << 30

    private static func run(_ drive: inout SCSICDROM, _ command: [UInt8], unit: UInt64 = 0) -> SCSIReply {
        drive.execute(SCSICommandBlock(command), unit: unit)
    }

    private static func data(_ reply: SCSIReply) -> [UInt8] {
        guard case .data(let bytes) = reply else {
            Issue.record("\(reply) instead of data")
            return []
        }
        return bytes
    }

    private static func sense(_ reply: SCSIReply) -> SCSISense? {
        if case .failed(let sense) = reply { sense } else { nil }
    }

    private static func bigEndian(_ value: UInt64, _ count: Int) -> [UInt8] {
        (0..<count).reversed().map { UInt8(truncatingIfNeeded: value >> UInt64(8 * $0)) }
    }

    // MARK: Identity

    @Test func `inquiry names a removable drive for CDs and DVDs`() {
        var drive = SCSICDROM()
        let bytes = Self.data(Self.run(&drive, [0x12, 0, 0, 0, 96, 0]))
        #expect(bytes.count == 36)
        #expect(Array(bytes.prefix(5)) == [0x05, 0x80, 0x05, 0x02, 31])
        #expect(String(decoding: bytes[8...], as: UTF8.self) == "OpenBSD VMM CD-ROM      001 ")
    }

    @Test func `answers are cut to the allocation length`() {
        var drive = SCSICDROM()
        #expect(Self.data(Self.run(&drive, [0x12, 0, 0, 0, 5, 0])) == [0x05, 0x80, 0x05, 0x02, 31])
        #expect(Self.data(Self.run(&drive, [0x12, 0, 0, 0, 0, 0])) == [])
    }

    @Test(arguments: [
        (0x00, [5, 0x00, 0, 3, 0x00, 0x80, 0x83]), (0x80, [5, 0x80, 0, 8] + Array("cd0     ".utf8)),
        (0x83, [5, 0x83, 0, 36, 2, 1, 0, 32] + Array("OpenBSD VMM CD-ROM      cd0     ".utf8)),
    ] as [(UInt8, [UInt8])])
    func `vital product data pages`(page: UInt8, expected: [UInt8]) {
        var drive = SCSICDROM()
        #expect(Self.data(Self.run(&drive, [0x12, 1, page, 0, 255, 0])) == expected)
    }

    @Test func `other vital product data pages are refused`() {
        var drive = SCSICDROM()
        #expect(Self.sense(Self.run(&drive, [0x12, 1, 0xB0, 0, 255, 0])) == .invalidField)
        #expect(Self.sense(Self.run(&drive, [0x12, 0, 0x80, 0, 255, 0])) == .invalidField)
    }

    @Test func `there is one logical unit`() {
        var drive = SCSICDROM(discByteCount: Self.cd)
        #expect(Self.data(Self.run(&drive, [0xA0, 0, 0, 0, 0, 0, 0, 0, 0, 16, 0, 0])) == [0, 0, 0, 8] + [UInt8](repeating: 0, count: 12))
        #expect(Self.data(Self.run(&drive, [0x12, 0, 0, 0, 1, 0], unit: 1)) == [0x7F])
        #expect(Self.sense(Self.run(&drive, [0x00, 0, 0, 0, 0, 0], unit: 1)) == .unitNotSupported)
        #expect(Self.sense(Self.run(&drive, [0x28, 0, 0, 0, 0, 0, 0, 0, 1, 0], unit: 7)) == .unitNotSupported)
        #expect(Self.sense(Self.run(&drive, [0xFF], unit: 7)) == .unitNotSupported)
    }

    @Test(arguments: [0x04, 0x0A, 0x15, 0x2A, 0x2E, 0x35, 0x55, 0xAA, 0xFF] as [UInt8])
    func `unknown operations, writes among them, are refused`(operation: UInt8) {
        var drive = SCSICDROM(discByteCount: Self.cd)
        #expect(Self.sense(Self.run(&drive, [operation])) == .invalidOperation)
    }

    // MARK: Reading

    @Test(arguments: [
        ([0x08, 0, 1, 2, 3, 0], 0x102, 3), ([0x08, 0, 0, 0, 0, 0], 0, 256), ([0x28, 0, 0, 0, 3, 0, 0, 0, 5, 0], 0x300, 5),
        ([0xA8, 0, 0, 0, 3, 0xE7, 0, 0, 0, 1, 0, 0], 999, 1), ([0x88, 0, 0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0, 8, 0, 0], 9, 8),
        ([0xBE, 0x08, 0, 0, 0, 1, 0, 0, 2, 0x10, 0, 0], 1, 2), ([0xBE, 0, 0, 0, 0, 1, 0, 0, 2, 0x10, 0, 0], 1, 2),
    ] as [([UInt8], UInt64, UInt64)])
    func `reads say which bytes`(command: [UInt8], address: UInt64, count: UInt64) {
        var drive = SCSICDROM(discByteCount: Self.cd)
        #expect(Self.run(&drive, command) == .medium(offset: address * Self.block, byteCount: count * Self.block))
    }

    @Test func `reads of a DVD reach beyond 4 GB`() {
        var drive = SCSICDROM(discByteCount: Self.dvd)
        let last = Self.dvd / Self.block - 1
        #expect(Self.run(&drive, [0x28, 0] + Self.bigEndian(last, 4) + [0, 0, 1, 0]) == .medium(offset: last * Self.block, byteCount: Self.block))
        #expect(Self.sense(Self.run(&drive, [0x28, 0] + Self.bigEndian(last, 4) + [0, 0, 2, 0])) == .addressOutOfRange)
    }

    @Test(arguments: [
        [0x28, 0, 0, 0, 3, 0xE8, 0, 0, 1, 0], [0x28, 0, 0, 0, 3, 0xE7, 0, 0, 2, 0], [0x28, 0, 0xFF, 0xFF, 0xFF, 0xFF, 0, 0xFF, 0xFF, 0],
        [0xA8, 0, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0, 0],
        [0x88, 0, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0, 0],
        [0x2B, 0, 0, 0, 3, 0xE9, 0, 0, 0, 0],
    ] as [[UInt8]])
    func `what lies behind the end is refused`(command: [UInt8]) {
        var drive = SCSICDROM(discByteCount: Self.cd)
        #expect(Self.sense(Self.run(&drive, command)) == .addressOutOfRange)
    }

    @Test func `reads of nothing and seeks work`() {
        var drive = SCSICDROM(discByteCount: Self.cd)
        #expect(Self.run(&drive, [0x28, 0, 0, 0, 0, 1, 0, 0, 0, 0]) == .done)
        #expect(Self.run(&drive, [0x2B, 0, 0, 0, 3, 0xE7, 0, 0, 0, 0]) == .done)
    }

    @Test func `raw sectors are refused`() {
        var drive = SCSICDROM(discByteCount: Self.cd)
        #expect(Self.sense(Self.run(&drive, [0xBE, 0, 0, 0, 0, 1, 0, 0, 2, 0xF8, 0, 0])) == .invalidField)
        #expect(Self.sense(Self.run(&drive, [0xBE, 0x04, 0, 0, 0, 1, 0, 0, 2, 0x10, 0, 0])) == .invalidField)
    }

    @Test(arguments: [(cd, 999), (2048, 0), (1, 0), (2049, 1), (dvd, dvd / 2048 - 1), (UInt64(Int64.max), UInt64(Int64.max) / 2048)] as [(UInt64, UInt64)])
    func `capacity is the last block's address`(byteCount: UInt64, last: UInt64) {
        var drive = SCSICDROM(discByteCount: byteCount)
        #expect(Self.data(Self.run(&drive, [0x25, 0, 0, 0, 0, 0, 0, 0, 0, 0])) == Self.bigEndian(min(last, 0xFFFF_FFFF), 4) + [0, 0, 8, 0])
        let long = Self.data(Self.run(&drive, [0x9E, 0x10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 32, 0, 0]))
        #expect(long.count == 32)
        #expect(Array(long.prefix(12)) == Self.bigEndian(last, 8) + [0, 0, 8, 0])
    }

    // MARK: The disc

    @Test func `table of contents has one track of data and the lead-out`() {
        var drive = SCSICDROM(discByteCount: Self.cd)
        let blocks = Self.data(Self.run(&drive, [0x43, 0, 0, 0, 0, 0, 0, 0, 100, 0]))
        #expect(blocks == [0, 18, 1, 1, 0, 0x14, 1, 0, 0, 0, 0, 0, 0, 0x14, 0xAA, 0, 0, 0, 3, 0xE8])
        // 1000 blocks and the 150 in front of the first: 15 s and 25 blocks.
        let times = Self.data(Self.run(&drive, [0x43, 2, 0, 0, 0, 0, 0, 0, 100, 0]))
        #expect(times == [0, 18, 1, 1, 0, 0x14, 1, 0, 0, 0, 2, 0, 0, 0x14, 0xAA, 0, 0, 0, 15, 25])
        #expect(Self.data(Self.run(&drive, [0x43, 0, 0, 0, 0, 0, 0xAA, 0, 100, 0])) == [0, 10, 1, 1, 0, 0x14, 0xAA, 0, 0, 0, 3, 0xE8])
        #expect(Self.sense(Self.run(&drive, [0x43, 0, 0, 0, 0, 0, 2, 0, 100, 0])) == .invalidField)
    }

    @Test func `session information and the raw table`() {
        var drive = SCSICDROM(discByteCount: Self.cd)
        let session: [UInt8] = [0, 10, 1, 1, 0, 0x14, 1, 0, 0, 0, 0, 0]
        #expect(Self.data(Self.run(&drive, [0x43, 0, 1, 0, 0, 0, 0, 0, 100, 0])) == session)
        // As older drivers ask.
        #expect(Self.data(Self.run(&drive, [0x43, 0, 0, 0, 0, 0, 0, 0, 100, 0x40])) == session)
        let raw = Self.data(Self.run(&drive, [0x43, 0, 2, 0, 0, 0, 0, 0, 100, 0]))
        #expect(raw.count == 48)
        #expect(Array(raw.prefix(4)) == [0, 46, 1, 1])
        #expect(Array(raw[26..<37]) == [1, 0x14, 0, 0xA2, 0, 0, 0, 0, 0, 15, 25])
        #expect(Self.sense(Self.run(&drive, [0x43, 0, 5, 0, 0, 0, 0, 0, 100, 0])) == .invalidField)
    }

    @Test(arguments: [(nil, 0), (cd, 0x0008), (360_000 * 2048, 0x0008), (360_000 * 2048 + 1, 0x0010), (dvd, 0x0010)] as [(UInt64?, UInt64)])
    func `profile follows the disc`(byteCount: UInt64?, profile: UInt64) {
        var drive = SCSICDROM(discByteCount: byteCount)
        let all = Self.data(Self.run(&drive, [0x46, 0, 0, 0, 0, 0, 0, 2, 0, 0]))
        #expect(Array(all[6..<8]) == Self.bigEndian(profile, 2))
        #expect(Array(all.prefix(4)) == Self.bigEndian(UInt64(all.count) - 4, 4))
        // Each feature's length leads to the next.
        var place = 8
        var numbers: [Int] = []
        while place + 4 <= all.count {
            numbers.append(Int(all[place]) << 8 | Int(all[place + 1]))
            place += 4 + Int(all[place + 3])
        }
        #expect(place == all.count)
        #expect(numbers == [0x0000, 0x0001, 0x0003, 0x0010, 0x001E, 0x001F])
        let one = Self.data(Self.run(&drive, [0x46, 2, 0, 0x10, 0, 0, 0, 2, 0, 0]))
        #expect(one.count == 20)
        #expect(one[10] & 1 == (byteCount == nil ? 0 : 1))
    }

    @Test func `mode pages`() {
        var drive = SCSICDROM(discByteCount: Self.cd)
        let capabilities = Self.data(Self.run(&drive, [0x5A, 0, 0x2A, 0, 0, 0, 0, 0, 255, 0]))
        #expect(Array(capabilities[8..<10]) == [0x2A, 18])
        #expect(Array(capabilities.prefix(2)) == Self.bigEndian(UInt64(capabilities.count) - 2, 2))
        let short = Self.data(Self.run(&drive, [0x1A, 0, 0x2A, 0, 255, 0]))
        #expect(Int(short[0]) == short.count - 1)
        #expect(Array(short[4...]) == Array(capabilities[8...]))
        #expect(short[10] & 2 == 0)
        _ = Self.run(&drive, [0x1E, 0, 0, 0, 1, 0])
        #expect(Self.data(Self.run(&drive, [0x1A, 0, 0x2A, 0, 255, 0]))[10] & 2 == 2)
        let all = Self.data(Self.run(&drive, [0x1A, 0, 0x3F, 0, 255, 0]))
        #expect(all.count == 4 + 12 + 12 + 20)
        let mask = Self.data(Self.run(&drive, [0x1A, 0, 0x7F, 0, 255, 0]))
        #expect(mask.count == all.count && mask[6...15].allSatisfy { $0 == 0 })
        #expect(Self.sense(Self.run(&drive, [0x1A, 0, 0xFF, 0, 255, 0])) == .savingNotSupported)
        #expect(Self.sense(Self.run(&drive, [0x1A, 0, 0x05, 0, 255, 0])) == .invalidField)
    }

    @Test func `what drivers ask of a disc besides`() {
        var drive = SCSICDROM(discByteCount: Self.cd)
        let information = Self.data(Self.run(&drive, [0x51, 0, 0, 0, 0, 0, 0, 0, 255, 0]))
        #expect(information.count == 34 && Array(information.prefix(7)) == [0, 32, 0x0E, 1, 1, 1, 1])
        #expect(Self.data(Self.run(&drive, [0xBD, 0, 0, 0, 0, 0, 0, 0, 0, 8, 0, 0])) == [0, 0, 0, 0, 0, 1, 0, 0])
        #expect(Self.data(Self.run(&drive, [0x42, 0, 0, 0, 0, 0, 0, 0, 16, 0])) == [0, 0x15, 0, 0])
        #expect(Self.data(Self.run(&drive, [0x42, 0, 0x40, 1, 0, 0, 0, 0, 16, 0])).count == 16)
        #expect(Self.run(&drive, [0xBB, 0, 0xFF, 0xFF, 0, 0, 0, 0, 0, 0, 0, 0]) == .done)
        #expect(Self.sense(Self.run(&drive, [0xAD, 0, 0, 0, 0, 0, 0, 0, 8, 0, 0, 0])) == .incompatibleFormat)
        var dvd = SCSICDROM(discByteCount: Self.dvd)
        let layer = Self.data(Self.run(&dvd, [0xAD, 0, 0, 0, 0, 0, 0, 0, 8, 0, 0, 0]))
        #expect(layer.count == 21 && Array(layer.prefix(2)) == [0, 19])
        #expect(Array(layer[13..<16]) == Self.bigEndian(0x30000 + Self.dvd / 2048 - 1, 3))
    }

    // MARK: Changes

    @Test func `without a disc nothing can be read`() {
        var drive = SCSICDROM()
        for command: [UInt8] in [[0x00], [0x25], [0x28, 0, 0, 0, 0, 0, 0, 0, 1, 0], [0x43, 0, 0, 0, 0, 0, 0, 0, 12, 0], [0x51, 0, 0, 0, 0, 0, 0, 0, 34, 0]] {
            #expect(Self.sense(Self.run(&drive, command)) == .mediumNotPresent)
        }
        #expect(Self.data(Self.run(&drive, [0x4A, 1, 0, 0, 0x10, 0, 0, 0, 8, 0])) == [0, 6, 4, 0x10, 0, 0, 0, 0])
        let isIn = drive.insert(byteCount: 0)
        #expect(!isIn)
    }

    @Test func `another disc is told of once, by a unit attention and an event`() {
        var drive = SCSICDROM(discByteCount: Self.cd)
        let isIn = drive.insert(byteCount: Self.dvd)
        #expect(isIn)
        // These do not take the attention away.
        _ = Self.run(&drive, [0x12, 0, 0, 0, 36, 0])
        #expect(Self.data(Self.run(&drive, [0x4A, 1, 0, 0, 0x10, 0, 0, 0, 8, 0])) == [0, 6, 4, 0x10, 2, 2, 0, 0])
        #expect(Self.data(Self.run(&drive, [0x4A, 1, 0, 0, 0x10, 0, 0, 0, 8, 0])) == [0, 6, 4, 0x10, 0, 2, 0, 0])
        #expect(Self.sense(Self.run(&drive, [0x00])) == .mediumMayHaveChanged)
        #expect(Self.run(&drive, [0x00]) == .done)
        #expect(Self.data(Self.run(&drive, [0x25]))[0..<4] == Self.bigEndian(Self.dvd / 2048 - 1, 4)[...])
    }

    @Test func `request sense gives the attention`() {
        var drive = SCSICDROM(discByteCount: Self.cd)
        _ = drive.insert(byteCount: Self.cd)
        let sense = Self.data(Self.run(&drive, [0x03, 0, 0, 0, 18, 0]))
        #expect(sense == [0x70, 0, 6, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0x28, 0, 0, 0, 0, 0])
        #expect(Self.data(Self.run(&drive, [0x03, 1, 0, 0, 18, 0])) == [0x72, 0, 0, 0, 0, 0, 0, 0])
        #expect(Self.run(&drive, [0x00]) == .done)
    }

    @Test func `a locked drive keeps its disc and asks the guest for it`() {
        var drive = SCSICDROM(discByteCount: Self.cd)
        #expect(Self.run(&drive, [0x1E, 0, 0, 0, 1, 0]) == .done)
        let (isOut, isIn) = (drive.eject(), drive.insert(byteCount: Self.dvd))
        #expect(!isOut && !isIn)
        #expect(drive.discByteCount == Self.cd)
        #expect(Self.data(Self.run(&drive, [0x4A, 1, 0, 0, 0x10, 0, 0, 0, 8, 0]))[4] == 1)
        #expect(Self.sense(Self.run(&drive, [0x1B, 0, 0, 0, 2, 0])) == .removalPrevented)
        let isForced = drive.eject(force: true)
        #expect(isForced)
        #expect(drive.discByteCount == nil && !drive.isLocked)
    }

    @Test func `the guest opens and closes the tray`() {
        var drive = SCSICDROM(discByteCount: Self.cd)
        #expect(Self.run(&drive, [0x1B, 0, 0, 0, 2, 0]) == .done)
        #expect(Self.sense(Self.run(&drive, [0x00])) == .trayOpen)
        #expect(Self.data(Self.run(&drive, [0x4A, 1, 0, 0, 0x10, 0, 0, 0, 8, 0])) == [0, 6, 4, 0x10, 3, 1, 0, 0])
        #expect(Self.data(Self.run(&drive, [0xBD, 0, 0, 0, 0, 0, 0, 0, 0, 8, 0, 0]))[1] == 0x10)
        #expect(Self.run(&drive, [0x1B, 0, 0, 0, 3, 0]) == .done)
        #expect(Self.sense(Self.run(&drive, [0x00])) == .mediumMayHaveChanged)
        #expect(Self.run(&drive, [0x00]) == .done)
        // A disc that is put in closes it.
        _ = Self.run(&drive, [0x1B, 0, 0, 0, 2, 0])
        _ = drive.insert(byteCount: Self.cd)
        #expect(!drive.isTrayOpen)
    }

    @Test func `events of other classes, and waiting for them, are refused`() {
        var drive = SCSICDROM(discByteCount: Self.cd)
        #expect(Self.sense(Self.run(&drive, [0x4A, 0, 0, 0, 0x10, 0, 0, 0, 8, 0])) == .invalidField)
        #expect(Self.data(Self.run(&drive, [0x4A, 1, 0, 0, 0x02, 0, 0, 0, 8, 0])) == [0, 2, 0x80, 0x10])
    }

    @Test func `a drive is its own snapshot`() throws {
        var drive = SCSICDROM(discByteCount: Self.cd)
        _ = drive.insert(byteCount: Self.dvd)
        _ = Self.run(&drive, [0x1B, 0, 0, 0, 2, 0])
        var copy = try JSONDecoder().decode(SCSICDROM.self, from: JSONEncoder().encode(drive))
        #expect(copy == drive)
        copy.restoreDisc(byteCount: Self.dvd)
        #expect(copy == drive)
        copy.restoreDisc(byteCount: Self.cd)
        #expect(copy.discByteCount == Self.cd)
        #expect(copy.attention == .mediumMayHaveChanged)
    }

    @Test func `random commands read nothing but the disc`() {
        var random = SplitMix64(seed: 0xCD)
        let operations: [UInt8] = [0, 3, 8, 0x12, 0x1A, 0x1B, 0x1E, 0x25, 0x28, 0x2B, 0x42, 0x43, 0x46, 0x4A, 0x51, 0x5A, 0x88, 0x9E, 0xA0, 0xA8, 0xAD, 0xBB, 0xBD, 0xBE]
        for size in [nil, 1, 2047, Self.cd, Self.dvd, UInt64.max] as [UInt64?] {
            var drive = SCSICDROM(discByteCount: size)
            for _ in 0..<20_000 {
                var command = (0..<32).map { _ in Bool.random(using: &random) ? UInt8.random(in: 0...255, using: &random) : 0 }
                if Int.random(in: 0..<8, using: &random) > 0 { command[0] = operations[Int.random(in: 0..<operations.count, using: &random)] }
                switch Self.run(&drive, command, unit: Int.random(in: 0..<8, using: &random) == 0 ? 1 : 0) {
                case .medium(let offset, let byteCount):
                    let end = ((size ?? 0) - 1) / 2048 * 2048
                    #expect(byteCount > 0 && offset <= end && byteCount - 2048 <= end - offset)
                case .data(let bytes): #expect(bytes.count <= 4096)
                case .done, .failed: break
                }
            }
        }
    }
}
