import Glibc
import Linux
import Logging

/// The daemon's log: standard error in the foreground, syslog in the background. Only the parent has one; the other
/// roles send it their lines.
public final class Log {
    public enum Destination: Sendable {
        /// With the priority in front as systemd's journal reads it, when it is what reads standard error.
        case standardError(forJournal: Bool)
        case syslog
    }

    private var logger: Logger

    public init(_ destination: Destination, isVerbose: Bool) {
        logger = Logger(label: "vmd") { _ in LineLogHandler(destination: destination) }
        self.isVerbose = isVerbose
        logger.logLevel = isVerbose ? .debug : .info
    }

    var isVerbose: Bool {
        didSet { logger.logLevel = isVerbose ? .debug : .info }
    }

    func debug(_ text: @autoclosure () -> String) { logger.debug("\(text())") }
    func info(_ text: String) { logger.info("\(text)") }
    func warning(_ text: String) { logger.warning("\(text)") }
    func error(_ text: String) { logger.error("\(text)") }
}

/// One line for each message, whatever the message holds.
private struct LineLogHandler: LogHandler {
    let destination: Log.Destination
    var metadata: Logger.Metadata = [:]
    var logLevel = Logger.Level.info

    subscript(metadataKey key: String) -> Logger.Metadata.Value? {
        get { metadata[key] }
        set { metadata[key] = newValue }
    }

    func log(event: LogEvent) {
        let text = "\(event.message)".oneLine.cut(to: 4 * longestLine)
        switch destination {
        case .standardError(let isForJournal):
            let prefix = isForJournal ? "<\(priority(event.level))>" : "vmd: "
            StandardStreams.writeError("\(prefix)\(text)\n")
        case .syslog: SystemLog.write(priority: priority(event.level), text)
        }
    }

    /// syslog(3)'s numbers.
    private func priority(_ level: Logger.Level) -> Int {
        switch level {
        case .trace, .debug: 7
        case .info: 6
        case .notice: 5
        case .warning: 4
        case .error: 3
        case .critical: 2
        }
    }
}
