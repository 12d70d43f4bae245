extension QCOW2Header {
    /// The header's bytes with its extensions and the backing name, as they are in the file.
    /// - Throws: `refused` when they do not fit into a cluster.
    func encoded(_ fileName: String) throws(ImageError) -> [UInt8] {
        var bytes: [UInt8] = []
        bytes.appendBig32(Self.magic)
        bytes.appendBig32(UInt32(version))
        // The backing name's place, filled in below.
        bytes.appendBig64(0)
        bytes.appendBig32(0)
        bytes.appendBig32(UInt32(clusterBits))
        bytes.appendBig64(byteCount)
        bytes.appendBig32(encryption)
        bytes.appendBig32(l1Entries)
        bytes.appendBig64(l1Offset)
        bytes.appendBig64(refcountTableOffset)
        bytes.appendBig32(refcountTableClusters)
        bytes.appendBig32(snapshotCount)
        bytes.appendBig64(snapshotsOffset)
        if version >= 3 {
            bytes.appendBig64(incompatible.rawValue)
            bytes.appendBig64(compatible.rawValue)
            bytes.appendBig64(autoclear.rawValue)
            bytes.appendBig32(UInt32(refcountOrder))
            let length = unknownFields.isEmpty ? Self.length3 : Self.length3 + UInt32(unknownFields.count)
            bytes.appendBig32(length)
            bytes.append(compression == .zstd ? 1 : 0)
            bytes.append(contentsOf: [UInt8](repeating: 0, count: 7))
            bytes.append(contentsOf: unknownFields)
        }
        for part in encodedExtensions {
            bytes.appendBig32(part.type)
            bytes.appendBig32(UInt32(part.data.count))
            bytes.append(contentsOf: part.data)
            bytes.append(contentsOf: [UInt8](repeating: 0, count: (8 - part.data.count % 8) % 8))
        }
        bytes.appendBig64(0)
        if let backing {
            let name = Array(backing.name.utf8)
            guard UInt64(name.count) <= QCOW2Limit.backingNameByteCount else {
                throw ImageError(.refused, fileName, "the name of the backing file has \(name.count) bytes; 1023 are the most")
            }
            bytes.putBig64(UInt64(bytes.count), at: 8)
            bytes.putBig32(UInt32(name.count), at: 16)
            bytes.append(contentsOf: name)
        }
        guard bytes.count <= 1 << clusterBits else {
            throw ImageError(.refused, fileName, "its header of \(bytes.count) bytes does not fit into a cluster of \(1 << clusterBits)")
        }
        return bytes
    }

    private var encodedExtensions: [Extension] {
        var parts: [Extension] = []
        if let format = backing?.format { parts.append(Extension(type: ExtensionType.backingFormat, data: Array(format.utf8))) }
        if let dataFileName { parts.append(Extension(type: ExtensionType.dataFile, data: Array(dataFileName.utf8))) }
        if let bitmaps {
            var data: [UInt8] = []
            data.appendBig32(bitmaps.count)
            data.appendBig32(0)
            data.appendBig64(bitmaps.directoryByteCount)
            data.appendBig64(bitmaps.directoryOffset)
            parts.append(Extension(type: ExtensionType.bitmaps, data: data))
        }
        return parts + otherExtensions
    }
}
