import ArgumentParser
import ControlProtocol

/// `vmctl stop`.
struct Stop: VmctlCommand {
    static let configuration = CommandConfiguration.vmctl(
        "stop", abstract: "Ask a machine to shut down.", usage: "vmctl [-v] stop [-fw] [id | -a]")

    @Flag(name: .customShort("a"), help: "All machines that run and are yours.")
    var all = false

    @Flag(name: .customShort("f"), help: "End it at once, without asking the guest.")
    var isForced = false

    @Flag(name: .customShort("w"), help: "Wait until it has ended.")
    var waits = false

    @OptionGroup var connection: Connection
    @OptionGroup var operand: MachineArgument

    func perform(_ output: Output) throws -> CInt {
        let machine = try operand.optional()
        guard !all || machine == nil else { throw WrongUsage("either -a or a machine, not both") }
        guard all || machine != nil else {
            throw WrongUsage("missing vmid argument: give a machine's id or name, or -a for all")
        }
        var client = try connection.open()
        var report = StopReport(machine: machine, isForced: isForced, waits: waits, isVerbose: connection.isVerbose, output)
        do {
            try client.perform(.stop(machine, isForced: isForced, waits: waits)) { report.handle($0) }
        } catch let error as ControlError {
            report.handle(error)
        }
        return report.finish()
    }
}

/// What is told of machines that are asked to stop: `stopping vm NAME: `, and in the same line how that went.
struct StopReport {
    private let isForced: Bool
    private let waits: Bool
    private let isVerbose: Bool
    private let isAll: Bool
    private let output: Output
    private var hasFailed = false
    /// A line has been begun.
    private var isLineOpen = false

    /// - Parameter machine: `nil` for all.
    init(machine: MachineReference?, isForced: Bool, waits: Bool, isVerbose: Bool, _ output: Output) {
        self.isForced = isForced
        self.waits = waits
        self.isVerbose = isVerbose
        self.output = output
        isAll = machine == nil
        if let machine {
            output.error(machine.lead("stopping"))
            isLineOpen = true
        }
    }

    mutating func handle(_ response: Response) {
        switch response {
        case .stopping(let id, let name, .notStarted): tell(name, "vm \(id) had not begun to start, and will not")
        case .stopping(let id, let name, let means):
            if isVerbose, means == .powerButton {
                tellLater = "vm \(name): its power button was pressed, since its guest has no vmmci driver"
            }
            if !waits { tell(name, isForced ? "forced to terminate vm \(id)" : "requested to shutdown vm \(id)") }
        case .ended(let id, let name, let reason):
            tell(name, "terminated vm \(id)")
            if isVerbose { output.say("vm \(name): \(reason)") }
        case .failed(_, let text): fail(text)
        default: break
        }
    }

    mutating func handle(_ error: ControlError) {
        switch error {
        case .refused(.noSuchMachine, let text): tellFailure("vm not found", text)
        case .refused(.notRunning, let text): tellFailure("cannot stop vm that is not running", text)
        default: fail(error.description)
        }
    }

    mutating func finish() -> CInt {
        if isLineOpen { output.error("\n") }
        isLineOpen = false
        return hasFailed ? 1 : 0
    }

    // MARK: - Lines

    private var tellLater: String?

    private mutating func tell(_ name: String, _ text: String) {
        output.finish("\(isLineOpen ? "" : "stopping vm \(name): ")\(text)")
        isLineOpen = false
        if let later = tellLater { output.say(later) }
        tellLater = nil
    }

    /// The daemon's text says what is to be done about it.
    private mutating func tellFailure(_ words: String, _ text: String) {
        hasFailed = true
        output.finish("\(isLineOpen ? "" : "stopping vm: ")\(words)")
        isLineOpen = false
        output.say(text)
    }

    private mutating func fail(_ text: String) {
        hasFailed = true
        if isLineOpen { output.finish("failed: \(text)") } else { output.say(text) }
        isLineOpen = false
    }
}

extension MachineReference {
    /// `stopping vm NAME: `; an id is told only when it is over.
    func lead(_ verb: String) -> String {
        if case .name(let name) = self { "\(verb) vm \(name): " } else { "\(verb) vm: " }
    }
}
