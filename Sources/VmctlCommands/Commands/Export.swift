import ArgumentParser
import DiskImage
import VMConfig

/// `vmctl export`: a machine for VMware's programs.
struct Export: VmctlCommand {
    static let configuration = CommandConfiguration.vmctl(
        "export", abstract: "Write disks as a machine for VMware's programs.",
        usage: """
            vmctl [-v] export [-c] [-m size] [-n name] [--allow-base path]...
            \tdisk ... directory
            """,
        discussion: """
            The directory gets a .vmdk file for each disk and a .vmx file that names them. With -c they are compressed: \
            stream-optimised, to be imported rather than run.
            """)

    @Flag(name: .customShort("c"), help: "Compressed disks, to be imported.")
    var isCompressed = false

    @Option(name: .customShort("m"), help: ArgumentHelp("The machine's memory. (default: 512M)", valueName: "size"))
    var memory: String?

    @Option(name: .customShort("n"), help: ArgumentHelp("The machine's name. (default: the first disk's)", valueName: "name"))
    var name: String?

    @OptionGroup var images: ImageOptions

    @Argument(help: ArgumentHelp("Images, then the directory.", valueName: "path"))
    var words: [String] = []

    func perform(_ output: Output) throws -> CInt {
        guard words.count >= 2, let folder = words.last else { throw WrongUsage("give one or more images and a directory") }
        let locations = words.dropLast().map { ImageLocation($0) }
        let file = locations.first?.path.split(separator: "/").last ?? ""
        let stem = file.lastIndex(of: ".").map { file[..<$0] } ?? file
        var export = MachineExport(name: name ?? String(stem))
        if let memory { export.memoryByteCount = try OptionValues.memory(memory, output.say) }
        export.isStreamOptimized = isCompressed
        let opening = try images.reading()
        let disks = try locations.map { location in try ImageChain(location, opening).assemble() }
        let paths = try Progress(folder, output).run { progress in
            export.progress = progress.update
            export.isCancelled = progress.isCancelled
            return try export.write(disks, to: folder)
        }
        for path in paths { output.say("\(path) created") }
        return 0
    }
}
