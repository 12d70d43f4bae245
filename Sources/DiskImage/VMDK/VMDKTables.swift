/// Where grains lie: the grain directory whole, of the grain tables those that were used last.
///
/// Not thread-safe: `VMDKImage` has it behind its lock.
struct VMDKTables: Sendable {
    private struct Slot: Sendable {
        var table: Int
        var entries: [UInt32]
    }

    private static let slotCount = 64

    let directory: [UInt32]
    /// Empty when there is no second copy.
    let redundant: [UInt32]
    private var slots: [Slot?]

    init(directory: [UInt32], redundant: [UInt32]) {
        self.directory = directory
        self.redundant = redundant
        slots = Array(repeating: nil, count: Self.slotCount)
    }

    /// Reads a directory; each table in it lies in the file.
    static func readDirectory(_ file: ImageFile, at sector: UInt64, _ header: VMDKHeader) throws(ImageError) -> [UInt32] {
        let size = try file.byteCount()
        let count = header.tableCount
        guard sector > 0, sector < 1 << 32, sector * 512 + UInt64(count) * 4 <= size else {
            throw ImageError(.malformed, file.name, "its grain directory at sector \(sector) is not in the file")
        }
        let bytes = HeapBytes(count: count * 4)
        _ = try file.read(into: bytes.bytes, at: sector * 512)
        var entries: [UInt32] = []
        entries.reserveCapacity(count)
        for index in 0..<count {
            let entry: UInt32 = bytes.readable.little(index * 4)
            guard entry == 0 || (UInt64(entry) + VMDKHeader.tableSectors) * 512 <= size else {
                throw ImageError(.malformed, file.name, "grain table \(index) at sector \(entry) is not in the file")
            }
            entries.append(entry)
        }
        return entries
    }

    /// A table's entries, when they are known without reading.
    func known(_ table: Int) -> [UInt32]? {
        guard let slot = slots[table % Self.slotCount], slot.table == table else { return nil }
        return slot.entries
    }

    /// A table's entries; `nil` for a table that there is not: its grains are zeros.
    mutating func entries(_ table: Int, _ file: ImageFile) throws(ImageError) -> [UInt32]? {
        if let entries = known(table) { return entries }
        guard directory[table] != 0 else { return nil }
        let entries = try Self.readTable(file, at: directory[table])
        slots[table % Self.slotCount] = Slot(table: table, entries: entries)
        return entries
    }

    static func readTable(_ file: ImageFile, at sector: UInt32) throws(ImageError) -> [UInt32] {
        let bytes = HeapBytes(count: VMDKHeader.tableEntries * 4)
        _ = try file.read(into: bytes.bytes, at: UInt64(sector) * 512)
        return (0..<VMDKHeader.tableEntries).map { bytes.readable.little($0 * 4) }
    }

    /// Writes entries of a table that has been asked for, in both copies.
    mutating func set(_ entries: [UInt32], at index: Int, of table: Int, _ file: ImageFile) throws(ImageError) {
        var bytes: [UInt8] = []
        bytes.reserveCapacity(entries.count * 4)
        for entry in entries { bytes.append(little: entry) }
        for copy in [redundant, directory] where !copy.isEmpty && copy[table] != 0 {
            let offset = UInt64(copy[table]) * 512 + UInt64(index) * 4
            do throws(ImageError) {
                try bytes.write(file, at: offset)
            } catch {
                // What the file says now is not known.
                slots[table % Self.slotCount] = nil
                throw error
            }
        }
        if let slot = slots[table % Self.slotCount], slot.table == table {
            slots[table % Self.slotCount]?.entries.replaceSubrange(index..<index + entries.count, with: entries)
        }
    }
}
