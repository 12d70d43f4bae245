import Glibc
import Linux

/// Where a daemon's control socket is.
public enum ControlSocket {
    /// root's daemon's.
    public static let systemPath = "/run/vmd.sock"
    /// Names another one.
    public static let variable = "VMD_SOCKET"

    /// The user's own, after the XDG base directory specification; `nil` for a user without such a folder.
    public static var userPath: String? {
        guard let base = ProcessEnvironment.value("XDG_RUNTIME_DIR"), base.hasPrefix("/") else { return nil }
        return base + "/vmd.sock"
    }

    /// The socket to use: the one given, the environment's, then the user's own daemon's when it runs or when the host
    /// has none, else the host's.
    public static func find(given path: String? = nil) -> String {
        choose(
            given: path ?? ProcessEnvironment.value(variable), isRoot: CurrentUser.id == 0, userPath: userPath,
            exists: FileDescriptor.exists)
    }

    static func choose(
        given: String?, isRoot: Bool, userPath: String?, exists: (String) -> Bool
    ) -> String {
        if let given, !given.isEmpty { return given }
        guard !isRoot, let userPath else { return systemPath }
        return exists(userPath) || !exists(systemPath) ? userPath : systemPath
    }
}

extension ControlError {
    /// What a failure to connect means, and what to do.
    static func connecting(to path: String, _ failure: UnixSocket.Failure) -> ControlError {
        let advice: String? =
            switch failure {
            case .system(let error) where error.isMissing: "vmd is not running: \(start(path))"
            case .system(let error) where error.isRefused: "vmd is not running any more: \(start(path))"
            case .system(let error) where error.isPermission: permission(path)
            case .system(let error) where error.isBusy: "vmd has too many clients: try again"
            case .wrongKind, .notSocket: "this is another program's socket: give vmd's with -s"
            default: nil
            }
        return .connect(path: path, reason: "\(failure)", advice: advice)
    }

    /// How to start the daemon that would serve a socket.
    private static func start(_ path: String) -> String {
        switch path {
        case ControlSocket.systemPath: "start it with `systemctl start vmd`, or `vmd` as root"
        case ControlSocket.userPath: "start it with `systemctl --user start vmd`, or `vmd`"
        default: "start it with `vmd -s \(path)`"
        }
    }

    /// Who may use a socket that we may not.
    private static func permission(_ path: String) -> String {
        guard let file = try? SocketFile(path) else { return "its folder is closed to you: ask its owner" }
        let owner = UserDatabase.name(ofUser: file.owner)
        guard file.groupMayConnect, file.group != 0 else { return "only \(owner) may use it: become \(owner)" }
        let group = UserDatabase.name(ofGroup: file.group)
        return "\(owner) and members of group \(group) may use it: "
            + "`usermod -aG \(group) \(CurrentUser.name)` as root, then log in again"
    }
}

extension SystemError {
    fileprivate var isRefused: Bool { errno == ECONNREFUSED }
    fileprivate var isBusy: Bool { errno == EAGAIN }
}
