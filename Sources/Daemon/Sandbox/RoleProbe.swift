import Glibc
import Linux

/// Tests only: what a role can do that it should not be able to.
enum RoleProbe {
    /// A line for each thing that was tried. The parent stands for any other process of the host.
    static func lines() -> [String] { SandboxProbe.run(against: getppid()).map(\.description) }
}
