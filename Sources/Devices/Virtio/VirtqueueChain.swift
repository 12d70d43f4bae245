/// A chain of descriptors that a driver made available: what the device may read, then what it may write.
///
/// Whoever popped it holds it until `VirtioTransport.complete`, on any thread, and nobody else.
public struct VirtqueueChain: Sendable {
    /// Which of the queue's chains in flight it is: below its size.
    public let slot: UInt16
    /// The driver's name for it.
    let head: UInt16
    /// How many descriptors of a packed ring it has.
    let ringCount: UInt16
    /// Vectors at the time that it was popped.
    let readableCount: Int
    public var readable: VirtioBuffers
    public var writable: VirtioBuffers
}
