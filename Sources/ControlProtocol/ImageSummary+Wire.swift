public import DiskImage

/// What `vmctl image info` says of an image, as messages carry it.
extension ImageSummary: WireValue {
    public func write(to writer: inout MessageWriter) {
        writer.put(path)
        writer.put(format.rawValue)
        writer.put(byteCount)
        writer.put(fileByteCount)
        writer.put(hostByteCount)
        writer.put(vmdkKind)
        writer.put(qcow2)
    }

    public init(from reader: inout MessageReader) throws(MalformedMessage) {
        let path = try reader.string()
        guard let format = ImageFormat(rawValue: try reader.string()) else { throw MalformedMessage("unknown format of an image") }
        let (byteCount, fileByteCount, hostByteCount): (UInt64, UInt64, UInt64) = (
            try reader.number(), try reader.number(), try reader.number()
        )
        let vmdkKind: String? = try reader.optional()
        self.init(
            path: path, format: format, byteCount: byteCount, fileByteCount: fileByteCount, hostByteCount: hostByteCount,
            qcow2: try reader.optional(), vmdkKind: vmdkKind)
    }
}

extension QCOW2Info: WireValue {
    public func write(to writer: inout MessageWriter) {
        writer.put(UInt32(clamping: version))
        writer.put(byteCount)
        writer.put(fileByteCount)
        writer.put(clusterSize)
        writer.put(UInt32(clamping: refcountBits))
        writer.put(compression.rawValue)
        for flag in [hasLazyRefcounts, hasExtendedL2, isDirty, isCorrupt] { writer.put(flag) }
        writer.put(backing)
        writer.put(UInt32(clamping: bitmapCount))
        writer.put(snapshots)
    }

    public init(from reader: inout MessageReader) throws(MalformedMessage) {
        let version: UInt32 = try reader.number()
        let (byteCount, fileByteCount, clusterSize): (UInt64, UInt64, UInt64) = (
            try reader.number(), try reader.number(), try reader.number()
        )
        let refcountBits: UInt32 = try reader.number()
        guard let compression = QCOW2Compression(rawValue: try reader.string()) else { throw MalformedMessage("unknown compression") }
        let (hasLazyRefcounts, hasExtendedL2, isDirty, isCorrupt) = (
            try reader.bool(), try reader.bool(), try reader.bool(), try reader.bool()
        )
        let backing: QCOW2Backing? = try reader.optional()
        let bitmapCount: UInt32 = try reader.number()
        self.init(
            version: Int(version), byteCount: byteCount, fileByteCount: fileByteCount, clusterSize: clusterSize,
            refcountBits: Int(refcountBits), compression: compression, hasLazyRefcounts: hasLazyRefcounts,
            hasExtendedL2: hasExtendedL2, isDirty: isDirty, isCorrupt: isCorrupt, backing: backing,
            snapshots: try reader.list(atMost: Int(UInt16.max)), bitmapCount: Int(bitmapCount))
    }
}

extension QCOW2Backing: WireValue {
    public func write(to writer: inout MessageWriter) {
        writer.put(name)
        writer.put(format)
    }

    public init(from reader: inout MessageReader) throws(MalformedMessage) {
        self.init(name: try reader.string(), format: try reader.optional())
    }
}

extension ImageSnapshot: WireValue {
    public func write(to writer: inout MessageWriter) {
        writer.put(id)
        writer.put(name)
        writer.put(seconds)
        writer.put(machineStateByteCount)
        writer.put(byteCount)
    }

    public init(from reader: inout MessageReader) throws(MalformedMessage) {
        self.init(
            id: try reader.string(), name: try reader.string(), seconds: try reader.number(),
            machineStateByteCount: try reader.number(), byteCount: try reader.number())
    }
}
