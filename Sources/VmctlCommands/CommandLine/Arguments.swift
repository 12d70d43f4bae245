import ArgumentParser
import ControlProtocol
import VMConfig

/// What all commands that ask the daemon have in common.
struct Connection: ParsableArguments {
    @Option(
        name: .customShort("s", allowingJoined: true),
        help: ArgumentHelp("vmd's control socket. (default: VMD_SOCKET, or the usual place)", valueName: "socket"))
    var socket: String?

    @Flag(name: .customShort("v"), help: "Say more on standard error.")
    var isVerbose = false

    func open() throws(ControlError) -> ControlClient { try ControlClient(path: socket) }
}

/// The machine that a command is about.
struct MachineArgument: ParsableArguments {
    // A list, so that a missing one and one too many get messages of ours.
    @Argument(help: ArgumentHelp("Id or name of a machine.", valueName: "id"))
    var words: [String] = []

    /// - Throws: when there is none, or more than one.
    func machine() throws(WrongUsage) -> MachineReference {
        guard let machine = try optional() else { throw WrongUsage("missing vmid argument: give a machine's id or name") }
        return machine
    }

    func optional() throws(WrongUsage) -> MachineReference? {
        guard words.count <= 1 else { throw WrongUsage("one machine at a time: \(words[1]) is one too many") }
        guard let word = words.first else { return nil }
        return try Self.reference(word)
    }

    /// A number is an id, anything else a name.
    static func reference(_ word: String) throws(WrongUsage) -> MachineReference {
        if word.utf8.count > Limits.machineNameByteCount {
            throw WrongUsage("name too long: \(Limits.machineNameByteCount) bytes are the most")
        }
        let reference = MachineReference(word)
        let isNumber = word.utf8.allSatisfy { (UInt8(ascii: "0")...UInt8(ascii: "9")).contains($0) }
        if isNumber, case .name = reference { throw WrongUsage("invalid id: \(word.isEmpty ? "it is empty" : word)") }
        return reference
    }
}
