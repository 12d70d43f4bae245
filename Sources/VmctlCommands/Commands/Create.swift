import ArgumentParser
import DiskImage
import Linux
import VMConfig

/// `vmctl create`: an empty image, one that stands on another, or one with what another holds.
struct Create: VmctlCommand {
    static let configuration = CommandConfiguration.vmctl(
        "create", abstract: "Make a disk image.",
        usage: """
            vmctl [-v] create [-c] [-b base | -i disk] [-s size] [--allow-base path]...
            \t[--cluster-size size] [--compression method] [--refcount-bits bits] disk
            """,
        discussion: """
            The new image's format is what its prefix or suffix says, and raw without: qcow2:disk, disk.qcow2, disk.vmdk. \
            With -b it holds what the base holds, and takes room for what is changed; with -i it gets a copy of another \
            image's disk, of any format. A file that exists is left alone.
            """)

    @OptionGroup var new: NewImageOptions

    @Option(name: .customShort("b"), help: ArgumentHelp("The image that the new one stands on.", valueName: "base"))
    var base: String?

    @Option(name: .customShort("i"), help: ArgumentHelp("The image whose disk is copied.", valueName: "disk"))
    var input: String?

    @Option(name: .customShort("s"), help: ArgumentHelp("The disk's size, with K, M, G or T.", valueName: "size"))
    var size: String?

    @OptionGroup var images: ImageOptions

    @Flag(name: .customShort("v"), help: "Say more on standard error.")
    var isVerbose = false

    @Argument(help: ArgumentHelp("The new image's path.", valueName: "disk"))
    var words: [String] = []

    func perform(_ output: Output) throws -> CInt {
        guard let word = words.first, words.count == 1 else { throw WrongUsage("give one image to make") }
        guard base == nil || input == nil else { throw WrongUsage("conflicting -b and -i arguments") }
        let location = ImageLocation(word)
        let format = location.statedFormat ?? .raw
        guard base == nil || format == .qcow2 else { throw WrongUsage("base images require qcow2 disk format") }
        let target = try new.target(format)
        let size = try size.map { text throws(WrongUsage) in try OptionValues.disk(text, output.say) }
        guard size != nil || base != nil || input != nil else {
            throw WrongUsage("could not create \(location.path): missing size argument")
        }
        do {
            if let input {
                try copy(ImageLocation(input), to: location.path, target, size, output)
            } else {
                try createEmpty(location.path, target, size, output)
            }
        } catch let error as ImageError {
            throw Failure("create imagefile operation failed: \(error)")
        }
        output.say("\(format.rawValue) imagefile created")
        return 0
    }

    private func createEmpty(_ path: String, _ target: Conversion.Target, _ size: UInt64?, _ output: Output) throws {
        let file = try NewFile(path)
        var target = target
        if let base, case .qcow2(var options, let isCompressed) = target {
            let below = try ImageChain(ImageLocation(base), try images.reading(locks: false))
            let baseFormat = below.members.first?.format ?? .raw
            let byteCount = try below.assemble().byteCount
            guard size ?? byteCount >= byteCount else {
                throw Failure("base size does not match requested size: \(base) has \(ByteSize.describe(byteCount))")
            }
            let (name, needsPermission) = try BaseName.name(of: ImageLocation(base).path, in: path)
            if needsPermission {
                output.say("\(name) is outside of the new image's folder: to use it, allow base \"\(name)\" in vm.conf")
            }
            options.byteCount = size ?? byteCount
            options.backing = QCOW2Backing(name: name, format: baseFormat.rawValue)
            target = .qcow2(options, isCompressed: isCompressed)
        }
        try target.makeEmpty(try file.open(), byteCount: size ?? 0, fileName: path)
        try file.finish(as: target.format, isDurable: false)
    }

    private func copy(
        _ source: ImageLocation, to path: String, _ target: Conversion.Target, _ size: UInt64?, _ output: Output
    ) throws {
        let image: any BlockImage
        do {
            image = try ImageChain(source, try images.reading()).assemble()
        } catch let error as ImageError {
            throw Failure("failed to open source image file: \(error)")
        }
        let megabyte: UInt64 = 1 << 20
        var byteCount = size ?? image.byteCount
        guard byteCount >= image.byteCount else {
            throw Failure("size cannot be smaller than input disk size: \(source.path) has \(ByteSize.describe(image.byteCount))")
        }
        if byteCount % megabyte != 0 {
            byteCount += megabyte - byteCount % megabyte
            output.say("destination size rounded to \(byteCount / megabyte) megabytes")
        }
        try image.convert(to: path, target, byteCount: byteCount, isDurable: false, output)
    }
}

extension BlockImage {
    /// Makes a new image with what this disk holds, and shows how far it is.
    func convert(
        to path: String, _ target: Conversion.Target, byteCount: UInt64, isDurable: Bool, _ output: Output
    ) throws {
        let file = try NewFile(path)
        try Progress(path, output).run { progress in
            var conversion = Conversion(target, byteCount: byteCount)
            conversion.progress = progress.update
            conversion.isCancelled = progress.isCancelled
            try conversion.run(from: self, into: try file.open(), fileName: path)
        }
        try file.finish(as: target.format, isDurable: isDurable)
    }
}
