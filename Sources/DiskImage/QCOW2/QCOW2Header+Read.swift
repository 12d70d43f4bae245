extension QCOW2Header {
    /// Reads and checks the header of a file.
    /// - Throws: `malformed`, and `unsupported` for what this program does not know, by its name where the file gives one.
    public init(reading file: ImageFile) throws(ImageError) {
        let name = file.name
        var first = [UInt8](repeating: 0, count: 112)
        let firstCount = try first.read(file, at: 0)
        guard firstCount >= Int(Self.length2), Self.isMagic(first) else {
            throw ImageError(.malformed, name, "is not a qcow2 image")
        }
        let bits = first.big32(20)
        guard (9...21).contains(bits) else {
            throw ImageError(.malformed, name, "its clusters of 2^\(bits) bytes are not between 512 bytes and 2 MiB")
        }
        var bytes = [UInt8](repeating: 0, count: 1 << Int(bits))
        let count = try bytes.read(file, at: 0)
        bytes.removeLast(bytes.count - count)
        try self.init(parsing: bytes, name)
    }

    /// - Parameter bytes: the first cluster, or what there is of it; at least `length2` bytes.
    init(parsing bytes: [UInt8], _ name: String) throws(ImageError) {
        func malformed(_ reason: String) -> ImageError { ImageError(.malformed, name, reason) }
        // Again: the file may have changed since its size was asked.
        guard bytes.count >= Int(Self.length2), Self.isMagic(bytes), (9...21).contains(bytes.big32(20)) else {
            throw malformed("is no qcow2 image any more: somebody changes it")
        }
        version = Int(bytes.big32(4))
        guard version == 2 || version == 3 else {
            throw ImageError(.unsupported, name, "is version \(version) of qcow; only 2 and 3 are known")
        }
        clusterBits = Int(bytes.big32(20))
        byteCount = bytes.big64(24)
        encryption = bytes.big32(32)
        l1Entries = bytes.big32(36)
        l1Offset = bytes.big64(40)
        refcountTableOffset = bytes.big64(48)
        refcountTableClusters = bytes.big32(56)
        snapshotCount = bytes.big32(60)
        snapshotsOffset = bytes.big64(64)
        headerLength = Self.length2
        if version == 3 {
            guard bytes.count >= 104 else { throw malformed("its header is cut off") }
            incompatible = Incompatible(rawValue: bytes.big64(72))
            compatible = Compatible(rawValue: bytes.big64(80))
            autoclear = Autoclear(rawValue: bytes.big64(88))
            let order = bytes.big32(96)
            guard order <= 6 else { throw malformed("its refcounts have 2^\(order) bits; 64 are the most") }
            refcountOrder = Int(order)
            headerLength = bytes.big32(100)
            guard headerLength >= 104, headerLength % 8 == 0, Int(headerLength) <= bytes.count else {
                throw malformed("its header's length \(headerLength) is not between 104 and a cluster")
            }
        }
        var compressionType: UInt8 = 0
        if headerLength > 104 { compressionType = bytes[104] }
        if headerLength > Self.length3 { unknownFields = Array(bytes[Int(Self.length3)..<Int(headerLength)]) }

        // The backing name first: extensions end where it starts.
        var backingName: String?
        let nameOffset = bytes.big64(8)
        let nameCount = UInt64(bytes.big32(16))
        var extensionsEnd = UInt64(bytes.count)
        if nameOffset != 0 {
            guard nameCount <= QCOW2Limit.backingNameByteCount else {
                throw malformed("the name of its backing file has \(nameCount) bytes; 1023 are the most")
            }
            guard nameOffset >= UInt64(headerLength), nameOffset <= UInt64(bytes.count), UInt64(bytes.count) - nameOffset >= nameCount else {
                throw malformed("the name of its backing file at \(nameOffset) is not in the first cluster")
            }
            extensionsEnd = nameOffset
            if nameCount > 0 {
                // It has to be written back as it was.
                guard let text = String(validating: bytes[Int(nameOffset)..<Int(nameOffset + nameCount)], as: UTF8.self) else {
                    throw ImageError(.unsupported, name, "the name of its backing file is not UTF-8: rename that file and rebase with qemu-img")
                }
                backingName = text
            }
        }
        let backingFormat = try readExtensions(bytes, end: Int(extensionsEnd), name)
        if let backingName { backing = QCOW2Backing(name: backingName, format: backingFormat) }
        try checkFeatures(compressionType, name)
        try checkTables(name)
    }

    /// - Returns: the backing file's format.
    private mutating func readExtensions(_ bytes: [UInt8], end: Int, _ name: String) throws(ImageError) -> String? {
        var format: String?
        var at = Int(headerLength)
        while at + 8 <= end {
            let type = bytes.big32(at)
            let count = Int(bytes.big32(at + 4))
            if type == ExtensionType.end { break }
            at += 8
            guard count <= end - at else {
                throw ImageError(.malformed, name, "its header extension 0x\(String(type, radix: 16)) of \(count) bytes does not fit")
            }
            let data = Array(bytes[at..<(at + count)])
            switch type {
            case ExtensionType.backingFormat: format = String(decoding: data.prefix { $0 != 0 }, as: UTF8.self)
            case ExtensionType.dataFile: dataFileName = String(decoding: data.prefix { $0 != 0 }, as: UTF8.self)
            case ExtensionType.bitmaps where data.count == 24:
                bitmaps = Bitmaps(count: data.big32(0), directoryByteCount: data.big64(8), directoryOffset: data.big64(16))
            default: otherExtensions.append(Extension(type: type, data: data))
            }
            // At most a cluster, so it cannot overflow.
            at += (count + 7) & ~7
        }
        return format
    }

    private mutating func checkFeatures(_ compressionType: UInt8, _ name: String) throws(ImageError) {
        let unknown = incompatible.subtracting(.known).rawValue
        if unknown != 0 {
            let names = (0..<64).filter { unknown >> UInt64($0) & 1 == 1 }.map { featureName(0, $0) ?? "bit \($0)" }
            throw ImageError(
                .unsupported, name, "uses features that this program does not know: \(names.joined(separator: ", "))")
        }
        if incompatible.contains(.compressionType) != (compressionType != 0) {
            throw ImageError(.malformed, name, "its compression type \(compressionType) and its feature bit contradict each other")
        }
        switch compressionType {
        case 0: compression = .zlib
        case 1: compression = .zstd
        default: throw ImageError(.unsupported, name, "its compression type \(compressionType) is not known; zlib and zstd are")
        }
    }

    /// Positions and sizes of tables, as far as the header says.
    private func checkTables(_ name: String) throws(ImageError) {
        func malformed(_ reason: String) -> ImageError { ImageError(.malformed, name, reason) }
        if incompatible.contains(.extendedL2), clusterBits < 14 {
            throw malformed("it has subclusters, which clusters of \(1 << clusterBits) bytes cannot have")
        }
        guard byteCount <= UInt64(Int64.max) else { throw malformed("its disk of \(byteCount) bytes is too large") }
        let geometry = geometry
        let mask = geometry.clusterMask
        guard UInt64(l1Entries) * 8 <= QCOW2Limit.l1ByteCount, geometry.l1Entries(byteCount) * 8 <= QCOW2Limit.l1ByteCount else {
            throw malformed("its L1 table of \(l1Entries) entries for \(byteCount) bytes is larger than 32 MiB")
        }
        guard UInt64(l1Entries) >= geometry.l1Entries(byteCount) else {
            throw malformed("its L1 table of \(l1Entries) entries is too small for \(byteCount) bytes")
        }
        guard l1Offset & mask == 0, l1Offset <= UInt64(Int64.max), l1Offset != 0 || l1Entries == 0 else {
            throw malformed("its L1 table is at \(l1Offset), which is no cluster")
        }
        guard UInt64(refcountTableClusters) << UInt64(clusterBits) <= QCOW2Limit.refcountTableByteCount else {
            throw malformed("its refcount table of \(refcountTableClusters) clusters is larger than 8 MiB")
        }
        guard refcountTableOffset & mask == 0, refcountTableOffset <= UInt64(Int64.max) else {
            throw malformed("its refcount table is at \(refcountTableOffset), which is no cluster")
        }
        guard snapshotCount <= QCOW2Limit.snapshots else {
            throw malformed("it has \(snapshotCount) snapshots; \(QCOW2Limit.snapshots) are the most")
        }
        guard snapshotsOffset & mask == 0, snapshotsOffset <= UInt64(Int64.max), snapshotsOffset != 0 || snapshotCount == 0 else {
            throw malformed("its snapshot table is at \(snapshotsOffset), which is no cluster")
        }
    }
}
