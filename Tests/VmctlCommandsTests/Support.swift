import ControlProtocol
import ControlTestSupport
import Synchronization

@testable import VmctlCommands

/// What a command printed.
final class Transcript: Sendable {
    private let texts = Mutex((output: "", error: ""))
    var output: String { texts.withLock { $0.output } }
    var error: String { texts.withLock { $0.error } }

    var sink: Output {
        Output(
            print: { [self] (text: String) throws(Failure) in texts.withLock { $0.output += text } },
            error: { [self] text in texts.withLock { $0.error += text } })
    }
}

/// One call of vmctl.
struct Call {
    let status: CInt
    let output: String
    let error: String

    /// The first line of standard error.
    var complaint: String { error.split(separator: "\n").first.map(String.init) ?? "" }

    init(_ arguments: [String]) {
        let transcript = Transcript()
        status = Program.run(arguments, transcript.sink)
        (output, error) = (transcript.output, transcript.error)
    }

    /// - Parameter daemon: answers it.
    init(_ arguments: [String], _ daemon: StubDaemon) { self.init(["-s", daemon.path] + arguments) }
}

/// A machine that runs.
func machine(_ name: String, id: UInt32 = 1, _ change: (inout MachineStatus) -> Void = { _ in }) -> MachineStatus {
    var status = MachineStatus(
        id: id, name: name, state: .running, cpus: 1, maxMemory: 1 << 30, owner: "root", engine: "translator")
    status.pid = 72118
    status.currentMemory = 92_379_546
    status.tty = "/dev/pts/8"
    change(&status)
    return status
}
