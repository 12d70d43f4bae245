import Synchronization
import VMM

/// The reset control register at port 0xCF9 (82371SB, section 2.5.7), which ACPI names as a PC's reset register.
///
/// It lies among the ports of PCI configuration; the host bridge passes byte accesses on.
public final class ResetControl: Resettable {
    /// What ACPI writes: a hard reset.
    public static let resetValue: UInt8 = 0x06
    public static let port: UInt16 = 0xCF9

    private static let cpuReset: UInt8 = 0x04
    private static let writable: UInt8 = 0x0E

    private let register = Mutex<UInt8>(0)
    private let power: any PowerControl

    public init(power: any PowerControl) { self.power = power }

    public func read() -> UInt8 { register.withLock { $0 } }

    /// The bit that resets acts when it rises.
    public func write(_ value: UInt8) {
        let resets = register.withLock { register in
            let rises = value & ~register & Self.cpuReset != 0
            register = value & Self.writable
            return rises
        }
        if resets { power.requestReset("port 0xcf9") }
    }

    public func reset() { register.withLock { $0 = 0 } }

    public func save() -> UInt8 { read() }

    public func restore(_ saved: UInt8) { register.withLock { $0 = saved & Self.writable } }
}
