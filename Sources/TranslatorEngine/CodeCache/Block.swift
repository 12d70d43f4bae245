/// What a block's code depends on beside its bytes. Part of its key.
package struct BlockMode: Hashable {
    package var rawValue: UInt64
    @inline(__always) package init(rawValue: UInt64) { self.rawValue = rawValue }

    @inline(__always) package var table: Int { Int(rawValue & 3) }
    /// 0: 64-bit code, 1: 32-bit, 2: 16-bit.
    @inline(__always) package var codeSize: Int { Int(rawValue >> 2 & 3) }
    /// CR0.TS: x87 and vector instructions raise #NM; with CR0.MP so does WAIT.
    package static let fpuTrap: UInt64 = 1 << 4
    package static let waitTrap: UInt64 = 1 << 25
    /// CR0.EM: x87 instructions raise #NM, MMX and SSE #UD.
    package static let fpuAbsent: UInt64 = 1 << 26
    /// CR4.OSFXSR clear: SSE raises #UD.
    package static let noSSE: UInt64 = 1 << 5
    /// CR4.OSXSAVE clear or XCR0 without AVX: VEX vector instructions raise #UD.
    package static let noAVX: UInt64 = 1 << 6
    /// The same without AVX-512: EVEX and opmask instructions raise #UD.
    package static let noAVX512: UInt64 = 1 << 27
    /// Outside of 64-bit code, with any segment but fs and gs that is not flat, or 16 bits of code or stack: accesses
    /// and branches are checked against their segments.
    package static let segmented: UInt64 = 1 << 7
    /// CPL 1 or 2: a supervisor for paging, but not for privileged instructions.
    package static let outerRing: UInt64 = 1 << 9
    /// CR4.SMAP: STAC and CLAC change the table.
    package static let smap: UInt64 = 1 << 11
    /// CR4.TSD.
    package static let timeStampTrap: UInt64 = 1 << 10
    /// An instruction breakpoint is enabled: blocks end before the offsets of such.
    package static let breakpoints: UInt64 = 1 << 23
    /// CR0.AM and RFLAGS.AC at CPL 3: every access is checked for its natural alignment.
    package static let alignmentCheck: UInt64 = 1 << 24
    /// 16-bit stack: SS.B clear outside 64-bit code.
    package static let smallStack: UInt64 = 1 << 8
    /// Real or virtual-8086 mode: no VEX encodings.
    package static let eightySix: UInt64 = 1 << 20
    /// Some data segment is expand-down: accesses have a lower bound too.
    package static let expandDown: UInt64 = 1 << 21
    /// The page of code does not lie wholly in CS: a branch out of the block is looked at each time.
    package static let partialPage: UInt64 = 1 << 22
    /// 64-bit code in a page from which a direct branch may reach addresses that are not canonical.
    package static let nearHole: UInt64 = 1 << 28
    @inline(__always) package func has(_ bit: UInt64) -> Bool { rawValue & bit != 0 }
}

/// A translated run of guest instructions.
package struct Block {
    /// Guest-physical address of the first instruction.
    package var physical: UInt64
    package var mode: BlockMode
    /// Offsets into the code memory. `entry` wants the flags in the host's flags where they are live,
    /// `savedEntry` wants them in the context; the same where they are dead.
    package var entry: UInt32
    package var savedEntry: UInt32
    package var end: UInt32
    /// Guest bytes.
    package var length: UInt16
    /// Place in guest RAM of the first byte.
    package var ramOffset: Int
    /// Bytes of its first page of guest RAM that it was made from: its own, and those behind its ends that say which
    /// flags are read there.
    package var watchedStart: Int
    package var watchedEnd: Int
    /// Page of guest RAM into which the last instruction goes on, -1 for none. Which page that is depends on the
    /// page tables, so such a block is checked when it is looked up and never a target of a direct jump.
    package var secondPage: Int
    /// Arithmetic flags (RFLAGS bits) that the block reads before it writes them.
    package var flagsLive: UInt16
    /// Can be found and jumped to. Blocks that run once never are.
    package var isAlive: Bool
    /// First of the `Site`s that are linked to this block, 0 for none.
    package var firstLink: UInt32
    /// The block's own ways out.
    package var siteStart: UInt32
    package var siteCount: UInt16
    /// Into the instruction map: where each guest instruction's code starts.
    package var mapCount: UInt16
    package var mapStart: UInt32
    /// Next block in the hash chain, 0 for none.
    package var nextInHash: UInt32
}

/// A direct branch out of a block: to an exit stub until it is linked, to another block's code from then on.
package struct Site {
    /// Offset of the branch's 32-bit displacement, which is all that linking changes.
    package var displacement: UInt32
    /// Offset of the exit stub.
    package var stub: UInt32
    /// The branch goes on in another page than its block's.
    package var movesPage: Bool
    /// It goes backward: what it leads to may be a loop's first part.
    package var isBackward: Bool
    /// The block that it is in, and the one that it is linked to (0 for none).
    package var block: UInt32
    package var target: UInt32
    /// The list of the sites that are linked to one block.
    package var next: UInt32
    package var previous: UInt32
}

/// A block's place on the list of a guest page. Its number is twice the block's, plus 1 for the second page.
package struct PageNode {
    package var next: UInt32
    package var previous: UInt32
}

/// Where one guest instruction's code starts.
package struct MapEntry {
    /// From the block's entry.
    package var host: UInt16
    /// From the start of the block's page (may pass 4095 in a block that goes on into the next page).
    /// Bit 15: the arithmetic flags are in the host's flags at this point.
    package var guest: UInt16
}
