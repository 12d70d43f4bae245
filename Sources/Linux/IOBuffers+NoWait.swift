import CLinux
import Glibc

extension IOBuffers {
    /// Reads from a file what needs no wait for its medium (RWF_NOWAIT), without moving its position.
    /// - Returns: how many bytes; `nil` when there was nothing or it did not work, for whatever reason.
    public func readWithoutWaiting(from descriptor: CInt, at offset: UInt64) -> UInt64? {
        guard let position = Int64(exactly: offset) else { return nil }
        let count = clinux_preadv_nowait(descriptor, vectors.baseAddress, CInt(clamping: vectors.count), position)
        return count > 0 ? UInt64(count) : nil
    }
}
