import Glibc
import Linux
import Synchronization

/// The terminal of the person at vmctl: raw while a guest has it, and what is said on it meanwhile. One per process,
/// as `Terminal` is.
public enum UserTerminal {
    /// Whether a newline must bring its own carriage return.
    private static let isRaw = Atomic(false)

    /// Prints one line to standard error.
    public static func say(_ text: String) { write("vmctl: \(oneLine(text))\n") }

    /// Prints text to standard error, on a raw terminal too.
    public static func write(_ text: String) {
        StandardStreams.writeError(isRaw.load(ordering: .relaxed) ? text.replacing("\n", with: "\r\n") : text)
    }

    /// The text without control characters: a path may hold anything; a message is one line and leaves the terminal
    /// alone.
    public static func oneLine(_ text: String) -> String {
        var line = String.UnicodeScalarView()
        for scalar in text.unicodeScalars {
            line.append(scalar.properties.generalCategory == .control ? "?" : scalar)
        }
        return String(line)
    }

    // MARK: - Modes

    /// Makes every way out of the process restore what `guardModes` remembered (`Terminal.guardExits`).
    public static func guardExits() { Terminal.guardExits() }

    /// Remembers the modes as those to restore.
    public static func guardModes(of descriptor: CInt) throws(SystemError) { try Terminal.guardModes(of: descriptor) }

    /// Makes it raw, if this is the foreground job. In the background it stays with the shell, and must not be read,
    /// which would stop the job.
    /// - Returns: whether it may be read.
    public static func take(_ descriptor: CInt) throws(SystemError) -> Bool {
        guard Terminal.isForeground(descriptor) else { return false }
        try Terminal.enterRawMode()
        isRaw.store(true, ordering: .relaxed)
        return true
    }

    /// SIGTSTP: gives it back and stops; `take` follows SIGCONT.
    public static func stopJob() {
        Terminal.restore()
        isRaw.store(false, ordering: .relaxed)
        kill(getpid(), SIGSTOP)
    }

    /// Gives it back for good.
    public static func release() {
        Terminal.release()
        isRaw.store(false, ordering: .relaxed)
    }
}
