internal import Synchronization
internal import VMM

/// What an access wants to do, in the numbers that the write bit of a page-fault error code takes.
package enum PageAccess: UInt8, Sendable {
    case read, write, execute
}

/// Where a linear address leads, and what a TLB may remember about it.
package struct PageTranslation: Hashable, Sendable {
    /// Physical address of the 4 KB page that holds the linear address, whatever the size of the mapping.
    package var physical: UInt64
    package var facts: PageFacts
    /// Base-2 logarithm of the size of the mapping: 12, 21, 22 or 30; 12 without paging.
    package var sizeShift: UInt8

    @inline(__always)
    package init(physical: UInt64, facts: PageFacts, sizeShift: UInt8) {
        self.physical = physical
        self.facts = facts
        self.sizeShift = sizeShift
    }
}

/// Properties of a mapping, all levels taken together.
package struct PageFacts: OptionSet, Hashable, Sendable {
    package let rawValue: UInt8
    package init(rawValue: UInt8) { self.rawValue = rawValue }
    /// R/W is set at every level. A supervisor may write without it while CR0.WP is clear.
    package static let writable = PageFacts(rawValue: 2)
    /// U/S is set at every level.
    package static let user = PageFacts(rawValue: 4)
    /// The dirty flag is set: until then a TLB must send writes through `walk` again.
    package static let dirty = PageFacts(rawValue: 0x40)
    /// G is set and CR4.PGE is on.
    package static let global = PageFacts(rawValue: 0x80)
    package static let noExecute = PageFacts(rawValue: 1)
}

/// Bits of the paging-structure entries (SDM Vol. 3, tables 4-4 to 4-20).
private enum Entry {
    static let present: UInt64 = 1 << 0
    static let writable: UInt64 = 1 << 1
    static let user: UInt64 = 1 << 2
    static let accessed: UInt64 = 1 << 5
    static let dirty: UInt64 = 1 << 6
    static let large: UInt64 = 1 << 7
    static let global: UInt64 = 1 << 8
    static let noExecute: UInt64 = 1 << 63
    static let address: UInt64 = 0x000F_FFFF_FFFF_F000
    /// Address bits that no small machine has: worth asking the policy about when one is set.
    static let highAddress: UInt64 = 0x000F_FFF0_0000_0000
}

/// Bits of the error code of #PF (SDM Vol. 3, figure 4-12).
private enum FaultCode {
    static let protection: UInt32 = 1
    static let write: UInt32 = 2
    static let user: UInt32 = 4
    static let reserved: UInt32 = 8
    static let fetch: UInt32 = 16
}

/// One walk in progress: what the levels have in common. Lives in registers.
private struct Walk {
    let linear: UInt64
    let access: PageAccess
    let user: Bool
    let smapExempt: Bool
    /// U/S and R/W of all levels so far.
    var allowed: UInt64 = Entry.writable | Entry.user
    var noExecute: UInt64 = 0
    /// The start of RAM that begins at physical address 0, and its size: spares most look-ups in `GuestMemory`.
    let low: UnsafeMutableRawPointer
    let lowCount: UInt64
}

extension TranslatorCPU {
    /// Translates a linear address by the guest's page tables (SDM Vol. 3, chapter 4), sets accessed and dirty
    /// flags, and checks access rights. The TLB's miss path: no allocation and no locks.
    ///
    /// - Parameters:
    ///   - linear: canonical in 64-bit mode; the caller checks that.
    ///   - user: whether the access is made at CPL 3. Descriptor-table accesses are the supervisor's at any CPL.
    ///   - smapExempt: an explicit supervisor access with EFLAGS.AC set.
    package func walk(
        _ linear: UInt64, access: PageAccess, user: Bool, smapExempt: Bool
    ) throws(GuestException) -> PageTranslation {
        let cr0 = context.pointee.cr0
        if cr0 & CR0.pg == 0 {
            return PageTranslation(
                physical: linear & 0xFFFF_F000 & addressMask, facts: [.writable, .user, .dirty], sizeShift: 12)
        }
        var walk = Walk(
            linear: linear, access: access, user: user, smapExempt: smapExempt, low: memory.hostBase,
            lowCount: lowRAMByteCount)
        if context.pointee.msr.efer & EFER.lma != 0 { return try walkLong(&walk) }
        if context.pointee.cr4 & CR4.pae != 0 { return try walkPAE(&walk) }
        return try walkLegacy(&walk)
    }

    // MARK: The three formats

    @inline(__always)
    private func walkLong(_ walk: inout Walk) throws(GuestException) -> PageTranslation {
        let table = context.pointee.cr3 & Entry.address
        let pml4e = try directory(table, walk.linear >> 39, reserved: Entry.large, &walk)
        let pdpte = try directory(pml4e & Entry.address, walk.linear >> 30, reserved: hasHugePages ? 0 : Entry.large, &walk)
        if pdpte & Entry.large != 0 {
            return try leaf(pml4e & Entry.address, walk.linear >> 30, pdpte, shift: 30, &walk)
        }
        return try walkDirectory(pdpte & Entry.address, &walk)
    }

    private func walkPAE(_ walk: inout Walk) throws(GuestException) -> PageTranslation {
        // The four PDPTEs hold no rights and no accessed flag (SDM Vol. 3, 4.4.1).
        // They were checked when MOV to CR0, CR3 or CR4 loaded them, and are not read again.
        let pdpte = context.pointee.pdpte[Int(truncatingIfNeeded: walk.linear >> 30 & 3)]
        if pdpte & Entry.present == 0 { throw fault(walk, 0) }
        return try walkDirectory(pdpte & Entry.address, &walk)
    }

    /// The last two levels that long mode and PAE share.
    @inline(__always)
    private func walkDirectory(_ table: UInt64, _ walk: inout Walk) throws(GuestException) -> PageTranslation {
        let pde = try directory(table, walk.linear >> 21, reserved: 0, &walk)
        if pde & Entry.large != 0 { return try leaf(table, walk.linear >> 21, pde, shift: 21, &walk) }
        let last = pde & Entry.address
        let pte = try entry(last, walk.linear >> 12, reserved: 0, &walk)
        return try leaf(last, walk.linear >> 12, pte, shift: 12, &walk)
    }

    private func walkLegacy(_ walk: inout Walk) throws(GuestException) -> PageTranslation {
        let directoryAddress = context.pointee.cr3 & 0xFFFF_F000 &+ (walk.linear >> 22 & 0x3FF) &* 4
        while true {
            let pde = read32(directoryAddress, walk)
            if pde & Entry.present == 0 { throw fault(walk, 0) }
            if pde & Entry.large != 0 && context.pointee.cr4 & CR4.pse != 0 {
                // PSE-36: bits 20:13 are address bits 39:32, bit 21 is reserved (SDM Vol. 3, table 4-4).
                if pde & 1 << 21 != 0 { throw fault(walk, FaultCode.protection | FaultCode.reserved) }
                let base = pde & 0xFFC0_0000 | (pde >> 13 & 0xFF) << 32
                if exceedsPhysicalWidth(base) { throw fault(walk, FaultCode.protection | FaultCode.reserved) }
                walk.allowed &= pde
                guard let updated = try touch32(directoryAddress, pde, walk) else { continue }
                return translation(updated, base | walk.linear & 0x3F_F000, shift: 22, walk)
            }
            if pde & Entry.accessed == 0 {
                guard exchange32(directoryAddress, pde, pde | Entry.accessed, walk) else { continue }
            }
            walk.allowed &= pde
            let address = pde & 0xFFFF_F000 &+ (walk.linear >> 12 & 0x3FF) &* 4
            let directoryRights = walk.allowed
            while true {
                let pte = read32(address, walk)
                if pte & Entry.present == 0 { throw fault(walk, 0) }
                walk.allowed = directoryRights & pte
                guard let updated = try touch32(address, pte, walk) else { continue }
                return translation(updated, pte & 0xFFFF_F000, shift: 12, walk)
            }
        }
    }

    // MARK: Levels of eight-byte entries

    /// Reads an entry, checks that it is present and well formed, and takes its rights over.
    @inline(__always)
    private func entry(
        _ table: UInt64, _ index: UInt64, reserved: UInt64, _ walk: inout Walk
    ) throws(GuestException) -> UInt64 {
        let value = read64(table &+ (index & 0x1FF) &* 8, walk)
        if value & Entry.present == 0 { throw fault(walk, 0) }
        var bad = value & reserved
        if value & (Entry.noExecute | Entry.highAddress) != 0 {
            if value & Entry.noExecute != 0 && context.pointee.msr.efer & EFER.nxe == 0 { bad |= Entry.noExecute }
            if exceedsPhysicalWidth(value) { bad |= Entry.highAddress }
        }
        // Bits 62:52 are ignored in long mode and reserved with PAE (SDM Vol. 3, 4.4.2).
        if context.pointee.msr.efer & EFER.lma == 0 { bad |= value & 0x7FF0_0000_0000_0000 }
        if bad != 0 { throw fault(walk, FaultCode.protection | FaultCode.reserved) }
        return value
    }

    /// The same for an entry above the last level: takes over its rights and sets its accessed flag, unless it
    /// maps a large page, which is `leaf`'s work.
    @inline(__always)
    private func directory(
        _ table: UInt64, _ index: UInt64, reserved: UInt64, _ walk: inout Walk
    ) throws(GuestException) -> UInt64 {
        while true {
            let value = try entry(table, index, reserved: reserved, &walk)
            if value & Entry.large != 0 { return value }
            if value & Entry.accessed == 0 {
                let address = table &+ (index & 0x1FF) &* 8
                guard exchange64(address, value, value | Entry.accessed, walk) else { continue }
            }
            walk.allowed &= value
            walk.noExecute |= value & Entry.noExecute
            return value
        }
    }

    /// Checks rights at the entry that maps the page, and sets its accessed and dirty flags.
    @inline(__always)
    private func leaf(
        _ table: UInt64, _ index: UInt64, _ first: UInt64, shift: UInt64, _ walk: inout Walk
    ) throws(GuestException) -> PageTranslation {
        let allowed = walk.allowed
        let noExecute = walk.noExecute
        var value = first
        while true {
            if shift != 12 {
                // Address bits below the page size are reserved, but bit 12 is PAT.
                let low = (1 as UInt64) << shift &- 0x2000
                if value & low != 0 { throw fault(walk, FaultCode.protection | FaultCode.reserved) }
            }
            walk.allowed = allowed & value
            walk.noExecute = noExecute | value & Entry.noExecute
            try checkRights(walk)
            let wanted = value | Entry.accessed | (walk.access == .write ? Entry.dirty : 0)
            if wanted == value || exchange64(table &+ (index & 0x1FF) &* 8, value, wanted, walk) {
                let mask = (1 as UInt64) << shift &- 1
                let physical = value & Entry.address & ~mask | walk.linear & mask & ~0xFFF
                return translation(wanted, physical, shift: UInt8(truncatingIfNeeded: shift), walk)
            }
            // Somebody changed the entry: look at it afresh.
            value = try entry(table, index, reserved: 0, &walk)
            if shift != 12 && value & Entry.large == 0 {
                return try self.walk(
                    walk.linear, access: walk.access, user: walk.user, smapExempt: walk.smapExempt)
            }
        }
    }

    @inline(__always)
    private func touch32(_ address: UInt64, _ value: UInt64, _ walk: Walk) throws(GuestException) -> UInt64? {
        try checkRights(walk)
        let wanted = value | Entry.accessed | (walk.access == .write ? Entry.dirty : 0)
        if wanted != value && !exchange32(address, value, wanted, walk) { return nil }
        return wanted
    }

    // MARK: Rights

    /// Access rights of SDM Vol. 3, 4.6.
    @inline(__always)
    private func checkRights(_ walk: Walk) throws(GuestException) {
        let userPage = walk.allowed & Entry.user != 0
        switch walk.access {
        case .read:
            if walk.user ? !userPage : userPage && smapForbids(walk) { throw fault(walk, FaultCode.protection) }
        case .write:
            if walk.user {
                if walk.allowed & (Entry.user | Entry.writable) != Entry.user | Entry.writable {
                    throw fault(walk, FaultCode.protection)
                }
            } else {
                if walk.allowed & Entry.writable == 0 && context.pointee.cr0 & CR0.wp != 0
                    || userPage && smapForbids(walk)
                {
                    throw fault(walk, FaultCode.protection)
                }
            }
        case .execute:
            if walk.noExecute != 0 || walk.user && !userPage
                || !walk.user && userPage && context.pointee.cr4 & CR4.smep != 0
            {
                throw fault(walk, FaultCode.protection)
            }
        }
    }

    @inline(__always)
    private func smapForbids(_ walk: Walk) -> Bool {
        context.pointee.cr4 & CR4.smap != 0 && !walk.smapExempt
    }

    /// Whether an entry's address has bits that the guest's CPU does not have. Rare enough to ask the policy.
    @inline(__always)
    private func exceedsPhysicalWidth(_ value: UInt64) -> Bool {
        if value & Entry.highAddress == 0 { return false }
        return (value & Entry.address) >> physicalAddressWidth != 0
    }

    @inline(never)
    private func fault(_ walk: Walk, _ code: UInt32) -> GuestException {
        var code = code
        if walk.user { code |= FaultCode.user }
        switch walk.access {
        case .read: break
        case .write: code |= FaultCode.write
        case .execute:
            let context = context.pointee
            let noExecute = context.msr.efer & EFER.nxe != 0 && context.cr4 & CR4.pae != 0
            if noExecute || context.cr4 & CR4.smep != 0 { code |= FaultCode.fetch }
        }
        return .pageFault(walk.linear, code)
    }

    @inline(__always)
    private func translation(_ entry: UInt64, _ physical: UInt64, shift: UInt8, _ walk: Walk) -> PageTranslation {
        var facts = UInt8(truncatingIfNeeded: walk.allowed & (Entry.writable | Entry.user) | entry & Entry.dirty)
        facts |= UInt8(truncatingIfNeeded: walk.noExecute >> 63)
        if entry & Entry.global != 0 && context.pointee.cr4 & CR4.pge != 0 { facts |= PageFacts.global.rawValue }
        return PageTranslation(physical: physical & addressMask, facts: PageFacts(rawValue: facts), sizeShift: shift)
    }

    // MARK: Guest memory
    //
    // Entries are naturally aligned, so these accesses are atomic. A table outside RAM reads as all ones, as on
    // a PC, which the reserved bits then refuse.

    @inline(__always)
    private func host(_ address: UInt64, _ count: UInt64, _ walk: Walk) -> UnsafeMutableRawPointer? {
        let address = address & addressMask
        if address < walk.lowCount { return walk.low + Int(truncatingIfNeeded: address) }
        return memory.hostAddress(of: address, count: count)
    }

    /// A table in ROM can be read; its flags stay as they are.
    @inline(__always)
    private func readable(_ address: UInt64, _ count: UInt64, _ walk: Walk) -> UnsafeMutableRawPointer? {
        let address = address & addressMask
        if address < walk.lowCount { return walk.low + Int(truncatingIfNeeded: address) }
        return memory.readableAddress(of: address, count: count).map { UnsafeMutableRawPointer(mutating: $0) }
    }

    @inline(__always)
    private func read64(_ address: UInt64, _ walk: Walk) -> UInt64 {
        guard let pointer = readable(address, 8, walk) else { return ~0 }
        return pointer.assumingMemoryBound(to: Atomic<UInt64>.self).pointee.load(ordering: .acquiring)
    }

    @inline(__always)
    private func read32(_ address: UInt64, _ walk: Walk) -> UInt64 {
        guard let pointer = readable(address, 4, walk) else { return 0xFFFF_FFFF }
        return UInt64(pointer.assumingMemoryBound(to: Atomic<UInt32>.self).pointee.load(ordering: .acquiring))
    }

    @inline(__always)
    private func exchange64(_ address: UInt64, _ old: UInt64, _ new: UInt64, _ walk: Walk) -> Bool {
        guard let pointer = host(address, 8, walk) else { return true }
        let isDone = pointer.assumingMemoryBound(to: Atomic<UInt64>.self).pointee.compareExchange(
            expected: old, desired: new, ordering: .acquiringAndReleasing
        ).exchanged
        if isDone { noteWalkWrite(pointer, 8) }
        return isDone
    }

    @inline(__always)
    private func exchange32(_ address: UInt64, _ old: UInt64, _ new: UInt64, _ walk: Walk) -> Bool {
        guard let pointer = host(address, 4, walk) else { return true }
        let isDone = pointer.assumingMemoryBound(to: Atomic<UInt32>.self).pointee.compareExchange(
            expected: UInt32(truncatingIfNeeded: old), desired: UInt32(truncatingIfNeeded: new),
            ordering: .acquiringAndReleasing
        ).exchanged
        if isDone { noteWalkWrite(pointer, 4) }
        return isDone
    }

    /// A page table may be code as well: then a flag that the walk sets is a write to code.
    @inline(__always)
    private func noteWalkWrite(_ pointer: UnsafeMutableRawPointer, _ count: Int) {
        if cache.hasCode(page: (pointer - memory.hostBase) >> 12) { _ = invalidateCode(pointer, count, running: nil) }
    }
}
