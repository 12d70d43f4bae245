import CLinux
import Glibc

/// A listening SOCK_SEQPACKET socket.
public struct UnixListener: ~Copyable, Sendable {
    private let descriptor: FileDescriptor
    /// The path and inode of the file that this process made; none for a socket that was passed in.
    private let file: (path: String, device: dev_t, inode: ino_t)?
    /// Borrowed, for `EventLoop.watch`.
    public var raw: CInt { descriptor.raw }

    /// Listens on a path. The socket is bound to another name in the same folder, given its owner and mode, and
    /// renamed when it listens: who finds the path can connect.
    ///
    /// A socket that nobody listens on any more is replaced; a living daemon's is not. Two that start at once see each
    /// other: the names are exchanged atomically (renameat2), and what was there is asked once more.
    /// - Parameters:
    ///   - owner: whose it is to be, or as made.
    ///   - backlog: how many may wait to be accepted; the kernel's limit is net.core.somaxconn.
    /// - Throws: `badPath`, `inUse`, `notSocket`, and what the folder says: EACCES, ENOENT, EROFS.
    public init(
        path: String, mode: mode_t, owner: (user: uid_t, group: gid_t)? = nil, backlog: CInt = 4096
    ) throws(UnixSocket.Failure) {
        let temporary = Self.temporaryName(beside: path)
        guard let target = UnixAddress(path), let address = UnixAddress(temporary) else {
            throw .badPath(limit: UnixAddress.longestPath)
        }
        let state = try Self.occupant(of: path, target)
        if state == .alive { throw .inUse }
        let opened = try Self.bindAndListen(temporary, address, mode, owner, backlog)
        var status = stat()
        let isKnown = lstat(temporary, &status) == 0
        try Self.publish(temporary, address, path, target, state)
        file = isKnown ? (path, status.st_dev, status.st_ino) : nil
        descriptor = opened
    }

    /// Gives the socket its real name, if nobody alive has it.
    private static func publish(
        _ temporary: String, _ address: UnixAddress, _ path: String, _ target: UnixAddress, _ first: Occupant
    ) throws(UnixSocket.Failure) {
        defer { unlink(temporary) }
        var state = first
        while true {
            switch state {
            case .alive: throw .inUse
            case .missing:
                switch Self.rename(temporary, path, flags: Self.noReplace) {
                case 0: return
                case EEXIST: break
                case let code: throw .system(SystemError("rename", errno: code))
                }
            case .stale:
                switch Self.rename(temporary, path, flags: Self.exchange) {
                case 0:
                    if try Self.occupant(of: temporary, address) != .alive { return }
                    // Somebody began to listen meanwhile: back.
                    _ = Self.rename(temporary, path, flags: Self.exchange)
                    throw .inUse
                case ENOENT: break
                case let code: throw .system(SystemError("rename", errno: code))
                }
            }
            state = try Self.occupant(of: path, target)
        }
    }

    /// Takes over a listening socket that the service manager made.
    /// - Throws: `notSocket`, `wrongKind`.
    public init(adopting passed: consuming FileDescriptor) throws(UnixSocket.Failure) {
        try passed.prepareSocket(isListening: true)
        descriptor = passed
        file = nil
    }

    /// What `UnixSocket.localName` of its connections is. Not always the path: a socket keeps the name of its birth.
    public borrowing func localName() throws(SystemError) -> [UInt8] { try descriptor.socketName() }

    /// The next connection, or `nil` when nobody waits.
    /// - Throws: EMFILE and ENFILE: it stays in the queue, so stop watching for a while. Who has hung up meanwhile is
    ///   skipped.
    public borrowing func accept() throws(SystemError) -> UnixSocket? {
        let number = raw
        while true {
            do {
                let flags = CInt(SOCK_CLOEXEC.rawValue | SOCK_NONBLOCK.rawValue)
                let accepted = try retrying("accept4") {
                    CInt(clinux_syscall(Int(SYS_accept4), UInt(number), 0, 0, UInt(flags), 0, 0))
                }
                return UnixSocket(owning: FileDescriptor(owning: accepted))
            } catch where error.errno == EAGAIN {
                return nil
            } catch where error.errno == ECONNABORTED {
                continue
            }
        }
    }

    /// Gives the socket's file to somebody else, if it is still the one that this process made.
    /// - Throws: EPERM without the right to give files away.
    public borrowing func setOwner(user: uid_t, group: gid_t) throws(SystemError) {
        guard let file else { return }
        var status = stat()
        guard lstat(file.path, &status) == 0, status.st_dev == file.device, status.st_ino == file.inode else { return }
        let path = file.path
        _ = try retrying("chown") { lchown(path, user, group) }
    }

    /// Removes the path if it is still the file that this process made. A process without the folder cannot: whoever
    /// can does it for it.
    public borrowing func removeFile() {
        guard let file else { return }
        var status = stat()
        if lstat(file.path, &status) == 0, status.st_dev == file.device, status.st_ino == file.inode {
            unlink(file.path)
        }
    }

    private enum Occupant { case missing, stale, alive }

    /// Connects to find out.
    private static func occupant(of path: String, _ address: UnixAddress) throws(UnixSocket.Failure) -> Occupant {
        var status = stat()
        guard lstat(path, &status) == 0 else {
            let code = errno
            if code == ENOENT { return .missing }
            throw .system(SystemError("lstat", errno: code))
        }
        guard status.st_mode & S_IFMT == S_IFSOCK else { throw .notSocket }
        do {
            let probe = FileDescriptor(owning: try retrying("socket") { socket(AF_UNIX, UnixSocket.kind, 0) })
            let number = probe.raw
            _ = try retrying("connect") { address.withSocketAddress { connect(number, $0, $1) } }
            return .alive
        } catch {
            switch error.errno {
            case ECONNREFUSED: return .stale
            case ENOENT: return .missing
            // A full queue, and a listener of another kind.
            case EAGAIN, EPROTOTYPE: return .alive
            default: throw .system(error)
            }
        }
    }

    private static func temporaryName(beside path: String) -> String {
        let folder = path.utf8.lastIndex(of: UInt8(ascii: "/")).map { String(path[...$0]) } ?? ""
        return "\(folder).\(String(getpid(), radix: 36))"
    }

    private static func bindAndListen(
        _ path: String, _ address: UnixAddress, _ mode: mode_t, _ owner: (user: uid_t, group: gid_t)?, _ backlog: CInt
    ) throws(UnixSocket.Failure) -> FileDescriptor {
        // Left over from a process that had our number.
        unlink(path)
        do {
            let opened = FileDescriptor(owning: try retrying("socket") { socket(AF_UNIX, UnixSocket.kind, 0) })
            let number = opened.raw
            // The file gets the socket's own mode: nobody's until its owner is set.
            _ = try retrying("fchmod") { fchmod(number, 0) }
            _ = try retrying("bind") { address.withSocketAddress { bind(number, $0, $1) } }
            if let owner { _ = try retrying("chown") { lchown(path, owner.user, owner.group) } }
            _ = try retrying("chmod") { chmod(path, mode) }
            _ = try retrying("listen") { listen(number, backlog) }
            return opened
        } catch {
            unlink(path)
            throw .system(error)
        }
    }

    private static let noReplace: UInt = 1  // RENAME_NOREPLACE
    private static let exchange: UInt = 2  // RENAME_EXCHANGE

    /// 0 or an errno. A file system that cannot do it with flags does it without.
    private static func rename(_ old: String, _ new: String, flags: UInt) -> CInt {
        let here = UInt(bitPattern: Int(AT_FDCWD))
        let code = old.withCString { old in
            new.withCString { new in
                let result = clinux_syscall(
                    Int(SYS_renameat2), here, UInt(bitPattern: old), here, UInt(bitPattern: new), flags, 0)
                return result == 0 ? 0 : errno
            }
        }
        guard code == EINVAL || code == ENOSYS else { return code }
        return Glibc.rename(old, new) == 0 ? 0 : errno
    }
}
