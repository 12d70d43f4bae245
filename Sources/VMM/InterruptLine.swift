/// Receives the levels of numbered interrupt lines: the i8259 pair.
public protocol InterruptController: AnyObject, Sendable {
    /// Any thread. May be called with a device's lock held; never calls back into a device.
    func setLine(_ number: UInt8, _ asserted: Bool)
}

/// One wire from a device to the interrupt controller.
public struct InterruptLine: Sendable {
    private let controller: any InterruptController
    public let number: UInt8
    public init(_ controller: any InterruptController, _ number: UInt8) {
        self.controller = controller
        self.number = number
    }
    public func set(_ asserted: Bool) { controller.setLine(number, asserted) }
    /// A rising and a falling edge: for edge-triggered sources such as the timer.
    public func pulse() {
        set(true)
        set(false)
    }
}
