/// Where grains lie: the entries of the grain tables that were used last, in memory only.
///
/// Not thread-safe: `VMDKImage` has it behind a lock.
struct VMDKTables: Sendable {
    private struct Slot: Sendable {
        var table: Int
        var entries: [UInt32]
    }

    private static let slotCount = 64

    private var slots: [Slot?] = Array(repeating: nil, count: slotCount)

    /// Reads a directory; each table in it lies in the file.
    static func readDirectory(_ file: ImageFile, at sector: UInt64, _ header: VMDKHeader) throws(ImageError) -> [UInt32] {
        let size = try file.byteCount()
        let entries = try readNumbers(file, at: sector, header)
        if let index = entries.firstIndex(where: { $0 != 0 && !isInFile($0, size) }) {
            throw ImageError(
                .malformed, file.name, "grain table \(index) at sector \(entries[index]) is not in the file: repair it")
        }
        return entries
    }

    static func isInFile(_ table: UInt32, _ size: UInt64) -> Bool { (UInt64(table) + VMDKHeader.tableSectors) * 512 <= size }

    /// Reads a directory, whatever stands in it.
    static func readNumbers(_ file: ImageFile, at sector: UInt64, _ header: VMDKHeader) throws(ImageError) -> [UInt32] {
        let size = try file.byteCount()
        let count = header.tableCount
        guard sector > 0, sector < 1 << 32, sector * 512 + UInt64(count) * 4 <= size else {
            throw ImageError(.malformed, file.name, "its grain directory at sector \(sector) is not in the file")
        }
        let bytes = HeapBytes(count: count * 4)
        _ = try file.read(into: bytes.bytes, at: sector * 512)
        return (0..<count).map { bytes.readable.little($0 * 4) }
    }

    /// A table's entries, when they are known without reading.
    func known(_ table: Int) -> [UInt32]? {
        guard let slot = slots[table % Self.slotCount], slot.table == table else { return nil }
        return slot.entries
    }

    mutating func keep(_ entries: [UInt32], of table: Int) {
        slots[table % Self.slotCount] = Slot(table: table, entries: entries)
    }

    mutating func forget(_ table: Int) {
        if known(table) != nil { slots[table % Self.slotCount] = nil }
    }

    /// The file has other entries now.
    mutating func set(_ entries: [UInt32], at index: Int, of table: Int) {
        guard known(table) != nil else { return }
        slots[table % Self.slotCount]?.entries.replaceSubrange(index..<index + entries.count, with: entries)
    }

    static func readTable(_ file: ImageFile, at sector: UInt32) throws(ImageError) -> [UInt32] {
        let bytes = HeapBytes(count: VMDKHeader.tableEntries * 4)
        _ = try file.read(into: bytes.bytes, at: UInt64(sector) * 512)
        return (0..<VMDKHeader.tableEntries).map { bytes.readable.little($0 * 4) }
    }
}
