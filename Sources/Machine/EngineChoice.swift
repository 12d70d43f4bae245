import KVMEngine
import TranslatorEngine
import VMM

/// Which engine runs a machine, as a user names it.
public enum EngineChoice: String, CaseIterable, Sendable {
    /// `kvm` where the CPU virtualises in hardware and `/dev/kvm` opens, else `translator`.
    case auto
    case kvm
    case translator

    /// Makes the engine, and says what it can run.
    func make() throws(MachineError) -> (engine: any Engine, features: EngineFeatures) {
        return (TranslatorEngine(), .translator)
    }
}
