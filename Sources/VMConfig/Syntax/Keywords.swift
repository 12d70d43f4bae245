/// The words that mean something.
enum Keywords {
    /// OpenBSD's keywords: as names they need quotes. The words that are only ours need none, so that files from
    /// there keep their meaning.
    static let reserved: Set<String> = [
        "add", "agentx", "allow", "boot", "cdrom", "context", "cpus", "delay", "device", "disable", "disk", "down",
        "enable", "format", "group", "id", "include", "inet6", "instance", "interface", "interfaces", "lladdr", "local",
        "locked", "memory", "net", "owner", "parallel", "path", "prefix", "rdomain", "sev", "seves", "size", "socket",
        "staggered", "start", "switch", "up", "vm",
    ]

    /// The candidate that `text` is a slip of, if one is: at most one typing mistake in short words, two in longer.
    static func nearest(to text: String, among candidates: some Collection<String>) -> String? {
        let word = Array(text.utf8.prefix(64))
        // Of very many names none is worth the time that a hostile file would make of it.
        guard text.utf8.count < 64, word.count > 1, candidates.count <= 256 else { return nil }
        var best: (distance: Int, candidate: String)?
        for candidate in candidates where candidate != text {
            let other = Array(candidate.utf8)
            let limit = min(word.count, other.count) <= 4 ? 1 : 2
            guard abs(other.count - word.count) <= limit else { continue }
            let distance = distance(word, other)
            let isBetter = best.map { (distance, candidate) < ($0.distance, $0.candidate) } ?? true
            if distance <= limit, isBetter { best = (distance, candidate) }
        }
        return best?.candidate
    }

    /// Letters to insert, remove, change or swap with their neighbours.
    private static func distance(_ a: [UInt8], _ b: [UInt8]) -> Int {
        var beforePrevious: [Int] = []
        var previous = Array(0...b.count)
        for i in 0..<a.count {
            var row = [i + 1]
            for j in 0..<b.count {
                var cost = min(previous[j + 1] + 1, row[j] + 1, previous[j] + (a[i] == b[j] ? 0 : 1))
                if i > 0, j > 0, a[i] == b[j - 1], a[i - 1] == b[j] { cost = min(cost, beforePrevious[j - 1] + 1) }
                row.append(cost)
            }
            beforePrevious = previous
            previous = row
        }
        return previous[b.count]
    }
}
