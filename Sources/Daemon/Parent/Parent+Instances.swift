import ControlProtocol
import Linux
import VMConfig

/// Machines made of a template by `vmctl start -t`.
extension Parent {
    func instance(
        of template: String, _ request: StartRequest, _ peer: Peer
    ) throws(Refusal) -> (MachineRecord, MachinePlan) {
        guard case .name(let name) = request.machine else {
            throw Refusal(.invalid, "an instance needs a name, not a number")
        }
        guard let source = table.find(.name(template)) else { throw noSuchMachine(.name(template)) }
        if let known = table.find(request.machine) {
            throw known.hasProcess
                ? Refusal(.alreadyRunning, "vm \(name) is already running")
                : Refusal(.invalid, "vm \(name) exists already: take another name, or start it without -t")
        }
        try check(name: name)
        let plan = source.plan
        if !permissions.isAdministrator(peer) {
            guard !plan.instances.isEmpty || plan.instanceOwner != nil else {
                throw Refusal(.permission, "vm \(template) is no template: its `allow instance` in vm.conf would say for whom")
            }
            if let owner = plan.instanceOwner {
                guard permissions.mayControl(peer, owner, startedBy: nil) else {
                    throw Refusal(.permission, "instances of \(template) are for \(owner.text)")
                }
            } else {
                throw Refusal(.permission, "instances of \(template) are for root: `allow instance { owner NAME }` changes that")
            }
            for option in request.instanceOptions where !plan.instances.options.contains(option) {
                throw Refusal(.permission, "instances of \(template) may not set \(option.rawValue): `allow instance` lists what they may")
            }
        }
        // As `MachineDefinition.makeInstance` has it for those of a file: all is the template's but name, disks and owner.
        var made = plan
        made.name = name
        made.owner = ResolvedOwner(uid: peer.uid)
        made.source = nil
        made.disks = []
        if !plan.instances.options.contains(.instance) {
            made.instances = InstanceAllowance()
            made.instanceOwner = nil
        }
        try made.apply(request, opener: opener(for: peer))
        return (table.add(made, isConfigured: false), made)
    }
}

extension StartRequest {
    /// What it says that a template has to allow.
    fileprivate var instanceOptions: [InstanceAllowance.Option] {
        var options: [InstanceAllowance.Option] = []
        if kernel != nil || initrd != nil || commandLine != nil || bootDevice != nil { options.append(.boot) }
        if memory != nil { options.append(.memory) }
        if cpus != nil || cpuModel != nil || engine != nil { options.append(.cpus) }
        if !disks.isEmpty { options.append(.disk) }
        if cdrom != nil { options.append(.cdrom) }
        if interfaceCount != nil || !interfaces.isEmpty { options.append(.interface) }
        return options
    }
}
