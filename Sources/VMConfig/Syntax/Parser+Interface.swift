/// `[local] interface [tapN] [{ ... }]`
extension Parser {
    enum InterfaceKeyword: String, CaseIterable { case down, group, lladdr, locked, rdomain, `switch`, up }

    /// From behind `interface` on.
    mutating func interface(_ options: inout MachineOptions, isLocal: Bool, at place: SourceLocation) throws(Skip) {
        var interface = InterfaceDefinition(at: place)
        interface.isLocal = isLocal
        switch token.kind {
        case .newline, .endOfFile, Token.openBrace, Token.closeBrace: break
        default:
            let name = try string("the name of a tap interface, '{' or end of line")
            if Names.isInterfaceName(name.value) {
                interface.tap = name
            } else {
                diagnostics.error("invalid interface: \(quoteForMessage(name.value)): expected a name of 1 to 15 bytes, as tap0", at: name.location)
            }
        }
        if token.kind == Token.openBrace {
            try body(of: "interface", .comma) { (parser: inout Parser) throws(Skip) in try parser.interfaceOption(&interface) }
        }
        guard options.interfaces.count < Limits.interfacesPerMachine else {
            return diagnostics.error("too many interfaces: a machine has at most \(Limits.interfacesPerMachine)", at: place)
        }
        options.interfaces.append(interface)
    }

    private mutating func interfaceOption(_ interface: inout InterfaceDefinition) throws(Skip) {
        switch try keyword(InterfaceKeyword.self, "an option of interface") {
        case .up: interface.isUp = true
        case .down: interface.isUp = false
        case .switch: interface.networkSwitch = try string("the name of a switch")
        case .group: try group(&interface.link)
        case .rdomain: try routingDomain(&interface.link)
        case .lladdr: try address(&interface.link)
        case .locked:
            interface.link.isAddressLocked = true
            try expect("lladdr")
            try address(&interface.link)
        }
    }
}
