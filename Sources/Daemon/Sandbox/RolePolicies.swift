import Glibc
import Linux
import Machine

/// What each role may do: nothing that is not here.
extension Role {
    /// What the roles have in common: an event loop on sockets that they were handed.
    private static let loop: SystemCallPolicy =
        .memory + .threads + .time + .randomness + .descriptors + .events + .sockets

    /// `nil` for the parent, which is the only one outside.
    func sandbox(identity: Sandbox.Identity?) -> Sandbox? {
        var sandbox: Sandbox
        switch self {
        case .parent: return nil
        case .control:
            sandbox = Sandbox(policy: Self.loop + .accepting)
            sandbox.limits = [.openFiles: 4096, .processes: 0, .fileSize: 0]
        case .priv:
            sandbox = Sandbox(policy: Self.loop)
            // The host's network is what it is for.
            sandbox.namespaces.remove(.network)
            sandbox.capabilities = [.networkAdministration]
            sandbox.limits = [.openFiles: 64, .processes: 0, .fileSize: 0]
        case .vmm:
            // Its children are this program again, in a narrower sandbox that they enter by themselves.
            sandbox = Sandbox(policy: Self.loop + .socketPairs + .children + .programStart + .sandboxEntry + Self.machineBuilding)
            sandbox.root = .libraries
            sandbox.scopesSignals = true
            sandbox.limits = [.openFiles: 8192]
        case .machine:
            sandbox = Sandbox(policy: Self.machineBuilding + .sandboxEntry)
            sandbox.usesUserNamespace = true
            sandbox.limits = [.openFiles: 256]
        }
        sandbox.identity = identity
        return sandbox
    }

    /// A machine's process until its machine is built.
    private static let machineBuilding: SystemCallPolicy =
        loop + .socketPairs + .executableMemory + .files + .ringSetup + .terminals + .segmentBases + .ioctl(EngineChoice.buildingRequests)
        + SystemCallPolicy("memfd_create")
        + .ioctl([0x5441])  // TIOCGPTPEER

    /// And from then on: no memory can become code any more, and nothing new can be made.
    static let machineRunning: SystemCallPolicy = loop + .socketPairs + .files + .rings + .terminals + .segmentBases + .ioctl(EngineChoice.runningRequests)
}
