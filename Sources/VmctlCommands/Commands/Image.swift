import ArgumentParser
import DiskImage
import Linux
import VMConfig

/// `vmctl image`: look at image files, and work on them.
struct Image: VmctlCommand {
    static let configuration = CommandConfiguration.vmctl(
        "image", abstract: "Look at image files, and work on them.",
        usage: """
            vmctl [-v] image info | check [-j] [--chain] [--allow-base path]... [--disk number]
            \t\tid | disk
            \tvmctl [-v] image map [-j] [--disk number] id | disk
            \tvmctl [-v] image repair [-l] [--disk number] id | disk
            \tvmctl [-v] image resize [--shrink] [--allow-base path]... [--disk number]
            \t\tid | disk [+]size
            \tvmctl [-v] image commit [-k] [--allow-base path]... [--disk number] id | disk
            \tvmctl [-v] image rebase [-u] [-b base] [--allow-base path]... [--disk number]
            \t\tid | disk
            \tvmctl [-v] image convert [-c] [--cluster-size size] [--compression method]
            \t\t[--refcount-bits bits] [--allow-base path]... [--disk number] id | disk new
            """,
        discussion: """
            info and check open no other file than the one that is named, unless --chain asks for what it stands on. All but \
            info want an image for themselves: one that a running machine uses is refused. Of a machine info and check take all \
            disks, the others the only one.
            """)

    @Flag(name: .customShort("j"), help: "As JSON.")
    var isJSON = false

    @Flag(help: "Also the images that it stands on.")
    var chain = false

    @Flag(name: .customShort("k"), help: "commit: the image keeps what it has.")
    var keeps = false

    @Flag(name: .customShort("l"), help: "repair: only give back room that nothing uses.")
    var leaksOnly = false

    @Flag(help: "resize: lose what lies behind the new end.")
    var shrink = false

    @Flag(name: .customShort("u"), help: "rebase: only change the name; the disk's content may change with it.")
    var isUnsafe = false

    @Option(name: .customShort("b"), help: ArgumentHelp("rebase: the new base. (default: none)", valueName: "base"))
    var base: String?

    @Option(help: ArgumentHelp("Which of a machine's disks, from 0.", valueName: "number"))
    var disk: UInt32?

    @OptionGroup var new: NewImageOptions
    @OptionGroup var images: ImageOptions
    @OptionGroup var connection: Connection

    @Argument(help: ArgumentHelp("What to do, the machine or image, and what that needs.", valueName: "word"))
    var words: [String] = []

    private enum Verb: String, CaseIterable { case info, check, map, repair, resize, commit, rebase, convert }

    func perform(_ output: Output) throws -> CInt {
        let verbs = Verb.allCases.map(\.rawValue).joined(separator: ", ")
        guard let word = words.first, let verb = Verb(rawValue: word) else {
            throw WrongUsage("unknown argument: \(words.first ?? ""): give one of \(verbs)")
        }
        let needsTwo = verb == .resize || verb == .convert
        guard words.count == (needsTwo ? 3 : 2) else {
            throw WrongUsage(verb == .resize ? "give a machine or an image and the new size"
                    : needsTwo ? "give a machine or an image and the new one" : "give one machine or image")
        }
        try checkOptions(verb)
        guard !isUnsafe || base != nil else { throw WrongUsage("-u needs a base: -b gives one") }
        // What is wrong with a size or an option needs no machine to be seen.
        let size = verb == .resize ? try NewSize(words[2], output) : nil
        let target = verb == .convert ? try new.target(ImageLocation(words[2]).statedFormat ?? .raw) : nil
        let operand = try DiskOperand(words[1], connection)
        if verb != .info { try operand.refuseRunning(Self.reason(verb)) }
        switch verb {
        case .info: return try info(operand, output)
        case .check: return try check(operand, output)
        case .map: return try map(try operand.image(disk), output)
        case .repair: return try repair(try operand.image(disk), output)
        case .resize: if let size { return try resize(operand, size, output) }
        case .commit: return try commit(operand, output)
        case .rebase: return try rebase(operand, output)
        case .convert: if let target { return try convert(operand, ImageLocation(words[2]), target, output) }
        }
        return 0
    }

    /// Why something is not done with the disk of a machine that runs.
    private static func reason(_ verb: Verb) -> String {
        switch verb {
        case .check, .map, .convert: "its guest changes what would be read"
        case .repair: "its image's tables are in use"
        case .resize: "its guest does not expect another size"
        case .commit: "its guest reads from the base that would change"
        case .rebase: "its images cannot be exchanged under it"
        case .info: ""
        }
    }

    /// An option of another verb means that something else was meant.
    private func checkOptions(_ verb: Verb) throws(WrongUsage) {
        let given: [(String, Bool, [Verb])] = [
            ("-j", isJSON, [.info, .check, .map]), ("--chain", chain, [.info, .check]), ("-k", keeps, [.commit]),
            ("-l", leaksOnly, [.repair]), ("--shrink", shrink, [.resize]), ("-u", isUnsafe, [.rebase]),
            ("-b", base != nil, [.rebase]), ("-c", new.isCompressed, [.convert]),
            ("--cluster-size", new.clusterSize != nil, [.convert]), ("--compression", new.compression != nil, [.convert]),
            ("--refcount-bits", new.refcountBits != nil, [.convert]),
        ]
        for (option, isGiven, verbs) in given where isGiven && !verbs.contains(verb) {
            throw WrongUsage("\(option) is for image \(verbs.map(\.rawValue).joined(separator: ", "))")
        }
    }

    // MARK: - Looking

    private func info(_ operand: DiskOperand, _ output: Output) throws -> CInt {
        let chosen = try operand.images(disk)
        let all: [ImageSummary]
        if operand.running != nil {
            let disks = try operand.describe(connection, withBases: chain)
            all = (disk.map { [disks[Int($0)]] } ?? disks).flatMap { images in chain ? images : Array(images.prefix(1)) }
        } else {
            let bases = try images.allowedBases(operand)
            all = try chosen.flatMap { location throws(ImageError) in
                chain ? try ImageSummary.chain(location, allowedBases: bases) : [try ImageSummary(location)]
            }
        }
        if isJSON {
            try output.print(ImageReport.list(all.map(ImageReport.json)) + "\n")
        } else {
            try output.print(all.map(ImageReport.describe).joined(separator: "\n"))
        }
        return 0
    }

    private func map(_ location: ImageLocation, _ output: Output) throws -> CInt {
        var opening = ImageOpening.look
        opening.locks = true
        var lines: [String] = []
        try ImageMap.forEach(location, opening) { extent throws(Failure) in
            if isJSON {
                lines.append(
                    ImageReport.object([
                        ("start", "\(extent.offset)"), ("length", "\(extent.byteCount)"), ("kind", ImageReport.string(extent.kind.rawValue)),
                    ]))
            } else {
                try output.print("\(extent.offset)".padded(to: 20) + "\(extent.byteCount)".padded(to: 20) + extent.kind.rawValue + "\n")
            }
        }
        if isJSON { try output.print(ImageReport.list(lines) + "\n") }
        return 0
    }

    private func check(_ operand: DiskOperand, _ output: Output) throws -> CInt {
        let bases = try images.allowedBases(operand)
        let results = try operand.images(disk).flatMap { location throws(ImageError) in
            try ImageCheck.run(location, isChain: chain, allowedBases: bases)
        }
        var status: CInt = 0
        if isJSON { try output.print(ImageReport.list(results.map(ImageReport.json)) + "\n") }
        for result in results {
            for finding in result.findings { output.say("\(result.path): \(finding)") }
            if !isJSON { try output.print(ImageReport.describe(result)) }
            if result.damage > 0 || result.errors > 0 { status = 1 } else if result.leaks > 0, status == 0 { status = 3 }
        }
        return status
    }

    // MARK: - Changing

    private func repair(_ location: ImageLocation, _ output: Output) throws -> CInt {
        let result = try ImageCheck.repair(location, leaksOnly: leaksOnly)
        for finding in result.findings { output.say("\(result.path): \(finding)") }
        try output.print(ImageReport.describe(result))
        return result.damage > 0 || result.errors > 0 ? 1 : result.leaks > 0 ? 3 : 0
    }

    private func resize(_ operand: DiskOperand, _ new: NewSize, _ output: Output) throws -> CInt {
        let location = try operand.image(disk)
        let chain = try ImageChain(location, try images.writing(operand))
        let image = try chain.assemble()
        let size = try new.size(of: image, location.path)
        guard size >= image.byteCount || shrink else {
            throw Failure("\(location.path): has \(ByteSize.describe(image.byteCount)): --shrink loses what lies behind the new end")
        }
        switch image {
        case let qcow2 as QCOW2Image:
            try qcow2.resize(to: size, mayShrink: shrink)
            try qcow2.close()
        case let raw as RawImage: try raw.file.setByteCount(size)
        default: throw Failure("\(location.path): only qcow2 and raw images change their size: convert it first, with `image convert`")
        }
        output.say("\(location.path) has \(ByteSize.describe(size)) now")
        return 0
    }

    private func commit(_ operand: DiskOperand, _ output: Output) throws -> CInt {
        let location = try operand.image(disk)
        var opening = try images.writing(operand)
        opening.writesBase = true
        let image = try qcow2(ImageChain(location, opening), location)
        try Progress(location.path, output).run { progress in
            try image.commit(keeps: keeps) { done throws(ImageError) in try progress.tell(done, image.byteCount, location.path) }
        }
        try image.close()
        output.say("\(location.path) is committed to its base")
        return 0
    }

    private func rebase(_ operand: DiskOperand, _ output: Output) throws -> CInt {
        let location = try operand.image(disk)
        var backing: QCOW2Backing?
        var below: (any BlockImage)?
        if let base {
            let chain = try ImageChain(ImageLocation(base), try images.reading(operand))
            let format = chain.members.first?.format ?? .raw
            let (name, needsPermission) = try BaseName.name(of: ImageLocation(base).path, in: location.path)
            if needsPermission {
                output.say("\(name) is outside of the image's folder: to use it, allow base \"\(name)\" in vm.conf")
            }
            backing = QCOW2Backing(name: name, format: format.rawValue)
            below = try chain.assemble()
        }
        if isUnsafe {
            var opening = try images.writing(operand)
            opening.opensBases = false
            let (file, format) = try ImageChain(location, opening).top()
            guard format == .qcow2 else { throw notQCOW2(location) }
            let image = try QCOW2Image(file, for: .check)
            try image.rebase(backing)
            try image.close()
        } else {
            let image = try qcow2(ImageChain(location, try images.writing(operand)), location)
            try Progress(location.path, output).run { progress in
                try image.rebase(backing, onto: below) { done throws(ImageError) in
                    try progress.tell(done, image.byteCount, location.path)
                }
            }
            try image.close()
        }
        output.say(backing.map { "\(location.path) stands on \($0.name) now" } ?? "\(location.path) stands alone now")
        return 0
    }

    private func convert(
        _ operand: DiskOperand, _ new: ImageLocation, _ target: Conversion.Target, _ output: Output
    ) throws -> CInt {
        let format = new.statedFormat ?? .raw
        let image = try ImageChain(try operand.image(disk), try images.reading(operand)).assemble()
        try image.convert(to: new.path, target, byteCount: image.byteCount, isDurable: false, output)
        output.say("\(format.rawValue) imagefile created")
        return 0
    }

    private func qcow2(_ chain: consuming ImageChain, _ location: ImageLocation) throws -> QCOW2Image {
        guard let image = try chain.assemble() as? QCOW2Image else { throw notQCOW2(location) }
        return image
    }

    private func notQCOW2(_ location: ImageLocation) -> Failure {
        Failure("\(location.path): only qcow2 images stand on others: convert it")
    }
}

/// The size that a disk shall have: so much, or so much more than it has.
private struct NewSize {
    private let byteCount: UInt64
    private let isMore: Bool

    init(_ text: String, _ output: Output) throws(WrongUsage) {
        isMore = text.hasPrefix("+")
        byteCount = try OptionValues.disk(isMore ? String(text.dropFirst()) : text, output.say)
    }

    func size(of image: any BlockImage, _ path: String) throws(Failure) -> UInt64 {
        guard isMore else { return byteCount }
        let (sum, isTooLarge) = image.byteCount.addingReportingOverflow(byteCount)
        guard !isTooLarge, sum <= DiskSize.limit else { throw Failure("\(path): would be larger than any disk") }
        return sum
    }
}
