import ArgumentParser
import ControlProtocol

/// `vmctl status`, also called `show`.
struct Status: VmctlCommand {
    static let configuration = CommandConfiguration.vmctl(
        "status", abstract: "List machines.", usage: "vmctl [-v] status [-jr] [id]")

    @Flag(name: .customShort("j"), help: "As JSON.")
    var isJSON = false

    @Flag(name: .customShort("r"), help: "Only those that run.")
    var isRunningOnly = false

    @OptionGroup var connection: Connection
    @OptionGroup var operand: MachineArgument

    func perform(_ output: Output) throws -> CInt {
        let machine = try operand.optional()
        var client = try connection.open()
        var machines: [MachineStatus] = []
        try client.perform(.status(machine, isRunningOnly: isRunningOnly)) {
            if case .machine(let status) = $0 { machines.append(status) }
        }
        if isJSON {
            try output.print(StatusJSON.describe(machines))
            return 0
        }
        let lines = [StatusTable.header] + machines.map(StatusTable.row)
        try output.print(lines.map { $0 + "\n" }.joined())
        return machines.isEmpty ? 1 : 0
    }
}
