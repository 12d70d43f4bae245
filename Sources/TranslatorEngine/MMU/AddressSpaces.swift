import VMM

/// Translations of the address spaces that are not the current one, by their PCID (SDM Vol. 3, 4.10.1).
///
/// Translated code knows no PCID: a switch empties the TLB of all that is not global. What it held is put by here, and
/// put back when the guest returns to that PCID without asking for a flush. Large pages are not kept: INVLPG would have
/// to find all their parts.
final class AddressSpaces {
    private struct Item {
        var linear: UInt64
        var host: UInt64
        var ramOffset: Int
        var table: UInt8
        var isWritable: Bool
    }
    /// Linux uses six PCIDs.
    private static let setCount = 8
    private static let itemLimit = 512
    private let items = UnsafeMutablePointer<Item>.allocate(capacity: setCount * itemLimit)
    private var counts: [8 of Int] = .init(repeating: 0)
    private var pcids: [8 of UInt64] = .init(repeating: 0)
    private var ages: [8 of UInt64] = .init(repeating: 0)
    private var now: UInt64 = 0

    deinit { items.deallocate() }

    /// Before a switch away from a PCID.
    func put(_ pcid: UInt64, from tlb: TLBState) {
        var set = 0
        for index in 0..<Self.setCount {
            if counts[index] > 0 && pcids[index] == pcid {
                set = index
                break
            }
            if counts[index] == 0 || counts[set] > 0 && ages[index] < ages[set] { set = index }
        }
        now &+= 1
        pcids[set] = pcid
        ages[set] = now
        var count = 0
        let base = items + set * Self.itemLimit
        tlb.forEachLocal { (slot, entry) in
            guard count < Self.itemLimit, entry.info & TLB.Entry.isLarge == 0 else { return }
            base[count] = Item(
                linear: entry.readTag, host: entry.host, ramOffset: Int(truncatingIfNeeded: entry.info & ~0xFFF),
                table: UInt8(truncatingIfNeeded: slot / TLB.entryCount), isWritable: entry.writeTag == entry.readTag)
            count += 1
        }
        counts[set] = count
    }

    /// Behind a switch to a PCID whose translations are to be kept.
    func take(_ pcid: UInt64, into tlb: TLBState, _ cache: CodeCache) {
        for set in 0..<Self.setCount where counts[set] > 0 && pcids[set] == pcid {
            for position in 0..<counts[set] {
                let item = items[set * Self.itemLimit + position]
                guard let host = UnsafeMutableRawPointer(bitPattern: UInt(item.host)) else { continue }
                // The page may hold code by now.
                tlb.fill(
                    table: Int(item.table), linear: item.linear, host: host, ramOffset: item.ramOffset,
                    writable: item.isWritable && !cache.hasCode(page: item.ramOffset >> 12), global: false, sizeShift: 12)
            }
        }
    }

    func drop(_ pcid: UInt64) {
        for set in 0..<Self.setCount where pcids[set] == pcid { counts[set] = 0 }
    }
    func dropAll() { counts = .init(repeating: 0) }
}

extension TranslatorCPU {
    /// CR3 in 64-bit mode with CR4.PCIDE: bits 11-0 are the PCID, and bit 63 keeps its translations.
    func switchAddressSpace(_ value: UInt64) throws(GuestException) {
        let keeps = value >> 63 != 0
        let new = value & ~(1 << 63)
        if new >> physicalAddressWidth != 0 { throw .generalProtection() }
        let old = context.pointee.cr3 & 0xFFF
        let pcid = new & 0xFFF
        context.pointee.cr3 = new
        if old == pcid && keeps { return }
        if old != pcid { spaces.put(old, from: tlb) }
        tlb.flush(global: false)
        crossings.flush(global: false)
        dropReturns()
        if keeps { spaces.take(pcid, into: tlb, cache) }
        spaces.drop(pcid)
    }

    /// INVPCID (SDM Vol. 2).
    func invalidateSpaces(_ instruction: UnsafePointer<SystemInstruction>) throws(GuestException) {
        guard policy.features.contains(.invpcid) else { throw .invalidOpcode }
        try requireSupervisor()
        let i = instruction.pointee
        let type = register(i.register) & Self.mask(context.pointee.is64Bit ? 8 : 4)
        let offset = effectiveAddress(instruction)
        let start = try linear(i.segment, offset, 16, write: false)
        var descriptor: [2 of UInt64] = .init(repeating: 0)
        try withUnsafeMutableBytes(of: &descriptor) { (raw) throws(GuestException) in
            try self.load(start, into: raw, user: false)
        }
        let pcid = descriptor[0]
        let usesPCID = context.pointee.cr4 & CR4.pcide != 0
        guard type <= 3, pcid >> 12 == 0 else { throw .generalProtection() }
        if type < 2 && !usesPCID && pcid != 0 { throw .generalProtection() }
        let isCurrent = pcid == (usesPCID ? context.pointee.cr3 & 0xFFF : 0)
        switch type {
        case 0:
            guard Self.isCanonical(descriptor[1]) else { throw .generalProtection() }
            // Of another address space all go: a TLB may always forget.
            if isCurrent { flushTLB(page: descriptor[1]) } else { spaces.drop(pcid) }
        case 1:
            if isCurrent { flushTLB(global: false) } else { spaces.drop(pcid) }
        case 2: flushTLB(global: true)
        default:
            flushTLB(global: false)
            spaces.dropAll()
        }
    }
}
