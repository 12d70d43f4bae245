import ControlProtocol

/// The machines by id and name. A name of one owner keeps its id as long as the daemon lives, also while it is not in
/// the table.
struct MachineTable {
    private struct Key: Hashable {
        let name: String
        let uid: UInt32
    }

    private(set) var records: [MachineRecord] = []
    private var ids: [Key: UInt32] = [:]
    private var nextID: UInt32 = 1
    /// Ids are handed out by names that users choose.
    private static let mostIDs = 100_000

    func find(_ reference: MachineReference) -> MachineRecord? {
        switch reference {
        case .id(let id): records.first { $0.id == id }
        case .name(let name): records.first { $0.name == name }
        }
    }

    func find(run: UInt32) -> MachineRecord? { records.first { $0.process?.run == run } }

    /// Adds a machine whose name is free.
    mutating func add(_ plan: MachinePlan, isConfigured: Bool) -> MachineRecord {
        let key = Key(name: plan.name, uid: plan.owner.uid)
        if ids.count >= Self.mostIDs { ids = ids.filter { id in records.contains { $0.id == id.value } } }
        let id = ids[key] ?? takeID()
        ids[key] = id
        let record = MachineRecord(id: id, plan, isConfigured: isConfigured)
        let place = records.firstIndex { $0.id > id } ?? records.endIndex
        records.insert(record, at: place)
        return record
    }

    mutating func remove(_ record: MachineRecord) { records.removeAll { $0 === record } }

    /// `reset vms`: numbering starts again.
    mutating func forgetIDs() {
        ids = [:]
        nextID = 1
    }

    /// Machines that are still about to end keep theirs over `reset`.
    private mutating func takeID() -> UInt32 {
        while records.contains(where: { $0.id == nextID }) { nextID &+= 1 }
        defer { nextID &+= 1 }
        return nextID
    }

    /// The name that somebody may have meant: at most two letters (a third of a short name) away.
    func nearest(to name: String) -> String? {
        let limit = min(2, max(1, name.count / 3))
        let counts = max(0, name.utf8.count - limit)...name.utf8.count + limit
        let candidates = records.filter { counts.contains($0.name.utf8.count) }.map { ($0.name, editDistance($0.name, name)) }.filter { $0.1 <= limit }
        return candidates.min { $0.1 < $1.1 }?.0
    }
}

/// How many letters have to be put in, left out, exchanged or swapped with their neighbour.
func editDistance(_ left: String, _ right: String) -> Int {
    let left = Array(left.utf8), right = Array(right.utf8)
    var before: [Int] = [], last = Array(0...right.count)
    for (row, letter) in left.enumerated() {
        var current = [row + 1]
        for (column, other) in right.enumerated() {
            var cost = min(current[column] + 1, last[column + 1] + 1, last[column] + (letter == other ? 0 : 1))
            if row > 0, column > 0, letter == right[column - 1], left[row - 1] == other {
                cost = min(cost, before[column - 1] + 1)
            }
            current.append(cost)
        }
        (before, last) = (last, current)
    }
    return last[right.count]
}
