import ArgumentParser
import DiskImage
import Machine
import VMConfig
import VMM

extension EngineChoice: ExpressibleByArgument {}
extension BootDevice: ExpressibleByArgument {}

/// `vmctl run`: one machine in the foreground, without a daemon.
struct Run: VmctlCommand {
    static let configuration = CommandConfiguration.vmctl(
        "run", abstract: "Run a machine in the foreground, its serial console on this terminal.",
        usage: """
            vmctl [-v] run [-b kernel|firmware] [-B device] [-d disk]... [-r iso]
            \t[--initrd file] [--module file[,args]]... [--cmdline text] [-m size]
            \t[--engine auto|kvm|translator] [--cpu model] [--debug-exit port]
            """,
        discussion: """
            The terminal belongs to the guest until it powers off. At the start of a line, ~. ends the machine, ~# \
            sends BREAK, ~~ sends ~, and ~? lists these. When standard input is no terminal every byte of it goes to the \
            guest; at its end the guest goes on.

            The exit status is 0 when the guest powered off, 128+n after signal n, 1 after an error, 2 for wrong usage; \
            and (v << 1) | 1 when the guest wrote v to the debug exit port.
            """)

    @Option(
        name: .customShort("b"),
        help: ArgumentHelp(
            "Linux bzImage, OpenBSD, multiboot or PVH kernel, or firmware. (default: SeaBIOS as the host has it)", valueName: "kernel"))
    var kernel: String?

    @Option(
        name: .customShort("B"),
        help: ArgumentHelp("What firmware boots from: disk, cdrom or net. (default: its own order)", valueName: "device"))
    var bootDevice: BootDevice?

    @Option(
        name: .customShort("d"), parsing: .unconditionalSingleValue,
        help: ArgumentHelp("Disk image; up to \(MachineConfiguration.mostDisks).", valueName: "disk"))
    var disks: [String] = []

    @Option(name: .customShort("r"), help: ArgumentHelp("CD or DVD image for the CD-ROM drive.", valueName: "iso"))
    var cdrom: String?

    @Option(help: ArgumentHelp("Initial ramdisk.", valueName: "file"))
    var initrd: String?

    @Option(
        parsing: .unconditionalSingleValue,
        help: ArgumentHelp("Module for a multiboot kernel, with its arguments; may be repeated.", valueName: "file[,args]"))
    var module: [String] = []

    // Kernel command lines may begin with anything, a dash included.
    @Option(
        parsing: .unconditional,
        help: ArgumentHelp(
            "Kernel command line. (default: \(MachineConfiguration.defaultCommandLine); none for a multiboot kernel)",
            valueName: "text"))
    var cmdline: String?

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

    @Option(
        help: ArgumentHelp("Port at which a write of v ends the machine with status (v << 1) | 1.", valueName: "port"),
        transform: parsePort)
    var debugExit: UInt16?

    @Flag(name: .customShort("v"), help: "Say more on standard error.")
    var isVerbose = false

    func validate() throws {
        guard disks.count <= MachineConfiguration.mostDisks else {
            throw ValidationError("too many disks: give at most \(MachineConfiguration.mostDisks)")
        }
    }

    func perform(_ output: Output) throws -> CInt {
        var configuration = MachineConfiguration(
            kernel: kernel, initrd: initrd, modules: module, commandLine: cmdline,
            memoryByteCount: OptionValues.round(memory, output.say), cpuModel: cpu, debugExitPort: debugExit,
            disks: try disks.map { try DiskSource.open(ImageLocation($0)) },
            cdrom: try cdrom.map { try DiskSource.disc($0) })
        configuration.bootDevice = bootDevice
        return Foreground.run(configuration, engine: engine, isVerbose: isVerbose)
    }
}

private func parseSize(_ text: String) throws -> UInt64 {
    guard let size = ByteSize.parse(text) else {
        throw ValidationError("invalid memory size: \(text): give a number with K, M or G")
    }
    return size
}

private func parsePort(_ text: String) throws -> UInt16 {
    let isHexadecimal = text.hasPrefix("0x")
    let digits = isHexadecimal ? text.dropFirst(2) : text[...]
    // The parser of numbers would take a sign.
    guard digits.first?.isHexDigit == true, let port = UInt16(digits, radix: isHexadecimal ? 16 : 10) else {
        throw ValidationError("invalid port: \(text): give a number from 0 to 65535 or 0x0 to 0xffff")
    }
    return port
}
