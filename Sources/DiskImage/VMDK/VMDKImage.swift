public import Linux
import Synchronization

/// A VMDK file: a monolithic sparse image, read and written, or a stream-optimised one, only read ("Virtual Disk Format 5.0").
///
/// A grain gets its place at the end of the file with the first write to it, and keeps it: grain tables are written behind the
/// data, and nothing is ever freed, so at any point of a crash an entry leads to data or is not there yet.
///
/// Two locks: one of the tables in memory, for work in memory only; and before it one that is held while tables are read and
/// written, but never while data is.
public final class VMDKImage: BlockImage {
    struct Changes {
        /// The first sector that nothing lies in.
        var end: UInt64
        /// Grains of the disk that somebody has found room for, and is writing.
        var inFlight: [Range<UInt64>] = []
    }

    public let file: ImageFile
    public let byteCount: UInt64
    public let isReadOnly: Bool
    let header: VMDKHeader
    let descriptor: VMDKDescriptor
    /// Where the grain tables lie, and their second copies: none for an image that has none, or is only read.
    let directory: [UInt32]
    let redundant: [UInt32]
    let tables = Mutex(VMDKTables())
    let changes: Monitor<Changes>
    private let unpacked = UnpackedParts()

    /// Grains are compressed, one after the other: it cannot be written.
    public var isStreamOptimized: Bool { header.isCompressed }
    /// What data is given room in.
    public var grainByteCount: Int { header.grainByteCount }

    /// - Throws: `malformed`, `unsupported`, `system`.
    public init(_ file: ImageFile) throws(ImageError) {
        self.file = file
        (header, descriptor) = try Self.readHeader(file)
        byteCount = header.capacity * 512
        isReadOnly = file.isReadOnly || header.isCompressed
        directory = try VMDKTables.readDirectory(file, at: header.directory, header)
        let hasCopy = header.flags.contains(.redundantTable) && !isReadOnly
        redundant = hasCopy ? try VMDKTables.readDirectory(file, at: header.redundantDirectory, header) : []
        changes = Monitor(Changes(end: isReadOnly ? 0 : try Self.findEnd(file, header, directory + redundant)))
    }

    /// Whether a file begins as one.
    public static func recognises(_ start: some Collection<UInt8>) -> Bool {
        start.starts(with: VMDKHeader.magic) || start.starts(with: Array("# Disk DescriptorFile".utf8))
    }

    static func readHeader(_ file: ImageFile) throws(ImageError) -> (VMDKHeader, VMDKDescriptor) {
        let size = try file.byteCount()
        let sector = HeapBytes(count: VMDKHeader.byteCount)
        let count = try file.read(into: sector.bytes, at: 0)
        if sector.readable.prefix(21).elementsEqual("# Disk DescriptorFile".utf8) {
            throw ImageError(
                .unsupported, file.name, "only describes a disk that lies in other files: convert it to an image of one file")
        }
        guard count == VMDKHeader.byteCount else { throw ImageError(.malformed, file.name, "is too short for a VMDK image") }
        var header = try VMDKHeader(sector.readable, file.name)
        if header.directory == VMDKHeader.directoryAtEnd { header = try readFooter(file, size, header) }
        guard (header.descriptorOffset + header.descriptorSectors) * 512 <= size else {
            throw ImageError(.malformed, file.name, "its descriptor is not in the file")
        }
        let text = HeapBytes(count: Int(header.descriptorSectors) * 512)
        _ = try file.read(into: text.bytes, at: header.descriptorOffset * 512)
        let descriptor = try VMDKDescriptor(text.readable, file.name)
        guard descriptor.capacity == header.capacity else {
            throw ImageError(
                .malformed, file.name, "its descriptor says \(descriptor.capacity) sectors, its header \(header.capacity)")
        }
        return (header, descriptor)
    }

    /// The header again, with the directory's place, between its marker and that of the end.
    private static func readFooter(_ file: ImageFile, _ size: UInt64, _ first: VMDKHeader) throws(ImageError) -> VMDKHeader {
        let bytes = HeapBytes(count: 1024)
        guard size >= 2048, try file.read(into: bytes.bytes, at: size - 1536) == 1024,
            VMDKMarker(bytes.readable)?.kind == .footer
        else {
            throw ImageError(.malformed, file.name, "it has no footer: it was not written to its end")
        }
        let footer = try VMDKHeader(UnsafeRawBufferPointer(rebasing: bytes.readable[512...]), file.name)
        var expected = first
        (expected.directory, expected.redundantDirectory) = (footer.directory, footer.redundantDirectory)
        guard footer == expected, footer.directory != VMDKHeader.directoryAtEnd else {
            throw ImageError(.malformed, file.name, "its footer differs from its header")
        }
        return footer
    }

    /// The first sector behind everything, from which on grains may be given room. An entry that was written before a power
    /// failure may lead past the file's end, and stand in only one of the copies: its place is taken all the same.
    /// - Parameter tables: of both copies.
    private static func findEnd(
        _ file: ImageFile, _ header: VMDKHeader, _ tables: [UInt32]
    ) throws(ImageError) -> UInt64 {
        var end = max((try file.byteCount() + 511) / 512, header.overhead)
        for sector in tables where sector != 0 {
            let place = UInt64(sector) * 512
            guard try file.nextData(from: place, end: place + VMDKHeader.tableSectors * 512) != nil else { continue }
            for entry in try VMDKTables.readTable(file, at: sector) where entry > 1 {
                end = max(end, UInt64(entry) + header.grainSectors)
            }
        }
        return end
    }

    // MARK: - Reading

    public func read(into buffers: IOBuffers, at offset: UInt64) throws(ImageError) {
        try checkRange(offset, buffers.byteCount, file.name)
        var done: UInt64 = 0
        while done < buffers.byteCount {
            let place = offset + done
            let left = buffers.byteCount - done
            if header.isCompressed {
                done += try readCompressed(into: buffers, from: done, at: place, count: left)
                continue
            }
            let extent = try map(place, left)
            switch extent.place {
            case .zeros: buffers.zero(from: done, count: extent.byteCount)
            case .file(_, let position):
                try buffers.withPart(from: done, count: extent.byteCount) { part throws(ImageError) in
                    let count = try file.read(into: part, at: position)
                    if count < part.byteCount { part.zero(from: count, count: part.byteCount - count) }
                }
            }
            done += extent.byteCount
        }
    }

    /// Where the first of the bytes lie, and how many of them together; reads tables.
    func map(_ offset: UInt64, _ count: UInt64) throws(ImageError) -> Extent {
        try extent(try entries(Int(offset / 512 / header.tableCoverage)), offset, count)
    }

    /// The entries of a grain table; `nil` for one that there is not: its grains are zeros.
    private func entries(_ table: Int) throws(ImageError) -> [UInt32]? {
        if let known = tables.withLock({ $0.known(table) }) { return known }
        return try changes.trying { _ throws(ImageError) in try load(table) }
    }

    /// The same with the lock on changes held: nobody is writing them.
    func load(_ table: Int) throws(ImageError) -> [UInt32]? {
        guard directory[table] != 0 else { return nil }
        if let known = tables.withLock({ $0.known(table) }) { return known }
        let entries = try VMDKTables.readTable(file, at: directory[table])
        tables.withLock { $0.keep(entries, of: table) }
        return entries
    }

    public func beginTransfer(_ direction: TransferDirection, at offset: UInt64, count: UInt64) -> Extent? {
        guard !header.isCompressed, offset < byteCount, count > 0, direction == .read || !isReadOnly else { return nil }
        let entries = tables.withLock { $0.known(Int(offset / 512 / header.tableCoverage)) }
        let known = entries.flatMap { try? extent($0, offset, min(count, byteCount - offset)) }
        // No room yet: `write` finds some.
        return direction == .write && known?.place == .zeros ? nil : known
    }

    public func endTransfer(_ direction: TransferDirection, _ extent: Extent) {}

    /// - Parameter entries: of the grain table that `offset` is in.
    private func extent(_ entries: [UInt32]?, _ offset: UInt64, _ count: UInt64) throws(ImageError) -> Extent {
        let grainBytes = UInt64(header.grainByteCount)
        let within = offset % grainBytes
        guard let entries else {
            let tableBytes = header.tableCoverage * 512
            return Extent(.zeros, byteCount: min(count, tableBytes - offset % tableBytes))
        }
        let first = Int(offset / grainBytes % UInt64(VMDKHeader.tableEntries))
        let entry = try place(entries[first])
        var length = grainBytes - within
        var index = first + 1
        while length < count, index < entries.count {
            guard try place(entries[index]) == (entry == 0 ? 0 : entry + UInt64(index - first) * header.grainSectors) else { break }
            length += grainBytes
            index += 1
        }
        length = min(length, count)
        if entry == 0 { return Extent(.zeros, byteCount: length) }
        return Extent(.file(descriptor: file.descriptor, offset: entry * 512 + within), byteCount: length)
    }

    /// The sector of a grain; 0 for zeros.
    func place(_ entry: UInt32) throws(ImageError) -> UInt64 {
        guard let place = header.place(entry) else {
            throw ImageError(.malformed, file.name, "a grain at sector \(entry), among the tables")
        }
        return place
    }

    private func readCompressed(
        into buffers: IOBuffers, from start: UInt64, at offset: UInt64, count: UInt64
    ) throws(ImageError) -> UInt64 {
        let grainBytes = UInt64(header.grainByteCount)
        let grain = offset / grainBytes
        let within = Int(offset % grainBytes)
        let length = Int(min(count, grainBytes - UInt64(within)))
        let entries = try entries(Int(offset / 512 / header.tableCoverage))
        let entry = try place(entries?[Int(grain % UInt64(VMDKHeader.tableEntries))] ?? 0)
        guard entry != 0 else {
            buffers.zero(from: start, count: UInt64(length))
            return UInt64(length)
        }
        let key = UnpackedParts.Key(place: grain, byteCount: grainBytes)
        let bytes: [UInt8]
        if let kept = unpacked.find(key) {
            bytes = kept
        } else {
            bytes = try unpack(grain, at: entry)
            unpacked.keep(key, bytes)
        }
        bytes.withUnsafeBytes { buffers.copy(UnsafeRawBufferPointer(rebasing: $0[within..<within + length]), at: start) }
        return UInt64(length)
    }

    private func unpack(_ grain: UInt64, at sector: UInt64) throws(ImageError) -> [UInt8] {
        func malformed(_ reason: String) -> ImageError {
            ImageError(.malformed, file.name, "the compressed grain at sector \(sector) \(reason)")
        }
        let start = HeapBytes(count: 512)
        guard try file.read(into: start.bytes, at: sector * 512) == 512 else { throw malformed("is not in the file") }
        guard start.readable.little(0, as: UInt64.self) == grain * header.grainSectors else { throw malformed("is another's") }
        let size = Int(start.readable.little(8, as: UInt32.self))
        guard size > 0, size <= 2 * header.grainByteCount else { throw malformed("has \(size) bytes") }
        let packed = HeapBytes(count: size)
        guard try file.read(into: packed.bytes, at: sector * 512 + 12) == size else { throw malformed("is not in the file") }
        guard let bytes = ZlibStream.unpack(packed.readable, byteCount: header.grainByteCount) else {
            throw malformed("cannot be unpacked")
        }
        return bytes
    }

    // MARK: - The rest

    public func flush() throws(ImageError) {
        guard !isReadOnly else { return }
        try file.synchronize()
    }

    func checkWrite(_ offset: UInt64, _ count: UInt64) throws(ImageError) {
        try checkRange(offset, count, file.name)
        if header.isCompressed {
            throw ImageError(.readOnly, file.name, "stream-optimised images are not written in place: convert it")
        }
        guard !isReadOnly else { throw ImageError(.readOnly, file.name, "is opened for reading only") }
    }
}
