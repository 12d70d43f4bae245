/// A virtio device, whatever transport it is behind: what `VirtioPCIFunction` calls.
///
/// A device is made with a `VirtioTransport`, whose queues it serves and by which it signals. Requests may be taken and
/// completed on any thread. What a guest does must not make it throw or trap; a chain that breaks the standard is answered by
/// `VirtioTransport.requestReset`.
public protocol VirtioDevice: AnyObject, Sendable {
    /// What is saved beside the transport's state.
    associatedtype State: Codable, Hashable, Sendable

    /// A byte of the device's configuration, `offset` below the profile's count. Called with the transport's lock held, as are
    /// all functions down to `restore`: they call nothing of the transport.
    func readConfiguration(_ offset: Int) -> UInt8
    /// A driver's write of a byte.
    func writeConfiguration(_ offset: Int, _ value: UInt8)
    /// The driver is about to use its queues, with these features. May come more than once.
    func activate(_ features: VirtioFeatures)
    /// Forgets all that a driver set. Nothing of it is in flight, and its queues are off.
    func reset()
    /// Nothing is in flight.
    func save() -> State
    func restore(_ saved: State)

    /// The driver has put something into a queue. On a vCPU's thread, without locks: does what is cheap or wakes somebody, and
    /// never waits. May come without cause.
    func notified(_ queue: Int)
    /// Returns when every request that was taken from the queues is completed. Without locks; may wait for a disk. The
    /// queues give out nothing new meanwhile.
    func drain()
}
