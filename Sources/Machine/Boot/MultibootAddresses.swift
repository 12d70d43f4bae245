/// The addresses by which a multiboot header, of either version, tells what of its file goes where in memory (Multiboot
/// Specification 0.6.96, 3.1.3; version 2.0, 3.1.5): for files that are not ELF.
struct MultibootAddresses {
    /// Where the header goes.
    let header: UInt32
    /// `nil`: what the file's first byte gets.
    let load: UInt32?
    /// Zero: to the end of the file.
    let loadEnd: UInt32
    /// Zero: nothing to clear.
    let bssEnd: UInt32

    /// What they tell.
    /// - Parameter headerOffset: where in the file the header is.
    func segment(_ kernel: BootFile, headerOffset: Int) throws(MachineError) -> KernelSegment {
        let headerOffset = UInt64(headerOffset), header = UInt64(header)
        let start = load.map { UInt64($0) } ?? (header >= headerOffset ? header - headerOffset : .max)
        guard header >= start else {
            let reason = load == nil ? "leaves no room for the file before it" : "lies below load_addr \(hexText(start))"
            throw Self.wrong("header_addr", header, reason, kernel)
        }
        guard header - start <= headerOffset else {
            throw Self.wrong("load_addr", start, "lies before the file's first byte", kernel)
        }
        let offset = headerOffset - (header - start)
        // A file that has grown since it was opened has its header behind the length of then.
        guard offset <= kernel.byteCount else { throw kernel.truncated() }
        let available = kernel.byteCount - offset
        var fileByteCount = available
        if loadEnd != 0 {
            guard UInt64(loadEnd) > start else {
                throw Self.wrong("load_end_addr", UInt64(loadEnd), "lies below load_addr \(hexText(start))", kernel)
            }
            fileByteCount = UInt64(loadEnd) - start
            guard fileByteCount <= available else { throw kernel.truncated() }
        }
        var memoryByteCount = fileByteCount
        if bssEnd != 0 {
            guard UInt64(bssEnd) >= start + fileByteCount else {
                throw Self.wrong("bss_end_addr", UInt64(bssEnd), "lies below the end of what is loaded", kernel)
            }
            memoryByteCount = UInt64(bssEnd) - start
        }
        return KernelSegment(
            offset: offset, address: start, fileByteCount: fileByteCount, memoryByteCount: memoryByteCount)
    }

    /// - Returns: the entry point that a header gives.
    static func entry(
        _ address: UInt32, in segments: [KernelSegment], _ kernel: BootFile
    ) throws(MachineError) -> UInt64 {
        guard segments.contains(where: { $0.contains(UInt64(address)) }) else {
            throw wrong("entry_addr", UInt64(address), "lies outside of what is loaded", kernel)
        }
        return UInt64(address)
    }

    private static func wrong(_ field: String, _ value: UInt64, _ reason: String, _ kernel: BootFile) -> MachineError {
        kernel.error("has a multiboot header whose \(field) \(hexText(value)) \(reason)", "link it again")
    }
}

extension ELFFile {
    /// Where a kernel is entered whose ELF header tells; it may be given as a virtual address.
    func physicalEntry(_ kernel: BootFile) throws(MachineError) -> UInt64 {
        let virtual = programHeaders.first { $0.type == Self.load && $0.contains(virtual: entry) }
        let address = virtual.map { $0.physicalAddress &+ (entry - $0.virtualAddress) } ?? entry
        guard segments.contains(where: { $0.contains(address) }), UInt32(exactly: address) != nil else {
            throw kernel.error("has its entry point \(hexText(entry)) outside of its segments", "link it again")
        }
        return address
    }
}
