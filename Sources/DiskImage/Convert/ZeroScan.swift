import Glibc

/// Which parts of a buffer are zeros.
enum ZeroScan {
    /// As fast as memory is read: the first bytes are looked at, and then compared with those behind them.
    static func isZero(_ bytes: UnsafeRawBufferPointer) -> Bool {
        guard let base = bytes.baseAddress, bytes.count > 0 else { return true }
        let head = min(16, bytes.count)
        for index in 0..<head where bytes[index] != 0 { return false }
        return memcmp(base, base + head, bytes.count - head) == 0
    }

    /// Calls `body` with each run of blocks that hold data, in order.
    static func forEachData(
        in bytes: UnsafeRawBufferPointer, block: Int, _ body: (Range<Int>) throws(ImageError) -> Void
    ) throws(ImageError) {
        var start = 0
        var position = 0
        while position < bytes.count {
            let end = min(position + block, bytes.count)
            if isZero(UnsafeRawBufferPointer(rebasing: bytes[position..<end])) {
                if start < position { try body(start..<position) }
                start = end
            }
            position = end
        }
        if start < position { try body(start..<position) }
    }
}
