import Linux
import Machine

/// Where a command's words go.
struct Output: Sendable {
    /// To standard output: what was asked for.
    var print: @Sendable (String) throws(Failure) -> Void
    /// To standard error, as it is: what a person is told.
    var error: @Sendable (String) -> Void

    /// One line of standard error.
    func say(_ text: String) { finish("vmctl: \(text)") }

    /// The rest of a line of standard error, of which `error` may have written the beginning.
    func finish(_ text: String) { error(UserTerminal.oneLine(text) + "\n") }

    static let standard = Output(
        print: { text throws(Failure) in
            do throws(SystemError) {
                try Stream.writeAll(1, Array(text.utf8))
            } catch {
                throw Failure("standard output: \(error.reason)")
            }
        },
        error: { UserTerminal.write($0) })
}
