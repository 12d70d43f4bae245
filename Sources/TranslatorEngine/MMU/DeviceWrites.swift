import Synchronization
import VMM

/// Writes by devices to pages that hold translated code: noted on the device's thread, acted on by the CPU's.
///
/// A CPU has to execute a serializing instruction or take an interrupt before it may run code that another agent has
/// written (SDM Vol. 3, 9.1.3). Both look here first; so the blocks are gone in time.
final class DeviceWrites: Sendable {
    private static let limit = 256
    private let ranges = Mutex<[Range<Int>]>([])
    private let isPending = Atomic<Bool>(false)

    func add(_ range: Range<Int>) {
        ranges.withLock { ranges in
            // More than the limit means all.
            if ranges.count <= Self.limit { ranges.append(range) }
        }
        isPending.store(true, ordering: .sequentiallyConsistent)
    }

    /// `nil`: too many to tell.
    func take() -> [Range<Int>]? {
        isPending.store(false, ordering: .sequentiallyConsistent)
        return ranges.withLock { ranges in
            let all = ranges
            ranges.removeAll()
            return all.count > Self.limit ? nil : all
        }
    }

    @inline(__always) var areWaiting: Bool { isPending.load(ordering: .relaxed) }
}

extension TranslatorCPU {
    /// Drops the blocks made from bytes that devices have written since. No block runs.
    func takeDeviceWrites() {
        guard let ranges = deviceWrites.take() else { return flushCode() }
        for range in ranges {
            if cache.removeBlocks(page: range.lowerBound >> 12, overlapping: range, running: 0).removed { codeChanged = true }
        }
        for table in 0..<TLB.tableCount { tlb.clearJumpCache(table) }
    }
}
