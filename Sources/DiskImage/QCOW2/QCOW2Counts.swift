/// How often each cluster of a file is referred to, as the tables say. Takes memory only where something is: a file can be
/// sparse and very large.
final class QCOW2Counts {
    private var pages: [UInt64: UnsafeMutablePointer<UInt32>] = [:]
    // Unchecked: one thread counts, and nothing of it calls back. They are read for every cluster.
    @exclusivity(unchecked) private var lastIndex = UInt64.max
    @exclusivity(unchecked) private var last: UnsafeMutablePointer<UInt32>?
    private static let pageBits: UInt64 = 12
    /// 1 GiB of memory.
    private static let pageLimit = 1 << 16
    /// Not everything was counted: what is referred to is spread so widely as no image is that was not made for it.
    private(set) var isFull = false

    deinit { for page in pages.values { page.deallocate() } }

    private func page(_ index: UInt64, make: Bool) -> UnsafeMutablePointer<UInt32>? {
        if index == lastIndex, let last { return last }
        var page = pages[index]
        if page == nil, make {
            guard pages.count < Self.pageLimit else {
                isFull = true
                return nil
            }
            let new = UnsafeMutablePointer<UInt32>.allocate(capacity: 1 << Int(Self.pageBits))
            new.initialize(repeating: 0, count: 1 << Int(Self.pageBits))
            pages[index] = new
            page = new
        }
        guard let page else { return nil }
        lastIndex = index
        last = page
        return page
    }

    subscript(_ cluster: UInt64) -> UInt32 {
        page(cluster >> Self.pageBits, make: false)?[Int(cluster & ((1 << Self.pageBits) - 1))] ?? 0
    }

    func add(_ cluster: UInt64, _ times: UInt32 = 1) {
        guard let page = page(cluster >> Self.pageBits, make: true) else { return }
        let index = Int(cluster & ((1 << Self.pageBits) - 1))
        let (sum, overflow) = page[index].addingReportingOverflow(times)
        page[index] = overflow ? .max : sum
    }

    func remove(_ cluster: UInt64) {
        guard let page = page(cluster >> Self.pageBits, make: false) else { return }
        let index = Int(cluster & ((1 << Self.pageBits) - 1))
        if page[index] > 0 { page[index] -= 1 }
    }

    /// Groups of clusters that may have counts, in order.
    var ranges: [Range<UInt64>] {
        pages.keys.sorted().map { $0 << Self.pageBits..<($0 + 1) << Self.pageBits }
    }

    /// Behind the last cluster with a count.
    var end: UInt64 {
        for range in ranges.reversed() {
            for cluster in range.reversed() where self[cluster] > 0 { return cluster + 1 }
        }
        return 0
    }
}
