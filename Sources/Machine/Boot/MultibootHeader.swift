/// The header by which a kernel says how a multiboot loader shall treat it (Multiboot Specification 0.6.96, 3.1).
struct MultibootHeader {
    /// Header flags (3.1.2). The lower half are demands that a loader meets or refuses the kernel.
    struct Flags: OptionSet {
        let rawValue: UInt32
        /// Modules start on pages: they always do.
        static let pageAlign = Flags(rawValue: 1 << 0)
        /// Memory sizes and map: always given.
        static let memoryInfo = Flags(rawValue: 1 << 1)
        /// A video mode is wanted. There is no screen, so the wish stays open, as in QEMU: the information says so.
        static let videoMode = Flags(rawValue: 1 << 2)
        /// The address fields tell what to load; the file's own format does not matter.
        static let addresses = Flags(rawValue: 1 << 16)

        static let demands = Flags(rawValue: 0xFFFF)
        static let known: Flags = [.pageAlign, .memoryInfo, .videoMode]
    }

    static let magic: UInt32 = 0x1BAD_B002
    /// The header lies in this much of the file, all of it.
    static let searchByteCount = 8192

    /// Where in the file it is.
    let offset: Int
    let flags: Flags
    /// `nil` when the kernel gives none.
    let addresses: MultibootAddresses?
    /// Comes with the addresses.
    let entry: UInt32

    /// Looks for one; `nil` when the file has none, which makes it another kind of kernel.
    /// - Throws: when there is one that asks for what no loader has, or that is cut off.
    init?(_ kernel: BootFile, _ head: ByteReader) throws(MachineError) {
        let limit = min(head.bytes.count, Self.searchByteCount)
        for offset in stride(from: 0, to: limit, by: 4) {
            guard head.load(offset, as: UInt32.self) == Self.magic, offset + 12 <= limit,
                let flags = head.load(offset + 4, as: UInt32.self),
                let checksum = head.load(offset + 8, as: UInt32.self), Self.magic &+ flags &+ checksum == 0
            else { continue }
            self.offset = offset
            self.flags = Flags(rawValue: flags)
            let unknown = self.flags.intersection(.demands).subtracting(.known)
            guard unknown.isEmpty else {
                throw kernel.error(
                    "demands multiboot features \(hexText(UInt64(unknown.rawValue))), which do not exist",
                    "give a kernel for multiboot 1")
            }
            guard self.flags.contains(.addresses) else {
                addresses = nil
                entry = 0
                return
            }
            func field(_ index: Int) -> UInt32? { head.load(offset + index * 4) }
            guard offset + 32 <= limit, let header = field(3), let load = field(4), let loadEnd = field(5),
                let bssEnd = field(6), let entry = field(7)
            else {
                throw kernel.error(
                    "has its multiboot header at \(hexText(UInt64(offset))), which ends behind the first 8192 bytes",
                    "link it again")
            }
            addresses = MultibootAddresses(header: header, load: load, loadEnd: loadEnd, bssEnd: bssEnd)
            self.entry = entry
            return
        }
        return nil
    }
}
