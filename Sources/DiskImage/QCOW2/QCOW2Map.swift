import Synchronization

/// Where the guest's clusters lie: the L1 table, the slices of L2 tables that are in memory, and who is using what.
///
/// `@unchecked Sendable`: tables change only with both the image's lock (`QCOW2State`) and the lock in here held, so holding
/// either is enough to read them; the rest is touched with the lock in here held. It is held only for work in memory, so
/// finding a place never waits for a disk.
final class QCOW2Map: @unchecked Sendable {
    let geometry: QCOW2Geometry
    let version: Int
    let cache: QCOW2SliceCache
    /// Grows before clusters that were given back are used again.
    let generation = Atomic<UInt64>(0)
    private(set) var l1: [UInt64]
    private let lock = Mutex(())

    /// What transfers outside of locks are using, in the file. No order; room is made beforehand.
    private var holds: [Hold] = []
    /// Those of callers, who may need to do something else before they end theirs.
    private var transfers = 0
    /// Who waits for the callers' transfers to end: none begins meanwhile.
    private var transferBlocks = 0
    /// Maintenance waits or runs: nothing new begins.
    private var isBlocked = false
    /// Clusters of the file that hold tables.
    private var metadata: QCOW2ClusterFilter

    struct Hold {
        var offset: UInt64
        var byteCount: UInt64
        var direction: TransferDirection
        var isTransfer: Bool
    }

    /// How many transfers others may hold at a time.
    static let holdLimit = 512
    /// The bound on memory for L2 slices; maps 128 GiB with clusters of 64 KiB.
    static let cacheByteCount = 16 << 20

    init(_ geometry: QCOW2Geometry, version: Int, l1: [UInt64]) {
        self.geometry = geometry
        self.version = version
        self.l1 = l1
        cache = QCOW2SliceCache(sliceSize: geometry.sliceSize, byteCount: Self.cacheByteCount)
        metadata = QCOW2ClusterFilter()
        holds.reserveCapacity(Self.holdLimit * 2)
    }

    struct Mapping {
        var kind: QCOW2Entry.Kind
        /// Of the first byte in the file, for data; of the whole cluster's bytes, when compressed.
        var hostOffset: UInt64 = 0
        /// How many bytes are alike and, for data, lie together.
        var byteCount: UInt64
        /// The compressed bytes; with `hostOffset` what is held.
        var compressedByteCount: UInt64 = 0
    }

    enum Lookup {
        case found(Mapping)
        /// The slice is not in memory.
        case missing
        /// Maintenance is going on.
        case blocked
        /// Only for writing: room must be found first, or the entry is not to be trusted.
        case notInPlace
    }

    /// Looks where the first bytes of a range lie. Data and compressed clusters are held until `release`.
    /// - Parameter isTransfer: for a caller, who ends it when he likes. Gives up when many hold something already.
    func lookup(_ direction: TransferDirection, at offset: UInt64, count: UInt64, isTransfer: Bool = false) -> Lookup {
        lock.withLock { _ in
            guard !isBlocked, !isTransfer || transferBlocks == 0 else { return .blocked }
            if isTransfer, holds.count >= Self.holdLimit { return .notInPlace }
            let found = find(direction, at: offset, count: count)
            if case .found(let mapping) = found, mapping.kind == .data || mapping.kind == .compressed {
                hold(direction, mapping, isTransfer)
            }
            return found
        }
    }

    /// - Returns: whether somebody is waiting for it.
    func release(_ direction: TransferDirection, offset: UInt64, count: UInt64, isTransfer: Bool = false) -> Bool {
        lock.withLock { _ in
            // The newest first: it is most often the one.
            let found = holds.lastIndex {
                $0.offset == offset && $0.byteCount == count && $0.direction == direction && $0.isTransfer == isTransfer
            }
            if let found {
                holds.swapAt(found, holds.count - 1)
                holds.removeLast()
                if isTransfer { transfers -= 1 }
            }
            return isBlocked || transferBlocks > 0
        }
    }

    private func hold(_ direction: TransferDirection, _ mapping: Mapping, _ isTransfer: Bool) {
        let byteCount = mapping.kind == .compressed ? mapping.compressedByteCount : mapping.byteCount
        holds.append(Hold(offset: mapping.hostOffset, byteCount: byteCount, direction: direction, isTransfer: isTransfer))
        if isTransfer { transfers += 1 }
    }

    /// Without the lock: for who holds the image's.
    func find(_ direction: TransferDirection, at offset: UInt64, count: UInt64) -> Lookup {
        let index = Int(truncatingIfNeeded: offset >> UInt64(geometry.l1Shift))
        let l1Rest = (1 << UInt64(geometry.l1Shift)) - (offset & ((1 << UInt64(geometry.l1Shift)) - 1))
        guard index < l1.count, l1[index] & QCOW2Limit.offsetMask != 0 else {
            if direction == .write { return .notInPlace }
            return .found(Mapping(kind: .unallocated, byteCount: min(count, l1Rest)))
        }
        guard let slot = cache.find(offset >> UInt64(geometry.sliceShift)) else { return .missing }
        if direction == .write, l1[index] & QCOW2Entry.copied == 0 { return .notInPlace }
        let mapping = run(cache.memory(slot), direction, at: offset, count: count)
        guard direction == .write else { return .found(mapping) }
        guard mapping.kind == .data, !metadata.mayContain(mapping.hostOffset, mapping.byteCount, geometry) else {
            return .notInPlace
        }
        return .found(mapping)
    }

    /// The run of units that are alike, from an offset on, in a slice.
    private func run(
        _ slice: UnsafeMutableRawPointer, _ direction: TransferDirection, at offset: UInt64, count: UInt64
    ) -> Mapping {
        let unitBits = UInt64(geometry.subclusterBits)
        let units = 1 << (geometry.clusterBits - geometry.subclusterBits)
        let entries = 1 << geometry.sliceEntryBits
        var cluster = Int(truncatingIfNeeded: offset >> UInt64(geometry.clusterBits)) & (entries - 1)
        var unit = Int(truncatingIfNeeded: offset >> unitBits) & (units - 1)
        let skipped = offset & ((1 << unitBits) - 1)
        var entry = slice.entry(cluster, geometry)
        let kind = entry.kind(unit, geometry, version: version)
        var mapping = Mapping(kind: kind, byteCount: 0)
        switch kind {
        case .data: mapping.hostOffset = entry.offset &+ UInt64(unit) << unitBits &+ skipped
        case .compressed:
            let range = entry.compressedRange(geometry)
            mapping.hostOffset = range.offset
            mapping.compressedByteCount = range.byteCount
            mapping.byteCount = min(count, geometry.clusterSize - offset & geometry.clusterMask)
            return mapping
        default: break
        }
        if direction == .write, !entry.isCopied {
            mapping.kind = .unallocated
            return mapping
        }
        var next = mapping.hostOffset &- skipped
        var total: UInt64 = 0
        let wanted = count &+ skipped
        while true {
            total &+= 1 << unitBits
            next &+= 1 << unitBits
            if total >= wanted { break }
            unit += 1
            if unit == units {
                unit = 0
                cluster += 1
                if cluster == entries { break }
                entry = slice.entry(cluster, geometry)
                if direction == .write, !entry.isCopied { break }
            }
            guard entry.kind(unit, geometry, version: version) == kind else { break }
            if kind == .data, entry.offset &+ UInt64(unit) << unitBits != next { break }
        }
        mapping.byteCount = min(count, total &- skipped)
        return mapping
    }

    // MARK: Changes; the image's lock is held

    func change<T>(_ body: (QCOW2SliceCache) -> T) -> T { lock.withLock { _ in body(cache) } }
    func setL1(_ index: Int, _ value: UInt64) { lock.withLock { _ in l1[index] = value } }
    func replaceL1(_ table: [UInt64]) { lock.withLock { _ in l1 = table } }

    func blockTransfers(_ change: Int) { lock.withLock { _ in transferBlocks += change } }
    var hasTransfers: Bool { lock.withLock { _ in transfers > 0 } }
    func block(_ blocked: Bool) { lock.withLock { _ in isBlocked = blocked } }
    var isIdle: Bool { lock.withLock { _ in holds.isEmpty } }

    /// Whether a transfer is using any of these bytes.
    func isHeld(_ offset: UInt64, _ count: UInt64) -> Bool {
        lock.withLock { _ in
            holds.contains { $0.offset < offset &+ count && offset < $0.offset &+ $0.byteCount }
        }
    }

    func addMetadata(_ offset: UInt64, clusters: UInt64) {
        lock.withLock { _ in metadata.insert(offset >> UInt64(geometry.clusterBits), clusters) }
    }

    func mayBeMetadata(_ offset: UInt64, _ count: UInt64) -> Bool { metadata.mayContain(offset, count, geometry) }

    /// Whether the filter has become too small for so many clusters and must be made anew.
    func needsLargerFilter(clusters: UInt64) -> Bool { !metadata.suits(clusters) }
    func resetFilter(clusters: UInt64) { lock.withLock { _ in metadata = QCOW2ClusterFilter(clusters: clusters) } }
}

/// Says of most clusters at once that they hold no table: one bit for each of them, and in very large files for several.
struct QCOW2ClusterFilter {
    private var words: [UInt64]
    /// In clusters; a power of two.
    private let size: UInt64

    static let largest: UInt64 = 1 << 23

    init(clusters: UInt64 = 0) {
        var size: UInt64 = 1 << 12
        while size < clusters, size < Self.largest { size <<= 1 }
        self.size = size
        words = [UInt64](repeating: 0, count: Int(size / 64))
    }

    func suits(_ clusters: UInt64) -> Bool { clusters <= size || size == Self.largest }

    mutating func insert(_ first: UInt64, _ count: UInt64) {
        for cluster in 0..<min(count, size) {
            let bit = (first &+ cluster) & (size - 1)
            words[Int(bit / 64)] |= 1 << (bit % 64)
        }
    }

    func mayContain(_ offset: UInt64, _ count: UInt64, _ geometry: QCOW2Geometry) -> Bool {
        var cluster = offset >> UInt64(geometry.clusterBits)
        let last = (offset &+ count &- 1) >> UInt64(geometry.clusterBits)
        while cluster <= last {
            let bit = cluster & (size - 1)
            if words[Int(bit / 64)] >> (bit % 64) & 1 != 0 { return true }
            cluster &+= 1
        }
        return false
    }
}
