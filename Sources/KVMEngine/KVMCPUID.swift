import CLinux
import Linux
import VMM

/// What KVM says guests may be shown (KVM_GET_SUPPORTED_CPUID).
func supportedFeatures(_ device: CInt) throws(KVMError) -> CPUFeatures {
    let table = Counted<kvm_cpuid_entry2>(capacity: 256)
    try kvm("KVM_GET_SUPPORTED_CPUID", device, clinux_kvm_get_supported_cpuid, table.address)
    return features(of: table)
}

/// What KVM shows to every guest, whatever it was told: a page-table-based KVM adds all that user code has
/// natively to the table it is given. Without knowing it, a policy would refuse models that work. Asked of a CPU
/// made for it.
func forcedFeatures(_ device: CInt) throws(KVMError) -> CPUFeatures {
    let machine = FileDescriptor(owning: try kvm("KVM_CREATE_VM", device, clinux_kvm_create_vm))
    let cpu = FileDescriptor(owning: try kvm("KVM_CREATE_VCPU", machine.raw, clinux_kvm_create_vcpu))
    let leaves: [UInt32] = [0, 1, 7, 0xD, 0x8000_0000, 0x8000_0001, 0x8000_0007, 0x8000_0008]
    let empty = leaves.map { leaf in
        var entry = kvm_cpuid_entry2()
        entry.function = leaf
        entry.eax = leaf == 0 ? 0xD : leaf == 0x8000_0000 ? 0x8000_0008 : 0
        entry.flags = leaf == 7 || leaf == 0xD ? UInt32(KVM_CPUID_FLAG_SIGNIFCANT_INDEX) : 0
        return entry
    }
    let given = Counted(empty)
    try kvm("KVM_SET_CPUID2", cpu.raw, clinux_kvm_set_cpuid2, given.address)
    let table = Counted<kvm_cpuid_entry2>(capacity: 256)
    try kvm("KVM_GET_CPUID2", cpu.raw, clinux_kvm_get_cpuid2, table.address)
    return features(of: table)
}

private func features(of table: borrowing Counted<kvm_cpuid_entry2>) -> CPUFeatures {
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
        case 7: add(leaf, subleaves: 0..<2)
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
