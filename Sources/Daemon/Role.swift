import Glibc
import Linux

/// What a process of the daemon is for. Each is this program, started anew.
public enum Role: String, CaseIterable, Sendable {
    case parent, priv, control, vmm
    /// One for each machine.
    case machine = "vm"

    /// What `ps` shows. The role itself is in the environment: Swift's runtime finds arguments by /proc, which an empty
    /// root has not.
    func arguments(title: String? = nil) -> [String] { ["vmd: \(title ?? rawValue)"] }
}
