/// The header by which a kernel says how a multiboot 2 loader shall treat it (Multiboot2 Specification 2.0, 3.1).
///
/// What a loader without screen and without EFI must refuse, it refuses: a tag that is not marked as optional and asks for a
/// screen, for information of a kind that does not exist, or that nobody knows.
struct Multiboot2Header {
    /// The relocatable header tag (3.1.14): the kernel may lie anywhere between two addresses.
    struct Relocation {
        enum Preference: UInt32 { case none, lowest, highest }

        let lowest: UInt32
        /// Of the last byte.
        let highest: UInt32
        let alignment: UInt32
        let preference: Preference
    }

    private enum Tag {
        static let end: UInt16 = 0
        static let informationRequest: UInt16 = 1
        static let addresses: UInt16 = 2
        static let entry: UInt16 = 3
        static let console: UInt16 = 4
        static let frameBuffer: UInt16 = 5
        /// Modules start on pages: they always do. The next three are about EFI, which is not there.
        static let moduleAlignment: UInt16 = 6
        static let efiEntry64: UInt16 = 9
        static let relocatable: UInt16 = 10
    }

    static let magic: UInt32 = 0xE852_50D6
    /// The header lies in this much of the file, all of it.
    static let searchByteCount = 32768
    /// The last kind of information that the specification knows. What is known may be asked for, and may be absent.
    private static let lastInformation: UInt32 = 21

    /// Where in the file it is.
    let offset: Int
    private(set) var addresses: MultibootAddresses?
    private(set) var entry: UInt32?
    private(set) var relocation: Relocation?

    /// Looks for one; `nil` when the file has none, which makes it another kind of kernel.
    init?(_ kernel: BootFile, _ head: ByteReader) throws(MachineError) {
        let limit = min(head.bytes.count, Self.searchByteCount)
        for offset in stride(from: 0, to: limit, by: 8) {
            guard head.load(offset, as: UInt32.self) == Self.magic,
                let architecture = head.load(offset + 4, as: UInt32.self),
                let byteCount = head.load(offset + 8, as: UInt32.self),
                let checksum = head.load(offset + 12, as: UInt32.self),
                Self.magic &+ architecture &+ byteCount &+ checksum == 0
            else { continue }
            self.offset = offset
            guard architecture == 0 else {
                throw kernel.error("has a multiboot 2 header for another processor", "give one for x86")
            }
            guard byteCount >= 16, Int(byteCount) <= limit - offset else {
                throw kernel.error(
                    "has its multiboot 2 header at \(hexText(UInt64(offset))), which ends behind the first 32768 bytes",
                    "link it again")
            }
            try readTags(ByteReader(bytes: Array(head.bytes[offset + 16..<offset + Int(byteCount)])), kernel)
            return
        }
        return nil
    }

    private mutating func readTags(_ tags: ByteReader, _ kernel: BootFile) throws(MachineError) {
        var at = 0
        while true {
            guard let type = tags.load(at, as: UInt16.self), let flags = tags.load(at + 2, as: UInt16.self),
                let size = tags.load(at + 4, as: UInt32.self), size >= 8, Int(size) <= tags.bytes.count - at
            else { throw kernel.error("has multiboot 2 tags without an end", "link it again") }
            if type == Tag.end { return }
            let fields = ByteReader(bytes: Array(tags.bytes[at + 8..<at + Int(size)]))
            try read(type, fields, isOptional: flags & 1 != 0, kernel)
            at += (Int(size) + 7) & ~7
        }
    }

    private mutating func read(
        _ type: UInt16, _ fields: ByteReader, isOptional: Bool, _ kernel: BootFile
    ) throws(MachineError) {
        func field(_ index: Int) throws(MachineError) -> UInt32 {
            guard let value: UInt32 = fields.load(index * 4) else {
                throw kernel.error("has a multiboot 2 tag \(type) that is too short", "link it again")
            }
            return value
        }
        func refuse(_ what: String) throws(MachineError) {
            guard isOptional else { throw kernel.error("demands \(what)", "mark that tag as optional") }
        }
        switch type {
        case Tag.informationRequest:
            for index in 0..<fields.bytes.count / 4 {
                let kind = try field(index)
                if kind > Self.lastInformation { try refuse("multiboot 2 information \(kind), which does not exist") }
            }
        case Tag.addresses:
            let load = try field(1)
            addresses = MultibootAddresses(
                header: try field(0), load: load == .max ? nil : load, loadEnd: try field(2), bssEnd: try field(3))
        case Tag.entry:
            entry = try field(0)
        case Tag.console:
            if try field(0) & 1 != 0 { try refuse("a console on a screen, and there is none") }
        case Tag.frameBuffer:
            try refuse("a frame buffer, and there is no screen")
        case Tag.moduleAlignment...Tag.efiEntry64:
            break
        case Tag.relocatable:
            relocation = Relocation(
                lowest: try field(0), highest: try field(1), alignment: try field(2),
                preference: Relocation.Preference(rawValue: try field(3)) ?? .none)
        default:
            try refuse("what multiboot 2 tag \(type) says, which does not exist")
        }
    }
}
