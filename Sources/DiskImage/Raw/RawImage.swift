public import Linux

/// The file's bytes are the disk's: nothing to keep consistent, and nothing that a guest could write there means anything.
///
/// A block device is one too. A file that is no whole number of sectors is a disk that ends with zeros.
public final class RawImage: BlockImage {
    public let byteCount: UInt64
    public var isReadOnly: Bool { file.isReadOnly }
    public let file: ImageFile
    /// What the file had when it was opened: behind it are zeros that are not in the file.
    private let fileByteCount: UInt64

    /// - Throws: `malformed` for a file that is too large to be a disk.
    public init(_ file: ImageFile) throws(ImageError) {
        self.file = file
        fileByteCount = try file.byteCount()
        let (rounded, overflow) = fileByteCount.addingReportingOverflow(DiskSize.sector - 1)
        guard !overflow, rounded <= DiskSize.limit else {
            throw ImageError(.malformed, file.name, "\(fileByteCount) bytes are too large for a disk")
        }
        byteCount = rounded - rounded % DiskSize.sector
    }

    /// Makes an empty file a disk of zeros that takes no room.
    /// - Throws: `refused` for a size that no disk has.
    public static func create(_ file: ImageFile, byteCount: UInt64) throws(ImageError) {
        try file.setByteCount(try DiskSize.whole(byteCount, file.name))
    }

    public func read(into buffers: IOBuffers, at offset: UInt64) throws(ImageError) {
        try checkRange(offset, buffers.byteCount, file.name)
        let count = try file.read(into: buffers, at: offset)
        if count < buffers.byteCount { buffers.zero(from: count, count: buffers.byteCount - count) }
    }

    public func write(_ buffers: IOBuffers, at offset: UInt64) throws(ImageError) {
        try checkWrite(offset, buffers.byteCount)
        try file.write(buffers, at: offset)
    }

    public func flush() throws(ImageError) {
        guard !isReadOnly else { return }
        try file.synchronize()
    }

    public func discard(at offset: UInt64, count: UInt64) throws(ImageError) {
        try checkWrite(offset, count)
        // What the file system cannot give back stays as it is.
        _ = try file.tryZero(at: offset, count: count, keepsRoom: false)
    }

    public func writeZeroes(at offset: UInt64, count: UInt64, mayDiscard: Bool) throws(ImageError) {
        try checkWrite(offset, count)
        try file.zero(at: offset, count: count, keepsRoom: !mayDiscard)
    }

    public func beginTransfer(_ direction: TransferDirection, at offset: UInt64, count: UInt64) -> Extent? {
        guard count > 0, offset < fileByteCount, direction == .read || !isReadOnly else { return nil }
        return Extent(.file(descriptor: file.descriptor, offset: offset), byteCount: min(count, fileByteCount - offset))
    }

    public func endTransfer(_ direction: TransferDirection, _ extent: Extent) {}

    private func checkWrite(_ offset: UInt64, _ count: UInt64) throws(ImageError) {
        try checkRange(offset, count, file.name)
        guard !isReadOnly else { throw ImageError(.readOnly, file.name, "is opened for reading only") }
    }
}

/// How large disks may be.
public enum DiskSize {
    /// What devices count in.
    public static let sector: UInt64 = 512
    /// The largest file of Linux, in whole sectors: no offset of a disk overflows a file's.
    public static let limit = UInt64(Int64.max) - UInt64(Int64.max) % sector

    /// The size in whole sectors, rounded up.
    /// - Throws: `refused` for a size that no disk has.
    static func whole(_ byteCount: UInt64, _ name: String) throws(ImageError) -> UInt64 {
        guard byteCount > 0, byteCount <= limit else {
            throw ImageError(.refused, name, "a disk has 512 bytes to \(limit) bytes, not \(byteCount)")
        }
        return byteCount + (sector - byteCount % sector) % sector
    }
}
