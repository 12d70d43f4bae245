import CLinux
import Glibc
import Linux

/// Holes: parts of a file that read as zeros and take no room.
extension ImageFile {
    /// Makes a range inside of the file read as zeros.
    /// - Parameter keepsRoom: its place stays reserved where the file system can do that, so that later writes find it.
    public func zero(at offset: UInt64, count: UInt64, keepsRoom: Bool) throws(ImageError) {
        // The file system may have no way of its own.
        if try !tryZero(at: offset, count: count, keepsRoom: keepsRoom) { try writeZeros(at: offset, count: count) }
    }

    /// Writes zeros as data.
    func writeZeros(at offset: UInt64, count: UInt64) throws(ImageError) {
        let zeros = HeapBytes(count: Int(min(count, 1 << 20)))
        var done: UInt64 = 0
        while done < count {
            let part = zeros.readable.prefix(Int(clamping: count - done))
            try write(UnsafeRawBufferPointer(rebasing: part), at: offset &+ done)
            done += UInt64(part.count)
        }
    }

    /// The same, as long as it costs no writing.
    /// - Returns: whether it was done.
    public func tryZero(at offset: UInt64, count: UInt64, keepsRoom: Bool) throws(ImageError) -> Bool {
        guard count > 0 else { return true }
        guard let start = Int64(exactly: offset), let length = Int64(exactly: count), Int64.max - start >= length else {
            return false
        }
        try observe(.zero(offset: offset, count: count, keepsRoom: keepsRoom))
        let number = descriptor
        do {
            if keepsRoom {
                do {
                    _ = try retrying("fallocate") { clinux_zero_range(number, start, length) }
                    return true
                } catch where error.errno == EOPNOTSUPP {
                    // tmpfs has holes only.
                }
            }
            _ = try retrying("fallocate") { clinux_punch_hole(number, start, length) }
            return true
        } catch {
            if [EOPNOTSUPP, ENOSYS, EPERM, ENODEV, EINVAL].contains(error.errno) { return false }
            throw ImageError(.system(error), name, "cannot give room back: \(error.reason)")
        }
    }

    /// The next part of the file at or behind `offset` that is no hole, and where it ends; `nil` when nothing follows.
    ///
    /// A file system without holes says that all is data.
    public func nextData(from offset: UInt64, end: UInt64) throws(ImageError) -> Range<UInt64>? {
        guard offset < end, let start = off_t(exactly: offset) else { return nil }
        let number = descriptor
        do {
            let data = try retrying("lseek") { lseek(number, start, CInt(CLINUX_SEEK_DATA)) }
            let hole = try retrying("lseek") { lseek(number, data, CInt(CLINUX_SEEK_HOLE)) }
            guard UInt64(data) < end else { return nil }
            return UInt64(data)..<max(UInt64(data) + 1, min(UInt64(hole), end))
        } catch where error.errno == ENXIO {
            return nil
        } catch where error.errno == EINVAL || error.errno == EOPNOTSUPP {
            return offset..<end
        } catch {
            throw ImageError(.system(error), name, "cannot look for holes: \(error.reason)")
        }
    }
}
