import VMM

/// A part of a kernel file and the memory that it goes to; what the file does not fill is zero.
struct KernelSegment {
    let offset: UInt64
    let address: UInt64
    let fileByteCount: UInt64
    let memoryByteCount: UInt64

    /// Whether the kernel can be entered at `gpa`.
    func contains(_ gpa: UInt64) -> Bool { gpa >= address && gpa - address < memoryByteCount }

    /// Loads all of them into memory that reads as zeros.
    /// - Returns: the end of the highest.
    static func load(
        _ segments: [KernelSegment], of kernel: BootFile, into memory: GuestMemory, _ map: MemoryMap
    ) throws(MachineError) -> UInt64 {
        var end = MemoryMap.oneMegabyte
        for segment in segments.sorted(by: { $0.address < $1.address }) {
            let (segmentEnd, overflow) = segment.address.addingReportingOverflow(segment.memoryByteCount)
            guard segment.address >= MemoryMap.oneMegabyte, !overflow, segmentEnd <= MemoryMap.acpiBase else {
                throw kernel.error(
                    "has a segment at \(hexText(segment.address)), where no memory can be",
                    "link it between 1 MB and \(hexText(MemoryMap.acpiBase))")
            }
            guard segmentEnd <= map.lowEnd else {
                throw kernel.error(
                    "does not fit in \(sizeText(map.byteCount)) of memory",
                    "give at least -m \(megabytesText(segmentEnd))")
            }
            guard segment.address >= end else {
                throw kernel.error(
                    "has a segment at \(hexText(segment.address)) that overlaps another", "link it again")
            }
            try kernel.load(at: segment.offset, count: segment.fileByteCount, into: memory, segment.address)
            end = segmentEnd
        }
        return end
    }
}
