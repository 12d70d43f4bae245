/// Writes a stream-optimised VMDK image from its beginning to its end: compressed grains in ascending order, behind each
/// table's its table, then the directory and the footer.
final class VMDKStreamWriter {
    private let file: ImageFile
    private let header: VMDKHeader
    private var sector: UInt64
    private var directory: [UInt32]
    private var table: [UInt32] = []
    private var tableIndex = 0

    static let grainByteCount = 1 << 16

    init(_ file: ImageFile, byteCount: UInt64, fileName: String) throws(ImageError) {
        let size = try DiskSize.whole(byteCount, file.name)
        guard size / 512 <= VMDKHeader.capacityLimit else {
            throw ImageError(.refused, file.name, "a VMDK image has 2 TB at most")
        }
        var header = VMDKHeader(capacity: size / 512)
        header.version = 3
        header.flags = [.newlineTest, .compressed, .markers]
        header.compression = 1
        header.directory = VMDKHeader.directoryAtEnd
        header.overhead = header.grainSectors
        self.file = file
        self.header = header
        sector = header.overhead
        directory = Array(repeating: 0, count: header.tableCount)
        let descriptor = VMDKDescriptor(
            contentID: .random(in: 0...0xFFFF_FFFE), kind: .streamOptimized, capacity: header.capacity, fileName: fileName)
        var start = header.bytes
        start += descriptor.bytes(padding: Int(header.descriptorSectors) * 512)
        start.pad(to: Int(header.overhead) * 512)
        try start.write(file, at: 0)
    }

    /// What `append` takes.
    /// - Returns: `nil` without memory.
    static func pack(_ grain: UnsafeRawBufferPointer, number: UInt64, level: CInt) -> [UInt8]? {
        guard let packed = ZlibStream.pack(grain, level: level) else { return nil }
        var bytes: [UInt8] = []
        bytes.reserveCapacity(packed.count + 512)
        bytes.append(little: number * UInt64(grainByteCount / 512))
        bytes.append(little: UInt32(truncatingIfNeeded: packed.count))
        bytes += packed
        bytes.pad(to: (bytes.count + 511) / 512 * 512)
        return bytes
    }

    /// Adds a grain.
    /// - Precondition: it is behind all that were added before.
    func append(_ packed: [UInt8], number: UInt64) throws(ImageError) {
        let index = Int(number / UInt64(VMDKHeader.tableEntries))
        if index != tableIndex { try endTable() }
        tableIndex = index
        if table.isEmpty { table = Array(repeating: 0, count: VMDKHeader.tableEntries) }
        table[Int(number % UInt64(VMDKHeader.tableEntries))] = try put(packed)
    }

    private func endTable() throws(ImageError) {
        guard !table.isEmpty else { return }
        var bytes: [UInt8] = []
        for entry in table { bytes.append(little: entry) }
        _ = try put(VMDKMarker(sectors: VMDKHeader.tableSectors, kind: .table).bytes)
        directory[tableIndex] = try put(bytes)
        table = []
    }

    func finish() throws(ImageError) {
        try endTable()
        var bytes: [UInt8] = []
        for entry in directory { bytes.append(little: entry) }
        bytes.pad(to: Int(header.directorySectors) * 512)
        _ = try put(VMDKMarker(sectors: header.directorySectors, kind: .directory).bytes)
        var footer = header
        footer.directory = UInt64(try put(bytes))
        _ = try put(VMDKMarker(sectors: 1, kind: .footer).bytes)
        _ = try put(footer.bytes)
        _ = try put(VMDKMarker(sectors: 0, kind: .endOfStream).bytes)
    }

    /// - Returns: the sector that it was written to.
    private func put(_ bytes: [UInt8]) throws(ImageError) -> UInt32 {
        guard let place = UInt32(exactly: sector) else {
            throw ImageError(.refused, file.name, "a VMDK file is full at 2 TB")
        }
        let offset = sector * 512
        try bytes.write(file, at: offset)
        sector += UInt64(bytes.count / 512)
        return place
    }
}
