public import DiskImage
public import Linux

/// A disk's requests under way: they are read and written here, so that no virtual CPU ever waits for a disk.
///
/// The queue knows nothing of a bus or of a guest. `submit` and `submitBatchEnd` are for any thread.
public final class DiskQueue: Sendable {
    /// Who waits for the host's disk.
    public enum Method: Hashable, Sendable, CaseIterable {
        /// The ring where the kernel allows it, threads otherwise.
        case automatic
        /// io_uring(7), and a few threads for what it cannot do.
        case ring
        /// A few threads.
        case threads
    }

    private let core: DiskQueueCore

    /// - Parameters:
    ///   - depth: most requests in flight. What the caller submits beyond that fails.
    ///   - onCompletion: called once for each request, in any order, on the queue's own threads, without locks; also on a
    ///     thread that calls `submitBatchEnd(completesHere: true)`. The request's memory is the caller's again.
    /// - Throws: what starting the first thread or, with `ring`, making the ring says.
    public init(
        _ image: any BlockImage, depth: Int, method: Method = .automatic,
        onCompletion: @escaping @Sendable (_ tag: UInt32, _ result: DiskResult) -> Void
    ) throws(SystemError) {
        core = DiskQueueCore(image, depth: depth, onCompletion: onCompletion)
        try core.start()
    }

    /// Threads end when they have done what is left. Who frees the requests' memory calls `drain` before.
    deinit { core.stop() }

    /// Takes a request; `submitBatchEnd` must follow, after this one or after some more. Never blocks.
    public func submit(_ request: DiskRequest) { core.submit(request) }

    /// Starts what was submitted. Never waits for a disk.
    /// - Parameter completesHere: what needs no wait at all (reads from the page cache) may be done and completed on this
    ///   thread before the call returns, which is the fastest way by far. The caller must hold no lock then that
    ///   the completion takes.
    public func submitBatchEnd(completesHere: Bool = false) { core.startBatch(completesHere: completesHere) }

    /// Returns when nothing is in flight. What is submitted meanwhile is waited for as well. Not from a completion.
    public func drain() { core.drain() }
}
