import Glibc
import Linux

/// `vmd` without `-d`: the daemon proper is a child in a session of its own. Whoever typed the command gets it back once
/// the socket is served, or hears on standard error why it is not.
public enum Background {
    /// What the child is told by.
    private static let variable = "VMD_BACKGROUND"

    /// - Returns: the exit status.
    public static func run(_ options: DaemonOptions) throws -> CInt {
        if ProcessEnvironment.value(variable) != nil { return try runDaemon(options) }
        var pipe = try Pipe()
        var start = ChildProcess.Options(arguments: CommandLine.arguments)
        start.environment = [(variable, "1")]
        for name in ["HOME", "XDG_CONFIG_HOME", "XDG_RUNTIME_DIR", "PATH", "VMD_SOCKET", "SWIFT_BACKTRACE"] {
            if let value = ProcessEnvironment.value(name) { start.environment.append((name, value)) }
        }
        start.descriptors = [pipe.writingEnd ?? -1]
        start.startsSession = true
        start.diesWithParent = false
        var child = try ChildProcess(try Program.running(), start)
        pipe.closeWriter()
        // A byte, or the end of a child that has said why.
        if try !Stream.read(pipe.reader.raw, limit: 1).isEmpty {
            child.forget()
            return 0
        }
        return if case .exited(let status) = try child.wait() { status } else { 1 }
    }

    private static func runDaemon(_ options: DaemonOptions) throws -> CInt {
        ProcessEnvironment.remove(variable)
        let ready = FileDescriptor(owning: 3)
        try ready.setCloseOnExec()
        SystemLog.open()
        let number = ready.raw
        let log = Log(.syslog, isVerbose: options.isVerbose)
        do {
            try Daemon.run(options, log: log) {
                try? Stream.writeAll(number, [1])
                // From here on there is only the log.
                StandardStreams.discard()
                try? WorkingDirectory.change(to: "/")
            }
            return 0
        } catch {
            for line in error.lines { log.error(line) }
            throw error
        }
    }
}
