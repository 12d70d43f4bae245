import CLinux
import Glibc

/// Tells the service manager how far this service is: systemd's protocol (sd_notify(3)), without its library.
///
/// The socket is opened at once and kept, so a process whose root is empty can go on telling.
public struct ServiceNotification: ~Copyable, Sendable {
    private let descriptor: FileDescriptor

    /// Takes NOTIFY_SOCKET out of the environment: children are not to speak for us. Call it before there are threads.
    /// - Returns: `nil` when nobody wants to know, or it is a kind of address that we do not speak (vsock).
    /// - Throws: `badPath`, or what connect(2) says.
    public init?() throws(UnixSocket.Failure) {
        let value = getenv("NOTIFY_SOCKET").map { String(cString: $0) }
        unsetenv("NOTIFY_SOCKET")
        guard let value else { return nil }
        let isAbstract = value.hasPrefix("@")
        guard isAbstract || value.hasPrefix("/") else { return nil }
        guard let address = UnixAddress(isAbstract ? String(value.dropFirst()) : value, isAbstract: isAbstract) else {
            throw .badPath(limit: UnixAddress.longestPath)
        }
        do {
            // Blocking: a state that gets lost leaves a service "starting" for ever.
            let number = try retrying("socket") {
                socket(AF_UNIX, CInt(SOCK_DGRAM.rawValue | SOCK_CLOEXEC.rawValue), 0)
            }
            let opened = FileDescriptor(owning: number)
            _ = try retrying("connect") { address.withSocketAddress { connect(number, $0, $1) } }
            descriptor = opened
        } catch {
            throw .system(error)
        }
    }

    /// Everything works; `status` is what `systemctl status` shows.
    public borrowing func ready(status: String? = nil) throws(SystemError) { try send(["READY=1"], status) }

    /// The end has begun.
    public borrowing func stopping(status: String? = nil) throws(SystemError) { try send(["STOPPING=1"], status) }

    /// The configuration is being read again; `ready` follows. The manager tells this reload from others by the time.
    public borrowing func reloading(status: String? = nil) throws(SystemError) {
        try send(["RELOADING=1", "MONOTONIC_USEC=\(SystemTime.monotonic() / 1000)"], status)
    }

    /// What the service does, in a line.
    public borrowing func status(_ text: String) throws(SystemError) { try send([], text) }

    private borrowing func send(_ lines: [String], _ status: String?) throws(SystemError) {
        var lines = lines
        // A line's end would begin another variable.
        if let status { lines.append("STATUS=" + status.split(separator: "\n").joined(separator: " ")) }
        let bytes = [UInt8](lines.joined(separator: "\n").utf8)
        let number = descriptor.raw
        _ = try retrying("send") { Glibc.send(number, bytes, bytes.count, CInt(MSG_NOSIGNAL)) }
    }
}

/// Sockets that the service manager opened for this process (sd_listen_fds(3)): they are there before it starts, and
/// stay over its restarts.
public struct ServiceActivation: ~Copyable, Sendable {
    /// FileDescriptorName= of the socket unit; "unknown" without one. As many as descriptors.
    public let names: [String]
    public var descriptors: FileDescriptorList

    /// Takes LISTEN_PID, LISTEN_FDS and LISTEN_FDNAMES out of the environment, and their descriptors (3 and up), which
    /// become close-on-exec. Empty when they are not for this process. Call it once, before anything else is opened.
    public init() {
        let values = ["LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"].map { name in
            let value = getenv(name).map { String(cString: $0) }
            unsetenv(name)
            return value
        }
        var owned: [CInt] = []
        // The limit keeps a wrong number from taking what is not ours to close.
        if let pid = values[0].flatMap({ pid_t($0) }), pid == getpid(), let count = values[1].flatMap({ CInt($0) }),
            1...256 ~= count
        {
            for number in 3..<(3 + count) where clinux_fcntl(number, F_SETFD, Int(FD_CLOEXEC)) == 0 { owned.append(number) }
        }
        var names = values[2]?.split(separator: ":", omittingEmptySubsequences: false).map(String.init) ?? []
        if names.count != owned.count { names = owned.map { _ in "unknown" } }
        self.names = names
        descriptors = FileDescriptorList(owning: owned)
    }
}
