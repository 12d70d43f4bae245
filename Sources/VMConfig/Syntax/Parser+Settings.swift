/// Statements about the daemon.
extension Parser {
    /// `socket owner OWNER`
    mutating func socketStatement() throws(Skip) {
        let place = location
        advance()
        try expect("owner")
        guard let owner = try owner() else { return }
        warnOfRedefinition(tree.settings.socketOwner?.location, "socket owner", at: place)
        tree.settings.socketOwner = Located(owner.value, at: place)
    }

    /// `staggered start parallel N delay SECONDS`
    mutating func staggeredStatement() throws(Skip) {
        let place = location
        advance()
        try expect("start")
        try expect("parallel")
        let parallel = try number("how many machines start at once", in: Limits.staggeredParallel, invalid: "invalid number of machines")
        try expect("delay")
        let delay = try number("a number of seconds", in: Limits.staggeredDelaySeconds, invalid: "invalid delay")
        guard let parallel, let delay else { return }
        if tree.settings.staggeredStart != nil { diagnostics.warning("staggered start is set again: the last one counts", at: place) }
        tree.settings.staggeredStart = .init(parallel: parallel.value, delaySeconds: delay.value)
    }

    enum LocalKeyword: String, CaseIterable { case prefix, inet6 }

    /// `local prefix ADDR[/LEN]` or `local inet6 [prefix ADDR/LEN]`
    mutating func localStatement() throws(Skip) {
        let place = location
        advance()
        switch try keyword(LocalKeyword.self, "what is local") {
        case .prefix:
            let text = try string("a network ADDRESS/LENGTH")
            guard let prefix = localPrefix(text) else { return }
            warnOfRedefinition(tree.settings.localPrefix?.location, "local prefix", at: place)
            tree.settings.localPrefix = Located(prefix, at: place)
        case .inet6:
            if tree.settings.localInet6 != nil { diagnostics.warning("local inet6 is set again: the last one counts", at: place) }
            guard take("prefix") else {
                tree.settings.localInet6 = .random
                return
            }
            let text = try string("a network ADDRESS/LENGTH")
            guard let prefix = IPv6Prefix(text.value), Limits.localInet6PrefixLength.contains(prefix.length) else {
                return diagnostics.error(
                    "invalid local prefix: \(quoteForMessage(text.value)): expected an IPv6 ADDRESS/LENGTH with a length of 1 to 64", at: text.location)
            }
            tree.settings.localInet6 = .prefix(Located(prefix, at: place))
        }
    }

    private mutating func localPrefix(_ text: Located<String>) -> IPv4Prefix? {
        let range = Limits.localPrefixLength
        guard let prefix = IPv4Prefix(text.value, standardLength: range.upperBound), range.contains(prefix.length) else {
            diagnostics.error(
                "invalid local prefix: \(quoteForMessage(text.value)): expected an IPv4 ADDRESS/LENGTH with a length of \(range.lowerBound) to \(range.upperBound)",
                at: text.location)
            return nil
        }
        let address = text.value.split(separator: "/", omittingEmptySubsequences: false).first.flatMap(IPv4Prefix.parse)
        if address != prefix.address || !text.value.utf8.contains(UInt8(ascii: "/")) {
            diagnostics.warning("local prefix \(quoteForMessage(text.value)) taken as \(prefix)", at: text.location)
        }
        return prefix
    }

    /// `agentx [context STR] [path STR]`: checked, and without effect.
    mutating func agentxStatement() throws(Skip) {
        diagnostics.warning("agentx has no effect here", at: location)
        advance()
        if take("context") {
            let context = try string("an SNMP context")
            if context.value.utf8.count > Limits.agentxContextByteCount {
                diagnostics.error("agentx context too large: the limit is \(Limits.agentxContextByteCount) bytes", at: context.location)
            }
        }
        if take("path") {
            let path = try string("the path of a socket")
            if path.value.utf8.count > Limits.socketPathByteCount {
                diagnostics.error("agentx path too large: the limit is \(Limits.socketPathByteCount) bytes", at: path.location)
            } else if !path.value.hasPrefix("/") {
                diagnostics.error("agentx path is not absolute: \(quoteForMessage(path.value))", at: path.location)
            }
        }
    }

    /// A setting that comes twice is likely a mistake.
    mutating func warnOfRedefinition(_ first: SourceLocation?, _ what: String, at place: SourceLocation) {
        guard let first else { return }
        diagnostics.warning("\(what) is set again, after \(first): the last one counts", at: place)
    }
}
