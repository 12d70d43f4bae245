import Linux

extension GuestMemory {
    /// Reads a part of a file straight into RAM, without a copy on the way: kernels and initial ramdisks are large.
    /// - Returns: how many bytes were read, fewer than asked for only at the end of the file; `nil`, and nothing
    ///   read, when the range is not all RAM.
    public func fill(
        _ gpa: UInt64, count: UInt64, from file: borrowing RegularFile, at offset: UInt64
    ) throws(SystemError) -> UInt64? {
        guard let size = Int(exactly: count), let address = hostAddress(of: gpa, count: count) else { return nil }
        return UInt64(try file.read(into: UnsafeMutableRawBufferPointer(start: address, count: size), at: offset))
    }
}
