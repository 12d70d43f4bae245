/// Machines out of options, and instances out of templates.
extension MachineDefinition {
    /// A machine that is no instance: what the options do not say has its default.
    public init(name: Located<String>, _ options: MachineOptions) {
        self.init(name: name)
        interfaces = options.interfaces
        apply(options)
        owner = options.owner
        instances = options.instances ?? InstanceAllowance()
    }

    /// An instance of this machine: what the options do not say is the template's.
    ///
    /// Not the template's are its name, its disks, whether it is enabled, and its interfaces' tap names and addresses.
    /// An interface of the options takes the place of the template's at the same position. Who may make instances of
    /// the instance is the template's word, and passes on only when that allows `instance`.
    ///
    /// - Parameter template: the template's name, where it was written.
    /// - Returns: the instance, and sentences on what it must not say. Whether its maker may say what he says is not
    ///   checked: who is asked to make one while running compares it with `instances.options`.
    public func makeInstance(
        named name: Located<String>, template: Located<String>, _ options: MachineOptions
    ) -> (instance: MachineDefinition, problems: [Located<String>]) {
        var instance = self
        instance.name = name
        instance.template = template
        instance.isEnabled = true
        instance.disks = []
        instance.interfaces = options.interfaces
        instance.interfaces += interfaces.dropFirst(options.interfaces.count).map { interface in
            var copy = interface
            copy.tap = nil
            copy.link.address = nil
            return copy
        }
        instance.apply(options)
        if let owner = options.owner {
            instance.owner = Located(
                Owner(user: owner.value.user ?? self.owner?.value.user, group: owner.value.group ?? self.owner?.value.group), at: owner.location)
        }
        if !instances.options.contains(.instance) { instance.instances = InstanceAllowance() }
        return (instance, problems(in: options, of: name))
    }

    /// What an instance must not share with its template.
    private func problems(in options: MachineOptions, of name: Located<String>) -> [Located<String>] {
        var problems: [Located<String>] = []
        let own = Set(disks.map { FilePath.normalized($0.path.value) })
        for disk in options.disks where own.contains(FilePath.normalized(disk.path.value)) {
            problems.append(Located("disk \(quoteForMessage(disk.path.value)) cannot be reused: it is the template's", at: disk.path.location))
        }
        for interface in options.interfaces {
            if let tap = interface.tap, interfaces.contains(where: { $0.tap == tap }) {
                problems.append(Located("interface \(quoteForMessage(tap.value)) cannot be reused: it is the template's", at: tap.location))
            }
            if let address = interface.link.address, interfaces.contains(where: { $0.link.address == address }) {
                problems.append(Located("lladdr cannot be reused: \(address.value) is the template's", at: address.location))
            }
        }
        let bases = options.allowedBases.filter { !allowedBases.contains($0) }
        if let base = bases.dropFirst(max(Limits.basesPerMachine - allowedBases.count, 0)).first {
            problems.append(Located("too many bases: a machine has at most \(Limits.basesPerMachine), its template's included", at: base.location))
        }
        if options.instances != nil {
            problems.append(Located("vm \(quoteForMessage(name.value)) cannot change instance permissions: they are the template's", at: name.location))
        }
        return problems
    }

    private mutating func apply(_ options: MachineOptions) {
        isEnabled = options.isEnabled?.value ?? isEnabled
        memoryByteCount = options.memoryByteCount?.value ?? memoryByteCount
        cpuCount = options.cpuCount?.value ?? cpuCount
        engine = options.engine?.value ?? engine
        cpuModel = options.cpuModel?.value ?? cpuModel
        boot = options.boot ?? boot
        bootDevice = options.bootDevice?.value ?? bootDevice
        initrd = options.initrd ?? initrd
        commandLine = options.commandLine ?? commandLine
        disks = options.disks
        cdrom = options.cdrom ?? cdrom
        for base in options.allowedBases where allowedBases.count < Limits.basesPerMachine && !allowedBases.contains(base) {
            allowedBases.append(base)
        }
        let missing = (options.minimumInterfaceCount?.value ?? 0) - interfaces.count
        if let place = options.minimumInterfaceCount?.location, missing > 0 {
            interfaces += Array(repeating: InterfaceDefinition(at: place), count: missing)
        }
    }
}
