import ArgumentParser
import DiskImage

/// `vmctl snapshot`: what a disk was, kept inside of its image, or below it.
struct Snapshot: VmctlCommand {
    static let configuration = CommandConfiguration.vmctl(
        "snapshot", abstract: "Keep what a disk holds, and come back to it.",
        usage: """
            vmctl [-v] snapshot create [-d] [--allow-base path]... disk name
            \tvmctl [-v] snapshot list [-j] disk
            \tvmctl [-v] snapshot apply | delete [--allow-base path]... disk name
            """,
        discussion: """
            Snapshots lie in a qcow2 image itself. With -d the image gets a point in its history instead: an image of that \
            name in the same folder, on which it stands from then on, for rollback and rollforward.
            """)

    @Flag(name: .customShort("d"), help: "A derived image: what there is becomes a base of that name.")
    var isDerived = false

    @Flag(name: .customShort("j"), help: "As JSON.")
    var isJSON = false

    @OptionGroup var images: ImageOptions

    @Argument(help: ArgumentHelp("create, list, apply or delete, an image, and a snapshot's name.", valueName: "word"))
    var words: [String] = []

    private enum Verb: String, CaseIterable { case create, list, apply, delete }

    func perform(_ output: Output) throws -> CInt {
        guard let word = words.first, let verb = Verb(rawValue: word) else {
            throw WrongUsage("unknown argument: \(words.first ?? ""): give create, list, apply or delete")
        }
        guard words.count == (verb == .list ? 2 : 3) else {
            throw WrongUsage(verb == .list ? "give one image" : "give an image and the snapshot's name")
        }
        guard !isDerived || verb == .create else { throw WrongUsage("-d is for create") }
        guard !isJSON || verb == .list else { throw WrongUsage("-j is for list") }
        let location = ImageLocation(words[1])
        if verb == .list { return try list(location, output) }
        let name = words[2]
        if isDerived {
            try ImageHistory(location, allowedBases: try images.allowedBases).addPoint(name)
            output.say("\(location.path) stands on \(name) now")
            return 0
        }
        let image = try openImage(location, try images.writing())
        switch verb {
        case .create:
            try image.createSnapshot(name: name)
            output.say("snapshot \(name) created")
        case .apply:
            try image.applySnapshot(name)
            output.say("snapshot \(name) applied")
        case .delete:
            try image.deleteSnapshot(name)
            output.say("snapshot \(name) deleted")
        case .list: break
        }
        try image.close()
        return 0
    }

    private func openImage(_ location: ImageLocation, _ opening: ImageOpening) throws(ImageError) -> QCOW2Image {
        guard let image = try ImageChain(location, opening).assemble() as? QCOW2Image else {
            throw ImageError(.refused, location.path, "only qcow2 images have snapshots: convert it")
        }
        return image
    }

    private func list(_ location: ImageLocation, _ output: Output) throws -> CInt {
        guard let info = try ImageSummary(location).qcow2 else {
            throw ImageError(.refused, location.path, "only qcow2 images have snapshots")
        }
        guard !isJSON else {
            try output.print(ImageReport.json(info.snapshots) + "\n")
            return 0
        }
        try output.print(ImageReport.table(info.snapshots))
        return 0
    }
}

/// `vmctl rollback`.
struct RollBack: VmctlCommand {
    static let configuration = CommandConfiguration.vmctl(
        "rollback", abstract: "Go back to what the image below a disk holds.",
        usage: "vmctl [-v] rollback [--allow-base path]... disk",
        discussion: """
            What the disk has of its own is put aside as disk.undone-1 and so on, for rollforward. A disk that has nothing \
            of its own goes to the image one further below.
            """)

    @OptionGroup var images: ImageOptions

    @Argument(help: ArgumentHelp("A qcow2 image that stands on others.", valueName: "disk"))
    var words: [String] = []

    func perform(_ output: Output) throws -> CInt {
        guard let path = words.first, words.count == 1 else { throw WrongUsage("give one image") }
        let base = try ImageHistory(ImageLocation(path), allowedBases: try images.allowedBases).rollBack()
        output.say("\(path) is as \(base) now")
        return 0
    }
}

/// `vmctl rollforward`.
struct RollForward: VmctlCommand {
    static let configuration = CommandConfiguration.vmctl(
        "rollforward", abstract: "Undo the last rollback.",
        usage: "vmctl [-v] rollforward [-f] [--allow-base path]... disk")

    @Flag(name: .customShort("f"), help: "Throw away what was written since.")
    var discards = false

    @OptionGroup var images: ImageOptions

    @Argument(help: ArgumentHelp("An image that was rolled back.", valueName: "disk"))
    var words: [String] = []

    func perform(_ output: Output) throws -> CInt {
        guard let path = words.first, words.count == 1 else { throw WrongUsage("give one image") }
        try ImageHistory(ImageLocation(path), allowedBases: try images.allowedBases).rollForward(discards: discards)
        output.say("\(path) is as it was before it was rolled back")
        return 0
    }
}
