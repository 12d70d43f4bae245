public import Linux
import Synchronization

extension VMDKImage {
    public func write(_ buffers: IOBuffers, at offset: UInt64) throws(ImageError) {
        try checkWrite(offset, buffers.byteCount)
        var done: UInt64 = 0
        while done < buffers.byteCount {
            let extent = try map(offset + done, buffers.byteCount - done)
            switch extent.place {
            case .file(_, let position):
                try buffers.withPart(from: done, count: extent.byteCount) { part throws(ImageError) in
                    try file.write(part, at: position)
                }
                done += extent.byteCount
            case .zeros:
                done += try allocate(buffers, from: done, at: offset + done, count: extent.byteCount)
            }
        }
    }

    /// Writes to grains that have no room yet.
    /// - Returns: how many of the bytes; 0 when another thread has given them room meanwhile.
    private func allocate(_ buffers: IOBuffers, from start: UInt64, at offset: UInt64, count: UInt64) throws(ImageError) -> UInt64 {
        let grainBytes = UInt64(header.grainByteCount)
        let table = Int(offset / 512 / header.tableCoverage)
        return try state.withLock { state throws(ImageError) in
            guard let entries = try state.tables.entries(table, file) else {
                throw ImageError(.malformed, file.name, "grain table \(table) is missing: convert the image to write it")
            }
            let first = Int(offset / grainBytes % UInt64(VMDKHeader.tableEntries))
            let within = offset % grainBytes
            var grains = 0
            while first + grains < entries.count, UInt64(grains) * grainBytes < within + count {
                guard try place(entries[first + grains]) == 0 else { break }
                grains += 1
            }
            guard grains > 0 else { return 0 }
            let length = min(count, UInt64(grains) * grainBytes - within)
            let place = (state.end + header.grainSectors - 1) / header.grainSectors * header.grainSectors
            let end = place + UInt64(grains) * header.grainSectors
            guard end <= UInt64(UInt32.max) else {
                throw ImageError(.refused, file.name, "a VMDK file is full at 2 TB: convert the image")
            }
            // Taken even if the write fails: nobody may find what it left there.
            state.end = end
            try buffers.withPart(from: start, count: length) { part throws(ImageError) in
                try file.write(part, at: place * 512 + within)
            }
            // The rest of the last grain is a hole, and in the file.
            if within + length < UInt64(grains) * grainBytes { try file.setByteCount(end * 512) }
            try state.tables.set(
                (0..<grains).map { UInt32(truncatingIfNeeded: place + UInt64($0) * header.grainSectors) }, at: first, of: table, file)
            return length
        }
    }

    public func discard(at offset: UInt64, count: UInt64) throws(ImageError) {
        try checkWrite(offset, count)
        try forEachPlace(offset, count) { position, length throws(ImageError) in
            _ = try file.tryZero(at: position, count: length, keepsRoom: false)
        }
    }

    public func writeZeroes(at offset: UInt64, count: UInt64, mayDiscard: Bool) throws(ImageError) {
        try checkWrite(offset, count)
        try forEachPlace(offset, count) { position, length throws(ImageError) in
            try file.zero(at: position, count: length, keepsRoom: !mayDiscard)
        }
    }

    /// The parts of a range that are in the file.
    private func forEachPlace(
        _ offset: UInt64, _ count: UInt64, _ body: (UInt64, UInt64) throws(ImageError) -> Void
    ) throws(ImageError) {
        var done: UInt64 = 0
        while done < count {
            let extent = try map(offset + done, count - done)
            if case .file(_, let position) = extent.place { try body(position, extent.byteCount) }
            done += extent.byteCount
        }
    }

    /// Makes an empty file a monolithic sparse image of zeros, with all grain tables in their places.
    public static func create(_ file: ImageFile, byteCount: UInt64, fileName: String) throws(ImageError) {
        let size = try DiskSize.whole(byteCount, file.name)
        guard size / 512 <= VMDKHeader.capacityLimit else {
            throw ImageError(.refused, file.name, "a VMDK image has 2 TB at most")
        }
        var header = VMDKHeader(capacity: size / 512)
        let tables = UInt64(header.tableCount) * VMDKHeader.tableSectors
        header.redundantDirectory = header.descriptorOffset + header.descriptorSectors
        header.directory = header.redundantDirectory + header.directorySectors + tables
        let end = header.directory + header.directorySectors + tables
        header.overhead = (end + header.grainSectors - 1) / header.grainSectors * header.grainSectors
        let descriptor = VMDKDescriptor(
            contentID: .random(in: 0...0xFFFF_FFFE), kind: .monolithicSparse, capacity: header.capacity, fileName: fileName)
        try file.setByteCount(header.overhead * 512)
        for directory in [header.redundantDirectory, header.directory] {
            var entries: [UInt8] = []
            for table in 0..<UInt64(header.tableCount) {
                entries.append(
                    little: UInt32(
                        truncatingIfNeeded: directory + header.directorySectors + table * VMDKHeader.tableSectors))
            }
            try entries.write(file, at: directory * 512)
        }
        try descriptor.bytes(padding: Int(header.descriptorSectors) * 512).write(file, at: header.descriptorOffset * 512)
        try header.bytes.write(file, at: 0)
    }
}
