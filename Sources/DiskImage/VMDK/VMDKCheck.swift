/// Whether the tables of a VMDK image are as they should be. Reads only; `VMDKCheck+Repair` mends.
///
/// Three looks, each of which relies on what the one before found: where tables lie (`VMDKTablePlaces`), the entries that have
/// only one meaning, and then those on which the two copies differ.
public struct VMDKCheck: Sendable {
    /// Damage, one line each; at most a hundred.
    public private(set) var findings: [String] = []
    /// How many there are.
    public private(set) var count = 0
    public private(set) var allocatedGrains: UInt64 = 0
    public private(set) var totalGrains: UInt64 = 0
    /// What mends some of it.
    private(set) var remedies: [Remedy] = []
    /// Where entries lead that is not in the file: an entry may have come to the medium before the grain, whose place it is all the
    /// same. `nil` for too many.
    private(set) var outside: [UInt64]? = []

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
    private var places: VMDKTablePlaces
    private var differences: [Difference] = []
    /// A place was found to be two grains'.
    private var hasSharedGrains = false

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
        places = try VMDKTablePlaces(file, header, size)
        for finding in places.findings { note(finding) }
        count += places.count - places.findings.count
        try checkTables()
        decide()
    }

    private mutating func checkTables() throws(ImageError) {
        var lost: [Remedy] = []
        for index in 0..<header.tableCount {
            switch (places.first[index], places.second[index]) {
            case (.good(let sector), .good(let copy)): try checkTable(index, sector, copy: copy)
            case (.good(let sector), _):
                let place = UInt64(sector) * 512
                let isHole = try file.nextData(from: place, end: place + VMDKHeader.tableSectors * 512) == nil
                let isSure = isHole ? true : try checkTable(index, sector, copy: nil)
                if places.hasCopy { lost += remedy(index, in: header.redundantDirectory, like: sector, isSure: isSure) }
            case (_, .good(let copy)):
                let isSure = try checkTable(index, copy, copy: nil)
                lost += remedy(index, in: header.directory, like: copy, isSure: isSure)
            case (.none, .none): break
            default: refuse(index)
            }
        }
        // A directory whose entries lead to others' tables: which of them are wrong nothing says.
        if hasSharedGrains, !lost.isEmpty { note("grain tables are not repaired: grains are two's; \(Self.advice)") }
        if !hasSharedGrains { for remedy in lost { mend(remedy) } }
    }

    static let advice = "convert what can be read: vmctl image convert"

    private mutating func refuse(_ index: Int) { note("grain table \(index) is not repaired; \(Self.advice)") }

    /// - Parameter isSure: what there is can be a table, from its first entry to its last.
    private mutating func remedy(_ index: Int, in directory: UInt64, like sector: UInt32, isSure: Bool) -> [Remedy] {
        note("there is only one copy of grain table \(index)")
        if isSure { return [.table(directoryEntry: directory * 512 + UInt64(index) * 4, like: sector)] }
        refuse(index)
        return []
    }

    /// - Returns: whether each entry of its only copy can be.
    @discardableResult
    private mutating func checkTable(_ index: Int, _ sector: UInt32, copy: UInt32?) throws(ImageError) -> Bool {
        var isSure = true
        let entries = try VMDKTables.readTable(file, at: sector)
        let others = try copy.map { sector throws(ImageError) in try VMDKTables.readTable(file, at: sector) } ?? entries
        if others != entries { note("the two copies of grain table \(index) differ") }
        for (number, entry) in entries.enumerated() {
            let grain = UInt64(index * VMDKHeader.tableEntries + number)
            guard let copy, others[number] != entry, differences.count < Self.remedyLimit else {
                if !take(entry, grain) { isSure = false }
                continue
            }
            let offset = UInt64(number) * 4
            differences.append(
                Difference(
                    grain: grain, first: Copy(offset: UInt64(sector) * 512 + offset, entry: entry),
                    second: Copy(offset: UInt64(copy) * 512 + offset, entry: others[number])))
        }
        return isSure
    }

    /// An entry that there is no other for.
    /// - Returns: whether it can be.
    private mutating func take(_ entry: UInt32, _ grain: UInt64) -> Bool {
        let meaning = judge(entry, grain, isNoted: true)
        if meaning != .zeros, header.place(entry) != nil { allocatedGrains += 1 }
        guard meaning == .data, let place = header.place(entry) else { return meaning == .zeros }
        for part in parts(place) { used.insert(part) }
        return true
    }

    /// Sectors of a grain that say where it is.
    private var grainLength: UInt64 { header.isCompressed ? 1 : header.grainSectors }

    private func parts(_ place: UInt64) -> Range<UInt64> {
        let unit: UInt64 = header.isCompressed ? 1 : 8
        return place / unit..<max(place / unit + 1, (place + grainLength) / unit)
    }

    /// Looks at one entry, by the places that were taken before.
    private mutating func judge(_ entry: UInt32, _ grain: UInt64, isNoted: Bool) -> Meaning {
        func wrong(_ text: @autoclosure () -> String) -> Meaning {
            if isNoted { note(text()) }
            return .impossible
        }
        guard let place = header.place(entry), place == 0 || !places.contains(place..<place + grainLength) else {
            return wrong("grain \(grain) lies at sector \(entry), among the tables")
        }
        guard place != 0 else { return .zeros }
        guard (place + grainLength) * 512 <= size else {
            if (outside?.count ?? Self.remedyLimit) < Self.remedyLimit { outside?.append(place) } else { outside = nil }
            return wrong("grain \(grain) at sector \(place) is not in the file")
        }
        guard grain < totalGrains else { return wrong("grain \(grain) is behind the disk's end") }
        guard parts(place).contains(where: { used.contains($0) }) else { return .data }
        hasSharedGrains = true
        return wrong("grain \(grain) at sector \(place) is another's too")
    }

    /// All places that copies agree on are taken by now. An entry that cannot be is wrong, and zeros are what was there before a
    /// write that reached only one copy; of two places neither is plainly the right one, nor is one that two grains may have.
    private mutating func decide() {
        var meanings: [(first: Meaning, second: Meaning)] = []
        var claims: [(place: UInt64, number: Int)] = []
        for (number, difference) in differences.enumerated() {
            let first = judge(difference.first.entry, difference.grain, isNoted: true)
            let second = judge(difference.second.entry, difference.grain, isNoted: false)
            if header.place(difference.first.entry) ?? 0 != 0 { allocatedGrains += 1 }
            if first == .data { claims.append((UInt64(difference.first.entry), number)) }
            if second == .data { claims.append((UInt64(difference.second.entry), number)) }
            meanings.append((first, second))
        }
        claims.sort { ($0.place, $0.number) < ($1.place, $1.number) }
        var contested: Set<Int> = []
        var last: (end: UInt64, number: Int)?
        for claim in claims {
            if let last, claim.place < last.end, claim.number != last.number { contested.formUnion([claim.number, last.number]) }
            last = (claim.place + grainLength, claim.number)
        }
        for (number, difference) in differences.enumerated() {
            guard !contested.contains(number) else {
                note("grain \(difference.grain) may lie where another does")
                continue
            }
            let (first, second) = (difference.first, difference.second)
            switch meanings[number] {
            case (.data, .data), (.impossible, .impossible): break
            case (.data, _), (.zeros, .zeros), (.zeros, .impossible): mend(.entry(offset: second.offset, first.entry))
            case (_, .data), (.impossible, .zeros): mend(.entry(offset: first.offset, second.entry))
            }
        }
    }

    private mutating func mend(_ remedy: Remedy) {
        if places.isMendable, remedies.count < Self.remedyLimit { remedies.append(remedy) }
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

    /// What is outside is set.
    func contains(_ bit: UInt64) -> Bool {
        let block = Int(clamping: bit / Self.blockBits)
        guard block < blocks.count else { return true }
        return !blocks[block].isEmpty && blocks[block][Int(bit % Self.blockBits / 64)] & 1 << (bit % 64) != 0
    }

    mutating func insert(_ bit: UInt64) {
        let block = Int(clamping: bit / Self.blockBits)
        guard block < blocks.count else { return }
        if blocks[block].isEmpty { blocks[block] = Array(repeating: 0, count: Int(Self.blockBits / 64)) }
        blocks[block][Int(bit % Self.blockBits / 64)] |= 1 << (bit % 64)
    }
}
