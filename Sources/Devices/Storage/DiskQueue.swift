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
        let depth = max(1, min(depth, Self.greatestDepth))
        core = DiskQueueCore(image, depth: depth, ring: try Self.makeRing(method, depth), onCompletion: onCompletion)
        try core.start()
    }

    /// As many requests as a ring takes (io_uring_setup(2)), but for the wake-up.
    private static let greatestDepth = 32767

    private static func makeRing(_ method: Method, _ depth: Int) throws(SystemError) -> DiskRing? {
        switch method {
        case .threads: return nil
        case .ring: return try DiskRing(depth: depth)
        case .automatic:
            // Whatever the reason: the kernel is older, or a container's filter or the administrator forbids it.
            do { return try DiskRing(depth: depth) } catch { return nil }
        }
    }

    /// Whether it has a ring.
    public var usesRing: Bool { core.ring != nil }

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
