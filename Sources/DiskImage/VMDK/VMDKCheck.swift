/// Whether the tables of a VMDK image are as they should be. Reads only; `VMDKCheck+Repair` mends.
public struct VMDKCheck: Sendable {
    /// Damage, one line each; at most a hundred.
    public private(set) var findings: [String] = []
    /// How many there are.
    public private(set) var count = 0
    public private(set) var allocatedGrains: UInt64 = 0
    public private(set) var totalGrains: UInt64 = 0
    /// What mends some of it.
    private(set) var remedies: [Remedy] = []

    /// Where the two copies of the tables differ and one of them alone can be right.
    enum Remedy: Sendable {
        /// Entries of a grain table are written anew.
        case entry(offset: UInt64, UInt32)
        /// A directory gets a grain table of its own again, like another that is there.
        case table(directoryEntry: UInt64, like: UInt32)
    }

    /// The rest is found the next time.
    private static let remedyLimit = 1 << 20

    private let file: ImageFile
    let header: VMDKHeader
    private let size: UInt64
    private var used: Bitmap
    private var differences: [Difference] = []

    /// One grain's entry in both copies.
    private struct Difference {
        var grain: UInt64
        var first: Copy
        var second: Copy
    }

    private struct Copy {
        /// Of the entry, in the file.
        var offset: UInt64
        var entry: UInt32
    }

    private enum Meaning { case zeros, data, impossible }

    /// - Throws: what makes it no image at all.
    public init(_ file: ImageFile) throws(ImageError) {
        self.file = file
        (header, _) = try VMDKImage.readHeader(file)
        size = try file.byteCount()
        // Where grains may begin, in units of the file: one bit for 8 sectors, the smallest grain; compressed ones, which
        // follow each other closely, one for each.
        used = Bitmap(count: min(size / 512, VMDKHeader.capacityLimit) / (header.isCompressed ? 1 : 8) + 1)
        totalGrains = (header.capacity + header.grainSectors - 1) / header.grainSectors
        try checkTables()
        for difference in differences { decide(difference) }
    }

    var hasCopy: Bool { header.flags.contains(.redundantTable) && !header.isCompressed }

    private mutating func checkTables() throws(ImageError) {
        let directory = try VMDKTables.readNumbers(file, at: header.directory, header)
        let redundant = hasCopy ? try VMDKTables.readNumbers(file, at: header.redundantDirectory, header) : []
        var tables: Set<UInt32> = []
        for (index, sector) in directory.enumerated() {
            let copy = hasCopy ? redundant[index] : 0
            let (isThere, isCopyThere) = (isTable(sector, index), isTable(copy, index))
            if hasCopy, isThere != isCopyThere {
                note("there is only one copy of grain table \(index)")
                let place = (isThere ? header.redundantDirectory : header.directory) * 512 + UInt64(index) * 4
                mend(.table(directoryEntry: place, like: isThere ? sector : copy))
            }
            guard isThere else { continue }
            guard tables.insert(sector).inserted else {
                note("grain table \(index) is another's too")
                continue
            }
            let place = UInt64(sector) * 512
            let isHole = try file.nextData(from: place, end: place + VMDKHeader.tableSectors * 512) == nil
            if isHole, !isCopyThere { continue }
            try checkTable(index, sector, copy: isCopyThere ? copy : nil)
        }
    }

    private mutating func isTable(_ sector: UInt32, _ index: Int) -> Bool {
        guard sector != 0 else { return false }
        guard VMDKTables.isInFile(sector, size) else {
            note("grain table \(index) at sector \(sector) is not in the file")
            return false
        }
        return true
    }

    private mutating func checkTable(_ index: Int, _ sector: UInt32, copy: UInt32?) throws(ImageError) {
        let entries = try VMDKTables.readTable(file, at: sector)
        let others = try copy.map { sector throws(ImageError) in try VMDKTables.readTable(file, at: sector) } ?? entries
        if others != entries { note("the two copies of grain table \(index) differ") }
        for (number, entry) in entries.enumerated() {
            let grain = UInt64(index * VMDKHeader.tableEntries + number)
            guard let copy, others[number] != entry, differences.count < Self.remedyLimit else {
                _ = check(entry, grain, isNoted: true)
                continue
            }
            let offset = UInt64(number) * 4
            differences.append(
                Difference(
                    grain: grain, first: Copy(offset: UInt64(sector) * 512 + offset, entry: entry),
                    second: Copy(offset: UInt64(copy) * 512 + offset, entry: others[number])))
        }
    }

    /// Looks at one entry, and takes its place in the file.
    private mutating func check(_ entry: UInt32, _ grain: UInt64, isNoted: Bool) -> Meaning {
        func wrong(_ text: @autoclosure () -> String) -> Meaning {
            if isNoted { note(text()) }
            return .impossible
        }
        guard let place = header.place(entry) else { return wrong("grain \(grain) lies at sector \(entry), among the tables") }
        guard place != 0 else { return .zeros }
        if isNoted { allocatedGrains += 1 }
        guard grain < totalGrains else { return wrong("grain \(grain) is behind the disk's end") }
        let length = header.isCompressed ? 1 : header.grainSectors
        guard (place + length) * 512 <= size else { return wrong("grain \(grain) at sector \(place) is not in the file") }
        let unit: UInt64 = header.isCompressed ? 1 : 8
        var isShared = false
        for part in place / unit..<max(place / unit + 1, (place + length) / unit) where !used.insert(part) { isShared = true }
        return isShared ? wrong("grain \(grain) at sector \(place) is another's too") : .data
    }

    /// All places that copies agree on are taken by now. An entry that cannot be is wrong, and zeros are what was there before a
    /// write that reached only one copy; of two places neither is plainly the right one.
    private mutating func decide(_ difference: Difference) {
        let (first, second) = (difference.first, difference.second)
        let meaning = check(first.entry, difference.grain, isNoted: true)
        switch (meaning, check(second.entry, difference.grain, isNoted: false)) {
        case (.data, .data), (.impossible, .impossible): break
        case (.data, _), (.zeros, .zeros), (.zeros, .impossible): mend(.entry(offset: second.offset, first.entry))
        case (_, .data), (.impossible, .zeros): mend(.entry(offset: first.offset, second.entry))
        }
    }

    private mutating func mend(_ remedy: Remedy) { if remedies.count < Self.remedyLimit { remedies.append(remedy) } }

    private mutating func note(_ text: String) {
        count += 1
        if findings.count < 100 { findings.append(text) }
    }
}

/// Bits that are set one by one: memory is taken for those that are.
private struct Bitmap {
    private static let blockBits: UInt64 = 1 << 15
    private var blocks: [[UInt64]]

    init(count: UInt64) { blocks = Array(repeating: [], count: Int(clamping: count / Self.blockBits + 1)) }

    /// - Returns: whether it was not set. What is outside was set.
    mutating func insert(_ bit: UInt64) -> Bool {
        let block = Int(clamping: bit / Self.blockBits)
        guard block < blocks.count else { return false }
        if blocks[block].isEmpty { blocks[block] = Array(repeating: 0, count: Int(Self.blockBits / 64)) }
        let word = Int(bit % Self.blockBits / 64)
        let mask: UInt64 = 1 << (bit % 64)
        guard blocks[block][word] & mask == 0 else { return false }
        blocks[block][word] |= mask
        return true
    }
}
