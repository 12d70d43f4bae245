import Glibc
package import Linux

/// Translated blocks: their code, and how they are found by address, by page, by host address and by who jumps to
/// them. Everything is in flat arrays that are dropped whole when one of them is full; there is no other eviction.
///
/// Index 0 of each array is never used, so 0 means none.
package final class CodeCache: @unchecked Sendable {
    package static let hashBits = 16
    package static let blockLimit = 1 << 18
    package static let linkLimit = 1 << 19
    package static let mapLimit = 1 << 21
    /// Code that one block may need at most.
    package static let longestBlock = 1 << 15

    package let memory: CodeMemory
    package let blocks: UnsafeMutablePointer<Block>
    package let links: UnsafeMutablePointer<Link>
    package let pageLinks: UnsafeMutablePointer<PageLink>
    package let map: UnsafeMutablePointer<MapEntry>
    private let hash: UnsafeMutablePointer<UInt32>
    /// First `PageLink` of each page of guest RAM, by offset in RAM.
    package let pages: UnsafeMutablePointer<UInt32>
    private let pageCount: Int
    private let storage: MemoryMapping

    package private(set) var blockCount = 1
    package private(set) var linkCount = 1
    package private(set) var pageLinkCount = 1
    package var mapCount = 1
    /// Where the next block's code goes.
    package var codeOffset: Int
    /// Code below this is thunks and stays.
    package let firstBlockOffset: Int

    package init(memory: CodeMemory, thunkByteCount: Int, ramByteCount: UInt64) throws(SystemError) {
        self.memory = memory
        firstBlockOffset = thunkByteCount
        codeOffset = thunkByteCount
        pageCount = Int(ramByteCount / 4096)
        // One lazily filled mapping for all the arrays: what is not used costs nothing.
        func align(_ count: Int) -> Int { (count + 4095) & ~4095 }
        let sizes = [
            Self.blockLimit * MemoryLayout<Block>.stride, Self.linkLimit * MemoryLayout<Link>.stride,
            Self.linkLimit * MemoryLayout<PageLink>.stride, Self.mapLimit * MemoryLayout<MapEntry>.stride,
            (1 << Self.hashBits) * 4, pageCount * 4,
        ].map(align)
        storage = try MemoryMapping(
            byteCount: sizes.reduce(0, +), protection: PROT_READ | PROT_WRITE,
            flags: MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, guardByteCount: MemoryMapping.standardGuard)
        var offset = storage.base
        blocks = offset.assumingMemoryBound(to: Block.self)
        offset += sizes[0]
        links = offset.assumingMemoryBound(to: Link.self)
        offset += sizes[1]
        pageLinks = offset.assumingMemoryBound(to: PageLink.self)
        offset += sizes[2]
        map = offset.assumingMemoryBound(to: MapEntry.self)
        offset += sizes[3]
        hash = offset.assumingMemoryBound(to: UInt32.self)
        offset += sizes[4]
        pages = offset.assumingMemoryBound(to: UInt32.self)
    }

    // MARK: Room

    /// Whether one more block of any size fits everywhere.
    package var hasRoom: Bool {
        codeOffset + Self.longestBlock <= memory.byteCount && blockCount < Self.blockLimit
            && linkCount + 4 < Self.linkLimit && pageLinkCount + 4 < Self.linkLimit
            && mapCount + 256 < Self.mapLimit
    }

    /// Forgets every block.
    package func removeAll() {
        memset(hash, 0, (1 << Self.hashBits) * 4)
        memset(pages, 0, pageCount * 4)
        blockCount = 1
        linkCount = 1
        pageLinkCount = 1
        mapCount = 1
        codeOffset = firstBlockOffset
    }

    // MARK: Look-up

    @inline(__always) private func slot(_ physical: UInt64, _ mode: BlockMode) -> Int {
        let key = (physical ^ mode.rawValue << 20) &* 0x9E37_79B9_7F4A_7C15
        return Int(truncatingIfNeeded: key >> UInt64(64 - Self.hashBits))
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

    /// The block whose code holds an offset, 0 when there is none. Blocks lie in the order of their indices.
    package func find(codeOffset offset: Int) -> Int {
        var low = 1
        var high = blockCount
        while low < high {
            let middle = (low + high) / 2
            if Int(blocks[middle].end) <= offset { low = middle + 1 } else { high = middle }
        }
        guard low < blockCount, offset >= Int(blocks[low].savedEntry) else { return 0 }
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

    // MARK: Changes

    /// Adds a block; its code is at `codeOffset` already. `isHidden`: not to be found, for code that runs once.
    package func add(_ block: Block, isHidden: Bool) -> Int {
        let index = blockCount
        blockCount += 1
        blocks[index] = block
        codeOffset = (Int(block.end) + 15) & ~15
        if isHidden { return index }
        let slot = slot(block.physical, block.mode)
        blocks[index].nextInHash = hash[slot]
        hash[slot] = UInt32(index)
        addPageLink(index, page: block.ramOffset >> 12)
        if block.secondPage >= 0 { addPageLink(index, page: block.secondPage) }
        return index
    }

    private func addPageLink(_ index: Int, page: Int) {
        guard page < pageCount else { return }
        pageLinks[pageLinkCount] = PageLink(block: UInt32(index), next: pages[page])
        pages[page] = UInt32(pageLinkCount)
        pageLinkCount += 1
    }

    /// Whether a page of guest RAM holds code of any block.
    @inline(__always) package func hasCode(page: Int) -> Bool { pages[page] != 0 }

    /// Patches the direct jump at `site` to `target`'s code.
    package func link(site: Int, thunk: Int, to target: Int, saved: Bool) {
        guard linkCount < Self.linkLimit else { return }
        links[linkCount] = Link(site: UInt32(site), next: blocks[target].firstLink, thunk: UInt32(thunk))
        blocks[target].firstLink = UInt32(linkCount)
        linkCount += 1
        patch(site, opcode: 0xE9, to: Int(saved ? blocks[target].savedEntry : blocks[target].entry))
    }

    private func patch(_ site: Int, opcode: UInt8, to target: Int) {
        let address = memory.writableBase + site
        address.pointee = opcode
        UnsafeMutableRawPointer(address + 1).storeBytes(
            of: Int32(truncatingIfNeeded: target - (site + 5)), as: Int32.self)
    }

    /// Makes a block impossible to find or to jump to. Its code stays until the next `removeAll`.
    package func remove(_ index: Int) {
        guard blocks[index].isAlive else { return }
        blocks[index].isAlive = false
        var link = Int(blocks[index].firstLink)
        while link != 0 {
            patch(Int(links[link].site), opcode: 0xE8, to: Int(links[link].thunk))
            link = Int(links[link].next)
        }
        blocks[index].firstLink = 0
        let slot = slot(blocks[index].physical, blocks[index].mode)
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
        var previous = 0
        var current = Int(pages[page])
        while current != 0 {
            let link = pageLinks[current]
            let index = Int(link.block)
            var drop = !blocks[index].isAlive
            if !drop {
                let start = blocks[index].ramOffset
                let end = start + Int(blocks[index].length)
                var isHit = false
                if blocks[index].secondPage >= 0 {
                    let split = (start | 0xFFF) + 1
                    let rest = end - split
                    let second = blocks[index].secondPage << 12
                    isHit = range.lowerBound < second + rest && range.upperBound > second
                }
                if blocks[index].watchedStart < range.upperBound && blocks[index].watchedEnd > range.lowerBound { isHit = true }
                if isHit {
                    remove(index)
                    removed = true
                    if index == running { hitRunning = true }
                    drop = true
                }
            }
            if drop {
                if previous == 0 { pages[page] = link.next } else { pageLinks[previous].next = link.next }
            } else {
                previous = current
            }
            current = Int(link.next)
        }
        return (removed, hitRunning)
    }
}
