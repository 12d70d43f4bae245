import Glibc

/// The TLBs and jump caches of one CPU, with the lists that make flushing cost what filling cost.
final class TLBState {
    let entries: UnsafeMutablePointer<TLB.Entry>
    let jumps: UnsafeMutablePointer<JumpCache.Entry>
    private let slots: UnsafeMutablePointer<TLBSlots.Slot>
    /// Set by translated code when it fills a slot of a table.
    private let slotsUsed: UnsafeMutablePointer<UInt32>
    /// Indices of filled TLB entries, all tables in one numbering: those of global pages apart, so that a switch of
    /// address spaces does not look at them.
    private let filledLocal: UnsafeMutablePointer<UInt16>
    private var filledLocalCount = 0
    private let filledGlobal: UnsafeMutablePointer<UInt16>
    private var filledGlobalCount = 0
    private let filledJumps: UnsafeMutablePointer<UInt16>
    private var filledJumpCount: [3 of Int] = .init(repeating: 0)
    /// Whether a table's jump cache holds code that was fetched through a page that is not global.
    private var hasLocalJumps: [3 of Bool] = .init(repeating: false)
    /// Regions of 2 MB and 1 GB that entries of large pages lie in (hashed): INVLPG must drop all of such a page.
    private var large: [16 of UInt64] = .init(repeating: 0)
    private var huge: UInt64 = 0
    /// Pages that code was fetched from (hashed).
    private var executed: [64 of UInt64] = .init(repeating: 0)
    /// Recent translations of code pages.
    let code: UnsafeMutablePointer<CodeEntry>
    static let codeCount = 256

    struct CodeEntry {
        /// Linear page | bit 0: user | bit 1: valid | bit 2: global.
        var key: UInt64
        var physical: UInt64
        var host: UInt64
        var ramOffset: Int
    }

    /// - Parameter neverHit: host address for the first entries of the jump caches.
    init(base: UnsafeMutableRawPointer, neverHit: UInt64) {
        entries = (base + ContextOffset.tlb).bindMemory(to: TLB.Entry.self, capacity: TLB.tableCount * TLB.entryCount)
        jumps = (base + ContextOffset.jumpCache).bindMemory(
            to: JumpCache.Entry.self, capacity: TLB.tableCount * JumpCache.entryCount)
        filledLocal = .allocate(capacity: TLB.tableCount * TLB.entryCount)
        filledGlobal = .allocate(capacity: TLB.tableCount * TLB.entryCount)
        filledJumps = .allocate(capacity: TLB.tableCount * JumpCache.entryCount)
        code = .allocate(capacity: Self.codeCount)
        code.initialize(repeating: CodeEntry(key: 0, physical: 0, host: 0, ramOffset: 0), count: Self.codeCount)
        // Fresh memory is zero, the missing tag of every entry but the first of each table.
        for table in 0..<TLB.tableCount {
            let missing = TLB.missingTag(0)
            entries[table * TLB.entryCount] = TLB.Entry(readTag: missing, writeTag: missing, host: 0, info: 0)
        }
        slots = (base + ContextOffset.slots).bindMemory(
            to: TLBSlots.Slot.self, capacity: TLB.tableCount * TLBSlots.countPerTable)
        slotsUsed = (base + ContextOffset.slotsUsed).bindMemory(to: UInt32.self, capacity: TLB.tableCount)
        slots.initialize(repeating: TLBSlots.empty, count: TLB.tableCount * TLBSlots.countPerTable)
        for index in 0..<TLB.tableCount * JumpCache.entryCount {
            jumps[index] = JumpCache.Entry(linear: JumpCache.never, host: neverHit)
        }
    }
    deinit {
        filledLocal.deallocate()
        filledGlobal.deallocate()
        filledJumps.deallocate()
        code.deallocate()
    }

    @inline(__always) static func index(_ linear: UInt64) -> Int {
        Int(truncatingIfNeeded: linear >> 12) & (TLB.entryCount - 1)
    }

    /// Empties the slots: they may hold what has just been dropped from the TLB.
    @inline(__always) private func clearSlots() {
        for table in 0..<TLB.tableCount where slotsUsed[table] != 0 {
            slotsUsed[table] = 0
            let first = table * TLBSlots.countPerTable
            for slot in first..<first + TLBSlots.countPerTable { slots[slot] = TLBSlots.empty }
        }
    }

    /// Enters a page. `sizeShift` is that of the guest's mapping.
    func fill(
        table: Int, linear: UInt64, host: UnsafeMutableRawPointer, ramOffset: Int, writable: Bool, global: Bool,
        sizeShift: UInt8
    ) {
        let index = Self.index(linear)
        let slot = table * TLB.entryCount + index
        var listed = entries[slot].info & (TLB.Entry.isListedLocal | TLB.Entry.isListedGlobal)
        if global {
            if listed & TLB.Entry.isListedGlobal == 0 {
                filledGlobal[filledGlobalCount] = UInt16(slot)
                filledGlobalCount += 1
                listed |= TLB.Entry.isListedGlobal
            }
        } else if listed & TLB.Entry.isListedLocal == 0 {
            filledLocal[filledLocalCount] = UInt16(slot)
            filledLocalCount += 1
            listed |= TLB.Entry.isListedLocal
        }
        let page = linear & ~0xFFF
        // A changed mapping that the guest did not announce: no slot may lag behind.
        if entries[slot].readTag == page && entries[slot].host != UInt64(UInt(bitPattern: host)) { clearSlots() }
        entries[slot] = TLB.Entry(
            readTag: page, writeTag: writable ? page : TLB.missingTag(index), host: UInt64(UInt(bitPattern: host)),
            info: UInt64(ramOffset & ~0xFFF) | listed | (global ? TLB.Entry.isGlobal : 0)
                | (sizeShift > 12 ? TLB.Entry.isLarge : 0))
        if sizeShift > 12 { noteLarge(linear, sizeShift) }
    }

    private func noteLarge(_ linear: UInt64, _ sizeShift: UInt8) {
        if sizeShift > 22 {
            huge |= 1 << (linear >> 30 & 63)
        } else {
            // 4 MB pages: both halves.
            let region = (linear >> UInt64(sizeShift)) << (UInt64(sizeShift) - 21)
            for part in region...region + (sizeShift == 22 ? 1 : 0) {
                large[Int(part >> 6 & 15)] |= 1 << (part & 63)
            }
        }
    }

    /// Empties an entry, which stays on the lists that it is on.
    private func clear(slot: Int) {
        let missing = TLB.missingTag(slot & (TLB.entryCount - 1))
        let listed = entries[slot].info & (TLB.Entry.isListedLocal | TLB.Entry.isListedGlobal)
        entries[slot] = TLB.Entry(readTag: missing, writeTag: missing, host: 0, info: listed)
    }

    /// Every entry that may be filled; some come twice.
    @inline(__always) private func forEachFilled(_ body: (Int) -> Void) {
        for position in 0..<filledLocalCount { body(Int(filledLocal[position])) }
        for position in 0..<filledGlobalCount { body(Int(filledGlobal[position])) }
    }

    /// The filled entries of pages that are not global, once each.
    @inline(__always) func forEachLocal(_ body: (Int, TLB.Entry) -> Void) {
        for position in 0..<filledLocalCount {
            let slot = Int(filledLocal[position])
            let entry = entries[slot]
            let isFilled = Self.index(entry.readTag) == slot & (TLB.entryCount - 1)
            if isFilled && entry.info & TLB.Entry.isGlobal == 0 { body(slot, entry) }
        }
    }

    /// Forgets translations; those of global pages only if `global`.
    func flush(global: Bool) {
        clearSlots()
        for position in 0..<filledLocalCount {
            let slot = Int(filledLocal[position])
            if entries[slot].info & TLB.Entry.isGlobal == 0 { clear(slot: slot) }
            entries[slot].info &= ~TLB.Entry.isListedLocal
        }
        filledLocalCount = 0
        if global {
            for position in 0..<filledGlobalCount {
                let slot = Int(filledGlobal[position])
                entries[slot].info = 0
                clear(slot: slot)
            }
            filledGlobalCount = 0
        }
        if global {
            large = .init(repeating: 0)
            huge = 0
        }
        for index in 0..<Self.codeCount where global || code[index].key & 4 == 0 { code[index].key = 0 }
        for table in 0..<TLB.tableCount where global || hasLocalJumps[table] { clearJumpCache(table) }
        if global { executed = .init(repeating: 0) }
    }

    /// INVLPG: the page's entries in all tables, global or not; all of a large page's.
    /// - Returns: whether code may have been fetched from it.
    func flush(page linear: UInt64) -> Bool {
        clearSlots()
        let index = Self.index(linear)
        let page = linear & ~0xFFF
        for table in 0..<TLB.tableCount {
            let slot = table * TLB.entryCount + index
            if entries[slot].readTag == page { clear(slot: slot) }
        }
        let region = linear >> 21
        if large[Int(region >> 6 & 15)] & (1 << (region & 63)) != 0 || huge & (1 << (linear >> 30 & 63)) != 0 {
            flushLarge()
            return true
        }
        let number = page >> 12
        guard executed[Int(number >> 6 & 63)] & (1 << (number & 63)) != 0 else { return false }
        dropCode(page)
        return true
    }

    /// Drops what leads to code in a page. A block at the end of the page before may go on in this one.
    private func dropCode(_ page: UInt64) {
        let slot = codeSlot(page)
        if slot.pointee.key & ~0xFFF == page { slot.pointee.key = 0 }
        for table in 0..<TLB.tableCount {
            let base = table * JumpCache.entryCount
            var kept = 0
            for position in 0..<filledJumpCount[table] {
                let index = filledJumps[base + position]
                let distance = page &- (jumps[base + Int(index)].linear & ~0xFFF)
                if distance == 0 || distance == 4096 {
                    jumps[base + Int(index)] = JumpCache.Entry(linear: JumpCache.never, host: jumps[base].host)
                } else {
                    filledJumps[base + kept] = index
                    kept += 1
                }
            }
            filledJumpCount[table] = kept
        }
    }

    private func flushLarge() {
        forEachFilled { slot in
            if entries[slot].info & TLB.Entry.isLarge != 0 { clear(slot: slot) }
        }
        for index in 0..<Self.codeCount { code[index].key = 0 }
        for table in 0..<TLB.tableCount { clearJumpCache(table) }
    }

    /// From now on writes to a page of RAM take the slow path: it holds translated code.
    func protect(ramPage: Int) {
        clearSlots()
        let wanted = UInt64(ramPage) << 12
        forEachFilled { slot in
            if entries[slot].info & ~0xFFF == wanted {
                entries[slot].writeTag = TLB.missingTag(slot & (TLB.entryCount - 1))
            }
        }
    }

    // MARK: Jump caches and code pages

    func addJump(table: Int, linear: UInt64, host: UInt64, isGlobal: Bool) {
        let index = JumpCache.index(linear)
        // The first entry always misses.
        guard index != 0 else { return }
        let slot = table * JumpCache.entryCount + index
        if jumps[slot].linear == JumpCache.never {
            filledJumps[table * JumpCache.entryCount + filledJumpCount[table]] = UInt16(index)
            filledJumpCount[table] += 1
        }
        jumps[slot] = JumpCache.Entry(linear: linear, host: host)
        if !isGlobal { hasLocalJumps[table] = true }
    }

    func clearJumpCache(_ table: Int) {
        let base = table * JumpCache.entryCount
        for position in 0..<filledJumpCount[table] {
            jumps[base + Int(filledJumps[base + position])] = JumpCache.Entry(linear: JumpCache.never, host: jumps[base].host)
        }
        filledJumpCount[table] = 0
        hasLocalJumps[table] = false
    }

    @inline(__always) func codeSlot(_ linear: UInt64) -> UnsafeMutablePointer<CodeEntry> {
        code + (Int(truncatingIfNeeded: linear >> 12) & (Self.codeCount - 1))
    }
    func noteExecuted(_ linear: UInt64, sizeShift: UInt8) {
        let number = linear >> 12
        executed[Int(number >> 6 & 63)] |= 1 << (number & 63)
        if sizeShift > 12 { noteLarge(linear, sizeShift) }
    }
}
