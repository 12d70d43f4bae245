import CLinux
import VMM

/// What KVM says guests may be shown (KVM_GET_SUPPORTED_CPUID).
func supportedFeatures(_ device: CInt) throws(KVMError) -> CPUFeatures {
    let table = Counted<kvm_cpuid_entry2>(capacity: 256)
    try kvm("KVM_GET_SUPPORTED_CPUID", device, clinux_kvm_get_supported_cpuid, table.address)
    var leaves: [UInt64: CPUIDLeaf] = [:]
    for index in 0..<table.count {
        let entry = table[index]
        leaves[UInt64(entry.function) << 32 | UInt64(entry.index)] = CPUIDLeaf(entry)
    }
    func answer(_ leaf: UInt32, _ subleaf: UInt32) -> CPUIDLeaf {
        leaves[UInt64(leaf) << 32 | UInt64(subleaf)] ?? CPUIDLeaf()
    }
    return CPUFeatures(leaf: answer, extended: answer)
}

/// Gives a virtual CPU the policy's table. The kernel fills in what follows CR4 and XCR0.
func setCPUID(_ cpu: CInt, _ policy: CPUPolicy) throws(KVMError) {
    var entries: [kvm_cpuid_entry2] = []
    func add(_ leaf: UInt32, subleaves: Range<UInt32>? = nil) {
        for subleaf in subleaves ?? 0..<1 {
            let answer = policy.cpuid(leaf, subleaf, cr4: 0, xcr0: 1)
            // A subleaf that says nothing is as good as a missing one, but for the first.
            if subleaf > 0, answer == CPUIDLeaf() { continue }
            entries.append(
                kvm_cpuid_entry2(
                    function: leaf, index: subleaf,
                    flags: subleaves == nil ? 0 : UInt32(KVM_CPUID_FLAG_SIGNIFCANT_INDEX), eax: answer.eax,
                    ebx: answer.ebx, ecx: answer.ecx, edx: answer.edx, padding: (0, 0, 0)))
        }
    }
    for leaf in 0...policy.highestBasicLeaf {
        switch leaf {
        case 4: add(leaf, subleaves: 0..<5)
        case 7: add(leaf, subleaves: 0..<1)
        case 0xB: add(leaf, subleaves: 0..<3)
        case 0xD: add(leaf, subleaves: 0..<10)
        default: add(leaf)
        }
    }
    for leaf in [CPUPolicy.vmmLeaf, CPUPolicy.vmmLeaf + 1, CPUPolicy.kvmLeaf, CPUPolicy.kvmLeaf + 1] { add(leaf) }
    for leaf in 0x8000_0000...policy.highestExtendedLeaf {
        if leaf == 0x8000_001D { add(leaf, subleaves: 0..<5) } else { add(leaf) }
    }
    let table = Counted(entries)
    try kvm("KVM_SET_CPUID2", cpu, clinux_kvm_set_cpuid2, table.address)
}

extension CPUIDLeaf {
    fileprivate init(_ entry: kvm_cpuid_entry2) {
        self.init(eax: entry.eax, ebx: entry.ebx, ecx: entry.ecx, edx: entry.edx)
    }
}
