import ArgumentParser
import ControlProtocol

/// `vmctl pause`.
struct Pause: VmctlCommand {
    static let configuration = CommandConfiguration.vmctl(
        "pause", abstract: "Stop a machine's CPU and clocks, until it is told to go on.", usage: "vmctl [-v] pause id")

    @OptionGroup var connection: Connection
    @OptionGroup var operand: MachineArgument

    func perform(_ output: Output) throws -> CInt {
        try change(try operand.machine(), "pause", connection, output) { .pause($0) }
    }
}

/// `vmctl unpause`.
struct Unpause: VmctlCommand {
    static let configuration = CommandConfiguration.vmctl(
        "unpause", abstract: "Let a paused machine go on.", usage: "vmctl [-v] unpause id")

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
    var id: UInt32?
    do {
        try client.perform(request(machine)) { if case .machine(let status) = $0 { id = status.id } }
    } catch ControlError.refused(_, let text) {
        throw Failure("\(verb) vm command failed: \(text)")
    }
    output.say("\(verb)d vm \(id.map { "\($0)" } ?? "\(machine)") successfully")
    return 0
}
