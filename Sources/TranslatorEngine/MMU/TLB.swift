/// The software TLB that translated code looks into (design: direct-mapped, indexed by the page of the access's
/// first byte).
///
/// An entry holds the page's linear address twice, as `readTag` and `writeTag`. Translated code subtracts the tag
/// from the address: a hit leaves the offset in the page, at most 4096 minus the access's size, so one compare
/// also catches accesses that cross into the next page. A tag that may not hit is one whose page has another
/// index, so no address can be near it.
package enum TLB {
    /// Which view of memory: blocks are keyed by it, so a privilege change needs no flush.
    package enum Table: Int {
        /// CPL 0-2 with SMAP in force (or with SMAP off, all pages).
        case supervisor
        /// CPL 3.
        case user
        /// CPL 0-2 with SMAP on and RFLAGS.AC set.
        case supervisorAC
    }
    package static let tableCount = 3
    /// 32 MB of reach: what a program walks through page by page must not throw itself out.
    package static let indexBits = 13
    package static let entryCount = 1 << indexBits
    package static let entrySize = 32
    /// Shift that turns a linear address into an entry's byte offset before masking.
    package static let shift: UInt8 = 12 - 5
    package static let mask: Int32 = Int32((entryCount - 1) << 5)

    package static let readTag = 0
    package static let writeTag = 8
    package static let host = 16
    package static let info = 24

    package struct Entry {
        package var readTag: UInt64
        package var writeTag: UInt64
        /// Host address of the page.
        package var host: UInt64
        /// The flags below; bits 12...: offset of the page in guest RAM.
        package var info: UInt64
        package static let isGlobal: UInt64 = 1
        /// On the list of filled entries of pages that are not global, and on that of those that are.
        package static let isListedLocal: UInt64 = 2
        package static let isListedGlobal: UInt64 = 8
        /// Of a page larger than 4 KB.
        package static let isLarge: UInt64 = 4
    }

    /// A tag no address with this index can hit.
    @inline(__always) package static func missingTag(_ index: Int) -> UInt64 { index == 0 ? 0x1000 : 0 }
}

/// Look-up of translated code by linear address for jumps whose target page is not known to be the same.
package enum JumpCache {
    package static let indexBits = 12
    package static let entryCount = 1 << indexBits
    package static let entrySize = 16
    /// Translated code masks `address ^ address >> 12` with this and scales by 8: bit 0 takes no part.
    package static let mask: UInt64 = UInt64((entryCount - 1) << 1)

    package struct Entry {
        package var linear: UInt64
        package var host: UInt64
    }
    /// The tag of empty entries, and of the first entry of each table, which `jumpMask` 0 leads to. A guest may jump
    /// there: such entries lead to `Thunks.neverHit`, which misses. Canonical, so that a hit proves that the target is;
    /// its own index is 0, so it is never added.
    package static let never: UInt64 = 0x7FFF_FFFF_FFFF

    @inline(__always) package static func index(_ linear: UInt64) -> Int {
        Int(truncatingIfNeeded: (linear ^ linear >> 12) & mask) >> 1
    }
}
