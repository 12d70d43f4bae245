internal import VMM

// Hardware task switching (SDM Vol. 3, chapter 8).
extension TranslatorCPU {
    /// A task gate in the IDT.
    func enterTaskGate(
        _ gate: Descriptor, errorCode: UInt32?, source: EventSource, returnAddress: UInt64
    ) throws(GuestException) {
        throw .selector(13, gate.gateSelector, external: source == .software ? 0 : 1)
    }
}

extension TranslatorCPU {
    /// IRET with NT set.
    func returnToLinkedTask(_ instruction: UnsafePointer<SystemInstruction>) throws(GuestException) {
        throw .generalProtection()
    }

    /// A far jump or call to a TSS or a task gate.
    func farTask(
        _ target: Descriptor, _ selector: UInt16, isCall: Bool, returnAddress: UInt64
    ) throws(GuestException) {
        throw .selector(13, selector)
    }
}
