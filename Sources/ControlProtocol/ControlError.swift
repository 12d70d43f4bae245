import Linux

/// Why a client got no answer, or not the one that it wanted.
public enum ControlError: Error, Hashable, Sendable, CustomStringConvertible {
    /// No connection to the daemon.
    case connect(path: String, reason: String, advice: String?)
    /// The daemon has closed the connection: it has ended.
    case closed
    /// The daemon's answer is no.
    case refused(Response.Failure, String)
    /// What came is no answer to what was asked.
    case unexpected(String)
    /// No answer within so many seconds.
    case timeout(seconds: Int)
    /// The request cannot be put into a message.
    case tooLong(String)
    case system(SystemError)

    public var description: String {
        switch self {
        case .connect(let path, let reason, let advice):
            "connect: \(path): \(reason)" + (advice.map { ": \($0)" } ?? "")
        case .closed: "pipe closed: vmd has ended: its log says why"
        case .refused(_, let text): text
        case .unexpected(let text): "unexpected response received from vmd: \(text)"
        case .timeout(let seconds): "vmd does not answer within \(seconds) s: look at its log"
        case .tooLong(let text): text
        case .system(let error): error.description
        }
    }
}
