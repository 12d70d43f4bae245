import ControlProtocol
import Glibc
import Linux
import VMConfig

/// The daemon: the parent's process from its start to its end.
public enum Daemon {
    /// Why it does not start, or ended: one or more lines for a person.
    public struct Failure: Error {
        public let lines: [String]
        init(_ lines: String...) { self.lines = lines }
        init(lines: [String]) { self.lines = lines }
    }

    /// `vmd -n`: reads the configuration and says what is wrong with it.
    /// - Returns: warnings.
    public static func check(_ options: DaemonOptions) throws(Failure) -> [String] {
        try configuration(options).warnings
    }

    /// Runs until a signal ends it.
    /// - Parameter onReady: called once the socket is served.
    public static func run(_ given: DaemonOptions, log: Log, onReady: () -> Void) throws(Failure) {
        var options = given
        let configuration = try configuration(options)
        options.configurationPath = configurationPath(options)
        do {
            try serve(options, configuration, log, onReady)
        } catch let failure as Failure {
            throw failure
        } catch {
            throw Failure("\(error)")
        }
    }

    // MARK: - The configuration

    /// The file to read; `nil` when none was named and there is none at the usual place.
    private static func configurationPath(_ options: DaemonOptions) -> String? {
        if let path = options.configurationPath { return path }
        let usual = options.isSystemWide ? DaemonPaths.systemConfiguration : DaemonPaths.userConfiguration
        guard let usual, FileDescriptor.exists(usual) else { return nil }
        return usual
    }

    private static func configuration(_ options: DaemonOptions) throws(Failure) -> DaemonConfiguration {
        guard let path = configurationPath(options) else { return DaemonConfiguration() }
        do {
            return try DaemonConfiguration(path: path, macros: options.macros, uid: options.uid)
        } catch {
            throw Failure(lines: error.lines)
        }
    }

    // MARK: - The processes

    private static func serve(
        _ options: DaemonOptions, _ configuration: DaemonConfiguration, _ log: Log, _ onReady: () -> Void
    ) throws {
        // Before any descriptor of ours is opened: systemd's follow the standard streams.
        var activation = ServiceActivation()
        let notification = try? ServiceNotification()
        let signals = try SignalDescriptor([SIGTERM, SIGINT, SIGHUP, SIGUSR1, SIGPIPE])
        let listener = try listen(options, configuration.settings, activation.descriptors.takeFirst())
        defer { listener.removeFile() }
        ResourceLimits.raiseOpenFiles()
        let program = try Program.running()
        let starter = try RoleStarter(program, options)
        let loop = try EventLoop()

        let (control, controlChild) = try starter.start(
            .control, loop, MessageChannel<ControlReport, ControlCommand>.self, descriptors: [listener.raw])
        let (monitor, monitorChild) = try starter.start(
            .vmm, loop, MessageChannel<MonitorReport, MonitorCommand>.self, descriptors: [program.raw])
        let (priv, privChild) = try starter.start(.priv, loop, MessageChannel<PrivReport, PrivCommand>.self, descriptors: [])
        let parent = try Parent(
            options, configuration.settings, loop: loop, log: log, notification: notification,
            socketName: try listener.localName(), monitor: monitor, control: control, priv: priv)

        var broken: String?
        // The others are of no use without it; machines end with us.
        func lose(_ role: Role, _ reason: String?) {
            if !parent.isEnded, broken == nil {
                broken = "\(role.rawValue) \(reason.map { "said what it may not (\($0))" } ?? "has ended"): so must the rest"
            }
            loop.stop()
        }
        func watch(_ role: Role, _ child: Child) throws(SystemError) {
            try loop.watch(child.raw, .readable) { lose(role, nil) }
        }
        try watch(.control, controlChild)
        try watch(.vmm, monitorChild)
        try watch(.priv, privChild)
        control.onEnd = { lose(.control, $0) }
        monitor.onEnd = { lose(.vmm, $0) }
        priv.onEnd = { lose(.priv, $0) }
        let signalNumber = signals.raw
        try loop.watch(signalNumber, .readable) {
            while let signal = SignalDescriptor.next(in: signalNumber) { parent.handle(signal: signal) }
        }
        parent.onSettings = { settings in
            guard options.isSystemWide else { return }
            do {
                let owner = try socketOwner(settings)
                try listener.setOwner(user: owner.user, group: owner.group)
            } catch {
                log.warning("owner of the control socket: \(error)")
            }
        }
        parent.apply(configuration, isAddition: false)
        try? parent.notification?.ready()
        onReady()
        // Who drops a child kills it.
        try withExtendedLifetime((controlChild, monitorChild, privChild)) { try loop.run() }
        if let broken { throw Failure(broken) }
    }

    /// Whose root's socket is: as configured, or root's and of the group `vmd` where there is one.
    private static func socketOwner(_ settings: DaemonSettings) throws(SystemError) -> (user: UInt32, group: UInt32) {
        let owner = settings.socketOwner
        if let gid = owner?.gid { return (owner?.uid ?? 0, gid) }
        return (owner?.uid ?? 0, try UserDatabase.group(named: "vmd")?.groupID ?? 0)
    }

    /// The control socket: systemd's, or our own.
    private static func listen(
        _ options: DaemonOptions, _ settings: DaemonSettings, _ passed: consuming FileDescriptor?
    ) throws(Failure) -> UnixListener {
        if options.socketPath == nil, let passed {
            do { return try UnixListener(adopting: passed) } catch { throw Failure("socket from systemd: \(error)") }
        }
        guard let path = options.socketPath ?? (options.isSystemWide ? ControlSocket.systemPath : ControlSocket.userPath)
        else { throw Failure("no place for the control socket: set XDG_RUNTIME_DIR, or give one with -s") }
        do {
            guard options.isSystemWide else { return try UnixListener(path: path, mode: 0o600) }
            return try UnixListener(path: path, mode: 0o660, owner: try socketOwner(settings))
        } catch {
            let advice =
                if case UnixSocket.Failure.inUse = error { "another vmd serves it: end that one, or give another socket with -s" } else {
                    "\(error)"
                }
            throw Failure("socket \(path): \(advice)")
        }
    }
}
