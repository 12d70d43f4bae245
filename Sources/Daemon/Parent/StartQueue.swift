/// Whose turn it is to start: so many in a while and no more, so that many machines do not spoil each other's start
/// (`staggered start parallel N delay S`).
struct StartQueue {
    /// Machines by id, in the configuration's order.
    private(set) var waiting: [UInt32] = []
    let parallel: Int
    /// Nanoseconds.
    let delay: UInt64
    /// Who started since this has used up some of the turn.
    private var turnStart: UInt64?
    private var startedInTurn = 0

    init(parallel: Int, delay: UInt64) {
        self.parallel = max(1, parallel)
        self.delay = delay
    }

    /// The same machines under other rules. Who has just started some waits on.
    init(_ old: StartQueue, parallel: Int, delay: UInt64) {
        self.init(parallel: parallel, delay: delay)
        waiting = old.waiting
        turnStart = old.turnStart
        startedInTurn = old.startedInTurn
    }

    mutating func add(_ id: UInt32) { if !waiting.contains(id) { waiting.append(id) } }
    mutating func remove(_ id: UInt32) { waiting.removeAll { $0 == id } }

    /// Those that may start at `now`.
    mutating func take(at now: UInt64) -> [UInt32] {
        guard !waiting.isEmpty else { return [] }
        if now >= nextTurn {
            turnStart = now
            startedInTurn = 0
        }
        let turn = Array(waiting.prefix(max(0, parallel - startedInTurn)))
        waiting.removeFirst(turn.count)
        startedInTurn += turn.count
        return turn
    }

    private var nextTurn: UInt64 {
        guard let turnStart else { return 0 }
        let (time, isOver) = turnStart.addingReportingOverflow(delay)
        return isOver ? .max : time
    }

    /// When `take` will have some; `nil` when none wait.
    var deadline: UInt64? {
        if waiting.isEmpty { return nil }
        return startedInTurn < parallel ? 0 : nextTurn
    }
}
