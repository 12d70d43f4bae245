import VMM

/// A guest page that instructions are fetched from.
struct CodePage {
    /// Guest-physical address of the page.
    var physical: UInt64
    var host: UnsafeMutablePointer<UInt8>
    var ramOffset: Int
    var isGlobal: Bool
}

extension TranslatorCPU {
    /// The page of code at a linear address, with the rights of the current mode.
    @inline(__always) func codePage(_ linear: UInt64) throws(GuestException) -> CodePage {
        let isUser = mode.table == TLB.Table.user.rawValue
        let key = linear & ~0xFFF | 2 | (isUser ? 1 : 0)
        let slot = tlb.codeSlot(linear)
        if slot.pointee.key & ~4 == key {
            return CodePage(
                physical: slot.pointee.physical, host: UnsafeMutablePointer(bitPattern: UInt(slot.pointee.host)).unsafelyUnwrapped,
                ramOffset: slot.pointee.ramOffset, isGlobal: slot.pointee.key & 4 != 0)
        }
        return try fetchCodePage(linear, key: key, isUser: isUser)
    }

    private func fetchCodePage(_ linear: UInt64, key: UInt64, isUser: Bool) throws(GuestException) -> CodePage {
        if context.pointee.isLongMode && !Self.isCanonical(linear) { throw .generalProtection() }
        let translation = try walk(linear, access: .execute, user: isUser, smapExempt: false)
        // Where no RAM is, the bus reads all ones: FF FF, which is no instruction.
        guard let host = memory.readableAddress(of: translation.physical, count: 4096) else { throw .invalidOpcode }
        let ramOffset = host - UnsafeRawPointer(memory.hostBase)
        let isGlobal = translation.facts.contains(.global)
        tlb.codeSlot(linear).pointee = TLBState.CodeEntry(
            key: key | (isGlobal ? 4 : 0), physical: translation.physical, host: UInt64(UInt(bitPattern: host)),
            ramOffset: ramOffset)
        tlb.noteExecuted(linear, sizeShift: translation.sizeShift)
        return CodePage(
            physical: translation.physical, host: UnsafeMutablePointer(mutating: host.assumingMemoryBound(to: UInt8.self)),
            ramOffset: ramOffset,
            isGlobal: isGlobal)
    }

    /// A page is about to hold translated code.
    func protectCode(page: Int) {
        if !cache.hasCode(page: page) { tlb.protect(ramPage: page) }
    }
}
