import ArgumentParser

/// The tool as a whole: for `vmctl --help`. Each command is parsed by itself, once `CommandWord` has found it.
struct Vmctl: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "vmctl", abstract: "Control virtual machines.",
        usage: "vmctl [-v] [-s socket] command [arg ...]",
        discussion: """
            Commands may be shortened as long as one is meant: `vmctl sta` is not enough, `vmctl stat` is. Options stand \
            before or behind the machine's name. Those in front of the command are for all commands: -v says more, -s \
            names vmd's socket.
            """,
        subcommands: CommandWord.commands.map { $0 })
}

extension CommandConfiguration {
    /// Of a command.
    ///
    /// Its name stands there, since to make one of the type's costs the parser a look through all conformances of the program; and
    /// so does the tool's, without which the parser first tries whether it was asked for completions.
    static func vmctl(_ name: String, abstract: String, usage: String, discussion: String = "") -> CommandConfiguration {
        CommandConfiguration(commandName: name, _superCommandName: "vmctl", abstract: abstract, usage: usage, discussion: discussion)
    }
}

/// A command of vmctl.
protocol VmctlCommand: ParsableCommand {
    /// Does it.
    /// - Returns: the exit status.
    /// - Throws: `WrongUsage`, `Failure` or `ControlError`.
    func perform(_ output: Output) throws -> CInt
}

/// A command line that means nothing. What it says is followed by the usage; the status is 2.
struct WrongUsage: Error, Hashable {
    let text: String
    init(_ text: String) { self.text = text }
}

/// What was asked for did not work out. One line; the status is 1.
struct Failure: Error, Hashable {
    let text: String
    init(_ text: String) { self.text = text }
}
