import ArgumentParser
import DiskImage
import Linux
import VMConfig

/// `vmctl image`: look at image files, and work on them.
struct Image: VmctlCommand {
    static let configuration = CommandConfiguration.vmctl(
        "image", abstract: "Look at image files, and work on them.",
        usage: """
            vmctl [-v] image info | check [-j] [--chain] [--allow-base path]... disk
            \tvmctl [-v] image map [-j] disk
            \tvmctl [-v] image repair [-l] disk
            \tvmctl [-v] image resize [--shrink] [--allow-base path]... disk size
            \tvmctl [-v] image commit [-k] [--allow-base path]... disk
            \tvmctl [-v] image rebase [-u] [-b base] [--allow-base path]... disk
            \tvmctl [-v] image convert [-c] [--cluster-size size] [--compression method]
            \t\t[--refcount-bits bits] [--allow-base path]... disk new
            """,
        discussion: """
            info and check open no other file than the one that is named, unless --chain asks for what it stands on. All that \
            change an image want it for themselves: one that a machine uses is refused.
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

    @OptionGroup var new: NewImageOptions
    @OptionGroup var images: ImageOptions

    @Argument(help: ArgumentHelp("What to do, the image, and what that needs.", valueName: "word"))
    var words: [String] = []

    private enum Verb: String, CaseIterable { case info, check, map, repair, resize, commit, rebase, convert }

    func perform(_ output: Output) throws -> CInt {
        let verbs = Verb.allCases.map(\.rawValue).joined(separator: ", ")
        guard let word = words.first, let verb = Verb(rawValue: word) else {
            throw WrongUsage("unknown argument: \(words.first ?? ""): give one of \(verbs)")
        }
        let needsTwo = verb == .resize || verb == .convert
        guard words.count == (needsTwo ? 3 : 2) else {
            throw WrongUsage(verb == .resize ? "give an image and its new size" : needsTwo ? "give an image and the new one" : "give one image")
        }
        try checkOptions(verb)
        let location = ImageLocation(words[1])
        switch verb {
        case .info: return try info(location, output)
        case .check: return try check(location, output)
        case .map: return try map(location, output)
        case .repair: return try repair(location, output)
        case .resize: return try resize(location, words[2], output)
        case .commit: return try commit(location, output)
        case .rebase: return try rebase(location, output)
        case .convert: return try convert(location, ImageLocation(words[2]), output)
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

    private func info(_ location: ImageLocation, _ output: Output) throws -> CInt {
        let all = chain ? try ImageSummary.chain(location, allowedBases: try images.allowedBases) : [try ImageSummary(location)]
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

    private func check(_ location: ImageLocation, _ output: Output) throws -> CInt {
        let results = try ImageCheck.run(location, isChain: chain, allowedBases: try images.allowedBases)
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

    private func resize(_ location: ImageLocation, _ text: String, _ output: Output) throws -> CInt {
        let size = try OptionValues.disk(text, output.say)
        let chain = try ImageChain(location, try images.writing())
        let image = try chain.assemble()
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

    private func commit(_ location: ImageLocation, _ output: Output) throws -> CInt {
        var opening = try images.writing()
        opening.writesBase = true
        let image = try qcow2(ImageChain(location, opening), location)
        try Progress(location.path, output).run { progress in
            try image.commit(keeps: keeps) { progress.update($0, image.byteCount) }
        }
        try image.close()
        output.say("\(location.path) is committed to its base")
        return 0
    }

    private func rebase(_ location: ImageLocation, _ output: Output) throws -> CInt {
        guard !isUnsafe || base != nil else { throw WrongUsage("-u needs a base: -b gives one") }
        var backing: QCOW2Backing?
        var below: (any BlockImage)?
        if let base {
            let chain = try ImageChain(ImageLocation(base), try images.reading())
            let format = chain.members.first?.format ?? .raw
            let (name, needsPermission) = try BaseName.name(of: ImageLocation(base).path, in: location.path)
            if needsPermission {
                output.say("\(name) is outside of the image's folder: to use it, allow base \"\(name)\" in vm.conf")
            }
            backing = QCOW2Backing(name: name, format: format.rawValue)
            below = try chain.assemble()
        }
        if isUnsafe {
            var opening = try images.writing()
            opening.opensBases = false
            let (file, format) = try ImageChain(location, opening).top()
            guard format == .qcow2 else { throw notQCOW2(location) }
            let image = try QCOW2Image(file, for: .check)
            try image.rebase(backing)
            try image.close()
        } else {
            let image = try qcow2(ImageChain(location, try images.writing()), location)
            try Progress(location.path, output).run { progress in
                try image.rebase(backing, onto: below) { progress.update($0, image.byteCount) }
            }
            try image.close()
        }
        output.say(backing.map { "\(location.path) stands on \($0.name) now" } ?? "\(location.path) stands alone now")
        return 0
    }

    private func convert(_ source: ImageLocation, _ new: ImageLocation, _ output: Output) throws -> CInt {
        let format = new.statedFormat ?? .raw
        let target = try self.new.target(format)
        let image = try ImageChain(source, try images.reading()).assemble()
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
