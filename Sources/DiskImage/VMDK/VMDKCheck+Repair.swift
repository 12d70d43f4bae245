/// Mending what one of the two copies of a VMDK image's tables says wrongly.
extension VMDKCheck {
    /// Writes the remedies. Each is one entry, or a table behind everything and then the entry that leads to it, so that a crash
    /// leaves the image as it was or better.
    public func mend(_ file: ImageFile) throws(ImageError) {
        guard !remedies.isEmpty else { return }
        guard !file.isReadOnly else { throw ImageError(.readOnly, file.name, "is opened for reading only, so it cannot be repaired") }
        for case .entry(let offset, let entry) in remedies { try Self.write(entry, at: offset, file) }
        try file.synchronize()
        // Behind all that is and all that entries lead to, by what they say now.
        let size = try file.byteCount()
        var tables = try VMDKTables.readNumbers(file, at: header.directory, header)
        if hasCopy { tables += try VMDKTables.readNumbers(file, at: header.redundantDirectory, header) }
        var end = try VMDKImage.findEnd(file, header, tables.filter { VMDKTables.isInFile($0, size) })
        var links: [(offset: UInt64, sector: UInt32)] = []
        for case .table(let directoryEntry, let original) in remedies {
            guard let place = UInt32(exactly: end) else {
                throw ImageError(.refused, file.name, "a VMDK file is full at 2 TB: convert the image")
            }
            var bytes: [UInt8] = []
            for entry in try VMDKTables.readTable(file, at: original) { bytes.append(little: entry) }
            try bytes.write(file, at: end * 512)
            links.append((directoryEntry, place))
            end += VMDKHeader.tableSectors
        }
        guard !links.isEmpty else { return }
        try file.synchronize()
        for link in links { try Self.write(link.sector, at: link.offset, file) }
        try file.synchronize()
    }

    private static func write(_ entry: UInt32, at offset: UInt64, _ file: ImageFile) throws(ImageError) {
        var bytes: [UInt8] = []
        bytes.append(little: entry)
        try bytes.write(file, at: offset)
    }
}
