import ControlProtocol
import Glibc
import Linux

/// Starts the processes of roles.
struct RoleStarter: ~Copyable {
    private let program: Program
    private let environment: [(name: String, value: String)]
    private let isProbing: Bool

    /// - Throws: when there is no user for the roles to become.
    init(_ program: borrowing Program, _ options: DaemonOptions) throws {
        let identity = options.isSystemWide ? [(name: Environment.identityVariable, value: try Self.identity())] : []
        let copy = try FileDescriptor(duplicating: program.raw)
        environment = Self.environment + identity
        isProbing = options.probes
        self.program = Program(owning: copy)
    }

    /// Whom the roles become when the daemon is root's.
    private static func identity() throws -> String {
        for name in [Environment.userName, "nobody"] {
            if let user = try UserDatabase.user(named: name) { return "\(user.userID):\(user.groupID)" }
        }
        throw Daemon.Failure(
            "no user \(Environment.userName): make it with `useradd -r -s /usr/sbin/nologin \(Environment.userName)`")
    }

    /// Where the libraries are when the linker's cache is not.
    static var environment: [(name: String, value: String)] {
        var environment = [(name: "LD_LIBRARY_PATH", value: Sandbox.libraryPath)]
        if let value = ProcessEnvironment.value("SWIFT_BACKTRACE") { environment.append(("SWIFT_BACKTRACE", value)) }
        return environment
    }

    /// - Parameter descriptors: borrowed; they follow the role's socket.
    borrowing func start<Incoming: Message, Outgoing: Message>(
        _ role: Role, _ loop: EventLoop, _ channel: MessageChannel<Incoming, Outgoing>.Type, descriptors: [CInt]
    ) throws(SystemError) -> (MessageChannel<Incoming, Outgoing>, Child) {
        let pair = try UnixSocket.pair()
        var options = ChildProcess.Options(arguments: role.arguments())
        options.environment = environment + Environment.variables(of: role, isProbing: isProbing)
        // Keys of a terminal that we were started on are for the parent alone.
        options.startsSession = true
        options.descriptors = [pair.second.raw] + descriptors
        let child = Child(try ChildProcess(program, options))
        // No peer is to end the daemon by being slow: whoever makes messages of others' looks at the backlog.
        let channel = try MessageChannel<Incoming, Outgoing>(try UnixSocket(duplicating: pair.first), loop, queueLimit: 1 << 20)
        return (channel, child)
    }
}
