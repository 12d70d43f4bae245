import Linux

/// What is asked of a machine's disks while it runs: one after the other, on a thread that may wait. There is none while there is
/// nothing to do.
final class DiskWork: Sendable {
    typealias Job = @Sendable () -> Void

    private struct State {
        var jobs: [Job] = []
        var isBusy = false
        var isClosed = false
    }

    private let state = Monitor(State())

    /// Does it soon.
    /// - Throws: when there can be no thread; then it is not done.
    func add(_ job: @escaping Job) throws(SystemError) {
        let starts = state.withLock { state in
            guard !state.isClosed else { return false }
            state.jobs.append(job)
            defer { state.isBusy = true }
            return !state.isBusy
        }
        guard starts else { return }
        do {
            try PosixThread("disk work") { [self] in run() }.detach()
        } catch {
            // Nobody else could add one: it is the only one there is.
            state.withLock { state in
                state.jobs = []
                state.isBusy = false
            }
            throw error
        }
    }

    private func run() {
        while let job = next() { job() }
        state.broadcast()
    }

    private func next() -> Job? {
        state.withLock { state in
            guard !state.jobs.isEmpty else {
                state.isBusy = false
                return nil
            }
            return state.jobs.removeFirst()
        }
    }

    /// Waits until what has begun is done; what has not is not done any more. At the process's end: an image is left between two
    /// changes, and the snapshots of several are all there or none.
    func close() {
        state.withLock { state in
            state.isClosed = true
            state.jobs = []
        }
        state.withLock(waitingWhile: { $0.isBusy }) { _ in }
    }
}
