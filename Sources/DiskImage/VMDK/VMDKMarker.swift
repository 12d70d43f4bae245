/// What stands in front of each part of a stream-optimised image that is no grain.
struct VMDKMarker: Hashable {
    enum Kind: UInt32 { case endOfStream, table, directory, footer }

    /// Of what follows.
    var sectors: UInt64
    var kind: Kind

    init(sectors: UInt64, kind: Kind) {
        self.sectors = sectors
        self.kind = kind
    }

    /// `nil` when the sector is none.
    init?(_ bytes: UnsafeRawBufferPointer) {
        guard bytes.count >= 512, bytes.little(8, as: UInt32.self) == 0, let kind = Kind(rawValue: bytes.little(12)) else {
            return nil
        }
        self.init(sectors: bytes.little(0), kind: kind)
    }

    var bytes: [UInt8] {
        var bytes: [UInt8] = []
        bytes.append(little: sectors)
        bytes.append(little: UInt32(0))
        bytes.append(little: kind.rawValue)
        bytes.pad(to: 512)
        return bytes
    }
}
