/// The first cluster of an image (qcow2.txt, "Header").
///
/// A value: reading one opens nothing else, and checks only what can be checked without the rest of the file.
public struct QCOW2Header: Hashable, Sendable {
    public var version = 3
    public var clusterBits = 16
    /// The disk's size.
    public var byteCount: UInt64 = 0
    public var backing: QCOW2Backing?
    public var encryption: UInt32 = 0
    public var incompatible: Incompatible = []
    public var compatible: Compatible = []
    public var autoclear: Autoclear = []
    public var refcountOrder = 4
    public var compression = QCOW2Compression.zlib
    /// From the external data file extension; as it is in the file, so not to be trusted.
    public var dataFileName: String?
    public var bitmaps: Bitmaps?

    var l1Entries: UInt32 = 0
    var l1Offset: UInt64 = 0
    var refcountTableOffset: UInt64 = 0
    var refcountTableClusters: UInt32 = 0
    var snapshotCount: UInt32 = 0
    var snapshotsOffset: UInt64 = 0
    /// Of the fields; extensions follow.
    var headerLength: UInt32 = Self.length3
    /// Fields behind those that we know, kept as they are.
    var unknownFields: [UInt8] = []
    /// Extensions that we do not know, the feature name table among them, kept as they are.
    var otherExtensions: [Extension] = []

    public struct Incompatible: OptionSet, Hashable, Sendable {
        public let rawValue: UInt64
        public init(rawValue: UInt64) { self.rawValue = rawValue }
        public static let dirty = Incompatible(rawValue: 1 << 0)
        public static let corrupt = Incompatible(rawValue: 1 << 1)
        public static let externalData = Incompatible(rawValue: 1 << 2)
        public static let compressionType = Incompatible(rawValue: 1 << 3)
        public static let extendedL2 = Incompatible(rawValue: 1 << 4)
        static let known: Incompatible = [.dirty, .corrupt, .externalData, .compressionType, .extendedL2]
    }

    public struct Compatible: OptionSet, Hashable, Sendable {
        public let rawValue: UInt64
        public init(rawValue: UInt64) { self.rawValue = rawValue }
        public static let lazyRefcounts = Compatible(rawValue: 1 << 0)
    }

    public struct Autoclear: OptionSet, Hashable, Sendable {
        public let rawValue: UInt64
        public init(rawValue: UInt64) { self.rawValue = rawValue }
        public static let bitmaps = Autoclear(rawValue: 1 << 0)
        public static let rawExternalData = Autoclear(rawValue: 1 << 1)
    }

    /// The bitmaps extension (qcow2.txt, "Bitmaps extension"): only valid with the autoclear bit.
    public struct Bitmaps: Hashable, Sendable {
        public var count: UInt32
        var directoryByteCount: UInt64
        var directoryOffset: UInt64
    }

    struct Extension: Hashable, Sendable {
        var type: UInt32
        var data: [UInt8]
    }

    enum ExtensionType {
        static let end: UInt32 = 0
        static let backingFormat: UInt32 = 0xE279_2ACA
        static let featureNames: UInt32 = 0x6803_F857
        static let bitmaps: UInt32 = 0x2385_2875
        static let encryption: UInt32 = 0x0537_BE77
        static let dataFile: UInt32 = 0x4441_5441
    }

    static let magic: UInt32 = 0x5146_49FB
    static let length2: UInt32 = 72
    /// With the compression type and its padding.
    static let length3: UInt32 = 112

    init() {}

    var geometry: QCOW2Geometry {
        QCOW2Geometry(clusterBits: clusterBits, extendedL2: incompatible.contains(.extendedL2), refcountOrder: refcountOrder)
    }

    /// Whether bytes at the start of a file say that it is a qcow2 image. A guest of a raw disk can write them too.
    public static func isMagic(_ bytes: [UInt8]) -> Bool { bytes.count >= 4 && Array(bytes.prefix(4)) == [0x51, 0x46, 0x49, 0xFB] }

    /// The name of a feature from the feature name table (qcow2.txt, "Feature name table").
    /// - Parameter kind: 0 incompatible, 1 compatible, 2 autoclear.
    func featureName(_ kind: UInt8, _ bit: Int) -> String? {
        for table in otherExtensions where table.type == ExtensionType.featureNames {
            var at = 0
            while at + 48 <= table.data.count {
                if table.data[at] == kind, Int(table.data[at + 1]) == bit {
                    return String(printing: table.data[(at + 2)..<(at + 48)].prefix { $0 != 0 })
                }
                at += 48
            }
        }
        return nil
    }
}

extension String {
    /// Text from a file, for messages: what is no printable ASCII becomes `?`.
    init(printing bytes: some Sequence<UInt8>) {
        self = String(decoding: bytes.map { (0x20...0x7E).contains($0) ? $0 : 0x3F }, as: UTF8.self)
    }
}
