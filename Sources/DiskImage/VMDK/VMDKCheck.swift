/// Whether the tables of a VMDK image are as they should be. Reads only.
public struct VMDKCheck: Sendable {
    /// Damage, one line each; at most a hundred.
    public private(set) var findings: [String] = []
    /// How many there are.
    public private(set) var count = 0
    public private(set) var allocatedGrains: UInt64 = 0
    public private(set) var totalGrains: UInt64 = 0

    /// - Throws: what makes it no image at all.
    public init(_ file: ImageFile) throws(ImageError) {
        let image = try VMDKImage(file)
        let header = image.header
        let size = try file.byteCount()
        totalGrains = (header.capacity + header.grainSectors - 1) / header.grainSectors
        let directory = try VMDKTables.readDirectory(file, at: header.directory, header)
        let hasCopy = header.flags.contains(.redundantTable) && !header.isCompressed
        let redundant = hasCopy ? try VMDKTables.readDirectory(file, at: header.redundantDirectory, header) : []
        // Where grains may begin, in units of the file: one bit for 8 sectors, the smallest grain; compressed ones, which
        // follow each other closely, one for each.
        let unit: UInt64 = header.isCompressed ? 1 : 8
        var used = Bitmap(count: min(size / 512, VMDKHeader.capacityLimit) / unit + 1)
        var tables: Set<UInt32> = []
        for (index, sector) in directory.enumerated() where sector != 0 {
            guard tables.insert(sector).inserted else {
                note("grain table \(index) is another's too")
                continue
            }
            let place = UInt64(sector) * 512
            let isHole = try file.nextData(from: place, end: place + VMDKHeader.tableSectors * 512) == nil
            if isHole, !hasCopy { continue }
            let entries = try VMDKTables.readTable(file, at: sector)
            if hasCopy, redundant[index] != 0, try VMDKTables.readTable(file, at: redundant[index]) != entries {
                note("the two copies of grain table \(index) differ")
            }
            for (number, entry) in entries.enumerated() {
                let grain = UInt64(index * VMDKHeader.tableEntries + number)
                guard let place = try? image.place(entry) else {
                    note("grain \(grain) lies at sector \(entry), among the tables")
                    continue
                }
                guard place != 0 else { continue }
                allocatedGrains += 1
                guard grain < totalGrains else {
                    note("grain \(grain) is behind the disk's end")
                    continue
                }
                let length = header.isCompressed ? 1 : header.grainSectors
                guard (place + length) * 512 <= size else {
                    note("grain \(grain) at sector \(place) is not in the file")
                    continue
                }
                var isShared = false
                for part in place / unit..<max(place / unit + 1, (place + length) / unit) where !used.insert(part) { isShared = true }
                if isShared { note("grain \(grain) at sector \(place) is another's too") }
            }
        }
    }

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
