import ArgumentParser
import ControlProtocol
import Linux
import Machine

/// `vmctl console`.
struct AttachConsole: VmctlCommand {
    static let configuration = CommandConfiguration.vmctl(
        "console",
        abstract: "Attach this terminal to a machine's first serial port.", usage: "vmctl [-v] console id",
        discussion: """
            The terminal belongs to the guest until it is detached. At the start of a line, ~. detaches, ~# sends BREAK, \
            ~~ sends ~, and ~? lists these. When standard input is no terminal every byte of it goes to the guest; at its \
            end the guest's output goes on.
            """)

    @OptionGroup var connection: Connection
    @OptionGroup var operand: MachineArgument

    func perform(_ output: Output) throws -> CInt {
        let machine = try operand.machine()
        var client = try connection.open()
        return try Self.attach(machine, &client, output)
    }

    /// Attaches until the user leaves or the machine ends.
    /// - Returns: the exit status.
    static func attach(
        _ machine: MachineReference, _ client: inout ControlClient, _ output: Output,
        _ streams: ConsoleSession.Streams = .init()
    ) throws -> CInt {
        var answer = try ask(machine, &client)
        guard case .console(let id, let name, let tty) = answer.response, let stream = answer.takeStream() else {
            throw ControlError.unexpected("a console without a stream")
        }
        output.error("Connected to \(tty) (speed 115200)\n")
        if streams.isTerminal { output.error("Leave with ~. at the start of a line; ~? lists what else there is.\n") }
        let path = client.path
        let session = try ConsoleSession(stream, streams) {
            // A connection of its own: the daemon closes those that ask nothing.
            do {
                var client = try ControlClient(path: path)
                try client.perform(.sendBreak(.id(id)), limit: 5)
            } catch {
                output.say("BREAK: \(error)")
            }
        }
        switch try session.run() {
        case .left: return 0
        case .signal(let number): return 128 + number
        case .failed(let error): throw Failure("console output: \(error.reason)")
        case .streamEnded: return try tellEnd(id, name, path, output)
        }
    }

    private static func ask(
        _ machine: MachineReference, _ client: inout ControlClient
    ) throws -> ControlClient.Answer {
        do {
            return try client.answer(to: .console(machine))
        } catch {
            throw inOwnWords(error)
        }
    }

    private static func inOwnWords(_ error: ControlError) -> any Error {
        switch error {
        case .refused(.noSuchMachine, let text), .refused(.notRunning, let text): Failure("console not found: \(text)")
        default: error
        }
    }

    /// The stream has ended: of the machine, of the daemon, or because the machine's process did not want to wait for us.
    private static func tellEnd(_ id: UInt32, _ name: String, _ path: String, _ output: Output) throws -> CInt {
        do {
            // The stream may be told sooner than the machine's end.
            var client = try ControlClient(path: path)
            if case .ended(_, _, let reason) = try client.perform(.wait(.id(id)), limit: 3) {
                output.say("vm \(name) has ended: \(reason)")
            }
            return 0
        } catch ControlError.refused(.notRunning, _), ControlError.refused(.noSuchMachine, _) {
            output.say("vm \(name) has ended")
            return 0
        } catch ControlError.timeout {
            throw Failure("detached from vm \(name), which goes on: this terminal took its output too slowly")
        } catch ControlError.connect, ControlError.closed {
            throw Failure("vmd has ended, and vm \(name) with it")
        }
    }
}
