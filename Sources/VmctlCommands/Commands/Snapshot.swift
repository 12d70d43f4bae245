import ArgumentParser
import ControlProtocol
import DiskImage
import Machine

/// `vmctl snapshot`: what disks were, kept inside of their images, or below them.
struct Snapshot: VmctlCommand {
    static let configuration = CommandConfiguration.vmctl(
        "snapshot", abstract: "Keep what a disk holds, and come back to it.",
        usage: """
            vmctl [-v] snapshot create [-d] [--allow-base path]... id | disk name
            \tvmctl [-v] snapshot list [-j] id | disk
            \tvmctl [-v] snapshot apply | delete [--allow-base path]... id | disk name
            """,
        discussion: """
            Of a machine all disks that can be written, or none. Snapshots lie in a qcow2 image itself. With -d the image gets a \
            point in its history instead: an image of that name in the same folder, on which it stands from then on, for rollback \
            and rollforward. Of a machine that runs snapshots are made, listed and deleted; the rest wants it stopped.
            """)

    @Flag(name: .customShort("d"), help: "A derived image: what there is becomes a base of that name.")
    var isDerived = false

    @Flag(name: .customShort("j"), help: "As JSON.")
    var isJSON = false

    @OptionGroup var images: ImageOptions
    @OptionGroup var connection: Connection

    @Argument(help: ArgumentHelp("create, list, apply or delete, a machine or an image, and a snapshot's name.", valueName: "word"))
    var words: [String] = []

    private enum Verb: String, CaseIterable { case create, list, apply, delete }

    func perform(_ output: Output) throws -> CInt {
        guard let word = words.first, let verb = Verb(rawValue: word) else {
            throw WrongUsage("unknown argument: \(words.first ?? ""): give create, list, apply or delete")
        }
        guard words.count == (verb == .list ? 2 : 3) else {
            throw WrongUsage(verb == .list ? "give one machine or image" : "give a machine or an image and the snapshot's name")
        }
        guard !isDerived || verb == .create else { throw WrongUsage("-d is for create") }
        guard !isJSON || verb == .list else { throw WrongUsage("-j is for list") }
        let operand = try DiskOperand(words[1], connection)
        if verb == .list { return try list(operand, output) }
        let name = words[2]
        if isDerived { return try addPoint(name, operand, output) }
        switch verb {
        case .create:
            try change(operand, output, "snapshot \(name) created", running: .createSnapshot(name)) { disks throws(ImageError) in
                try disks.create(name)
            }
        case .apply:
            try operand.refuseRunning("its guest has in memory what the disk would not hold any more")
            try change(operand, output, "snapshot \(name) applied") { disks throws(ImageError) in try disks.apply(name) }
        case .delete:
            try change(operand, output, "snapshot \(name) deleted", running: .deleteSnapshot(name)) { disks throws(ImageError) in
                try disks.delete(name)
            }
        case .list: break
        }
        return 0
    }

    /// - Parameters:
    ///   - done: what is said when it is.
    ///   - running: what a machine that runs is asked to do.
    private func change(
        _ operand: DiskOperand, _ output: Output, _ done: String, running: DiskCommand? = nil,
        _ body: (DiskSnapshots) throws(ImageError) -> Void
    ) throws {
        if let running, operand.running != nil {
            try operand.perform(running, connection)
            return output.say(done)
        }
        try operand.refuseWaiting()
        let opening = try images.writing(operand)
        let disks = try operand.images.map { location throws(ImageError) in try ImageChain(location, opening).assemble() }
        let snapshots = try DiskSnapshots(disks)
        try output.whole {
            try body(snapshots)
            for disk in disks { try disk.close() }
            output.say(done)
        }
    }

    private func addPoint(_ name: String, _ operand: DiskOperand, _ output: Output) throws -> CInt {
        try operand.step(images, output) { histories in
            let names = try histories.addPoint(name)
            for (location, name) in zip(operand.images, names) { output.say("\(location.path) stands on \(name) now") }
        }
    }

    // MARK: - Lists

    private func list(_ operand: DiskOperand, _ output: Output) throws -> CInt {
        guard let machine = operand.machine else {
            guard let info = try ImageSummary(operand.image(nil)).qcow2 else {
                throw ImageError(.refused, operand.images[0].path, "only qcow2 images have snapshots")
            }
            try output.print(isJSON ? ImageReport.json(info.snapshots) + "\n" : ImageReport.table(info.snapshots))
            return 0
        }
        let disks =
            machine.isRunning
            ? try operand.describe(connection, withBases: false).compactMap(\.first)
            : try operand.images.map { location throws(ImageError) in try ImageSummary(location) }
        if isJSON {
            let rows = disks.enumerated().map { number, disk in
                ImageReport.object([
                    ("disk", "\(number)"), ("file", ImageReport.string(disk.path)),
                    ("snapshots", ImageReport.json(disk.qcow2?.snapshots ?? [])),
                ])
            }
            try output.print(ImageReport.list(rows) + "\n")
        } else {
            let tables = disks.enumerated().map { number, disk in
                (disks.count == 1 ? "" : "disk \(number), \(UserTerminal.oneLine(disk.path)):\n")
                    + ImageReport.table(disk.qcow2?.snapshots ?? [])
            }
            try output.print(tables.joined(separator: "\n"))
        }
        return 0
    }
}

/// `vmctl rollback`.
struct RollBack: VmctlCommand {
    static let configuration = CommandConfiguration.vmctl(
        "rollback", abstract: "Go back to what the image below a disk holds.",
        usage: "vmctl [-v] rollback [--allow-base path]... id | disk",
        discussion: """
            What the disk has of its own is put aside as disk.undone-1 and so on, for rollforward. A disk that has nothing \
            of its own goes to the image one further below. Of a machine, which must be stopped, all disks or none, and one \
            further only when none of them has.
            """)

    @OptionGroup var images: ImageOptions
    @OptionGroup var connection: Connection

    @Argument(help: ArgumentHelp("A machine, or a qcow2 image that stands on others.", valueName: "disk"))
    var words: [String] = []

    func perform(_ output: Output) throws -> CInt {
        guard let word = words.first, words.count == 1 else { throw WrongUsage("give one machine or image") }
        let operand = try DiskOperand(word, connection)
        return try operand.step(images, output) { histories in
            let bases = try histories.rollBack()
            for (location, base) in zip(operand.images, bases) { output.say("\(location.path) is as \(base) now") }
        }
    }
}

/// `vmctl rollforward`.
struct RollForward: VmctlCommand {
    static let configuration = CommandConfiguration.vmctl(
        "rollforward", abstract: "Undo the last rollback.",
        usage: "vmctl [-v] rollforward [-f] [--allow-base path]... id | disk")

    @Flag(name: .customShort("f"), help: "Throw away what was written since.")
    var discards = false

    @OptionGroup var images: ImageOptions
    @OptionGroup var connection: Connection

    @Argument(help: ArgumentHelp("A machine, or an image that was rolled back.", valueName: "disk"))
    var words: [String] = []

    func perform(_ output: Output) throws -> CInt {
        guard let word = words.first, words.count == 1 else { throw WrongUsage("give one machine or image") }
        let operand = try DiskOperand(word, connection)
        return try operand.step(images, output) { histories in
            try histories.rollForward(discards: discards)
            for location in operand.images { output.say("\(location.path) is as it was before it was rolled back") }
        }
    }
}

extension DiskOperand {
    /// A step in the disks' histories, which are opened and locked until it is over.
    fileprivate func step(_ options: ImageOptions, _ output: Output, _ body: (DiskHistories) throws -> Void) throws -> CInt {
        try refuseRunning("its images cannot be exchanged under it")
        let histories = try DiskHistories(images, allowedBases: try options.allowedBases(self))
        try output.whole { try body(histories) }
        return 0
    }
}
