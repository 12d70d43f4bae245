import ArgumentParser
import Daemon
import Glibc
import Linux

/// The daemon's command line.
struct Vmd: ParsableArguments {
    static let usage = "usage: vmd [-dnv] [-D macro=value] [-f file] [-s socket]"

    @Flag(name: .customShort("d"), help: "Stay in the foreground and log to standard error.")
    var isForeground = false

    @Flag(name: .customShort("n"), help: "Check the configuration and exit.")
    var isCheck = false

    @Flag(name: .customShort("v"), help: "Log more.")
    var verbosity: Int

    @Option(name: .customShort("D"), parsing: .unconditionalSingleValue, help: "Define a macro for the configuration.")
    var macro: [String] = []

    @Option(name: .customShort("f"), help: "The configuration.")
    var file: String?

    @Option(name: .customShort("s"), help: "The control socket.")
    var socket: String?

    @Flag(name: .customLong("probe"), help: .hidden)
    var probes = false

    static func run() -> CInt {
        let arguments: Vmd
        do {
            arguments = try Vmd.parse()
        } catch {
            if Vmd.exitCode(for: error) == .success {
                print(Vmd.fullMessage(for: error))
                return 0
            }
            say(Vmd.message(for: error).split(separator: "\n").first.map(String.init) ?? "wrong usage")
            StandardStreams.writeError("\(usage)\n")
            return 2
        }
        return arguments.start()
    }

    private func start() -> CInt {
        var options = DaemonOptions()
        options.configurationPath = file.map(Self.absolute)
        options.socketPath = (socket ?? ProcessEnvironment.value("VMD_SOCKET")).map(Self.absolute)
        options.isForeground = isForeground
        options.isVerbose = verbosity > 0
        options.probes = probes
        for text in macro {
            // At the last sign, as on OpenBSD.
            guard let sign = text.lastIndex(of: "="), sign != text.startIndex else {
                Self.say("-D \(text): give MACRO=VALUE")
                return 2
            }
            options.macros[String(text[..<sign])] = String(text[text.index(after: sign)...])
        }
        do {
            if isCheck {
                for warning in try Daemon.check(options) { StandardStreams.writeError("\(warning)\n") }
                StandardStreams.writeError("configuration OK\n")
                return 0
            }
            if isForeground {
                let forJournal = ProcessEnvironment.value("JOURNAL_STREAM") != nil
                try Daemon.run(options, log: Log(.standardError(forJournal: forJournal), isVerbose: options.isVerbose)) {}
                return 0
            }
            return try Background.run(options)
        } catch {
            for line in (error as? Daemon.Failure)?.lines ?? ["\(error)"] {
                StandardStreams.writeError(isCheck ? "\(line)\n" : "vmd: \(line)\n")
            }
            return 1
        }
    }

    static func say(_ text: String) { StandardStreams.writeError("vmd: \(text)\n") }

    /// The working directory is not ours to keep.
    private static func absolute(_ path: String) -> String {
        guard !path.hasPrefix("/"), let folder = WorkingDirectory.path else { return path }
        return folder + "/" + path
    }
}
