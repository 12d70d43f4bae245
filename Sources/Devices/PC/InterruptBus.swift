/// Carries messages to the machine's local APICs: from each other, from I/O APICs, from devices.
public final class InterruptBus: InterruptCarrier {
    let locals: [LocalAPICPort]

    public init(_ locals: [LocalAPICPort]) { self.locals = locals }

    /// A message that nobody is addressed by vanishes. Any thread; may be called with a device's lock held.
    /// - Parameter sender: the index of the local APIC that sends it, for shorthands.
    public func deliver(_ message: InterruptMessage, from sender: Int?) {
        switch message.shorthand {
        case .itself:
            if let sender, sender < locals.count { locals[sender].accept(message, unconditionally: true) }
        case .all, .others:
            for (index, local) in locals.enumerated() where message.shorthand == .all || index != sender {
                local.accept(message, unconditionally: true)
            }
        case .none:
            if message.delivery == .lowestPriority && locals.count > 1 { return deliverToLowest(message) }
            for local in locals { local.accept(message) }
        }
    }

    private func deliverToLowest(_ message: InterruptMessage) {
        var best: (local: LocalAPICPort, priority: UInt8)?
        for local in locals {
            guard let priority = local.priority(for: message) else { continue }
            if priority < best?.priority ?? .max { best = (local, priority) }
        }
        best?.local.accept(message)
    }

    public func deliver(address: UInt64, data: UInt32) {
        if let message = InterruptMessage(address: address, data: data) { deliver(message) }
    }

    func deliver(_ message: InterruptMessage) { deliver(message, from: nil) }

    /// Each local APIC tells the end of its levels by itself (`ProcessorInterrupts`).
    func tableChanged(_ chip: IOAPIC) {}

    func isWaiting(_ vector: UInt8) -> Bool { locals.contains { $0.isWaiting(vector) } }
}
