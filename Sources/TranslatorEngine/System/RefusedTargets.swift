/// Near branches to addresses that are not canonical: they fault themselves, before any of their effects (SDM Vol. 2, CALL,
/// JMP and RET).
extension TranslatorCPU {
    /// A jump or return that missed the jump cache: what it popped is put back.
    func refuseTarget() throws(GuestException) {
        let branch = context.pointee.branch
        guard branch != Context.noBranch else { return }
        context.pointee.rip = instructionPointer(Int(branch & 0x1FFF))
        context.pointee.gpr[4] &-= UInt64(branch >> 13)
        throw .generalProtection()
    }

    /// A call, which has not pushed yet. AMD's CPUs find a fault of the push first, Intel's do not look at the stack.
    func refusedCall(at offset: Int) -> GuestException {
        context.pointee.rip = instructionPointer(offset)
        guard vendor == .amd else { return .generalProtection() }
        let hits = debugHits
        defer { debugHits = hits }
        do throws(GuestException) {
            let place = try linear(SegmentNumber.ss, context.pointee.gpr[4] &- 8, 8, write: true)
            try requireAlignment(place, 8)
            let inFirst = min(8, 4096 - Int(place & 0xFFF))
            _ = try resolve(place, count: inFirst, writes: true, table: mode.table)
            if inFirst < 8 { _ = try resolve(place &+ UInt64(inFirst), count: 8 - inFirst, writes: true, table: mode.table) }
            return .generalProtection()
        } catch {
            return error
        }
    }
}
