import ArgumentParser
import ControlProtocol

/// `vmctl wait`.
struct Wait: VmctlCommand {
    static let configuration = CommandConfiguration.vmctl(
        "wait", abstract: "Wait until a machine has ended.", usage: "vmctl [-v] wait id")

    @OptionGroup var connection: Connection
    @OptionGroup var operand: MachineArgument

    func perform(_ output: Output) throws -> CInt {
        let machine = try operand.machine()
        var client = try connection.open()
        output.error(machine.lead("waiting for"))
        do {
            guard case .ended(let id, let name, let reason) = try client.perform(.wait(machine)) else { return 1 }
            output.error("terminated vm \(id)\n")
            if connection.isVerbose { output.say("vm \(name): \(reason)") }
            return 0
        } catch {
            output.finish("failed: \(error)")
            return 1
        }
    }
}
