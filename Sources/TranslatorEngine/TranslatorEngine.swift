public import VMM

/// Runs guests by binary translation in an ordinary process: no privilege, no kernel module.
public final class TranslatorEngine: Engine {
    public init() {}
    public var name: String { "translator" }
    public func makeVirtualCPU(index: Int, wiring: Wiring) throws -> any VirtualCPU { try TranslatorCPU(wiring: wiring) }
}
