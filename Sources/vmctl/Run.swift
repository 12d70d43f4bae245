import ArgumentParser
import Glibc
import Machine
import VMM

extension EngineChoice: ExpressibleByArgument {}

/// `vmctl run`: one machine in the foreground, without a daemon.
struct Run: ParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Run a machine in the foreground, its serial console on this terminal.",
        usage: String(usage.dropFirst("usage: ".count)),
        discussion: """
            The terminal belongs to the guest until it powers off. At the start of a line, ~. ends the machine, ~# \
            sends BREAK, ~~ sends ~, and ~? lists these. When standard input is no terminal every byte of it goes to the \
            guest; at its end the guest goes on.

            The exit status is 0 when the guest powered off, 128+n after signal n, 1 after an error, 2 for wrong usage.
            """)

    @Option(name: .customShort("b"), help: ArgumentHelp("Linux bzImage, or ELF kernel with a PVH note.", valueName: "kernel"))
    var kernel: String

    @Option(help: ArgumentHelp("Initial ramdisk.", valueName: "file"))
    var initrd: String?

    // Kernel command lines may begin with anything, a dash included.
    @Option(parsing: .unconditional, help: ArgumentHelp("Kernel command line.", valueName: "text"))
    var cmdline = MachineConfiguration.defaultCommandLine

    @Option(
        name: .customShort("m"),
        help: ArgumentHelp("Memory, with suffix K, M or G; at least 16M. (default: 512M)", valueName: "size"),
        transform: parseSize)
    var memory = MachineConfiguration.defaultMemoryByteCount

    @Option(help: ArgumentHelp("What runs the guest's code: auto, kvm or translator.", valueName: "engine"))
    var engine = EngineChoice.auto

    @Option(
        help: ArgumentHelp(
            "CPU model that the guest sees: \(CPUModel.allCases.map(\.rawValue).joined(separator: ", ")).", valueName: "model"))
    var cpu: String?

    @Flag(name: .customShort("v"), help: "Say more on standard error.")
    var isVerbose = false

    func run() throws {
        let megabyte: UInt64 = 1 << 20
        let rounded = memory - memory % megabyte
        if rounded != memory, rounded > 0 { Foreground.say("memory size rounded to \(rounded / megabyte)M") }
        let configuration = MachineConfiguration(
            kernel: kernel, initrd: initrd, commandLine: cmdline, memoryByteCount: rounded, cpuModel: cpu)
        let status = Foreground.run(configuration, engine: engine, isVerbose: isVerbose)
        if status != 0 { throw ExitCode(status) }
    }
}

private func parseSize(_ text: String) throws -> UInt64 {
    guard let size = ByteSize.parse(text) else {
        throw ValidationError("invalid memory size: \(text): give a number with K, M or G")
    }
    return size
}
