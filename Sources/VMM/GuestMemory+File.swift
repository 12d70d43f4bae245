import Glibc
import Linux

extension GuestMemory {
    private static let fillByteCount = 256 << 10

    /// Reads a part of a file into RAM.
    ///
    /// The bytes go through a small buffer and are written to the memory's file, not to its mapping: each page is then
    /// allocated without being cleared first and without a page fault, which takes half the time for a kernel
    /// of 14 MB (9.8 instead of 16.5 ms).
    /// - Returns: how many bytes were read, fewer than asked for only at the end of the file; `nil`, and nothing
    ///   read, when the range is not all RAM.
    public func fill(
        _ gpa: UInt64, count: UInt64, from file: borrowing RegularFile, at offset: UInt64
    ) throws(SystemError) -> UInt64? {
        guard let start = self.offset(of: gpa, count: count, writes: true), let total = Int(exactly: count) else { return nil }
        let buffer = UnsafeMutableRawPointer.allocate(byteCount: Self.fillByteCount, alignment: 4096)
        defer { buffer.deallocate() }
        var done = 0
        while done < total {
            let part = UnsafeMutableRawBufferPointer(start: buffer, count: min(Self.fillByteCount, total - done))
            let got = try file.read(into: part, at: offset + UInt64(done))
            var written = 0
            while written < got {
                written += try retrying("write") {
                    pwrite(fileDescriptor, buffer + written, got - written, start + done + written)
                }
            }
            noteWritten(hostBase + (start + done), count: got)
            done += got
            if got < part.count { break }
        }
        return UInt64(done)
    }
}
