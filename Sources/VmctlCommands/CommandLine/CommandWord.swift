import ArgumentParser

/// From the words that were typed to a command and its arguments.
///
/// As on OpenBSD a command may be shortened as long as one is meant, and options of all commands come first; the parser
/// of arguments knows neither.
struct CommandWord {
    static let commands: [any VmctlCommand.Type] = [
        AttachConsole.self, Cdrom.self, Create.self, Export.self, Image.self, Load.self, Log.self, Pause.self, Reload.self, Reset.self,
        RollBack.self, RollForward.self, Run.self, Snapshot.self, Start.self, Status.self, Stop.self, Unpause.self, Wait.self,
    ]

    /// Those that ask no daemon.
    private static let local: [any VmctlCommand.Type] = [Create.self, Run.self]

    /// Another name of a command.
    private static let aliases = ["show": "status"]

    enum Meaning {
        case command(any VmctlCommand.Type, [String])
        /// Of a command, or of the whole.
        case help((any VmctlCommand.Type)?)
    }

    static func name(of command: any VmctlCommand.Type) -> String { command._commandName }

    /// - Parameter arguments: without the program's name.
    static func read(_ arguments: [String]) throws(WrongUsage) -> Meaning {
        var rest = arguments[...]
        var socket: [String] = []
        var verbose: [String] = []
        while let option = rest.first, option.hasPrefix("-") {
            rest = rest.dropFirst()
            if option == "-h" || option == "--help" { return .help(nil) }
            if option.dropFirst().allSatisfy({ $0 == "v" }), option != "-" {
                verbose = ["-v"]
            } else if option == "-s" {
                guard let path = rest.popFirst() else { throw WrongUsage("missing path behind -s") }
                socket = ["-s", path]
            } else if option.hasPrefix("-s") {
                socket = ["-s", String(option.dropFirst(2))]
            } else {
                throw WrongUsage("unknown option: \(option)")
            }
        }
        guard let word = rest.popFirst() else { throw WrongUsage("no command given: `vmctl --help` lists them") }
        if word == "help" { return .help(try rest.first.map { word throws(WrongUsage) in try find(word) }) }
        let command = try find(word)
        return .command(command, (local.contains { $0 == command } ? [] : socket) + verbose + rest)
    }

    /// The command that a word is, or is the beginning of.
    static func find(_ word: String) throws(WrongUsage) -> any VmctlCommand.Type {
        let names = commands.map(name) + aliases.keys
        // A command's whole name is never ambiguous.
        let matches = names.contains(word) ? [word] : names.filter { $0.hasPrefix(word) }.sorted()
        guard let match = matches.first else {
            throw WrongUsage("unknown argument: \(word): the commands are \(names.sorted().joined(separator: " "))")
        }
        guard matches.count == 1 else {
            throw WrongUsage(
                "ambiguous argument: \(word): \(matches.dropLast().joined(separator: ", ")) or \(matches[matches.count - 1])")
        }
        let name = aliases[match] ?? match
        guard let command = commands.first(where: { Self.name(of: $0) == name }) else {
            throw WrongUsage("unknown argument: \(word)")
        }
        return command
    }
}
