/// `switch NAME { ... }`
extension Parser {
    enum SwitchKeyword: String, CaseIterable { case disable, down, enable, group, interface, lladdr, locked, rdomain, up }

    /// From the name on.
    mutating func switchStatement() throws(Skip) {
        let name = try string("the name of a switch")
        if let problem = Names.problem(inSwitchName: name.value) { diagnostics.error(problem, at: name.location) }
        var statement = SwitchStatement(name: name)
        // Kept whatever the body says: machines refer to it.
        defer { add(statement, to: \.switches, "switches", at: name.location) }
        try body(of: "switch \(quoteForMessage(name.value))", .newline) { (parser: inout Parser) throws(Skip) in
            try parser.switchOption(&statement)
        }
        if statement.interface == nil {
            diagnostics.error("switch \"\(name.value)\" is missing interface name: say interface and a bridge's name", at: name.location)
        }
    }

    private mutating func switchOption(_ statement: inout SwitchStatement) throws(Skip) {
        switch try keyword(SwitchKeyword.self, "an option of switch") {
        case .enable: statement.isEnabled = true
        case .disable: statement.isEnabled = false
        case .up: statement.isUp = true
        case .down: statement.isUp = false
        case .group: try group(&statement.link)
        case .rdomain: try routingDomain(&statement.link)
        case .lladdr: try address(&statement.link)
        case .locked:
            statement.link.isAddressLocked = true
            try expect("lladdr")
            try address(&statement.link)
        case .interface:
            let name = try string("the name of a bridge")
            // Said, if wrongly: it is not missing.
            if let first = statement.interface { diagnostics.error("interface specified more than once, first on line \(first.location.line)", at: name.location) }
            statement.interface = name
            guard Names.isInterfaceName(name.value) else {
                return diagnostics.error("invalid switch interface: \(quoteForMessage(name.value)): expected a bridge's name of 1 to 15 bytes", at: name.location)
            }
        }
    }
}
