import VMM

/// The entropy device (virtio 1.2, section 5.4): the host's random numbers.
///
/// A driver can ask for as much as it likes and gets at most 64 KB a request, as on OpenBSD; the host's source does not run
/// dry and does not wait.
public final class VirtioEntropy: VirtioDevice {
    public static let profile = VirtioProfile(
        deviceType: 4, transitionalID: 0x1005, classCode: 0x08_80_00, features: [], queueSizes: [64],
        configurationByteCount: 0)

    /// Nothing but the transport's state.
    public struct State: Codable, Hashable, Sendable { public init() {} }

    private static let limit: UInt64 = 64 << 10

    private let transport: VirtioTransport

    /// - Parameter transport: of `profile`.
    public init(_ transport: VirtioTransport) { self.transport = transport }

    public func notified(_ queue: Int) {
        let queue = transport.queues[queue]
        while true {
            switch queue.pop() {
            case .empty: return
            case .broken: return transport.requestReset()
            case .chain(let chain):
                var rest = chain.writable
                let part = rest.takeFirst(min(rest.byteCount, Self.limit))
                part.fillRandomly()
                transport.complete(queue, chain, written: UInt32(truncatingIfNeeded: part.byteCount))
            }
        }
    }

    public func readConfiguration(_ offset: Int) -> UInt8 { 0 }
    public func writeConfiguration(_ offset: Int, _ value: UInt8) {}
    public func activate(_ features: VirtioFeatures) {}
    public func reset() {}
    public func save() -> State { State() }
    public func restore(_ saved: State) {}
    /// Every request is completed before `notified` returns.
    public func drain() {}
}
