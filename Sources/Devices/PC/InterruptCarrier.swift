import Synchronization
import VMM

/// Carries messages of devices and of the I/O APIC to local APICs.
protocol InterruptCarrier: MSISink {
    /// A message that nobody is addressed by vanishes. Any thread; may be called with a device's lock held.
    func deliver(_ message: InterruptMessage)
    /// Whether a vector is requested of some CPU. `false` where nobody can know.
    func isWaiting(_ vector: UInt8) -> Bool
    /// What the I/O APIC's pins send may have changed. With its lock held.
    func tableChanged(_ chip: IOAPIC)
}

/// The way to local APICs that are the engine's own.
///
/// Quirk: it cannot tell whether a vector is still requested, so ticks of the interval timer that come by the I/O APIC while the
/// guest is behind are lost, as they are on hardware.
final class EngineInterruptBus: InterruptCarrier {
    private let locals: any EngineLocalAPICs
    /// What the engine knows of the pins.
    private let pins = Mutex<[MessageSignal]>([])

    init(_ locals: any EngineLocalAPICs) { self.locals = locals }

    func deliver(_ message: InterruptMessage) { locals.deliver(message.signal) }

    func deliver(address: UInt64, data: UInt32) {
        // What is none is nothing the engine has to judge.
        guard InterruptMessage(address: address, data: data) != nil else { return }
        locals.deliver(MessageSignal(address: address, data: data))
    }

    func isWaiting(_ vector: UInt8) -> Bool { false }

    func tableChanged(_ chip: IOAPIC) {
        let signals = (0..<IOAPIC.pinCount).map { chip.message(ofPin: $0)?.signal ?? MessageSignal(address: 0, data: 0) }
        pins.withLock { pins in
            guard pins != signals else { return }
            pins = signals
            locals.setPins(signals)
        }
    }
}
