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

    /// Room for grains of one table. They are the writer's own until `end`.
    private struct Plan {
        var grains: Range<UInt64>
        /// The first one's sector.
        var place: UInt64
    }

    /// Writes to grains that have no room yet.
    /// - Returns: how many of the bytes; 0 when another thread has given them room meanwhile.
    private func allocate(_ buffers: IOBuffers, from start: UInt64, at offset: UInt64, count: UInt64) throws(ImageError) -> UInt64 {
        let grainBytes = UInt64(header.grainByteCount)
        let wanted = offset / grainBytes..<(offset + count + grainBytes - 1) / grainBytes
        guard let plan = try plan(wanted) else { return 0 }
        defer { end(plan) }
        let within = offset % grainBytes
        let room = UInt64(plan.grains.count) * grainBytes
        let length = min(count, room - within)
        try buffers.withPart(from: start, count: length) { part throws(ImageError) in
            try file.write(part, at: plan.place * 512 + within)
        }
        // The rest of the last grain is a hole, and in the file. To set the file's size could cut what others write behind.
        if within + length < room { try file.writeZeros(at: plan.place * 512 + room - 512, count: 512) }
        try changes.trying { _ throws(ImageError) in try enter(plan) }
        return length
    }

    /// - Parameter wanted: grains of one table.
    /// - Returns: room for the first of them; `nil` when the very first has some.
    private func plan(_ wanted: Range<UInt64>) throws(ImageError) -> Plan? {
        let perTable = UInt64(VMDKHeader.tableEntries)
        let table = Int(wanted.lowerBound / perTable)
        return try changes.trying(waitingWhile: { $0.inFlight.contains { $0.overlaps(wanted) } }) { changes throws(ImageError) in
            guard let entries = try load(table) else {
                throw ImageError(.malformed, file.name, "grain table \(table) is missing: convert the image to write it")
            }
            let first = Int(wanted.lowerBound % perTable)
            var count = 0
            while count < wanted.count, first + count < entries.count, try place(entries[first + count]) == 0 { count += 1 }
            guard count > 0 else { return nil }
            let place = (changes.end + header.grainSectors - 1) / header.grainSectors * header.grainSectors
            let end = place + UInt64(count) * header.grainSectors
            guard end <= UInt64(UInt32.max) else {
                throw ImageError(.refused, file.name, "a VMDK file is full at 2 TB: convert the image")
            }
            // Taken even if the write fails: nobody may find what it left there.
            changes.end = end
            let plan = Plan(grains: wanted.lowerBound..<wanted.lowerBound + UInt64(count), place: place)
            changes.inFlight.append(plan.grains)
            return plan
        }
    }

    /// The data is in the file: the entries lead to it from now on, in both copies.
    private func enter(_ plan: Plan) throws(ImageError) {
        let perTable = UInt64(VMDKHeader.tableEntries)
        let (table, index) = (Int(plan.grains.lowerBound / perTable), Int(plan.grains.lowerBound % perTable))
        let entries = (0..<plan.grains.count).map { UInt32(truncatingIfNeeded: plan.place + UInt64($0) * header.grainSectors) }
        var bytes: [UInt8] = []
        bytes.reserveCapacity(entries.count * 4)
        for entry in entries { bytes.append(little: entry) }
        do throws(ImageError) {
            for copy in [redundant, directory] where !copy.isEmpty && copy[table] != 0 {
                try bytes.write(file, at: UInt64(copy[table]) * 512 + UInt64(index) * 4)
            }
        } catch {
            // What the file says now is not known.
            tables.withLock { $0.forget(table) }
            throw error
        }
        tables.withLock { $0.set(entries, at: index, of: table) }
    }

    private func end(_ plan: Plan) {
        changes.withLock { changes in changes.inFlight.removeAll { $0 == plan.grains } }
        changes.broadcast()
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
