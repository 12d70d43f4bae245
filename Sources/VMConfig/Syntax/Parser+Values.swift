/// Values that several statements have. What is wrong with a value is reported, and the rest of its statement is read.
extension Parser {
    /// `user`, `user:group`, `:group`, or a number.
    mutating func owner() throws(Skip) -> Located<Owner>? {
        let text: Located<String>
        if case .number(let number) = token.kind {
            text = Located(String(number), at: location)
            advance()
        } else {
            text = try string("an owner (user, user:group or :group)")
        }
        guard let owner = Owner(text.value) else {
            diagnostics.error("invalid owner: \(quoteForMessage(text.value)): expected user, user:group or :group, names or numbers", at: text.location)
            return nil
        }
        return Located(owner, at: text.location)
    }

    /// Whether the text can be a file's path. `what` names it in OpenBSD's messages: disk, cdrom, kernel.
    mutating func checkPath(_ path: Located<String>, _ what: String) -> Bool {
        if path.value.isEmpty {
            diagnostics.error("\(what) path is empty", at: path.location)
        } else if path.value.utf8.count > Limits.pathByteCount {
            diagnostics.error("\(what) \(what == "kernel" || what == "cdrom" ? "name" : "path") too long: the limit is \(Limits.pathByteCount) bytes", at: path.location)
        } else {
            return true
        }
        return false
    }

    /// `group NAME`, from the name on.
    mutating func group(_ link: inout LinkOptions) throws(Skip) {
        let name = try string("the name of a group")
        guard Names.isGroupName(name.value) else {
            return diagnostics.error("invalid group name: \(quoteForMessage(name.value)): 1 to 15 bytes, not ending in a digit", at: name.location)
        }
        link.group = name
    }

    /// `rdomain N`, from the number on.
    mutating func routingDomain(_ link: inout LinkOptions) throws(Skip) {
        if let domain = try number("a routing domain", in: Limits.routingDomain, invalid: "invalid rdomain") { link.routingDomain = domain }
    }

    /// `lladdr [ADDRESS]`, from the address on.
    mutating func address(_ link: inout LinkOptions) throws(Skip) {
        switch token.kind {
        case .quoted: break
        case .word(let text) where !Keywords.reserved.contains(text): break
        case .number: throw fail(expected: "a link-layer address (00:11:22:aa:bb:cc)")
        default:
            link.address = nil
            return
        }
        let text = try string("a link-layer address")
        guard let address = MACAddress(text.value) else {
            return diagnostics.error(
                "invalid address: \(quoteForMessage(text.value)): expected six hexadecimal bytes as in fe:e1:bb:d1:00:01, not a group address",
                at: text.location)
        }
        link.address = Located(address, at: text.location)
    }
}
