import ArgumentParser
import Glibc
import Linux
import Machine

// A program's first moments: descriptors 0 to 2 must exist before any other is opened, and the first reading of the
// time-stamp counter is worth more the earlier it is.
TimeStampCounter.start()
StandardStreams.ensureOpen()
StandardStreams.ignoreBrokenPipes()

do {
    var command = try Vmctl.parseAsRoot()
    try command.run()
} catch {
    exit(report(error))
}

/// Prints what the argument parser has to say. Help goes to standard output with status 0; a wrong command line to
/// standard error with status 2, as is usual, in place of the parser's 64.
func report(_ error: any Error) -> CInt {
    let code = Vmctl.exitCode(for: error)
    switch code {
    case .success:
        print(Vmctl.fullMessage(for: error))
        return 0
    case .validationFailure:
        let message = Vmctl.message(for: error)
        Foreground.say(message.split(separator: "\n").first.map(String.init) ?? "wrong usage")
        StandardStreams.writeError("\(usage)\n")
        return 2
    default:
        if !(error is ExitCode) { Foreground.say(Vmctl.message(for: error)) }
        return code.rawValue
    }
}
