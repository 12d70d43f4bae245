/// Translations at fixed places of the context, in front of the TLB: what the stack and the accesses of a loop found
/// last.
///
/// A slot costs no index computation, so a host address is ready two operations behind the guest's, where the TLB's
/// hash and look-up take three times as long. A miss goes to the TLB (`Thunks.refill`), which fills the slot. Several
/// sites may share a slot, but never reads and writes, nor sites of different tables. Whatever drops an entry of a TLB
/// empties all slots.
package enum TLBSlots {
    package struct Slot {
        package var tag: UInt64
        /// Host address of the page.
        package var host: UInt64
        /// How often it has been refilled in the middle of a page, where no walk through memory begins a page.
        package var jumps: UInt64
        var padding: UInt64 = 0
    }
    package static let size = 32
    package static let host = 8
    package static let jumps = 16
    /// So near to a page's edge an access is one of a walk.
    package static let edge: Int32 = 128
    /// After so many jumps the site goes to the TLB directly (`TranslatorCPU.retireSlot`): there a miss of the branch
    /// predictor would cost more than the look-up.
    package static let jumpLimit = 64
    /// Two for the stack, by how far above the stack pointer: a frame that lies in two pages does not throw itself out.
    package static let stackCount = 2
    package static let loopCount = 64
    package static let countPerTable = 2 * (stackCount + loopCount)

    /// A tag that only an address that is not canonical can hit. It gives a host address that is not canonical either,
    /// so the host faults as the guest must.
    package static let empty = Slot(tag: 1 << 63, host: 1 << 63, jumps: 0)

    /// Sizes of accesses that a refill knows: 1, 2, 4... 256.
    package static let sizeClassCount = 9
    /// The class of the first size that is not smaller, `nil` beyond the largest.
    package static func sizeClass(_ size: Int) -> Int? {
        guard size > 0 && size <= 1 << (sizeClassCount - 1) else { return nil }
        return size.bitWidth - (size - 1).leadingZeroBitCount
    }

    /// What a `MemoryDescriptor` says of a site that may give up its slot.
    package static func number(of offset: Int) -> UInt16 { UInt16(truncatingIfNeeded: (offset - ContextOffset.slots) / size + 1) }

    /// Place of a slot in the context.
    package static func stack(table: Int, writes: Bool, distance: Int) -> Int {
        offset(table, (writes ? stackCount : 0) + (distance >= 64 || distance < -64 ? 1 : 0))
    }
    package static func loop(table: Int, writes: Bool, number: Int) -> Int {
        offset(table, 2 * stackCount + (writes ? loopCount : 0) + number & (loopCount - 1))
    }
    private static func offset(_ table: Int, _ number: Int) -> Int {
        ContextOffset.slots + (table * countPerTable + number) * size
    }
}
