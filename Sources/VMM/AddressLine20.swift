import Synchronization

/// The A20 gate: while it is closed, bit 20 of every physical address that the CPU sends out is 0, and the second
/// megabyte shows the first, as an 8086's addresses wrapped (82371SB, section 2.5.6).
///
/// Devices open and close it on the vCPU's thread, in a port write, or while no vCPU runs. The kvm engine does not
/// look at it: its A20 is always open.
public final class AddressLine20: Sendable {
    private let closed = Atomic<Bool>(false)
    private let listener = Mutex<(@Sendable () -> Void)?>(nil)

    public init() {}

    public var isOpen: Bool { !closed.load(ordering: .relaxed) }

    public func set(open: Bool) {
        if closed.exchange(!open, ordering: .relaxed) == !open { return }
        listener.withLock { $0 }?()
    }

    /// The CPU's part: `notify` is called behind each change.
    public func onChange(_ notify: (@Sendable () -> Void)?) { listener.withLock { $0 = notify } }
}
