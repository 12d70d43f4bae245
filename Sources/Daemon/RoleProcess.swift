import ControlProtocol
import Glibc
import Linux

/// A role's process from its first moment: descriptor 3 is its socket to whoever started it, 4 what it needs besides.
public enum RoleProcess {
    /// - Returns: the exit status, or `nil` when this process has no such role.
    public static func run() -> CInt? {
        guard let role = Environment.role, role != .parent else { return nil }
        do {
            try run(role, isProbing: Environment.isProbing)
            return 0
        } catch {
            StandardStreams.writeError("vmd: \(role.rawValue): \(error)\n")
            return 1
        }
    }

    private static func run(_ role: Role, isProbing: Bool) throws {
        // Signals that ask the daemon to end are the parent's: it ends us in its own order.
        let signals = try SignalDescriptor([SIGTERM, SIGINT, SIGHUP, SIGUSR1])
        let identity = Environment.identity
        // Netlink is had outside, and works on inside.
        let links = role == .priv ? try? NetworkLinks() : nil
        let missing = try role.sandbox(identity: identity)?.enter() ?? []
        let loop = try EventLoop()
        let socket = try UnixSocket(adopting: FileDescriptor(owning: 3))
        switch role {
        case .parent: break
        case .control:
            let parent = try MessageChannel<ControlCommand, ControlReport>(socket, loop)
            let listener = try UnixListener(adopting: FileDescriptor(owning: 4))
            let control = try ControlRole(loop: loop, listener: listener, parent: parent)
            for line in missing { parent.send(.log("without \(line)")) }
            if isProbing { for line in RoleProbe.lines() { parent.send(.probe(line)) } }
            try withExtendedLifetime(control) { try loop.run() }
        case .vmm:
            let parent = try MessageChannel<MonitorCommand, MonitorReport>(socket, loop)
            let monitor = try MonitorRole(
                loop: loop, parent: parent, program: Program(owning: FileDescriptor(owning: 4)), isProbing: isProbing)
            for line in missing { parent.send(.log("without \(line)")) }
            try withExtendedLifetime(monitor) { try loop.run() }
        case .priv:
            let parent = try MessageChannel<PrivCommand, PrivReport>(socket, loop)
            let priv = PrivRole(loop: loop, parent: parent, links: links)
            for line in missing { parent.send(.log("without \(line)")) }
            if isProbing { for line in RoleProbe.lines() { parent.send(.probe(line)) } }
            try withExtendedLifetime(priv) { try loop.run() }
        case .machine:
            let monitor = try MessageChannel<MachineCommand, MachineReport>(socket, loop)
            let machine = try MachineRole(loop: loop, monitor: monitor)
            for line in missing { monitor.send(.log("without \(line)")) }
            let number = signals.raw
            try loop.watch(number, .readable) {
                while let signal = SignalDescriptor.next(in: number) { if signal == SIGTERM { machine.stop() } }
            }
            try withExtendedLifetime(machine) { try loop.run() }
        }
    }
}

/// What a role's process is told by its environment, which holds nothing else.
enum Environment {
    static let userName = "_vmd"

    /// `UID:GID` of whom to become.
    static let identityVariable = "VMD_IDENTITY"

    private static let roleVariable = "VMD_ROLE"
    private static let probeVariable = "VMD_PROBE"

    static func variables(of role: Role, isProbing: Bool) -> [(name: String, value: String)] {
        [(name: roleVariable, value: role.rawValue)] + (isProbing ? [(name: probeVariable, value: "1")] : [])
    }

    static var role: Role? { ProcessEnvironment.value(roleVariable).flatMap(Role.init) }
    static var isProbing: Bool { ProcessEnvironment.value(probeVariable) != nil }

    static var identity: Sandbox.Identity? {
        guard let value = ProcessEnvironment.value(identityVariable) else { return nil }
        let parts = value.split(separator: ":").compactMap { UInt32($0) }
        guard parts.count == 2 else { return nil }
        return Sandbox.Identity(userID: parts[0], groupID: parts[1])
    }
}
