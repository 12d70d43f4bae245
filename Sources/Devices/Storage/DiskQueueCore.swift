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
        /// For the ring, each with an extent.
        var ringJobs: IndexQueue
        /// The ring's thread waits in the kernel, or is about to.
        var ringSleeps = false
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
    /// Most bytes that one batch reads on the thread of its caller: what takes about as long as waking another one does
    /// now and then, and as long as a guest's interrupts may wait.
    private static let mostHere: UInt64 = 256 << 10
    /// After a read that was not in the page cache: how many batches go to threads before the next attempt.
    static let attemptInterval = 16

    let image: any BlockImage
    let onCompletion: @Sendable (UInt32, DiskResult) -> Void
    let transfers: DiskTransferTable
    let state: Monitor<State>
    let ring: DiskRing?
    /// Writes in a row that the ring could not do without waiting. On most file systems it never can.
    let refusedWrites = Atomic<Int>(0)
    private static let mostRefusedWrites = 8
    /// Batches until reading on the caller's thread is worth an attempt.
    let coldReads = Atomic<Int>(0)
    private let parkers: [Parker]
    /// Submitted, and the completion has not yet returned.
    private let inFlight = Atomic<Int>(0)
    private let drainers = Atomic<Int>(0)

    init(
        _ image: any BlockImage, depth: Int, ring: DiskRing?, onCompletion: @escaping @Sendable (UInt32, DiskResult) -> Void
    ) {
        self.image = image
        self.ring = ring
        self.onCompletion = onCompletion
        transfers = DiskTransferTable(count: depth)
        parkers = (0..<Self.mostThreads).map { _ in Parker() }
        state = Monitor(
            State(
                free: Array((0..<depth).reversed()), batch: IndexQueue(capacity: depth), jobs: IndexQueue(capacity: depth),
                ringJobs: IndexQueue(capacity: depth)))
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
        var budget = completesHere && attemptsReads() ? Self.mostHere : 0
        var wakesRing = false
        while let index = state.withLock({ $0.batch.popFirst() }) {
            switch step(index, budget: &budget, mayFinish: completesHere) {
            case .finished: complete(index, .done)
            case .threads: enqueue(index)
            case .ring:
                let sleeps = state.withLock { state in
                    state.ringJobs.append(index)
                    defer { state.ringSleeps = false }
                    return state.ringSleeps
                }
                wakesRing = wakesRing || sleeps
            }
        }
        if wakesRing { ring?.wake() }
        wakeThreads()
    }

    /// Whether it is likely that reads are in the page cache.
    private func attemptsReads() -> Bool {
        guard coldReads.load(ordering: .relaxed) > 0 else { return true }
        coldReads.subtract(1, ordering: .relaxed)
        return false
    }

    /// Whether the ring is worth a write.
    var ringWrites: Bool { refusedWrites.load(ordering: .relaxed) < Self.mostRefusedWrites }

    /// Whether nothing is in flight.
    var isIdle: Bool { inFlight.load(ordering: .sequentiallyConsistent) == 0 }

    func drain() {
        drainers.add(1, ordering: .sequentiallyConsistent)
        state.withLock(waitingWhile: { _ in !isIdle }) { _ in }
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
        if let ring { try PosixThread("disk ring") { [self] in runRing(ring) }.detach() }
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

    private func endThreads() {
        for parker in parkers { parker.unpark() }
        ring?.wake()
    }

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
                if state.isStopping, isIdle { return .end }
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
