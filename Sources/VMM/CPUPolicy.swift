/// The four registers that CPUID answers with.
public struct CPUIDLeaf: Hashable, Sendable {
    public var eax: UInt32
    public var ebx: UInt32
    public var ecx: UInt32
    public var edx: UInt32
    public init(eax: UInt32 = 0, ebx: UInt32 = 0, ecx: UInt32 = 0, edx: UInt32 = 0) {
        self.eax = eax
        self.ebx = ebx
        self.ecx = ecx
        self.edx = edx
    }
}
public struct CPUPolicy: Sendable {
    /// CPUID as the guest sees it. `cr4` and `xcr0` are the guest's: OSXSAVE and the XSAVE area size follow them.
    public func cpuid(_ leaf: UInt32, _ subleaf: UInt32, cr4: UInt64, xcr0: UInt64) -> CPUIDLeaf { .init() }
}
