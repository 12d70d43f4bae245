/// Mending what one of the two copies of a VMDK image's tables says wrongly.
extension VMDKCheck {
    /// Writes the remedies. Each is one entry, or a table behind everything and then the entry that leads to it, so that a crash
    /// leaves the image as it was or better. Nothing is written before all have their places.
    public func mend(_ file: ImageFile) throws(ImageError) {
        guard !remedies.isEmpty else { return }
        guard !file.isReadOnly else { throw ImageError(.readOnly, file.name, "is opened for reading only, so it cannot be repaired") }
        var tables: [(directoryEntry: UInt64, original: UInt32)] = []
        for case .table(let directoryEntry, let original) in remedies { tables.append((directoryEntry, original)) }
        let places = try findRoom(file, tables: tables.count)
        for case .entry(let offset, let entry) in remedies { try Self.write(entry, at: offset, file) }
        for (table, place) in zip(tables, places) {
            var bytes: [UInt8] = []
            for entry in try VMDKTables.readTable(file, at: table.original) { bytes.append(little: entry) }
            try bytes.write(file, at: UInt64(place) * 512)
        }
        try file.synchronize()
        guard !places.isEmpty else { return }
        for (table, place) in zip(tables, places) { try Self.write(place, at: table.directoryEntry, file) }
        try file.synchronize()
    }

    /// Places behind the file's end that no entry leads to. An entry that both copies have wrong alike stays, and may lead anywhere:
    /// it is passed by, but nothing goes behind it that has room in front.
    private func findRoom(_ file: ImageFile, tables count: Int) throws(ImageError) -> [UInt32] {
        guard count > 0 else { return [] }
        guard let outside = outside?.sorted() else {
            throw ImageError(.malformed, file.name, "too many grains are not in the file; \(Self.advice)")
        }
        var end = max((try file.byteCount() + 511) / 512, header.overhead)
        var next = outside.startIndex
        var places: [UInt32] = []
        for _ in 0..<count {
            while next < outside.endIndex, outside[next] < end + VMDKHeader.tableSectors {
                end = max(end, outside[next] + header.grainSectors)
                next += 1
            }
            guard let place = UInt32(exactly: end) else {
                throw ImageError(.refused, file.name, "a VMDK file is full at 2 TB: convert the image")
            }
            places.append(place)
            end += VMDKHeader.tableSectors
        }
        return places
    }

    private static func write(_ entry: UInt32, at offset: UInt64, _ file: ImageFile) throws(ImageError) {
        var bytes: [UInt8] = []
        bytes.append(little: entry)
        try bytes.write(file, at: offset)
    }
}
