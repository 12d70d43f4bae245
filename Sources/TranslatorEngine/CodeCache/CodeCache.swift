import Glibc
package import Linux

/// Translated blocks: their code, and how they are found by address, by page, by host address and by who jumps to
/// them.
///
/// The code memory is cut into segments, each with its share of the arrays. Blocks are made in one segment until
/// something in it is full; then another segment's blocks are dropped and it is next. So the cache is bounded, and
/// dropping costs what a segment holds. Removed blocks give their room back when their segment's turn comes.
///
/// What is dropped is noted (`ghosts`). A block that has to be made again is one that is still in use: it goes into
/// segments of their own, which may be half of all. New code passes through the others. So the hot half stays,
/// however much code runs once beside it, and nothing is counted while code runs (the "2Q" of Johnson and Shasha, 1994).
///
/// Index 0 of each array is never used, so 0 means none.
package final class CodeCache {
    package static let hashBits = 16
    /// Code that one block may need at most.
    package static let longestBlock = 1 << 15
    package static let segmentByteCount = 1 << 20
    /// Ways out that one block may have at most.
    package static let siteLimit = 2 * BlockWorkspace.instructionLimit + 8

    /// What has been used of a segment.
    private struct Segment {
        var code: Int
        /// When it was begun, 0 while it is empty.
        var age: UInt32 = 0
        /// It has blocks that were made again.
        var isHot = false
        var blockCount = 0
        var siteCount = 0
        var mapCount = 0
    }

    /// A block that was dropped to make room.
    private struct Ghost {
        /// Part of its key.
        var tag: UInt32
        /// Which segment was begun with that, counted from the first. Once so many others have been begun as there are,
        /// it was not missed soon.
        var age: UInt32
    }

    package let memory: CodeMemory
    package let blocks: UnsafeMutablePointer<Block>
    package let sites: UnsafeMutablePointer<Site>
    package let map: UnsafeMutablePointer<MapEntry>
    private let pageNodes: UnsafeMutablePointer<PageNode>
    private let hash: UnsafeMutablePointer<UInt32>
    /// First `PageNode` of each page of guest RAM, by offset in RAM.
    private let pages: UnsafeMutablePointer<UInt32>
    private let pageCount: Int
    private let storage: MemoryMapping
    private let segments: UnsafeMutablePointer<Segment>
    private let byteCount: Int
    private let blockLimit: Int
    private let siteLimit: Int
    private let mapLimit: Int
    package let segmentCount: Int
    /// The segment that blocks are made in: one of `open`.
    package private(set) var segment = 0
    /// The segments that have room, for new blocks and for those that are made again; -1 for none yet.
    private var open = (cold: 0, hot: -1)
    private var age: UInt32 = 1
    /// Blocks that were dropped to make room, by a part of their key.
    private let ghosts: UnsafeMutablePointer<Ghost>
    /// Blocks made so far.
    package private(set) var madeCount = 0
    /// How often blocks were dropped to make room: block and site numbers hold only until the next time.
    package private(set) var evictionCount = 0
    /// Code below this is thunks and stays.
    package let firstBlockOffset: Int

    package init(memory: CodeMemory, thunkByteCount: Int, ramByteCount: UInt64) throws(SystemError) {
        self.memory = memory
        firstBlockOffset = thunkByteCount
        let room = memory.byteCount - thunkByteCount
        segmentCount = max(2, room / Self.segmentByteCount)
        byteCount = (room / segmentCount) & ~63
        precondition(byteCount >= Self.longestBlock, "code memory holds two blocks at least")
        blockLimit = byteCount / 128
        siteLimit = byteCount / 64
        mapLimit = byteCount / 16
        pageCount = Int(ramByteCount / 4096)
        // One lazily filled mapping for all the arrays: what is not used costs nothing.
        func align(_ count: Int) -> Int { (count + 4095) & ~4095 }
        let sizes = [
            (segmentCount * blockLimit + 1) * MemoryLayout<Block>.stride,
            (segmentCount * siteLimit + 1) * MemoryLayout<Site>.stride,
            (segmentCount * mapLimit + 1) * MemoryLayout<MapEntry>.stride,
            2 * (segmentCount * blockLimit + 1) * MemoryLayout<PageNode>.stride,
            (1 << Self.hashBits) * 4, pageCount * 4,
            (1 << Self.hashBits) * MemoryLayout<Ghost>.stride,
        ].map(align)
        storage = try MemoryMapping(
            byteCount: sizes.reduce(0, +), protection: PROT_READ | PROT_WRITE,
            flags: MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, guardByteCount: MemoryMapping.standardGuard)
        var offset = storage.base
        blocks = offset.assumingMemoryBound(to: Block.self)
        offset += sizes[0]
        sites = offset.assumingMemoryBound(to: Site.self)
        offset += sizes[1]
        map = offset.assumingMemoryBound(to: MapEntry.self)
        offset += sizes[2]
        pageNodes = offset.assumingMemoryBound(to: PageNode.self)
        offset += sizes[3]
        hash = offset.assumingMemoryBound(to: UInt32.self)
        offset += sizes[4]
        pages = offset.assumingMemoryBound(to: UInt32.self)
        offset += sizes[5]
        ghosts = offset.assumingMemoryBound(to: Ghost.self)
        segments = .allocate(capacity: segmentCount)
        for index in 0..<segmentCount {
            (segments + index).initialize(to: Segment(code: firstBlockOffset + index * byteCount))
        }
        segments[0].age = age
    }
    deinit { segments.deallocate() }

    // MARK: Room

    /// Where the next block's code goes, and its part of the instruction map.
    package var codeOffset: Int { segments[segment].code }
    package var mapStart: Int { 1 + segment * mapLimit + segments[segment].mapCount }

    /// Whether one more block of any size fits into the segment.
    package var hasRoom: Bool {
        let s = segments[segment]
        return s.code + Self.longestBlock <= firstBlockOffset + (segment + 1) * byteCount && s.blockCount < blockLimit
            && s.siteCount + Self.siteLimit <= siteLimit && s.mapCount + 2 * BlockWorkspace.instructionLimit + 1 <= mapLimit
    }

    /// Chooses the segment for the block to be made at a physical address: by whether it was there before.
    /// - Returns: `false` when there is none, so that `advance` has to find one.
    package func choose(_ physical: UInt64, _ mode: BlockMode, isIsolated: Bool) -> Bool {
        let (place, tag) = ghost(physical, mode)
        let isGhost = !isIsolated && ghosts[place].tag == tag
        if isGhost { ghosts[place].tag = 0 }
        isHot = isGhost && age &- ghosts[place].age <= segmentCount
        let chosen = isHot ? open.hot : open.cold
        if chosen < 0 { return false }
        segment = chosen
        return true
    }
    /// The block that `choose` was asked for last was there before.
    private var isHot = false

    /// Makes room for the block that `choose` was asked for, in an empty segment or by dropping the oldest one's blocks:
    /// one of those for blocks that were made again when these have half of all. Nothing may run or remember them afterwards.
    /// - Returns: whether there were any.
    package func advance() -> Bool {
        var hotCount = 0
        var empty = -1
        var oldest = (cold: -1, hot: -1)
        for index in 0..<segmentCount {
            let candidate = segments[index]
            if candidate.age == 0 {
                if empty < 0 { empty = index }
            } else if candidate.isHot {
                hotCount += 1
                if oldest.hot < 0 || candidate.age < segments[oldest.hot].age { oldest.hot = index }
            } else if oldest.cold < 0 || candidate.age < segments[oldest.cold].age {
                oldest.cold = index
            }
        }
        let mayGrow = hotCount < segmentCount / 2
        segment = empty >= 0 && (!isHot || mayGrow) ? empty : isHot && !mayGrow ? oldest.hot : oldest.cold
        if segment == open.cold { open.cold = -1 }
        let count = segments[segment].blockCount
        for index in firstBlock(segment)..<firstBlock(segment) + count where blocks[index].isAlive {
            let (place, tag) = ghost(blocks[index].physical, blocks[index].mode)
            ghosts[place] = Ghost(tag: tag, age: age)
            remove(index)
        }
        age &+= 1
        segments[segment] = Segment(code: firstBlockOffset + segment * byteCount, age: age, isHot: isHot)
        if isHot { open.hot = segment } else { open.cold = segment }
        if count > 0 { evictionCount &+= 1 }
        return count > 0
    }

    /// Forgets every block.
    package func removeAll() {
        memset(hash, 0, (1 << Self.hashBits) * 4)
        memset(pages, 0, pageCount * 4)
        for index in 0..<segmentCount { segments[index] = Segment(code: firstBlockOffset + index * byteCount) }
        segment = 0
        open = (0, -1)
        age &+= 1
        segments[0].age = age
        evictionCount &+= 1
    }

    @inline(__always) private func firstBlock(_ segment: Int) -> Int { 1 + segment * blockLimit }

    // MARK: Look-up

    @inline(__always) private func key(_ physical: UInt64, _ mode: BlockMode) -> UInt64 {
        (physical ^ mode.rawValue << 20) &* 0x9E37_79B9_7F4A_7C15
    }
    @inline(__always) private func slot(_ physical: UInt64, _ mode: BlockMode) -> Int {
        Int(truncatingIfNeeded: key(physical, mode) >> UInt64(64 - Self.hashBits))
    }
    /// Where a block's ghost lies, and what it is, never 0.
    @inline(__always) private func ghost(_ physical: UInt64, _ mode: BlockMode) -> (place: Int, tag: UInt32) {
        let key = key(physical, mode)
        return (Int(truncatingIfNeeded: key >> 32) & (1 << Self.hashBits - 1), UInt32(truncatingIfNeeded: key) | 1)
    }

    /// The block at a physical address, 0 when there is none.
    @inline(__always) package func find(_ physical: UInt64, _ mode: BlockMode) -> Int {
        var index = Int(hash[slot(physical, mode)])
        while index != 0 {
            if blocks[index].physical == physical && blocks[index].mode == mode { return index }
            index = Int(blocks[index].nextInHash)
        }
        return 0
    }

    /// The block whose code holds an offset, 0 when there is none. Blocks of a segment lie in the order of their indices.
    package func find(codeOffset offset: Int) -> Int {
        guard offset >= firstBlockOffset else { return 0 }
        let segment = (offset - firstBlockOffset) / byteCount
        guard segment < segmentCount else { return 0 }
        var low = firstBlock(segment)
        let end = low + segments[segment].blockCount
        var high = end
        while low < high {
            let middle = (low + high) / 2
            if Int(blocks[middle].end) <= offset { low = middle + 1 } else { high = middle }
        }
        guard low < end, offset >= Int(blocks[low].savedEntry) else { return 0 }
        return low
    }

    /// The guest instruction whose code holds an offset, as an offset from the block's page, and whether the
    /// flags are in the host's flags there.
    package func guestOffset(of codeOffset: Int, in index: Int) -> (offset: Int, flagsInHost: Bool) {
        let block = blocks[index]
        let inside = codeOffset - Int(block.entry)
        var result = MapEntry(host: 0, guest: UInt16(truncatingIfNeeded: block.physical & 0xFFF))
        for position in 0..<Int(block.mapCount) {
            let entry = map[Int(block.mapStart) + position]
            if Int(entry.host) > inside { break }
            result = entry
        }
        return (Int(result.guest & 0x7FFF), result.guest & 0x8000 != 0)
    }

    // MARK: Adding

    /// The number that the next block will have.
    package var nextBlock: Int { firstBlock(segment) + segments[segment].blockCount }
    package var nextSite: Int { 1 + segment * siteLimit + segments[segment].siteCount }

    /// A way out of the block that is being made.
    package func addSite(displacement: Int, stub: Int, movesPage: Bool, isBackward: Bool = false) {
        sites[nextSite] = Site(
            displacement: UInt32(displacement), stub: UInt32(stub), movesPage: movesPage, isBackward: isBackward, block: UInt32(nextBlock), target: 0,
            next: 0, previous: 0)
        segments[segment].siteCount += 1
    }

    /// Adds a block; its code is at `codeOffset` already, its part of the map at `mapStart`. One that is not alive is
    /// not to be found: it runs once.
    package func add(_ block: Block) -> Int {
        let index = nextBlock
        blocks[index] = block
        segments[segment].blockCount += 1
        madeCount &+= 1
        segments[segment].mapCount += Int(block.mapCount)
        segments[segment].code = (Int(block.end) + 15) & ~15
        if !block.isAlive { return index }
        let slot = slot(block.physical, block.mode)
        blocks[index].nextInHash = hash[slot]
        hash[slot] = UInt32(index)
        addPageNode(2 * index, page: block.ramOffset >> 12)
        if block.secondPage >= 0 { addPageNode(2 * index + 1, page: block.secondPage) }
        return index
    }

    private func addPageNode(_ node: Int, page: Int) {
        let first = pages[page]
        pageNodes[node] = PageNode(next: first, previous: 0)
        if first != 0 { pageNodes[Int(first)].previous = UInt32(node) }
        pages[page] = UInt32(node)
    }
    private func removePageNode(_ node: Int, page: Int) {
        let (next, previous) = (pageNodes[node].next, pageNodes[node].previous)
        if previous == 0 { pages[page] = next } else { pageNodes[Int(previous)].next = next }
        if next != 0 { pageNodes[Int(next)].previous = previous }
    }

    /// Whether a page of guest RAM holds code of any block.
    @inline(__always) package func hasCode(page: Int) -> Bool { pages[page] != 0 }

    /// The blocks of a segment, living or not.
    package func blocks(inSegment segment: Int) -> Range<Int> {
        firstBlock(segment)..<firstBlock(segment) + segments[segment].blockCount
    }

    // MARK: Linking

    /// Makes a way out lead straight to `target`'s code: to its entry for flags in the context if `saved`.
    package func link(_ site: Int, to target: Int, saved: Bool) {
        unlink(site)
        let next = blocks[target].firstLink
        sites[site].target = UInt32(target)
        sites[site].next = next
        sites[site].previous = 0
        if next != 0 { sites[Int(next)].previous = UInt32(site) }
        blocks[target].firstLink = UInt32(site)
        patch(site, to: Int(saved ? blocks[target].savedEntry : blocks[target].entry))
    }

    /// Makes a way out lead to its stub again.
    package func unlink(_ site: Int) {
        let old = sites[site]
        guard old.target != 0 else { return }
        if old.previous == 0 { blocks[Int(old.target)].firstLink = old.next } else { sites[Int(old.previous)].next = old.next }
        if old.next != 0 { sites[Int(old.next)].previous = old.previous }
        sites[site].target = 0
        patch(site, to: Int(old.stub))
    }

    private func patch(_ site: Int, to target: Int) {
        let displacement = Int(sites[site].displacement)
        UnsafeMutableRawPointer(memory.writableBase + displacement).storeBytes(
            of: Int32(truncatingIfNeeded: target - (displacement + 4)), as: Int32.self)
    }

    // MARK: Removing

    /// Makes a block impossible to find or to jump to.
    package func remove(_ index: Int) {
        guard blocks[index].isAlive else { return }
        blocks[index].isAlive = false
        while blocks[index].firstLink != 0 { unlink(Int(blocks[index].firstLink)) }
        let block = blocks[index]
        for site in Int(block.siteStart)..<Int(block.siteStart) + Int(block.siteCount) { unlink(site) }
        removePageNode(2 * index, page: block.ramOffset >> 12)
        if block.secondPage >= 0 { removePageNode(2 * index + 1, page: block.secondPage) }
        let slot = slot(block.physical, block.mode)
        var previous = 0
        var current = Int(hash[slot])
        while current != 0 {
            let next = blocks[current].nextInHash
            if current == index {
                if previous == 0 { hash[slot] = next } else { blocks[previous].nextInHash = next }
                return
            }
            previous = current
            current = Int(next)
        }
    }

    /// Removes the blocks of a page that overlap `range` (offsets in guest RAM, within the page), and says whether
    /// `running` was one.
    package func removeBlocks(page: Int, overlapping range: Range<Int>, running: Int) -> (removed: Bool, running: Bool) {
        var removed = false
        var hitRunning = false
        var node = Int(pages[page])
        while node != 0 {
            let index = node >> 1
            let start = blocks[index].ramOffset
            var isHit = blocks[index].watchedStart < range.upperBound && blocks[index].watchedEnd > range.lowerBound
            if blocks[index].secondPage >= 0 {
                let rest = start + Int(blocks[index].length) - ((start | 0xFFF) + 1)
                let second = blocks[index].secondPage << 12
                if range.lowerBound < second + rest && range.upperBound > second { isHit = true }
            }
            // Where both halves of a block lie in the page it is on the list twice.
            var next = Int(pageNodes[node].next)
            if isHit && next >> 1 == index { next = Int(pageNodes[next].next) }
            if isHit {
                remove(index)
                removed = true
                if index == running { hitRunning = true }
            }
            node = next
        }
        return (removed, hitRunning)
    }
}
