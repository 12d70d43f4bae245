/// Configurations as vm.conf(5) text. Read again, it gives an equal configuration.
extension Configuration: CustomStringConvertible {
    public var description: String {
        let settings = settings.description
        return ((settings.isEmpty ? [] : [settings]) + switches.map(\.description) + machines.map(\.description)).joined(separator: "\n")
    }
}

extension GlobalSettings: CustomStringConvertible {
    /// A line a setting; empty when all are at their defaults.
    public var description: String {
        var lines: [String] = []
        if let socketOwner { lines.append("socket owner \(quote(socketOwner.value.description))") }
        if let staggeredStart { lines.append("staggered start parallel \(staggeredStart.parallel) delay \(staggeredStart.delaySeconds)") }
        if let localPrefix { lines.append("local prefix \(localPrefix.value)") }
        switch localInet6 {
        case .random: lines.append("local inet6")
        case .prefix(let prefix): lines.append("local inet6 prefix \(quote(prefix.value.description))")
        case nil: break
        }
        return lines.map { $0 + "\n" }.joined()
    }
}

extension SwitchDefinition: CustomStringConvertible {
    public var description: String {
        var lines = ["interface \(quote(interface.value))"]
        if !isEnabled { lines.append("disable") }
        if !isUp { lines.append("down") }
        return block("switch \(quote(name.value))", lines + link.lines)
    }
}

extension LinkOptions {
    fileprivate var lines: [String] {
        var lines: [String] = []
        if let group { lines.append("group \(quote(group.value))") }
        if let routingDomain { lines.append("rdomain \(routingDomain.value)") }
        if isAddressLocked || address != nil {
            lines.append((isAddressLocked ? "locked " : "") + "lladdr" + (address.map { " \($0.value)" } ?? ""))
        }
        return lines
    }
}

extension InterfaceDefinition: CustomStringConvertible {
    /// One line.
    public var description: String {
        let head = (isLocal ? "local " : "") + "interface" + (tap.map { " \(quote($0.value))" } ?? "")
        var options: [String] = []
        if let networkSwitch { options.append("switch \(quote(networkSwitch.value))") }
        options += link.lines
        if !isUp { options.append("down") }
        return options.isEmpty ? head : "\(head) { \(options.joined(separator: ", ")) }"
    }
}

extension DiskDefinition: CustomStringConvertible {
    public var description: String { "disk \(quote(path.value))" + (format.map { " format \($0.rawValue)" } ?? "") }
}

extension InstanceAllowance: CustomStringConvertible {
    /// One line; empty when nothing is allowed.
    public var description: String {
        guard !isEmpty else { return "" }
        var flags = Option.allCases.filter(options.contains).map(\.rawValue)
        if let owner { flags.append("owner \(quote(owner.value.description))") }
        return "allow instance { \(flags.joined(separator: ", ")) }"
    }
}

extension MachineDefinition: CustomStringConvertible {
    public var description: String {
        var lines = [isEnabled ? "enable" : "disable", "memory \(ByteSize.describe(memoryByteCount))", "cpus \(cpuCount)", "engine \(engine.rawValue)"]
        func add(_ keyword: String, _ text: String?) {
            if let text { lines.append("\(keyword) \(text)") }
        }
        add("cpu", cpuModel?.rawValue)
        add("boot", (boot?.value).map(quote))
        add("initrd", (initrd?.value).map(quote))
        add("cmdline", (commandLine?.value).map(quote))
        add("boot device", bootDevice?.rawValue)
        lines += disks.map(\.description)
        add("cdrom", (cdrom?.value).map(quote))
        lines += interfaces.map(\.description)
        add("owner", (owner?.value.description).map(quote))
        lines += allowedBases.map { "allow base \(quote($0.value))" }
        // An instance has its template's.
        if template == nil, !instances.isEmpty { lines.append(instances.description) }
        return block("vm \(quote(name.value))" + (template.map { " instance \(quote($0.value))" } ?? ""), lines)
    }
}

private func block(_ head: String, _ lines: [String]) -> String {
    "\(head) {\n" + lines.map { "    \($0)\n" }.joined() + "}\n"
}

/// Text as a string of the file.
private func quote(_ text: String) -> String {
    var result = "\""
    for scalar in text.unicodeScalars {
        if scalar == "\"" || scalar == "\\" { result += "\\" }
        result.unicodeScalars.append(scalar)
    }
    return result + "\""
}
