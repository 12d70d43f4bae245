import CLinux
import Glibc

/// A named thread that runs one closure. A vCPU and the console block in system calls, which the threads of
/// Swift's own pool must never do: there are only as many of those as cores.
public final class PosixThread: Sendable {
    private let handle: pthread_t

    private final class Start {
        let name: String
        let body: @Sendable () -> Void
        init(_ name: String, _ body: @escaping @Sendable () -> Void) {
            self.name = name
            self.body = body
        }
    }

    /// Starts at once.
    /// - Parameter name: shown by ps and debuggers; the kernel keeps 15 bytes.
    public init(_ name: String, _ body: @escaping @Sendable () -> Void) throws(SystemError) {
        var handle = pthread_t()
        let start = Unmanaged.passRetained(Start(String(name.prefix(15)), body))
        let code = pthread_create(
            &handle, nil,
            { argument in
                guard let argument else { return nil }
                let start = Unmanaged<Start>.fromOpaque(argument).takeRetainedValue()
                clinux_set_thread_name(start.name)
                start.body()
                return nil
            }, start.toOpaque())
        guard code == 0 else {
            start.release()
            throw SystemError("pthread_create", errno: code)
        }
        self.handle = handle
    }

    /// Waits for the end. Call it once, or `detach`.
    public func join() { pthread_join(handle, nil) }
    /// Nobody will wait for it.
    public func detach() { pthread_detach(handle) }
}
