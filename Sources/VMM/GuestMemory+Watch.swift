import Glibc
import Linux
import Synchronization

/// Pages of RAM that an engine has made something of (translated code), and whom to tell when a device writes them.
///
/// The CPU's own stores do not pass here: an engine sees those by itself. Everyone else writes through `GuestMemory`,
/// or calls `noteWritten` behind writes through a pointer.
@usableFromInline final class MemoryWatch: Sendable {
    private let map: MemoryMapping
    private let watchers = Mutex<[@Sendable (Swift.Range<Int>) -> Void]>([])

    init(pageCount: Int) throws(SystemError) {
        map = try MemoryMapping(
            byteCount: max(pageCount, 1), protection: PROT_READ | PROT_WRITE,
            flags: MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE)
    }

    /// One byte a page, not zero when it is watched.
    @inline(__always) private func flag(_ page: Int) -> UnsafeMutablePointer<Atomic<UInt8>> {
        (map.base + page).assumingMemoryBound(to: Atomic<UInt8>.self)
    }
    func add(_ watcher: @escaping @Sendable (Swift.Range<Int>) -> Void) { watchers.withLock { $0.append(watcher) } }
    func set(_ page: Int, _ isWatched: Bool) {
        if flag(page).pointee.load(ordering: .relaxed) != (isWatched ? 1 : 0) {
            flag(page).pointee.store(isWatched ? 1 : 0, ordering: .sequentiallyConsistent)
        }
    }

    /// `offset` and `count` are in RAM.
    @usableFromInline func written(_ offset: Int, _ count: Int) {
        // The bytes first, then the look: who watches a page reads its bytes afterwards.
        atomicMemoryFence(ordering: .sequentiallyConsistent)
        for page in offset >> 12...(offset + count - 1) >> 12 where flag(page).pointee.load(ordering: .relaxed) != 0 {
            let start = max(offset, page << 12), end = min(offset + count, (page + 1) << 12)
            for watcher in watchers.withLock({ $0 }) { watcher(start..<end) }
        }
    }
}

extension GuestMemory {
    /// Tells the engines of bytes that were written through a pointer, in one range of RAM. Any thread.
    @inlinable public func noteWritten(_ address: UnsafeMutableRawPointer, count: Int) {
        guard count > 0 else { return }
        watch.written(address - hostBase, count)
    }

    /// From now on `onWrite` hears of writes by others than CPUs to watched pages, with the offsets in RAM, all in one
    /// page: on any thread, and behind the write. It must not block.
    public func onWatchedWrite(_ onWrite: @escaping @Sendable (Swift.Range<Int>) -> Void) { watch.add(onWrite) }

    /// Watches a page of RAM, or no longer. To be called before the bytes are read that are to be watched.
    public func setWatched(page: Int, _ isWatched: Bool) { watch.set(page, isWatched) }
}
