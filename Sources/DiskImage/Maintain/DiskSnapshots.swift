/// Snapshots of several disks that belong together, as a machine's do: of all of them, or of none.
///
/// Everything that can be known beforehand is asked first; when a disk fails all the same, what was done to those before it is
/// undone. Whoever uses it sees to it that the disks stand still meanwhile.
public struct DiskSnapshots: Sendable {
    private let disks: [QCOW2Image]

    /// - Parameter disks: those that cannot be written hold the same at any time, and are left out.
    /// - Throws: `refused` when none is left, or one of them is no qcow2 image.
    public init(_ disks: [any BlockImage]) throws(ImageError) {
        self.disks = try disks.filter { !$0.isReadOnly }.map { disk throws(ImageError) in
            guard let image = disk as? QCOW2Image else { throw Self.hasNone(disk) }
            return image
        }
        guard !self.disks.isEmpty else {
            // Of what it never could have, the way out is told.
            if let other = disks.first(where: { !($0 is QCOW2Image) }) { throw Self.hasNone(other) }
            throw ImageError(.refused, "snapshot", "there is no disk that can be written")
        }
    }

    private static func hasNone(_ disk: any BlockImage) -> ImageError {
        let name = (try? ImageSummary.chain(of: disk))?.first?.path ?? "disk"
        return ImageError(.refused, name, "only qcow2 images have snapshots: `vmctl image convert \(name) NEW.qcow2` makes one of it")
    }

    public func checkCreate(_ name: String) throws(ImageError) {
        for disk in disks where disk.snapshots.contains(where: { $0.name == name }) {
            throw ImageError(.refused, disk.file.name, "has a snapshot \"\(name)\" already")
        }
    }

    public func create(_ name: String) throws(ImageError) {
        try checkCreate(name)
        var isUndone = true
        try all(&isUndone) { disk throws(ImageError) in
            try disk.createSnapshot(name: name)
        } undo: { disk throws(ImageError) in
            if let made = disk.snapshots.first(where: { $0.name == name }) { try disk.deleteSnapshot(made.id) }
        }
    }

    /// The disks become what they were.
    /// - Parameter name: or id, of one disk; of several the name, since ids are each image's own.
    public func apply(_ name: String) throws(ImageError) {
        let ids = try disks.map { disk throws(ImageError) in try id(of: name, in: disk) }
        guard disks.count > 1 else {
            for (disk, id) in zip(disks, ids) { try disk.applySnapshot(id) }
            return
        }
        // What there is now is kept until all of them are there.
        let kept = unusedName(name)
        try create(kept)
        var (rest, isUndone) = (ids[...], true)
        do throws(ImageError) {
            try all(&isUndone) { disk throws(ImageError) in
                if let id = rest.popFirst() { try disk.applySnapshot(id) }
            } undo: { disk throws(ImageError) in
                try disk.applySnapshot(kept)
            }
        } catch {
            // Otherwise they are the only way back.
            if isUndone { for disk in disks { try? disk.deleteSnapshot(kept) } }
            throw error
        }
        var failure: ImageError?
        for disk in disks {
            do throws(ImageError) { try disk.deleteSnapshot(kept) } catch { failure = failure ?? error }
        }
        if let failure {
            throw ImageError(
                failure.kind, failure.file, "\"\(name)\" was applied; its snapshot \"\(kept)\" is left: delete it: \(failure.reason)")
        }
    }

    /// Of those disks that have it: a disk may have come later.
    /// - Parameter name: as for `apply`.
    public func delete(_ name: String) throws(ImageError) {
        let owners = disks.compactMap { disk in (try? id(of: name, in: disk)).map { (disk, $0) } }
        if owners.isEmpty { for disk in disks { _ = try id(of: name, in: disk) } }
        // None can be taken back, so the first one's failure is the only one that leaves everything as it was.
        for (disk, id) in owners { try disk.deleteSnapshot(id) }
    }

    private func id(of name: String, in disk: QCOW2Image) throws(ImageError) -> String {
        let snapshots = disk.snapshots
        // As qemu-img finds them: by id first.
        let byID = disks.count == 1 ? snapshots.first { $0.id == name } : nil
        guard let found = byID ?? snapshots.first(where: { $0.name == name }) else {
            throw ImageError(.refused, disk.file.name, "has no snapshot \"\(name)\"")
        }
        return found.id
    }

    /// Everything that was written is on the medium.
    public func flush() throws(ImageError) {
        for disk in disks { try disk.flush() }
    }

    private func unusedName(_ name: String) -> String {
        let taken = Set(disks.flatMap { $0.snapshots.map(\.name) })
        var number = 1
        while taken.contains("before \(name) \(number)") { number += 1 }
        return "before \(name) \(number)"
    }

    /// - Parameters:
    ///   - isUndone: whether, after an error, every disk is as it was.
    ///   - step: does it to one disk.
    ///   - undo: also called for the one that failed: what was written but is not known to be on the medium counts.
    private func all(
        _ isUndone: inout Bool, _ step: (QCOW2Image) throws(ImageError) -> Void, undo: (QCOW2Image) throws(ImageError) -> Void
    ) throws(ImageError) {
        for (index, disk) in disks.enumerated() {
            do throws(ImageError) {
                try step(disk)
            } catch {
                for earlier in disks[...index].reversed() {
                    do throws(ImageError) {
                        try undo(earlier)
                    } catch let second {
                        isUndone = false
                        throw ImageError(error.kind, error.file, "\(error.reason); and what was done before could not be undone: \(second)")
                    }
                }
                throw error
            }
        }
    }
}
