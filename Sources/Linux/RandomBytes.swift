import CLinux
import Glibc

/// The kernel's random numbers.
public enum RandomBytes {
    /// Fills a buffer. Does not wait, once the host has booted.
    public static func fill(_ buffer: UnsafeMutableRawBufferPointer) {
        var done = 0
        while done < buffer.count, let base = buffer.baseAddress {
            // A part is at most 256 bytes where a signal may cut it short (getrandom(2)); errors but that are broken invariants.
            guard let count = try? retrying("getrandom", { clinux_getrandom(base + done, buffer.count - done) }), count > 0
            else { preconditionFailure("getrandom") }
            done += count
        }
    }
}
