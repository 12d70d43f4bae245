import VMM

/// A function's MSI-X vectors (PCI 3.0, section 6.8.2) as a value: the table, the pending bits and the control word of
/// the capability.
///
/// A guest may write anything into an entry at any time; what it means by it is the sink's to judge.
public struct MSIX: Codable, Hashable, Sendable {
    public static let capability: UInt8 = 0x11
    /// Bytes of the capability's structure.
    public static let capabilityByteCount: UInt8 = 12
    /// "No vector", where a device lets a guest choose one.
    public static let noVector: UInt16 = 0xFFFF
    /// Bytes of an entry of the table.
    public static let entryByteCount = 16

    public struct Control: OptionSet, Codable, Hashable, Sendable {
        public let rawValue: UInt16
        public init(rawValue: UInt16) { self.rawValue = rawValue }
        public static let functionMask = Control(rawValue: 1 << 14)
        public static let enable = Control(rawValue: 1 << 15)
        public static let writable: Control = [.functionMask, .enable]
    }

    struct Entry: Codable, Hashable, Sendable {
        /// Address low, address high, data, vector control: in place, so that a message touches no other memory.
        var words: SIMD4<UInt32>
        static let masked: UInt32 = 1
        init() { words = [0, 0, 0, Self.masked] }
        var isMasked: Bool { words[3] & Self.masked != 0 }
        var address: UInt64 { UInt64(words[1]) << 32 | UInt64(words[0] & ~3) }
    }

    private(set) var entries: [Entry]
    private(set) var pending: [Bool]
    public private(set) var control: Control = []

    /// - Parameter vectorCount: 1 to 2048.
    public init(vectorCount: Int) {
        entries = Array(repeating: Entry(), count: vectorCount)
        pending = Array(repeating: false, count: vectorCount)
    }

    public var vectorCount: Int { entries.count }
    public var isEnabled: Bool { control.contains(.enable) }

    /// What the capability's structure holds behind the identifier and the pointer: table and pending bits lie behind the
    /// same base address.
    public func capabilityBody(baseAddress: UInt8, table: UInt32, pendingBits: UInt32) -> [UInt8] {
        var body = littleEndianBytes(UInt16(truncatingIfNeeded: vectorCount - 1))
        body += littleEndianBytes(table | UInt32(baseAddress))
        body += littleEndianBytes(pendingBits | UInt32(baseAddress))
        return body
    }

    /// Signals a vector: its message goes out, or waits while it is masked.
    public mutating func signal(_ vector: UInt16, _ sink: any MSISink) {
        guard isEnabled, Int(vector) < entries.count else { return }
        let entry = entries[Int(vector)]
        if entry.isMasked || control.contains(.functionMask) {
            pending[Int(vector)] = true
        } else {
            sink.deliver(address: entry.address, data: entry.words[2])
        }
    }

    public mutating func setControl(_ value: Control, _ sink: any MSISink) {
        control = value.intersection(.writable)
        for vector in entries.indices { deliverPending(vector, sink) }
    }

    private mutating func deliverPending(_ vector: Int, _ sink: any MSISink) {
        guard pending[vector], isEnabled, !control.contains(.functionMask), !entries[vector].isMasked else { return }
        pending[vector] = false
        sink.deliver(address: entries[vector].address, data: entries[vector].words[2])
    }

    // MARK: Table and pending bits in memory. Both are read and written in whole dwords or qwords.

    public func readTable(_ offset: UInt64, _ width: AccessWidth) -> UInt64 {
        readWords(offset, width) { word in
            let entry = word / 4
            return entry < entries.count ? entries[entry].words[word % 4] : 0
        }
    }

    public mutating func writeTable(_ offset: UInt64, _ width: AccessWidth, _ value: UInt64, _ sink: any MSISink) {
        guard offset % 4 == 0, width == .dword || width == .qword else { return }
        for index in 0..<UInt64(width.rawValue / 4) {
            let word = offset / 4 + index
            guard word / 4 < UInt64(entries.count) else { return }
            entries[Int(word / 4)].words[Int(word % 4)] = UInt32(truncatingIfNeeded: value >> (index * 32))
            deliverPending(Int(word / 4), sink)
        }
    }

    public func readPending(_ offset: UInt64, _ width: AccessWidth) -> UInt64 {
        readWords(offset, width) { word in
            var bits: UInt32 = 0
            for index in 0..<32 where word * 32 + index < pending.count && pending[word * 32 + index] {
                bits |= 1 << UInt32(index)
            }
            return bits
        }
    }

    private func readWords(_ offset: UInt64, _ width: AccessWidth, _ word: (Int) -> UInt32) -> UInt64 {
        guard offset % 4 == 0, offset < 0x10000, width == .dword || width == .qword else { return 0 }
        let low = UInt64(word(Int(offset / 4)))
        return width == .qword ? UInt64(word(Int(offset / 4) + 1)) << 32 | low : low
    }

    // MARK: State

    /// Takes over a saved state, of which only what a guest can reach counts.
    public mutating func adopt(_ saved: MSIX) {
        self = MSIX(vectorCount: vectorCount)
        control = saved.control.intersection(.writable)
        for (index, entry) in saved.entries.prefix(vectorCount).enumerated() { entries[index] = entry }
        for (index, isPending) in saved.pending.prefix(vectorCount).enumerated() { pending[index] = isPending }
    }
}

func littleEndianBytes<T: FixedWidthInteger & UnsignedInteger>(_ value: T) -> [UInt8] {
    (0..<T.bitWidth / 8).map { UInt8(truncatingIfNeeded: value >> T($0 * 8)) }
}
