import KVMEngine
public import Linux
import TranslatorEngine
public import VMM

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

    /// Makes the engine in a process that can open nothing.
    /// - Parameter device: `/dev/kvm`, or `nil` when there is none.
    public func make(
        device: consuming FileDescriptor?
    ) throws(MachineError) -> (engine: any Engine, features: EngineFeatures) {
        guard self == .kvm || self == .auto && KVMEngine.showsVirtualisation, let device = device.take() else {
            if self == .kvm { throw MachineError("engine kvm: there is no /dev/kvm here: use engine translator") }
            return (TranslatorEngine(), .translator)
        }
        let engine: KVMEngine
        do {
            engine = try KVMEngine(device: device)
        } catch {
            throw MachineError("engine kvm: \(error)")
        }
        return (engine, engine.features)
    }

    /// What engines ask of /dev/kvm and its descriptors while a machine is built, for who filters system calls.
    public static let buildingRequests = KVMEngine.buildingRequests
    /// And while it runs.
    public static let runningRequests = KVMEngine.runningRequests
}
