import Glibc
package import Linux

/// Links between pages, which hold only while the page tables say what they said.
///
/// Blocks know no linear address, so a link out of a page presumes that its code runs at one linear address only, and
/// that the page beside it there is the one that it was. So each page of guest RAM remembers where its code runs; one
/// that runs at two places gets no such links. Those that exist are taken back when the TLB is flushed, all of them
/// or those that some page that is not global takes part in.
package final class Crossings {
    /// Where a page's code runs.
    private struct Page {
        /// Linear address of the page | the flags below; 0: nowhere yet.
        var linear: UInt64 = 0
        /// Which flush it has not outlived.
        var generation: UInt32 = 0
        var globalGeneration: UInt32 = 0
        static let isGlobal: UInt64 = 1
        /// Runs, or ran, at more than one place.
        static let isAliased: UInt64 = 2
    }
    private static let limit = 1 << 14

    private let cache: CodeCache
    private let storage: MemoryMapping
    private let pages: UnsafeMutablePointer<Page>
    /// Sites that were linked since the last flush; some of them have been unlinked or given to other blocks since.
    private let sites: UnsafeMutablePointer<UInt32>
    private var localCount = 0
    private var globalCount = 0
    private var generation: UInt32 = 1
    private var globalGeneration: UInt32 = 1

    package init(cache: CodeCache, ramByteCount: UInt64) throws(SystemError) {
        self.cache = cache
        storage = try MemoryMapping(
            byteCount: Int(ramByteCount / 4096) * MemoryLayout<Page>.stride, protection: PROT_READ | PROT_WRITE,
            flags: MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE)
        pages = storage.base.assumingMemoryBound(to: Page.self)
        sites = .allocate(capacity: 2 * Self.limit)
    }
    deinit { sites.deallocate() }

    private func isCurrent(_ page: Page) -> Bool {
        page.globalGeneration == globalGeneration
            && (page.generation == generation || page.linear & (Page.isGlobal | Page.isAliased) != 0)
    }

    /// Code of a page of RAM is about to run at a linear address.
    package func note(page: Int, runsAt linear: UInt64, isGlobal: Bool) {
        let place = linear & ~0xFFF
        let old = pages[page]
        if isCurrent(old) {
            if old.linear & Page.isAliased != 0 { return }
            if old.linear & ~0xFFF == place {
                if isGlobal { pages[page].linear |= Page.isGlobal }
                pages[page].generation = generation
                return
            }
            pages[page].linear |= Page.isAliased
            drop(global: true)
            return
        }
        pages[page] = Page(
            linear: place | (isGlobal ? Page.isGlobal : 0), generation: generation, globalGeneration: globalGeneration)
    }

    /// Links a site to a block in another page, or to one that goes on into another page, if that holds for where the
    /// site's page runs now.
    package func link(_ site: Int, to target: Int, saved: Bool, isGlobal: Bool) {
        let source = pages[cache.blocks[Int(cache.sites[site].block)].ramOffset >> 12]
        guard isCurrent(source) && source.linear & Page.isAliased == 0 else { return }
        if isGlobal && source.linear & Page.isGlobal != 0 {
            if globalCount == Self.limit { drop(global: true) }
            sites[Self.limit + globalCount] = UInt32(site)
            globalCount += 1
        } else {
            if localCount == Self.limit { unlinkLocal() }
            sites[localCount] = UInt32(site)
            localCount += 1
        }
        cache.link(site, to: target, saved: saved)
    }

    /// The page tables may have changed; those of global pages only if `global`.
    package func flush(global: Bool) {
        drop(global: global)
        generation &+= 1
        if global { globalGeneration &+= 1 }
    }

    /// All code is gone, and with it the sites.
    package func removeAll() {
        localCount = 0
        globalCount = 0
    }

    private func drop(global: Bool) {
        unlinkLocal()
        guard global else { return }
        for index in 0..<globalCount { cache.unlink(Int(sites[Self.limit + index])) }
        globalCount = 0
    }
    private func unlinkLocal() {
        for index in 0..<localCount { cache.unlink(Int(sites[index])) }
        localCount = 0
    }
}
