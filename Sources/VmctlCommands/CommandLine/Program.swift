import ArgumentParser
import ControlProtocol
import Machine

/// vmctl from its arguments to its exit status.
public enum Program {
    /// - Parameter arguments: without the program's name.
    /// - Returns: 0, 1 after an error that has been told, 2 after wrong usage; `run` and `console` have more.
    public static func run(_ arguments: [String]) -> CInt { run(arguments, .standard) }

    static func run(_ arguments: [String], _ output: Output) -> CInt {
        let meaning: CommandWord.Meaning
        do {
            meaning = try CommandWord.read(arguments)
        } catch {
            output.say(error.text)
            output.error(usage(of: nil))
            return 2
        }
        switch meaning {
        case .help(let command): return show(command?.helpMessage() ?? Vmctl.helpMessage(), output)
        case .command(let command, let rest): return run(command, rest, output)
        }
    }

    private static func run(_ type: any VmctlCommand.Type, _ arguments: [String], _ output: Output) -> CInt {
        do {
            let command = try parse(type, arguments)
            do {
                return try command.perform(output)
            } catch let error as Failure {
                output.say(error.text)
            } catch let error as MachineError {
                output.say(error.description)
            } catch let error as ControlError {
                // Each command says in its own words what was refused; what is left is the daemon's absence.
                if case .refused(_, let text) = error { output.say("command failed: \(text)") } else { output.say("\(error)") }
            }
            return 1
        } catch let error as WrongUsage {
            output.say(error.text)
            output.error(usage(of: type))
            return 2
        } catch {
            // Help is an error to the parser, as everything else that ends it.
            if type.exitCode(for: error) == .success { return show(type.fullMessage(for: error), output) }
            output.say(type.message(for: error).split(separator: "\n").first.map(String.init) ?? "wrong usage")
            output.error(usage(of: type))
            return 2
        }
    }

    /// A command with its arguments.
    static func parse(_ type: any VmctlCommand.Type, _ arguments: [String]) throws -> any VmctlCommand {
        func parse<Command: VmctlCommand>(_ type: Command.Type) throws -> Command { try Command.parse(arguments) }
        return try parse(type)
    }

    private static func show(_ text: String, _ output: Output) -> CInt {
        do {
            try output.print(text + "\n")
            return 0
        } catch {
            output.say("\(error)")
            return 1
        }
    }

    /// `usage:` and the command's, or the whole tool's, in the form of OpenBSD's.
    static func usage(of command: (any VmctlCommand.Type)?) -> String {
        let text = (command?.configuration ?? Vmctl.configuration).usage ?? ""
        return "usage:\t\(text.replacing("\n", with: "\n\t"))\n"
    }
}
