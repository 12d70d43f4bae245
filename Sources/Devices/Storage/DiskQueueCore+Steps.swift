import DiskImage
import Glibc
import Linux
import Synchronization

/// Reads and writes as far as they go without waiting: extent by extent, from where `beginTransfer` says they lie.
extension DiskQueueCore {
    /// Who has to go on with a transfer.
    enum Step {
        /// The ring: the transfer holds an extent.
        case ring
        /// A thread that may wait: the transfer holds none.
        case threads
        /// Nobody: all of it is done.
        case finished
    }

    /// - Parameters:
    ///   - budget: most bytes to read on this thread, from the host's page cache; those that were are subtracted.
    ///   - mayFinish: whether this thread may complete the transfer.
    func step(_ index: Int, budget: inout UInt64, mayFinish: Bool) -> Step {
        // Of an empty request the image says whether its place is on the disk.
        if transfers[index].left == 0, transfers[index].done > 0 { return .finished }
        guard ring != nil || budget > 0, let direction = transfers[index].request.operation.direction,
            isPossible(index, direction)
        else { return .threads }
        while transfers[index].left > 0 {
            guard let extent = transfers[index].extent ?? begin(index, direction) else { return .threads }
            guard case .file(let descriptor, let place) = extent.place else {
                // Zeros are bytes to be written too: a guest may ask for gigabytes of them.
                guard mayFinish, direction == .read, extent.byteCount <= budget else {
                    end(index, direction)
                    return .threads
                }
                budget -= extent.byteCount
                transfers[index].zero(extent.byteCount)
                end(index, direction)
                continue
            }
            let rest = extent.byteCount - transfers[index].extentDone
            if direction == .read, rest <= budget {
                let buffers = transfers[index].nextBuffers(rest)
                let offset = place &+ transfers[index].extentDone
                if let count = buffers.readWithoutWaiting(from: descriptor, at: offset) {
                    budget -= min(budget, count)
                    moved(index, direction, count)
                    continue
                }
                // It lies on the medium, and so may what comes next: the attempt alone makes the host read ahead, which
                // can take a while.
                budget = 0
                coldReads.store(Self.attemptInterval, ordering: .relaxed)
            }
            if ring != nil, direction == .read || ringWrites { return .ring }
            end(index, direction)
            return .threads
        }
        return .finished
    }

    /// What is wrong with a request, the image says.
    private func isPossible(_ index: Int, _ direction: TransferDirection) -> Bool {
        let (offset, left) = (transfers[index].offset, transfers[index].left)
        guard left > 0, offset <= image.byteCount, image.byteCount - offset >= left else { return false }
        return direction == .read || !image.isReadOnly
    }

    private func begin(_ index: Int, _ direction: TransferDirection) -> Extent? {
        let (offset, left) = (transfers[index].offset, transfers[index].left)
        guard let extent = image.beginTransfer(direction, at: offset, count: left) else { return nil }
        transfers[index].extent = extent
        transfers[index].extentDone = 0
        return extent
    }

    private func end(_ index: Int, _ direction: TransferDirection) {
        guard let extent = transfers[index].extent else { return }
        image.endTransfer(direction, extent)
        transfers[index].extent = nil
        transfers[index].extentDone = 0
    }

    /// So many bytes of the extent are done.
    private func moved(_ index: Int, _ direction: TransferDirection, _ byteCount: UInt64) {
        transfers[index].advance(by: byteCount)
        if let extent = transfers[index].extent, transfers[index].extentDone >= extent.byteCount { end(index, direction) }
    }

    // MARK: The ring's thread

    func runRing(_ ring: DiskRing) {
        ring.awaitWake()
        var pushed: UInt32 = 1
        while true {
            takeJobs: while true {
                let turn: RingTurn = state.withLock { state in
                    if let index = state.ringJobs.popFirst() { return .run(index) }
                    if state.isStopping, isIdle { return .end }
                    state.ringSleeps = true
                    return .sleep
                }
                switch turn {
                case .run(let index): push(index, ring, &pushed)
                case .sleep: break takeJobs
                case .end: return
                }
            }
            do {
                pushed -= min(pushed, try ring.ring.submitAndWait(pushed))
            } catch {
                // A signal, or no memory in the kernel for more at the moment.
                if error.errno != EINTR { usleep(1000) }
            }
            while let completion = ring.ring.popCompletion() {
                if completion.name == DiskRing.wakeName {
                    ring.awaitWake()
                    pushed += 1
                } else {
                    goOn(Int(truncatingIfNeeded: completion.name), completion.result, ring, &pushed)
                }
            }
            wakeThreads()
        }
    }

    private enum RingTurn {
        case run(Int)
        case sleep, end
    }

    /// Gives the ring the extent that a transfer holds.
    private func push(_ index: Int, _ ring: DiskRing, _ pushed: inout UInt32) {
        guard let extent = transfers[index].extent, case .file(let descriptor, let place) = extent.place,
            let direction = transfers[index].request.operation.direction
        else { return enqueue(index) }
        let done = transfers[index].extentDone
        let buffers = transfers[index].nextBuffers(extent.byteCount - done)
        // Kernel threads would do the writes of file systems that cannot tell whether they wait; our own are as good, and
        // complete them themselves.
        ring.ring.push(
            direction == .read ? .read : .write, descriptor: descriptor, buffers, offset: place &+ done,
            waits: direction == .read, name: UInt64(index))
        pushed += 1
    }

    /// Something that the ring was given is complete.
    private func goOn(_ index: Int, _ result: Int32, _ ring: DiskRing, _ pushed: inout UInt32) {
        guard let direction = transfers[index].request.operation.direction else { return }
        if result > 0 {
            if direction == .write { refusedWrites.store(0, ordering: .relaxed) }
            moved(index, direction, UInt64(result))
        } else if result == 0, direction == .read, let extent = transfers[index].extent {
            // Behind the end of a file that is shorter than the disk.
            transfers[index].zero(extent.byteCount - transfers[index].extentDone)
            end(index, direction)
        } else {
            if direction == .write { refusedWrites.add(1, ordering: .relaxed) }
            // A thread tries again, and finds out whether it is an error.
            end(index, direction)
            return enqueue(index)
        }
        var budget: UInt64 = 0
        switch step(index, budget: &budget, mayFinish: true) {
        case .ring: push(index, ring, &pushed)
        case .threads: enqueue(index)
        case .finished: complete(index, .done)
        }
    }
}

extension DiskOperation {
    /// `nil` for what moves no bytes.
    var direction: TransferDirection? {
        switch self {
        case .read: .read
        case .write: .write
        case .flush, .discard, .writeZeroes, .writeZeroesDiscarding: nil
        }
    }
}
