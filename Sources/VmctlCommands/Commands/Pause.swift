import ArgumentParser
import ControlProtocol

/// `vmctl pause`.
struct Pause: VmctlCommand {
    static let configuration = CommandConfiguration(
        abstract: "Stop a machine's CPU and clocks, until it is told to go on.", usage: "vmctl [-v] pause id")

    @OptionGroup var connection: Connection
    @OptionGroup var operand: MachineArgument

    func perform(_ output: Output) throws -> CInt {
        try change(try operand.machine(), "pause", connection, output) { .pause($0) }
    }
}

/// `vmctl unpause`.
struct Unpause: VmctlCommand {
    static let configuration = CommandConfiguration(
        abstract: "Let a paused machine go on.", usage: "vmctl [-v] unpause id")

    @OptionGroup var connection: Connection
    @OptionGroup var operand: MachineArgument

    func perform(_ output: Output) throws -> CInt {
        try change(try operand.machine(), "unpause", connection, output) { .unpause($0) }
    }
}

private func change(
    _ machine: MachineReference, _ verb: String, _ connection: Connection, _ output: Output,
    _ request: (MachineReference) -> Request
) throws -> CInt {
    var client = try connection.open()
    do {
        try client.perform(request(machine))
    } catch ControlError.refused(_, let text) {
        throw Failure("\(verb) vm command failed: \(text)")
    }
    // The answer is no more than yes; people are told the number.
    output.say("\(verb)d vm \(client.id(of: machine)) successfully")
    return 0
}

extension ControlClient {
    /// A machine's number, or its name when it has gone meanwhile.
    fileprivate mutating func id(of machine: MachineReference) -> String {
        var id: UInt32?
        try? perform(.status(machine, isRunningOnly: false)) { if case .machine(let status) = $0 { id = status.id } }
        return id.map { "\($0)" } ?? "\(machine)"
    }
}
