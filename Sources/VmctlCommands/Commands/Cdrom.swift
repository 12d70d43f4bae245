import ArgumentParser
import ControlProtocol
import Linux
import Machine

/// `vmctl cdrom`: the disc in a running machine's drive.
struct Cdrom: VmctlCommand {
    static let configuration = CommandConfiguration.vmctl(
        "cdrom", abstract: "Change the disc in a machine's CD-ROM drive.",
        usage: """
            vmctl [-v] cdrom insert [-f] id path
            \tvmctl [-v] cdrom eject [-f] id
            \tvmctl [-v] cdrom show id
            """,
        discussion: """
            The disc stays in until it is taken out or the machine ends; its next start begins with the one that is configured. A \
            guest that uses the disc may have locked the drive: it is asked to let go, and -f does not ask.
            """)

    @Flag(name: .customShort("f"), help: "Even when the guest has locked the drive.")
    var isForced = false

    @OptionGroup var connection: Connection

    @Argument(help: ArgumentHelp("insert, eject or show, a machine, and an ISO image's path.", valueName: "word"))
    var words: [String] = []

    private enum Verb: String { case insert, eject, show }

    func perform(_ output: Output) throws -> CInt {
        guard let word = words.first, let verb = Verb(rawValue: word) else {
            throw WrongUsage("unknown argument: \(words.first ?? ""): give insert, eject or show")
        }
        guard words.count == (verb == .insert ? 3 : 2) else {
            throw WrongUsage(verb == .insert ? "give a machine and an ISO image" : "give one machine")
        }
        guard !isForced || verb != .show else { throw WrongUsage("-f is for insert and eject") }
        let machine = try MachineArgument.reference(words[1])
        switch verb {
        case .insert:
            let path: String
            do {
                path = try FilePaths.resolved(words[2])
            } catch {
                throw Failure("invalid iso image path: \(words[2]): \(error.reason)")
            }
            try perform(.insertDisc(machine, path: path, isForced: isForced))
            output.say("\(path) is in the drive of vm \(machine) now")
        case .eject:
            try perform(.ejectDisc(machine, isForced: isForced))
            output.say("the drive of vm \(machine) is empty now")
        case .show:
            var client = try connection.open()
            let description = try client.describe(words[1])
            guard description.hasDrive else { throw Failure("vm \(description.name) has no CD-ROM drive") }
            try output.print((description.disc.map { UserTerminal.oneLine($0) } ?? "-") + "\n")
        }
        return 0
    }

    private func perform(_ request: Request) throws {
        var client = try connection.open()
        try client.perform(request)
    }
}
