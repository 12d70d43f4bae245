/// A virtual CPU's local APIC as its engine sees it: where its interrupts come from, CR8, model-specific registers, and a
/// page of registers in its physical address space, which no other CPU sees (SDM Vol. 3, chapter 12).
///
/// As an `MMIODevice` it is that page. All but `isPending` is for the CPU's own thread.
public protocol LocalInterruptController: InterruptSource, MMIODevice {
    /// Whether IA32_APIC_BASE has it on; CPUID shows no APIC otherwise.
    var isEnabled: Bool { get }
    /// The physical address that the page of registers lies at; `nil` while there is none.
    var registerPage: UInt64? { get }
    /// CR8: the upper half of the task priority. At most 15.
    var taskPriority: UInt8 { get }
    func setTaskPriority(_ class: UInt8)
    /// IA32_APIC_BASE, IA32_TSC_DEADLINE and the registers of x2APIC mode; `nil` for #GP(0).
    func readMSR(_ index: UInt32) -> UInt64?
    /// - Parameter timeStamp: what the guest's time-stamp counter says now, from which deadlines count.
    /// - Returns: `false` for #GP(0), with nothing changed. `registerPage` may have changed otherwise.
    func writeMSR(_ index: UInt32, _ value: UInt64, timeStamp: UInt64) -> Bool
    /// The guest wrote to its time-stamp counter, which deadlines are compared with.
    func timeStampChanged(to timeStamp: UInt64)
}

extension MSRIndex {
    public static let tscDeadline: UInt32 = 0x6E0
    /// The registers of x2APIC mode.
    public static let x2APIC: ClosedRange<UInt32> = 0x800...0x8FF

    /// Whether a register belongs to the local APIC, where there is one.
    @inlinable public static func isLocalAPIC(_ index: UInt32) -> Bool {
        index & ~0xFF == 0x800 || index == apicBase || index == tscDeadline
    }
}
