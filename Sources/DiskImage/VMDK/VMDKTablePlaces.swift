/// Where the grain tables of both copies lie, and which of them are surely tables: a directory's entry that was damaged may lead to
/// anything, and what lies there must neither be taken for entries nor be written over.
struct VMDKTablePlaces: Sendable {
    enum Place: Sendable {
        /// The directory has none.
        case none
        /// It cannot be there: that was told.
        case bad
        /// Nothing else lies there.
        case good(UInt32)
    }

    /// By the directory and its copy.
    private(set) var first: [Place]
    private(set) var second: [Place]
    /// There is a second copy at all.
    let hasCopy: Bool
    /// What the header leads to lies in places of its own.
    private(set) var isMendable = true
    /// One line each; at most a hundred.
    private(set) var findings: [String] = []
    private(set) var count = 0

    /// Header, descriptor and directories.
    private let fixed: [Range<UInt64>]
    /// Sectors of those that are good, in order.
    private var sectors: [UInt32] = []

    /// What a directory's entry leads to.
    private struct Candidate {
        var sector: UInt32
        var index: Int
        var isSecond: Bool
        var isGood = true

        var range: Range<UInt64> { UInt64(sector)..<UInt64(sector) + VMDKHeader.tableSectors }
    }

    init(_ file: ImageFile, _ header: VMDKHeader, _ size: UInt64) throws(ImageError) {
        hasCopy = header.flags.contains(.redundantTable) && !header.isCompressed && header.redundantDirectory != header.directory
        let directory = try VMDKTables.readNumbers(file, at: header.directory, header)
        let redundant = hasCopy ? try VMDKTables.readNumbers(file, at: header.redundantDirectory, header) : []
        var fixed: [Range<UInt64>] = [0..<1, header.descriptorOffset..<header.descriptorOffset + header.descriptorSectors]
        for start in hasCopy ? [header.directory, header.redundantDirectory] : [header.directory] {
            fixed.append(start..<start + header.directorySectors)
        }
        self.fixed = fixed.sorted { $0.lowerBound < $1.lowerBound }
        first = Array(repeating: .none, count: directory.count)
        second = first
        if zip(self.fixed, self.fixed.dropFirst()).contains(where: { $0.overlaps($1) }) {
            isMendable = false
            note("its descriptor and directories overlap: it is not repaired; \(VMDKCheck.advice)")
        }
        var candidates: [Candidate] = []
        for index in directory.indices {
            // One table for both copies is no damage, but no copy either.
            let copy = hasCopy && redundant[index] != directory[index] ? redundant[index] : 0
            for candidate in [
                Candidate(sector: directory[index], index: index, isSecond: false), Candidate(sector: copy, index: index, isSecond: true),
            ] where candidate.sector != 0 {
                if !VMDKTables.isInFile(candidate.sector, size) {
                    refuse(candidate, "is not in the file")
                } else if fixed.contains(where: { $0.overlaps(candidate.range) }) {
                    refuse(candidate, "lies in the header, the descriptor or a directory")
                } else {
                    candidates.append(candidate)
                }
            }
        }
        candidates.sort { ($0.sector, $0.index) < ($1.sector, $1.index) }
        for index in candidates.indices.dropFirst() where candidates[index - 1].range.overlaps(candidates[index].range) {
            candidates[index - 1].isGood = false
            candidates[index].isGood = false
        }
        try findGrains(file, header, &candidates)
        for candidate in candidates {
            guard candidate.isGood else {
                refuse(candidate, "is another's too")
                continue
            }
            set(candidate, .good(candidate.sector))
            sectors.append(candidate.sector)
            if hasCopy, !candidate.isSecond, redundant[candidate.index] == candidate.sector { second[candidate.index] = .good(candidate.sector) }
        }
    }

    /// Whether a table, or what the header leads to, has any of these sectors.
    func contains(_ range: Range<UInt64>) -> Bool {
        if fixed.contains(where: { $0.overlaps(range) }) { return true }
        guard let last = sectors.last, range.lowerBound < UInt64(last) + VMDKHeader.tableSectors else { return false }
        let next = Self.search(sectors.count, { UInt64(sectors[$0]) + VMDKHeader.tableSectors > range.lowerBound })
        return next < sectors.count && UInt64(sectors[next]) < range.upperBound
    }

    /// Tables that were written anew lie among the grains. One where any entry of any table says that a grain lies is none, whether
    /// the entry is right or not.
    private func findGrains(_ file: ImageFile, _ header: VMDKHeader, _ candidates: inout [Candidate]) throws(ImageError) {
        // No grain lies in front of it. Most images have all tables there.
        let start = max(1, header.overhead)
        guard !header.isCompressed, candidates.contains(where: { $0.range.upperBound > start }) else { return }
        // How many more grains lie on a candidate than on the one before it: a hostile image may lead each entry to all of them.
        var changes = Array(repeating: 0, count: candidates.count + 1)
        var previous: UInt32 = 0
        for table in candidates where table.sector != previous {
            previous = table.sector
            guard try file.nextData(from: table.range.lowerBound * 512, end: table.range.upperBound * 512) != nil else { continue }
            for entry in try VMDKTables.readTable(file, at: table.sector) {
                guard let place = header.place(entry), place != 0 else { continue }
                let first = Self.search(candidates.count, { candidates[$0].range.upperBound > place })
                guard first < candidates.count, candidates[first].range.lowerBound < place + header.grainSectors else { continue }
                changes[first] += 1
                changes[Self.search(candidates.count, { candidates[$0].range.lowerBound >= place + header.grainSectors })] -= 1
            }
        }
        var grains = 0
        for index in candidates.indices {
            grains += changes[index]
            if grains > 0 { candidates[index].isGood = false }
        }
    }

    /// The first of so many that holds, when all behind it do.
    private static func search(_ count: Int, _ holds: (Int) -> Bool) -> Int {
        var (low, high) = (0, count)
        while low < high {
            let middle = (low + high) / 2
            if holds(middle) { high = middle } else { low = middle + 1 }
        }
        return low
    }

    private mutating func set(_ candidate: Candidate, _ place: Place) {
        if candidate.isSecond { second[candidate.index] = place } else { first[candidate.index] = place }
    }

    private mutating func refuse(_ candidate: Candidate, _ reason: String) {
        set(candidate, .bad)
        note("grain table \(candidate.index) at sector \(candidate.sector) \(reason)")
    }

    private mutating func note(_ text: String) {
        count += 1
        if findings.count < 100 { findings.append(text) }
    }
}
