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
        switch self {
        case .auto: return try (KVMEngine.isUsable ? EngineChoice.kvm : .translator).make()
        case .translator: return (TranslatorEngine(), .translator)
        case .kvm:
            do {
                let engine = try KVMEngine()
                return (engine, engine.features)
            } catch {
                throw MachineError("engine kvm: \(error)")
            }
        }
    }
}
