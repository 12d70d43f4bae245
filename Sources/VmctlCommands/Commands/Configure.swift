import ArgumentParser
import ControlProtocol
import Linux

/// `vmctl load`.
struct Load: VmctlCommand {
    static let configuration = CommandConfiguration.vmctl(
        "load", abstract: "Add the machines of a further configuration.", usage: "vmctl [-v] load filename")

    @Argument(help: ArgumentHelp("A file as vm.conf(5) describes it.", valueName: "filename"))
    var files: [String] = []

    @OptionGroup var connection: Connection

    func perform(_ output: Output) throws -> CInt {
        guard let file = files.first, files.count == 1 else { throw WrongUsage("give one file to load") }
        let path: String
        do {
            path = try FilePaths.resolved(file)
        } catch {
            throw Failure("\(file): \(error.reason)")
        }
        return try tell(.load(path), connection)
    }
}

/// `vmctl reload`.
struct Reload: VmctlCommand {
    static let configuration = CommandConfiguration.vmctl(
        "reload", abstract: "Read the configuration again; machines that run go on as they are.", usage: "vmctl [-v] reload")

    @OptionGroup var connection: Connection

    func perform(_ output: Output) throws -> CInt { try tell(.reload, connection) }
}

/// `vmctl reset`.
struct Reset: VmctlCommand {
    static let configuration = CommandConfiguration.vmctl(
        "reset", abstract: "Forget what was configured: `vms` ends all machines at once.",
        usage: "vmctl [-v] reset [all | switches | vms]")

    @Argument(help: ArgumentHelp("all, switches or vms. (default: all)", valueName: "what"))
    var words: [String] = []

    @OptionGroup var connection: Connection

    func perform(_ output: Output) throws -> CInt { try tell(.reset(try scope), connection) }

    /// The whole word, in any case.
    var scope: Request.ResetScope {
        get throws(WrongUsage) {
            guard let word = words.first else { return .all }
            guard words.count == 1, let scope = Request.ResetScope.allCases.first(where: { "\($0)" == word.lowercased() }) else {
                throw WrongUsage("unknown argument: \(words.joined(separator: " ")): give all, switches or vms")
            }
            return scope
        }
    }
}

/// `vmctl log`.
struct Log: VmctlCommand {
    static let configuration = CommandConfiguration.vmctl(
        "log", abstract: "Set how much vmd logs.", usage: "vmctl [-v] log [brief | verbose]")

    @Argument(help: ArgumentHelp("brief or verbose, or their beginnings.", valueName: "how"))
    var words: [String] = []

    @OptionGroup var connection: Connection

    func perform(_ output: Output) throws -> CInt { try tell(.log(isVerbose: try isVerbose), connection) }

    /// The beginning of a word is enough, in any case.
    var isVerbose: Bool {
        get throws(WrongUsage) {
            guard let word = words.first?.lowercased(), !word.isEmpty else { throw WrongUsage("give brief or verbose") }
            guard words.count == 1, let level = ["brief", "verbose"].first(where: { $0.hasPrefix(word) }) else {
                throw WrongUsage("unknown argument: \(words.joined(separator: " ")): give brief or verbose")
            }
            return level == "verbose"
        }
    }
}

/// A request whose only answer is yes.
private func tell(_ request: Request, _ connection: Connection) throws(ControlError) -> CInt {
    var client = try connection.open()
    try client.perform(request)
    return 0
}
