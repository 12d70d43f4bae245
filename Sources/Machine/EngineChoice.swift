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
        guard self == .kvm || self == .auto && KVMEngine.isUsable else { return (TranslatorEngine(), .translator) }
        do {
            let engine = try KVMEngine()
            return (engine, engine.features)
        } catch {
            throw MachineError("engine kvm: \(error)")
        }
    }
}
