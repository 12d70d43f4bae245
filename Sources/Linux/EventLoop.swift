import CLinux
import Glibc

/// Waits for descriptors with epoll and calls their handlers, on the one thread that uses it.
///
/// Other threads reach it through an `EventDescriptor` only, so it has no lock.
public final class EventLoop {
    public struct Events: OptionSet, Sendable {
        public let rawValue: UInt32
        public init(rawValue: UInt32) { self.rawValue = rawValue }
        public static let readable = Events(rawValue: EPOLLIN.rawValue)
        public static let writable = Events(rawValue: EPOLLOUT.rawValue)
    }

    private let epoll: FileDescriptor
    private var handlers: [CInt: () -> Void] = [:]
    /// Regular files and /dev/null have no readiness to wait for: epoll refuses them, and they are always ready.
    private var alwaysReady: Set<CInt> = []
    private var isStopped = false

    public init() throws(SystemError) {
        let number = try retrying("epoll_create1") { epoll_create1(CInt(EPOLL_CLOEXEC)) }
        epoll = FileDescriptor(owning: number)
    }

    /// Calls `handler` whenever the borrowed descriptor is ready (level triggered), or has failed or hung up.
    public func watch(_ descriptor: CInt, _ events: Events, _ handler: @escaping () -> Void) throws(SystemError) {
        do {
            _ = try retrying("epoll_ctl") {
                clinux_epoll_control(epoll.raw, EPOLL_CTL_ADD, descriptor, events.rawValue)
            }
        } catch where error.errno == EPERM {
            alwaysReady.insert(descriptor)
        }
        handlers[descriptor] = handler
    }

    /// Stops watching. Safe from inside a handler, also for a descriptor that is ready in the same round.
    public func unwatch(_ descriptor: CInt) {
        guard handlers.removeValue(forKey: descriptor) != nil else { return }
        if alwaysReady.remove(descriptor) == nil {
            _ = clinux_epoll_control(epoll.raw, EPOLL_CTL_DEL, descriptor, 0)
        }
    }

    /// Handles events until `stop`.
    public func run() throws(SystemError) {
        isStopped = false
        while !isStopped { try runOnce() }
    }

    /// Makes `run` return after the handler that calls it.
    public func stop() { isStopped = true }

    private func runOnce() throws(SystemError) {
        var descriptors = [CInt](repeating: 0, count: 16)
        var events = [UInt32](repeating: 0, count: 16)
        let timeout: CInt = alwaysReady.isEmpty ? -1 : 0
        let count = try retrying("epoll_wait") {
            clinux_epoll_wait(epoll.raw, &descriptors, &events, 16, timeout)
        }
        for descriptor in descriptors.prefix(Int(count)) + alwaysReady {
            if isStopped { return }
            handlers[descriptor]?()
        }
    }
}
