import Glibc
import Linux
import Machine

/// Where a command's words go.
struct Output: Sendable {
    /// To standard output: what was asked for.
    var print: @Sendable (String) throws(Failure) -> Void
    /// To standard error, as it is: what a person is told.
    var error: @Sendable (String) -> Void
    /// Whether somebody watches who wants to see how far long work is.
    var showsProgress = false
    /// Begins to watch for signals that end a command; what it returns says which has come.
    var watchSignals: @Sendable () -> (@Sendable () -> CInt?) = { { nil } }

    /// One line of standard error.
    func say(_ text: String) { finish("vmctl: \(text)") }

    /// The rest of a line of standard error, of which `error` may have written the beginning.
    func finish(_ text: String) { error(UserTerminal.oneLine(text) + "\n") }

    /// Does something that must not end in the middle: a signal that would end the command ends it behind that.
    /// - Throws: what `body` throws, or `Interrupted`.
    func whole(_ body: () throws -> Void) throws {
        let nextSignal = watchSignals()
        try body()
        if let signal = nextSignal() { throw Interrupted(signal: signal) }
    }

    static let standard = Output(
        print: { text throws(Failure) in
            do throws(SystemError) {
                try Stream.writeAll(1, Array(text.utf8))
            } catch {
                throw Failure("standard output: \(error.reason)")
            }
        },
        error: { UserTerminal.write($0) },
        showsProgress: Terminal.isTerminal(2),
        watchSignals: {
            guard let signals = try? SignalWatch() else { return { nil } }
            return { signals.next }
        })
}

/// The signals that end a command, as values.
private final class SignalWatch: Sendable {
    private let descriptor: SignalDescriptor
    init() throws(SystemError) { descriptor = try SignalDescriptor([SIGINT, SIGTERM, SIGHUP]) }
    var next: CInt? { SignalDescriptor.next(in: descriptor.raw) }
}

/// A signal has ended the command.
struct Interrupted: Error, Hashable {
    let signal: CInt
}
