import ArgumentParser
import ControlProtocol
import Linux
import VMConfig

/// `vmctl start`.
struct Start: VmctlCommand {
    static let configuration = CommandConfiguration.vmctl(
        "start", abstract: "Start a machine of the configuration, an instance of a template, or one made of these options.",
        usage: """
            vmctl [-v] start [-cL] [-B device] [-b path] [-d disk] [-i count]
            \t[-m size] [-n switch] [-p count] [-r path] [-t name]
            \t[--initrd path] [--cmdline text] [--engine engine] [--cpu model] id | name
            """)

    @Option(
        name: .customShort("B", allowingJoined: true),
        help: ArgumentHelp("Boot from disk, cdrom or net, this time.", valueName: "device"))
    var bootDevice: [String] = []

    @Option(
        name: .customShort("b", allowingJoined: true), help: ArgumentHelp("Kernel or BIOS image.", valueName: "path"))
    var kernel: [String] = []

    @Flag(name: .customShort("c"), help: "Attach to its console once it is started.")
    var attaches = false

    @Option(
        name: .customShort("d", allowingJoined: true),
        help: ArgumentHelp("Disk image, with raw: or qcow2: in front or without; may be repeated.", valueName: "disk"))
    var disks: [String] = []

    @Option(
        name: .customShort("i", allowingJoined: true),
        help: ArgumentHelp("Number of network interfaces.", valueName: "count"))
    var interfaceCount: [String] = []

    @Flag(name: .customShort("L"), help: "Add a local network interface; may be repeated.")
    var localInterfaces: Int

    @Option(
        name: .customShort("m", allowingJoined: true),
        help: ArgumentHelp("Memory, with suffix K, M or G. (default: 512M)", valueName: "size"))
    var memory: [String] = []

    @Option(
        name: .customShort("n", allowingJoined: true),
        help: ArgumentHelp("Add a network interface on a switch; may be repeated.", valueName: "switch"))
    var switches: [String] = []

    @Option(name: .customShort("p", allowingJoined: true), help: ArgumentHelp("Number of CPUs.", valueName: "count"))
    var cpuCount: [String] = []

    @Option(
        name: .customShort("r", allowingJoined: true), help: ArgumentHelp("ISO image for the CD-ROM.", valueName: "path"))
    var cdrom: [String] = []

    @Option(
        name: .customShort("t", allowingJoined: true),
        help: ArgumentHelp("Make an instance of this machine.", valueName: "name"))
    var template: [String] = []

    @Option(name: .customLong("initrd"), help: ArgumentHelp("Initial ramdisk.", valueName: "path"))
    var initrd: [String] = []

    // Kernel command lines may begin with anything, a dash included.
    @Option(
        name: .customLong("cmdline"), parsing: .unconditionalSingleValue,
        help: ArgumentHelp("Kernel command line.", valueName: "text"))
    var commandLine: [String] = []

    @Option(
        name: .customLong("engine"),
        help: ArgumentHelp("What runs the guest's code: auto, kvm or translator.", valueName: "engine"))
    var engine: [String] = []

    @Option(name: .customLong("cpu"), help: ArgumentHelp("CPU model that the guest sees.", valueName: "model"))
    var cpuModel: [String] = []

    @OptionGroup var connection: Connection
    @OptionGroup var operand: MachineArgument

    func perform(_ output: Output) throws -> CInt {
        var request = try options(output)
        var files = FileDescriptorList()
        if let path = request.kernel {
            let file = try StartFile("kernel", path)
            request.kernel = file.path
            files.append(file.release())
        }
        if let path = request.initrd {
            let file = try StartFile("initrd", path)
            request.initrd = file.path
            files.append(file.release())
        }
        var client = try connection.open()
        let response: Response
        do {
            response = try client.perform(.start(request), descriptors: files.numbers)
        } catch ControlError.refused(_, let text) {
            throw Failure("start vm command failed: \(text)")
        }
        guard case .started(let id, _, let tty) = response else { throw ControlError.unexpected("\(response)") }
        output.say("started vm \(id) successfully, tty \(tty)")
        return attaches ? try AttachConsole.attach(.id(id), &client, output) : 0
    }
}
