import CLinux
import Glibc

/// Descriptors 0 to 2, which the caller of a program may have left in any state.
public enum StandardStreams {
    /// Opens /dev/null for those that are closed. Otherwise the next file the program opens, the guest's memory for
    /// one, would become its standard output.
    public static func ensureOpen() {
        for descriptor: CInt in 0...2 where fcntl(descriptor, F_GETFD) == -1 {
            _ = clinux_open("/dev/null", O_RDWR, 0)
        }
    }

    /// Writing to a closed pipe fails with EPIPE instead of killing the process.
    public static func ignoreBrokenPipes() { signal(SIGPIPE, SIG_IGN) }

    /// Writes all of a text to standard error; a standard error that takes nothing is nobody's problem.
    public static func writeError(_ text: String) {
        var text = text
        text.withUTF8 { bytes in
            var rest = bytes[...]
            while !rest.isEmpty {
                let buffer = UnsafeRawBufferPointer(UnsafeBufferPointer(rebasing: rest))
                guard let count = try? retrying("write", { Glibc.write(2, buffer.baseAddress, buffer.count) }),
                    count > 0
                else { return }
                rest = rest.dropFirst(count)
            }
        }
    }
}

/// Reads and writes on borrowed descriptors.
public enum Stream {
    /// Reads at most `limit` bytes; empty at the end. Blocks only if nothing is ready.
    public static func read(_ descriptor: CInt, limit: Int) throws(SystemError) -> [UInt8] {
        var bytes = [UInt8](repeating: 0, count: limit)
        let count = try retrying("read") { Glibc.read(descriptor, &bytes, limit) }
        bytes.removeLast(limit - count)
        return bytes
    }

    /// Writes all bytes, however long the reader takes.
    public static func writeAll(_ descriptor: CInt, _ bytes: [UInt8]) throws(SystemError) {
        var offset = 0
        while offset < bytes.count {
            do {
                offset += try retrying("write") {
                    bytes[offset...].withUnsafeBytes { Glibc.write(descriptor, $0.baseAddress, $0.count) }
                }
            } catch where error.errno == EAGAIN {
                // Whoever started us may have made the descriptor non-blocking; that is his to change, not ours.
                var entry = pollfd(fd: descriptor, events: Int16(POLLOUT), revents: 0)
                poll(&entry, 1, -1)
            }
        }
    }
}
