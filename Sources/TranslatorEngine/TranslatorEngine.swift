public import VMM

/// Runs guests by binary translation in an ordinary process: no privilege, no kernel module.
public final class TranslatorEngine: Engine {
    /// Bound of the memory for translated code of one CPU.
    package static let codeByteCount = 64 << 20
    public init() {}
    public var name: String { "translator" }
    public var localAPICs: (any EngineLocalAPICs)? { nil }
    public func makeVirtualCPU(index: Int, wiring: Wiring) throws -> any VirtualCPU {
        try TranslatorCPU(index: index, wiring: wiring)
    }
}
