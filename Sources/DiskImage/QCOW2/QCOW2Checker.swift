import Linux

/// One look at an image: what it counted, and what is wrong.
struct QCOW2Checker: ~Copyable {
    private let state: QCOW2State
    private let geometry: QCOW2Geometry
    private let fileByteCount: UInt64
    let counts = QCOW2Counts()
    var result = QCOW2CheckResult()
    /// Entries to throw out, and flags to set right: the bytes to write.
    private(set) var badEntries: [Place] = []
    private(set) var wrongFlags: [Place] = []
    /// Clusters that nothing uses.
    private(set) var leaks: [Range<UInt64>] = []
    /// Where each L2 table was found: how often, and whether by the disk itself.
    private var tables: [UInt64: UInt32] = [:]
    private var activeTables: [UInt64] = []
    /// There are more tables than the file has data for: some lie in holes, which need no reading however many they are.
    private var hasEmptyTables = false
    /// What snapshots use is not known.
    private var leavesSnapshots = false
    /// The slice of refcounts that was asked last; `nil` where there is no block.
    private var said: (key: UInt64, memory: UnsafeMutableRawPointer?) = (.max, nil)

    struct Place {
        var offset: UInt64
        var replacement: [UInt8]
    }

    /// What is kept for repair at most; the rest is found the next time.
    static let placeLimit = 1 << 20

    init(_ state: QCOW2State) {
        self.state = state
        geometry = state.geometry
        fileByteCount = (try? state.file.byteCount()) ?? 0
    }

    mutating func run() throws(ImageError) {
        let header = state.header
        let shift = UInt64(geometry.clusterBits)
        count(0, geometry.clusterSize, "the header")
        count(header.l1Offset, UInt64(header.l1Entries) * 8, "the L1 table")
        count(header.snapshotsOffset, header.snapshotsOffset == 0 ? 0 : state.snapshotTableByteCount, "the snapshot table")
        var seen = Set<UInt64>()
        findTables(state.map.l1, at: header.l1Offset, from: 0, 1, isActive: true, &seen)
        try findSnapshots()
        try countBitmaps()
        let room = try state.file.hostByteCount()
        let blocks = state.table.count { $0 & QCOW2State.tableOffsetMask != 0 }
        hasEmptyTables = UInt64(tables.count + blocks) << shift > room
        result.totalClusters = geometry.clusters(header.byteCount)
        let others = Set(activeTables)
        var next: UInt64 = 0
        for offset in activeTables { try countEntries(offset, isActive: true, &next) }
        for offset in tables.keys.sorted() where !others.contains(offset) { try countEntries(offset, isActive: false, &next) }
        count(header.refcountTableOffset, UInt64(header.refcountTableClusters) << shift, "the refcount table")
        try countBlocks()
        // What is not counted would count as unused.
        if counts.isFull { throw ImageError(.unsupported, state.file.name, "its clusters are spread too widely to be counted") }
        try compare()
        try checkFlags()
        result.endOffset = max(result.endOffset, counts.end << shift)
    }

    // MARK: Counting

    private mutating func corruption(_ text: @autoclosure () -> String) {
        result.corruptions += 1
        result.note(text())
    }

    /// - Returns: whether it lies in the file.
    @discardableResult
    private mutating func count(_ offset: UInt64, _ byteCount: UInt64, _ what: @autoclosure () -> String, _ times: UInt32 = 1) -> Bool {
        guard byteCount > 0 else { return true }
        let end = offset &+ byteCount
        // The last cluster may not be there in full.
        guard end > offset, end < fileByteCount || end - fileByteCount < geometry.clusterSize else {
            corruption("\(what()) at \(offset) lies behind the end of the file")
            return false
        }
        let shift = UInt64(geometry.clusterBits)
        for cluster in (offset >> shift)...((end - 1) >> shift) { counts.add(cluster, times) }
        return true
    }

    private mutating func bad(_ offset: UInt64, _ bytes: [UInt8]) {
        if badEntries.count < Self.placeLimit { badEntries.append(Place(offset: offset, replacement: bytes)) }
    }

    private mutating func bad(_ offset: UInt64, _ value: UInt64) {
        var bytes: [UInt8] = []
        bytes.appendBig64(value)
        bad(offset, bytes)
    }

    /// - Parameter l1: a part of an L1 table, which is at `offset`.
    /// - Parameter first: the number of its first entry.
    /// - Parameter seen: the tables of the parts before.
    private mutating func findTables(
        _ l1: [UInt64], at offset: UInt64, from first: Int, _ times: UInt32, isActive: Bool, _ seen: inout Set<UInt64>
    ) {
        for (number, entry) in l1.enumerated() where entry & QCOW2Limit.offsetMask != 0 {
            let table = entry & QCOW2Limit.offsetMask
            let place = offset + UInt64(number) * 8
            let index = first + number
            if entry & ~(QCOW2Limit.offsetMask | QCOW2Entry.copied) != 0 {
                corruption("the L1 entry \(index) has reserved bits set: \(String(entry, radix: 16))")
                bad(place, entry & (QCOW2Limit.offsetMask | QCOW2Entry.copied))
            }
            guard table & geometry.clusterMask == 0 else {
                corruption("the L2 table \(index) at \(table) is no cluster")
                bad(place, 0)
                continue
            }
            guard count(table, geometry.clusterSize, "the L2 table \(index)", times) else {
                bad(place, 0)
                continue
            }
            guard seen.insert(table).inserted else {
                // Its clusters would be shared by two places of one disk.
                corruption("the L2 table \(index) at \(table) is in the same L1 table twice")
                bad(place, 0)
                continue
            }
            if tables[table] == nil, isActive { activeTables.append(table) }
            tables[table, default: 0] = (tables[table] ?? 0).addingReportingOverflow(times).partialValue
        }
    }

    private mutating func findSnapshots() throws(ImageError) {
        var distinct: [UInt64: (entries: UInt32, times: UInt32, id: String)] = [:]
        for snapshot in state.snapshots where snapshot.l1Entries > 0 {
            guard let known = distinct[snapshot.l1Offset] else {
                distinct[snapshot.l1Offset] = (snapshot.l1Entries, 1, snapshot.id)
                continue
            }
            guard known.entries == snapshot.l1Entries else { return overlap(known.id, snapshot.id) }
            distinct[snapshot.l1Offset] = (known.entries, known.times + 1, known.id)
        }
        let sorted = distinct.sorted { $0.key < $1.key }
        for (first, second) in zip(sorted, sorted.dropFirst()) where first.key + UInt64(first.value.entries) * 8 > second.key {
            return overlap(first.value.id, second.value.id)
        }
        let largest = sorted.reduce(state.header.l1Entries) { max($0, $1.value.entries) }
        let limit = max(QCOW2Limit.snapshotTreesByteCount, QCOW2Limit.snapshotTreesOfLargest * UInt64(largest) * 8)
        let total = sorted.reduce(0) { $0 + UInt64($1.value.entries) * 8 }
        guard total <= limit else {
            return leave("the L1 tables of its snapshots have \(total) bytes, and no more than \(limit) are looked at: delete snapshots, or convert it")
        }
        for (offset, table) in sorted {
            let end = offset + UInt64(table.entries) * 8
            guard count(offset, end - offset, "the L1 table of snapshot \(table.id)", table.times) else { continue }
            // Of a large table that says little most is a hole.
            var seen = Set<UInt64>()
            var next = offset
            while let part = try state.file.nextData(from: next, end: end) {
                let first = max(next, part.lowerBound & ~7)
                next = min(end, (part.upperBound + 7) & ~7)
                let l1 = try QCOW2State.readNumbers(state.file, first, (next - first) / 8, "L1 table of a snapshot")
                findTables(l1, at: first, from: Int((first - offset) / 8), table.times, isActive: false, &seen)
                guard tables.count <= QCOW2Limit.tablesToCheck else {
                    return leave("it and its snapshots have more than \(QCOW2Limit.tablesToCheck) L2 tables: delete snapshots, or convert it")
                }
            }
        }
    }

    private mutating func overlap(_ first: String, _ second: String) {
        leave("the L1 tables of its snapshots \(first) and \(second) overlap: one of them is damaged; convert what can be read")
    }

    /// Snapshots are not looked at, so what they use counts neither as used nor as leaked.
    private mutating func leave(_ reason: String) {
        leavesSnapshots = true
        result.errors += 1
        result.note(reason)
    }

    private func isEmpty(_ table: UInt64) throws(ImageError) -> Bool {
        guard hasEmptyTables else { return false }
        return try state.file.nextData(from: table, end: table + geometry.clusterSize) == nil
    }

    private mutating func countEntries(_ table: UInt64, isActive: Bool, _ next: inout UInt64) throws(ImageError) {
        guard try !isEmpty(table) else { return }
        let buffer = UnsafeMutableRawBufferPointer.allocate(byteCount: Int(geometry.clusterSize), alignment: 4096)
        defer { buffer.deallocate() }
        guard let memory = buffer.baseAddress else { return }
        try state.readTable(buffer, at: table)
        guard !counts.isFull else {
            throw ImageError(.unsupported, state.file.name, "its clusters are spread too widely to be counted in 1 GiB of memory")
        }
        let times = tables[table] ?? 1
        let (version, units) = (state.header.version, state.unitsPerCluster)
        for index in 0..<(1 << geometry.l2Bits) where !memory.isEntryEmpty(index, geometry) {
            let entry = memory.entry(index, geometry)
            let place = table + UInt64(index) << UInt64(geometry.entryBits)
            if entry.isCompressed {
                let range = entry.compressedRange(geometry)
                if entry.isCopied { corruption("the compressed cluster at \(range.offset) has the flag of one that may be changed") }
                if !count(range.offset, range.byteCount, "a compressed cluster", times) { throwOut(place) }
                if isActive {
                    result.compressedClusters += 1
                    result.allocatedClusters += 1
                    result.fragmentedClusters += 1
                }
                continue
            }
            let isValid = (0..<units).allSatisfy { entry.kind($0, geometry, version: version) != .malformed }
            guard isValid, entry.offset & geometry.clusterMask == 0 else {
                corruption("the L2 entry \(String(entry.descriptor, radix: 16)) at \(place) is no valid one")
                throwOut(place)
                continue
            }
            let reserved = entry.descriptor & ~(QCOW2Limit.offsetMask | QCOW2Entry.copied | QCOW2Entry.zero)
            if reserved != 0 {
                corruption("the L2 entry \(String(entry.descriptor, radix: 16)) at \(place) has reserved bits set")
                bad(place, entry.descriptor & ~reserved)
            }
            guard entry.offset != 0 else { continue }
            guard count(entry.offset, geometry.clusterSize, "a data cluster", times) else {
                throwOut(place)
                continue
            }
            if isActive {
                result.allocatedClusters += 1
                if next != 0, entry.offset != next { result.fragmentedClusters += 1 }
                next = entry.offset + geometry.clusterSize
            }
        }
    }

    /// What cannot be read becomes zeros.
    private mutating func throwOut(_ place: UInt64) {
        var bytes: [UInt8] = []
        let entry = state.header.version >= 3 ? QCOW2Entry.zeros(geometry) : .none
        bytes.appendBig64(entry.descriptor)
        if geometry.extendedL2 { bytes.appendBig64(entry.bitmap) }
        bad(place, bytes)
    }

    private mutating func countBlocks() throws(ImageError) {
        for (index, entry) in state.table.enumerated() where entry & QCOW2State.tableOffsetMask != 0 {
            let offset = entry & QCOW2State.tableOffsetMask
            guard offset & geometry.clusterMask == 0 else {
                corruption("the refcount block \(index) at \(offset) is no cluster")
                continue
            }
            guard count(offset, geometry.clusterSize, "the refcount block \(index)") else { continue }
            if counts[offset >> UInt64(geometry.clusterBits)] > 1 {
                corruption("the refcount block \(index) at \(offset) is something else as well")
            }
        }
    }

    /// Bitmaps belong to others, but their clusters are in use (qcow2.txt, "Bitmaps").
    private mutating func countBitmaps() throws(ImageError) {
        guard let bitmaps = state.header.bitmaps, state.header.autoclear.contains(.bitmaps) else { return }
        guard bitmaps.directoryByteCount <= QCOW2Limit.bitmapDirectoryByteCount, bitmaps.count <= QCOW2Limit.bitmaps,
            count(bitmaps.directoryOffset, bitmaps.directoryByteCount, "the bitmap directory")
        else {
            corruption("its bitmap directory is no valid one")
            return
        }
        var directory = [UInt8](repeating: 0, count: Int(bitmaps.directoryByteCount))
        _ = try directory.read(state.file, at: bitmaps.directoryOffset)
        var at = 0
        var total: UInt64 = 0
        for _ in 0..<bitmaps.count {
            guard at + 24 <= directory.count else { return corruption("its bitmap directory is too short") }
            let table = directory.big64(at)
            let entries = UInt64(directory.big32(at + 8))
            let size = 24 + Int(directory.big32(at + 20)) + Int(directory.big16(at + 18))
            at += (size + 7) & ~7
            total += entries * 8
            guard total <= min(fileByteCount, QCOW2Limit.bitmapTablesByteCount) else { return corruption("the tables of its bitmaps are too large") }
            guard count(table, entries * 8, "a bitmap's table") else { continue }
            for entry in try QCOW2State.readNumbers(state.file, table, entries, "bitmap's table") where entry & QCOW2Limit.offsetMask != 0 {
                count(entry & QCOW2Limit.offsetMask, geometry.clusterSize, "a bitmap's cluster")
            }
        }
    }

    // MARK: Comparing

    private mutating func compare() throws(ImageError) {
        let perBlock = UInt64(1) << UInt64(geometry.refcountBlockBits)
        // What lies behind the file's end takes no room.
        let end = geometry.clusters(fileByteCount)
        let buffer = UnsafeMutableRawBufferPointer.allocate(byteCount: Int(geometry.clusterSize), alignment: 4096)
        defer { buffer.deallocate() }
        guard let memory = buffer.baseAddress else { return }
        let last = max(end, counts.end)
        var covered = Set<UInt64>()
        var seen = Set<UInt64>()
        for (index, entry) in state.table.enumerated() where entry & QCOW2State.tableOffsetMask != 0 {
            let offset = entry & QCOW2State.tableOffsetMask
            guard offset & geometry.clusterMask == 0, offset < fileByteCount else { continue }
            // Two entries with one block are a corruption, told by `countBlocks`; a million of them would keep us busy.
            guard seen.insert(offset).inserted, try !isEmpty(offset) else { continue }
            covered.insert(UInt64(index))
            try state.readTable(buffer, at: offset)
            let first = UInt64(index) * perBlock
            guard first < last else { continue }
            for i in 0..<Int(min(perBlock, last - first)) {
                let said = memory.refcount(i, geometry)
                let found = UInt64(counts[first + UInt64(i)])
                if said != found, found > 0 || first + UInt64(i) < end { compare(first + UInt64(i), said, found) }
            }
        }
        for range in counts.ranges {
            var next = range.lowerBound
            while next < range.upperBound {
                let start = next
                next = min(range.upperBound, (start / perBlock + 1) * perBlock)
                if covered.contains(start / perBlock) { continue }
                for cluster in start..<next where counts[cluster] > 0 { compare(cluster, 0, UInt64(counts[cluster])) }
            }
        }
    }

    private mutating func compare(_ cluster: UInt64, _ said: UInt64, _ found: UInt64) {
        if said < found { return corruption("cluster \(cluster) has refcount \(said), but is used \(found) times") }
        guard !leavesSnapshots else { return }
        result.leaks += 1
        result.note("cluster \(cluster) has refcount \(said), but is used \(found) times: \(said - found) leaked")
        if let last = leaks.last, last.upperBound == cluster {
            leaks[leaks.count - 1] = last.lowerBound..<(cluster + 1)
        } else if leaks.count < Self.placeLimit {
            leaks.append(cluster..<(cluster + 1))
        }
    }

    /// The flag says that a cluster's refcount is exactly 1; it counts only where the disk itself leads to.
    private mutating func checkFlags() throws(ImageError) {
        for (index, entry) in state.map.l1.enumerated() where entry & QCOW2Limit.offsetMask != 0 {
            let offset = entry & QCOW2Limit.offsetMask
            guard offset & geometry.clusterMask == 0, offset < fileByteCount else { continue }
            let isAlone = try saidRefcount(offset >> UInt64(geometry.clusterBits)) == 1
            if isAlone != (entry & QCOW2Entry.copied != 0) {
                corruption("the flag for changing L2 table \(index) at \(offset) does not fit its refcount")
                flag(state.header.l1Offset + UInt64(index) * 8, entry ^ QCOW2Entry.copied)
            }
        }
        let buffer = UnsafeMutableRawBufferPointer.allocate(byteCount: Int(geometry.clusterSize), alignment: 4096)
        defer { buffer.deallocate() }
        guard let memory = buffer.baseAddress else { return }
        for table in activeTables where try !isEmpty(table) {
            try state.readTable(buffer, at: table)
            for index in 0..<(1 << geometry.l2Bits) where !memory.isEntryEmpty(index, geometry) {
                let entry = memory.entry(index, geometry)
                let place = table + UInt64(index) << UInt64(geometry.entryBits)
                if entry.isCompressed {
                    if entry.isCopied { flag(place, entry.descriptor & ~QCOW2Entry.copied) }
                    continue
                }
                guard entry.offset != 0, entry.offset & geometry.clusterMask == 0 else { continue }
                let isAlone = try saidRefcount(entry.offset >> UInt64(geometry.clusterBits)) == 1
                if isAlone != entry.isCopied {
                    corruption("the flag for changing the data cluster at \(entry.offset) does not fit its refcount")
                    flag(place, entry.descriptor ^ QCOW2Entry.copied)
                }
            }
        }
    }

    private mutating func flag(_ place: UInt64, _ value: UInt64) {
        var bytes: [UInt8] = []
        bytes.appendBig64(value)
        if wrongFlags.count < Self.placeLimit { wrongFlags.append(Place(offset: place, replacement: bytes)) }
    }

    /// 0 where the block is no valid one: that was counted.
    private mutating func saidRefcount(_ cluster: UInt64) throws(ImageError) -> UInt64 {
        let key = cluster >> UInt64(geometry.refcountSliceBits)
        do {
            // Most clusters have their neighbours' slice, which stays in memory until another is asked for.
            if key != said.key { said = (key, try state.refcountSlot(cluster).map(state.refcounts.memory)) }
            return said.memory?.refcount(state.refcountIndex(cluster), geometry) ?? 0
        } catch {
            said.key = .max
            guard case .malformed = error.kind else { throw error }
            return 0
        }
    }
}
