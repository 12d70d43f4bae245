import ArgumentParser

/// What a wrong command line is answered with.
let usage = """
    usage: vmctl run -b KERNEL [--initrd FILE] [--module FILE[,ARGS]]...
                     [--cmdline TEXT] [-m SIZE] [--engine auto|kvm|translator]
                     [--cpu MODEL] [--debug-exit PORT] [-v]
    """

/// The control tool: argument parsing and printing only.
struct Vmctl: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "vmctl", abstract: "Run virtual machines.", subcommands: [Run.self])

    func run() throws { throw ValidationError("no command given") }
}
