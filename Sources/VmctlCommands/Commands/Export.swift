import ArgumentParser
import ControlProtocol
import DiskImage
import VMConfig

/// `vmctl export`: a machine for VMware's programs.
struct Export: VmctlCommand {
    static let configuration = CommandConfiguration.vmctl(
        "export", abstract: "Write a machine, or disks, as a machine for VMware's programs.",
        usage: """
            vmctl [-v] export [-c] [-m size] [-n name] [--allow-base path]...
            \t\tid directory
            \tvmctl [-v] export [-c] [-m size] [-n name] [--allow-base path]...
            \t\tdisk ... directory
            """,
        discussion: """
            The directory gets a .vmdk file for each disk and a .vmx file that names them. With -c they are compressed: \
            stream-optimised, to be imported rather than run. A machine, which must be stopped, is exported as it is configured.
            """)

    @Flag(name: .customShort("c"), help: "Compressed disks, to be imported.")
    var isCompressed = false

    @Option(name: .customShort("m"), help: ArgumentHelp("The machine's memory. (default: what it has, or 512M)", valueName: "size"))
    var memory: String?

    @Option(name: .customShort("n"), help: ArgumentHelp("The machine's name. (default: its own, or the first disk's)", valueName: "name"))
    var name: String?

    @OptionGroup var images: ImageOptions
    @OptionGroup var connection: Connection

    @Argument(help: ArgumentHelp("A machine or images, then the directory.", valueName: "path"))
    var words: [String] = []

    func perform(_ output: Output) throws -> CInt {
        guard words.count >= 2, let folder = words.last else { throw WrongUsage("give a machine or images, and a directory") }
        let memory = try memory.map { text throws(WrongUsage) in try OptionValues.memory(text, output.say) }
        // Several words in front of the directory are images: machines are exported one at a time.
        let operand = words.count == 2 ? try DiskOperand(words[0], connection) : nil
        let locations = operand?.images ?? words.dropLast().map { ImageLocation($0) }
        try operand?.refuseRunning("its guest changes what would be read")
        var export = MachineExport(name: name ?? operand?.machine?.name ?? Self.stem(locations.first))
        if let machine = operand?.machine { export.take(machine) }
        if let memory { export.memoryByteCount = memory }
        export.isStreamOptimized = isCompressed
        let opening = try images.reading(operand)
        let disks = try locations.map { location in try ImageChain(location, opening).assemble() }
        let paths = try Progress(folder, output).run { progress in
            export.progress = progress.update
            export.isCancelled = progress.isCancelled
            return try export.write(disks, to: folder)
        }
        for path in paths { output.say("\(path) created") }
        return 0
    }

    /// A file's name without its suffix.
    private static func stem(_ location: ImageLocation?) -> String {
        let file = location?.path.split(separator: "/").last ?? ""
        return String(file.lastIndex(of: ".").map { file[..<$0] } ?? file)
    }
}

extension MachineExport {
    /// What a machine is made of, but for its disks.
    fileprivate mutating func take(_ machine: MachineDescription) {
        memoryByteCount = machine.memory
        cpuCount = machine.cpus
        interfaceCount = Int(machine.interfaceCount)
        (hasDrive, disc) = (machine.hasDrive, machine.disc)
    }
}
