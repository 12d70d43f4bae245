import DiskImage
import Linux
import Synchronization

/// What a `DiskQueue` shares with its threads, which keep it alive until they have ended.
final class DiskQueueCore: Sendable {
    struct State {
        /// Numbers of transfers that are nobody's.
        var free: [Int]
        /// Submitted, not yet started.
        var batch: IndexQueue
        /// For the next thread.
        var jobs: IndexQueue
        /// Tags of requests that came although `depth` others were in flight: the threads refuse them.
        var refused: [UInt32] = []
        /// A bit for each thread that sleeps and was not woken.
        var idle: UInt32 = 0
        /// A bit for each thread that there is.
        var threads: UInt32 = 0
        var isStopping = false
    }

    /// A disk works on a few requests at a time; more threads would only wait in another place.
    static let mostThreads = 4

    let image: any BlockImage
    let onCompletion: @Sendable (UInt32, DiskResult) -> Void
    let transfers: DiskTransferTable
    let state: Monitor<State>
    private let parkers: [Parker]
    /// Submitted, and the completion has not yet returned.
    private let inFlight = Atomic<Int>(0)
    private let drainers = Atomic<Int>(0)

    init(_ image: any BlockImage, depth: Int, onCompletion: @escaping @Sendable (UInt32, DiskResult) -> Void) {
        let depth = max(1, depth)
        self.image = image
        self.onCompletion = onCompletion
        transfers = DiskTransferTable(count: depth)
        parkers = (0..<Self.mostThreads).map { _ in Parker() }
        state = Monitor(
            State(free: Array((0..<depth).reversed()), batch: IndexQueue(capacity: depth), jobs: IndexQueue(capacity: depth)))
    }

    // MARK: Any thread

    func submit(_ request: DiskRequest) {
        inFlight.add(1, ordering: .sequentiallyConsistent)
        state.withLock { state in
            guard let index = state.free.popLast() else { return state.refused.append(request.tag) }
            transfers[index].start(request)
            state.batch.append(index)
        }
    }

    func startBatch(completesHere: Bool) {
        while let index = state.withLock({ $0.batch.popFirst() }) {
            enqueue(index)
        }
        wakeThreads()
    }

    func drain() {
        drainers.add(1, ordering: .sequentiallyConsistent)
        state.withLock(waitingWhile: { _ in inFlight.load(ordering: .sequentiallyConsistent) > 0 }) { _ in }
        drainers.subtract(1, ordering: .sequentiallyConsistent)
    }

    func stop() {
        state.withLock { $0.isStopping = true }
        endThreads()
    }

    // MARK: The end of a request

    /// The transfer is nobody's when this returns.
    func complete(_ index: Int, _ result: DiskResult) {
        let tag = transfers[index].request.tag
        // Before the caller hears of it: it may submit the next at once.
        state.withLock { $0.free.append(index) }
        finish(tag, result)
    }

    private func finish(_ tag: UInt32, _ result: DiskResult) {
        onCompletion(tag, result)
        guard inFlight.subtract(1, ordering: .sequentiallyConsistent).newValue == 0 else { return }
        if drainers.load(ordering: .sequentiallyConsistent) > 0 {
            // With the lock: who waits has either not looked yet or sleeps.
            state.withLock { _ in }
            state.broadcast()
        }
        if state.withLock({ $0.isStopping }) { endThreads() }
    }

    // MARK: Threads

    /// The first thread, so that whatever happens later somebody can do the work.
    func start() throws(SystemError) {
        state.withLock { $0.threads = 1 }
        try startThread(0)
    }

    private func startThread(_ number: Int) throws(SystemError) {
        try PosixThread("disk") { [self] in work(number) }.detach()
    }

    /// Hands a transfer to the threads; `wakeThreads` must follow.
    func enqueue(_ index: Int) { state.withLock { $0.jobs.append(index) } }

    /// Sees to it that as many threads work as there are jobs, within bounds.
    func wakeThreads() {
        let (woken, new): (UInt32, UInt32) = state.withLock { state in
            let wanted = state.jobs.count + min(state.refused.count, Self.mostThreads)
            let woken = Self.lowestBits(wanted, of: state.idle)
            state.idle &= ~woken
            let new = Self.lowestBits(wanted - woken.nonzeroBitCount, of: ~state.threads & (1 << UInt32(Self.mostThreads) - 1))
            state.threads |= new
            return (woken, new)
        }
        for number in 0..<Self.mostThreads where woken & 1 << UInt32(number) != 0 { parkers[number].unpark() }
        for number in 0..<Self.mostThreads where new & 1 << UInt32(number) != 0 {
            do {
                try startThread(number)
            } catch {
                // Those that are there do it all, and the next time it may work.
                state.withLock { $0.threads &= ~(1 << UInt32(number)) }
            }
        }
    }

    private static func lowestBits(_ count: Int, of mask: UInt32) -> UInt32 {
        var (rest, left) = (mask, count)
        while left > 0, rest != 0 {
            rest &= rest - 1
            left -= 1
        }
        return mask & ~rest
    }

    private func endThreads() { for parker in parkers { parker.unpark() } }

    private enum Turn {
        case run(Int)
        case refuse(UInt32)
        case sleep, end
    }

    private func work(_ number: Int) {
        let own: UInt32 = 1 << UInt32(number)
        while true {
            let turn: Turn = state.withLock { state in
                state.idle &= ~own
                if let index = state.jobs.popFirst() { return .run(index) }
                if let tag = state.refused.popLast() { return .refuse(tag) }
                if state.isStopping, inFlight.load(ordering: .sequentiallyConsistent) == 0 { return .end }
                state.idle |= own
                return .sleep
            }
            switch turn {
            case .run(let index): complete(index, perform(index))
            case .refuse(let tag): finish(tag, .failed)
            case .sleep: parkers[number].park()
            case .end: return
            }
        }
    }
}
