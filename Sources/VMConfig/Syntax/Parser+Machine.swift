/// `vm NAME [instance TEMPLATE] { ... }`
extension Parser {
    enum MachineKeyword: String, CaseIterable {
        case allow, boot, cdrom, cmdline, cpu, cpus, disable, disk, enable, engine, initrd, interface, interfaces, local
        case memory, owner, sev, seves
    }

    /// From the name on.
    mutating func machineStatement() throws(Skip) {
        let name = try string("the name of a machine", following: ["instance"])
        if let problem = Names.problem(inMachineName: name.value) {
            diagnostics.error(problem, at: name.location)
        } else if Owner.number(name.value) != nil {
            diagnostics.warning("vmctl takes \(quoteForMessage(name.value)) for an id: a name should begin with a letter", at: name.location)
        }
        var statement = MachineStatement(name: name)
        if take("instance") {
            statement.template = try string("the name of a machine to be an instance of")
        } else if token.kind != Token.openBrace, token.kind != .newline {
            throw fail(expected: "'{' or instance", nearest: ["instance"])
        }
        // Kept whatever the body says: instances refer to it.
        defer { add(statement, to: \.machines, "machines", at: name.location) }
        var hasOptions = false
        try body(of: "vm \(quoteForMessage(name.value))", .newline) { (parser: inout Parser) throws(Skip) in
            hasOptions = true
            try parser.machineOption(&statement.options)
        }
        if !hasOptions, !isClosedEarly, statement.template == nil {
            diagnostics.error(
                "syntax error: vm \(quoteForMessage(name.value)) is empty: expected an option (\(Self.list(MachineKeyword.self)))", at: name.location)
        }
    }

    private mutating func machineOption(_ options: inout MachineOptions) throws(Skip) {
        let place = location
        switch try keyword(MachineKeyword.self, "an option of vm") {
        case .enable: setEnabled(true, &options, at: place)
        case .disable: setEnabled(false, &options, at: place)
        case .memory: try memory(&options, at: place)
        case .cpus: try cpus(&options, at: place)
        case .engine:
            set(&options.engine, to: try choice("an engine", "unknown engine"), "engine", at: place)
        case .cpu:
            set(&options.cpuModel, to: try choice("a CPU model", "unknown CPU model"), "cpu", at: place)
        case .disk: try disk(&options)
        case .cdrom: set(&options.cdrom, to: try path("cdrom", "the path of an ISO image"), "cdrom", at: place)
        case .initrd: set(&options.initrd, to: try path("initrd", "the path of an initial ramdisk"), "initrd", at: place)
        case .cmdline: try commandLine(&options, at: place)
        case .boot:
            if take("device") {
                let device: Located<MachineDefinition.BootDevice>? = try choice("a boot device", "unknown boot device")
                set(&options.bootDevice, to: device, "boot device", at: place)
            } else {
                set(&options.boot, to: try path("kernel", "the path of a kernel or firmware, or device"), "kernel", at: place)
            }
        case .interfaces:
            let count = try number("a number of interfaces", in: 0...Limits.interfacesPerMachine, invalid: "too many interfaces")
            set(&options.minimumInterfaceCount, to: count, "interfaces", at: place)
        case .interface: try interface(&options, isLocal: false, at: place)
        case .local:
            try expect("interface")
            try interface(&options, isLocal: true, at: place)
        case .owner: set(&options.owner, to: try owner(), "owner", at: place)
        case .allow: try allow(&options)
        case .sev, .seves:
            diagnostics.error("sev and seves: memory encryption is not supported; the machine would run without it", at: place)
        }
    }

    private mutating func setEnabled(_ isEnabled: Bool, _ options: inout MachineOptions, at place: SourceLocation) {
        warnOfRedefinition(options.isEnabled?.location, "enable or disable", at: place)
        options.isEnabled = Located(isEnabled, at: place)
    }

    /// Options that may be given once.
    private mutating func set<Value>(_ option: inout Located<Value>?, to value: Located<Value>?, _ name: String, at place: SourceLocation) {
        guard let value else { return }
        if let first = option {
            return diagnostics.error("\(name) specified more than once, first at \(first.location)", at: place)
        }
        option = value
    }

    // MARK: Values

    private mutating func memory(_ options: inout MachineOptions, at place: SourceLocation) throws(Skip) {
        let text: String
        if case .number(let number) = token.kind {
            text = String(number)
            advance()
        } else {
            text = try string("a size (512M, 2G)").value
        }
        var size: Located<UInt64>?
        if let bytes = ByteSize.parse(text) {
            let rounded = bytes & ~0xFFFFF
            if bytes < Limits.memoryByteCount.lowerBound {
                let hint = Limits.memoryByteCount.contains(bytes << 20) ? "; did you mean \(bytes)M?" : ""
                diagnostics.error("memory size must be at least 1MB: \(text) is \(bytes) bytes\(hint)", at: place)
            } else if rounded > Limits.memoryByteCount.upperBound {
                diagnostics.error("memory size too large (limit is 128G): \(text)", at: place)
            } else {
                if rounded != bytes { diagnostics.warning("memory size rounded to \(rounded >> 20)M", at: place) }
                size = Located(rounded, at: place)
            }
        } else {
            diagnostics.error("failed to parse size: \(quoteForMessage(text)): expected a number with K, M, G or T (512M)", at: place)
        }
        // A wrong one counts as given.
        set(&options.memoryByteCount, to: size ?? Located(Limits.defaultMemoryByteCount, at: place), "memory", at: place)
    }

    private mutating func cpus(_ options: inout MachineOptions, at place: SourceLocation) throws(Skip) {
        guard let count = try number("a number of CPUs", in: Limits.cpuCount, invalid: "invalid number of cpus") else { return }
        if !Limits.supportedCPUCount.contains(count.value) {
            diagnostics.error("cpus \(count.value): machines have one CPU for now; expected cpus 1", at: place)
        }
        set(&options.cpuCount, to: count, "cpus", at: place)
    }

    /// One of a list of words, in quotes or not; another is reported, and is `nil`.
    private mutating func choice<C: RawRepresentable & CaseIterable>(_ what: String, _ unknown: String) throws(Skip) -> Located<C>?
    where C.RawValue == String {
        if case .word(let word) = token.kind, let value = C(rawValue: word) {
            let place = location
            advance()
            return Located(value, at: place)
        }
        let text = try string("\(what) (\(Self.list(C.self)))")
        if let value = C(rawValue: text.value) { return Located(value, at: text.location) }
        let nearest = Keywords.nearest(to: text.value, among: C.allCases.map(\.rawValue))
        diagnostics.error("\(unknown) \(quoteForMessage(text.value)): expected \(Self.list(C.self))\(didYouMean(nearest))", at: text.location)
        return nil
    }

    private mutating func path(_ name: String, _ what: String) throws(Skip) -> Located<String>? {
        let path = try string(what)
        return checkPath(path, name) ? path : nil
    }

    private mutating func commandLine(_ options: inout MachineOptions, at place: SourceLocation) throws(Skip) {
        let text = try string("the kernel's command line in quotes")
        guard text.value.utf8.count <= Limits.commandLineByteCount else {
            return diagnostics.error("cmdline too long: the limit is \(Limits.commandLineByteCount) bytes", at: text.location)
        }
        set(&options.commandLine, to: text, "cmdline", at: place)
    }

    private mutating func disk(_ options: inout MachineOptions) throws(Skip) {
        let path = try string("the path of a disk image", following: ["format"])
        var disk = DiskDefinition(path: path)
        if take("format") {
            let format: Located<DiskDefinition.Format>? = try choice("a disk format", "unrecognized disk format")
            disk.format = format?.value
        }
        guard checkPath(path, "disk") else { return }
        if options.disks.count == Limits.disksPerMachine {
            diagnostics.error("too many disks: a machine has at most \(Limits.disksPerMachine)", at: path.location)
        } else if let first = options.disks.first(where: { FilePath.normalized($0.path.value) == FilePath.normalized(path.value) }) {
            diagnostics.error("disk \(quoteForMessage(path.value)) given twice, first at \(first.path.location)", at: path.location)
        } else {
            options.disks.append(disk)
        }
    }

    // MARK: Allowances

    enum AllowKeyword: String, CaseIterable { case base, instance }

    enum AllowanceKeyword: String, CaseIterable { case boot, cdrom, cpus, disk, instance, interface, memory, owner }

    private mutating func allow(_ options: inout MachineOptions) throws(Skip) {
        switch try keyword(AllowKeyword.self, "what is allowed") {
        case .base:
            guard let base = try path("base", "the path of a folder or file") else { return }
            guard base.value.hasPrefix("/") else {
                return diagnostics.error("base path is not absolute: \(quoteForMessage(base.value))", at: base.location)
            }
            guard options.allowedBases.count < Limits.basesPerMachine else {
                return diagnostics.error("too many bases: a machine has at most \(Limits.basesPerMachine)", at: base.location)
            }
            options.allowedBases.append(base)
        case .instance:
            var allowance = options.instances ?? InstanceAllowance()
            defer { options.instances = allowance }
            guard token.kind == Token.openBrace else { return try instanceFlag(&allowance) }
            try body(of: "allow instance", .comma) { (parser: inout Parser) throws(Skip) in try parser.instanceFlag(&allowance) }
        }
    }

    private mutating func instanceFlag(_ allowance: inout InstanceAllowance) throws(Skip) {
        let keyword = try keyword(AllowanceKeyword.self, "what instances may set")
        if let option = InstanceAllowance.Option(rawValue: keyword.rawValue) {
            allowance.options.insert(option)
        } else if let owner = try owner() {
            allowance.owner = owner
        }
    }
}
