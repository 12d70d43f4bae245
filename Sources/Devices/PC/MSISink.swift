/// Receives messages that devices write to signal interrupts: a local APIC's bus.
public protocol MSISink: AnyObject, Sendable {
    /// Any thread. May be called with a device's lock held; never calls back into a device.
    func deliver(address: UInt64, data: UInt32)
}
