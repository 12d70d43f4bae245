/// Whose turn it is to start: some at once, the next ones after a while, so that many machines do not spoil each
/// other's start (`staggered start parallel N delay S`).
struct StartQueue {
    /// Machines by id, in the configuration's order.
    private(set) var waiting: [UInt32] = []
    let parallel: Int
    /// Nanoseconds.
    let delay: UInt64
    /// When the next ones may start; `nil` when none ever did.
    private var nextTurn: UInt64?

    init(parallel: Int, delay: UInt64) {
        self.parallel = max(1, parallel)
        self.delay = delay
    }

    /// The same machines under other rules. Who has just started some waits on.
    init(_ old: StartQueue, parallel: Int, delay: UInt64) {
        self.init(parallel: parallel, delay: delay)
        waiting = old.waiting
        nextTurn = old.nextTurn
    }

    mutating func add(_ id: UInt32) { if !waiting.contains(id) { waiting.append(id) } }
    mutating func remove(_ id: UInt32) { waiting.removeAll { $0 == id } }

    /// Those that may start at `now`.
    mutating func take(at now: UInt64) -> [UInt32] {
        guard !waiting.isEmpty else { return [] }
        if let nextTurn, now < nextTurn { return [] }
        let count = min(parallel, waiting.count)
        let turn = Array(waiting.prefix(count))
        waiting.removeFirst(count)
        nextTurn = now &+ delay
        return turn
    }

    /// When `take` will have some; `nil` when none wait.
    var deadline: UInt64? { waiting.isEmpty ? nil : nextTurn ?? 0 }
}
