import CLinux
import Glibc
import Linux

/// A disk's history as a chain of derived images. The disk is always the same path; what it was lies below it, and what was
/// taken back lies beside it, as PATH.undone-1 and so on, the last taken back with the highest number.
///
/// The disk is open, and nobody else's, as long as this lives. Each step makes the new file whole and locks it first, and then
/// gives it the path in one rename: there is a good image by that path at any time, and nobody else opens it before the step's
/// end. What a step leaves behind when it is cut short is a second name of a file.
struct ImageHistory: Sendable {
    let path: String
    private let allowedBases: [String]
    private let image: QCOW2Image
    private let members: [ImageChain.Member]

    init(_ location: ImageLocation, allowedBases: [String]) throws(ImageError) {
        let chain = try ImageChain(location, ImageOpening(isReadOnly: false, allowedBases: allowedBases))
        members = chain.members
        guard let image = try chain.assemble() as? QCOW2Image else {
            throw ImageError(.refused, location.path, "only qcow2 images have a history: convert it")
        }
        self.image = image
        path = location.path
        self.allowedBases = allowedBases
    }

    /// What was done to a disk, as long as it can be undone. What the disk is now is locked until then.
    struct Step: Sendable {
        fileprivate let path: String
        fileprivate let present: ImageFile
        /// A name of what the disk was before.
        fileprivate let former: String
        /// The name that the present image had, when it is not new.
        fileprivate let origin: String?

        func undo() throws(ImageError) {
            guard try FileNumber(present.descriptor, path) == FileNumber(path: path) else {
                throw ImageError(.refused, path, "is another file by now: what it was is \(former)")
            }
            if let origin { try FileName.add(origin, to: path) }
            do throws(ImageError) {
                try FileName.move(former, to: path)
            } catch {
                if let origin { FileName.drop(origin, of: path) }
                throw error
            }
        }

        /// It stays so.
        func finish() { if origin != nil { unlink(former) } }
    }

    // MARK: - A point

    /// - Throws: why `addPoint` would not do it.
    func checkPoint(_ name: String) throws(ImageError) {
        guard !name.isEmpty, !name.contains("/"), name != ".", name != "..", !name.contains(":") else {
            throw ImageError(.refused, path, "a point's name is that of a file in the image's folder, not \(name)")
        }
        guard name != (path.split(separator: "/").last.map(String.init) ?? path) else {
            throw ImageError(.refused, path, "that is the disk's own name: take another for the point")
        }
        var status = stat()
        // What a step that was cut short has left is what this one makes.
        guard lstat(point(name), &status) != 0 || FileName.isSame(path, point(name)) else {
            throw FileName.failure(SystemError("link", errno: EEXIST), point(name))
        }
    }

    /// What is on the disk now becomes a point in its history: an image of that name in the same folder, on which the disk
    /// stands from now on.
    /// - Parameter name: that `checkPoint` has let through.
    func addPoint(_ name: String) throws(ImageError) -> Step {
        try replace(
            keeping: point(name), backing: QCOW2Backing(name: name, format: ImageFormat.qcow2.rawValue), byteCount: image.byteCount)
    }

    private func point(_ name: String) -> String { NewFile.folder(of: path) + "/" + name }

    // MARK: - Back

    /// An image that the disk can become.
    struct Previous {
        let path: String
        fileprivate let backing: QCOW2Backing
        fileprivate let byteCount: UInt64
    }

    /// An image below.
    /// - Parameter step: 1 for the one that the disk stands on, 2 for what that one stands on.
    /// - Throws: when there is none, or it cannot be used.
    func previous(_ step: Int) throws(ImageError) -> Previous {
        guard members.count > step else {
            throw ImageError(
                .refused, path, step == 1 ? "stands on no other image: there is nothing to go back to" : "is at the beginning of its history")
        }
        let base = members[step]
        var opening = ImageOpening(isReadOnly: true, allowedBases: allowedBases)
        opening.locks = false
        let backing = QCOW2Backing(name: try BaseName.name(of: base.name, in: path).name, format: base.format.rawValue)
        let size = try ImageChain(ImageLocation(path: base.name, format: base.format), opening).assemble().byteCount
        return Previous(path: base.name, backing: backing, byteCount: size)
    }

    func rollBack(to base: Previous) throws(ImageError) -> Step {
        let last = lastUndone
        // What a step that was cut short has left.
        let isLeft = last > 0 && FileName.isSame(path, undone(last))
        return try replace(keeping: undone(isLeft ? last : last + 1), backing: base.backing, byteCount: base.byteCount)
    }

    // MARK: - Forward

    /// What the disk was before it was rolled back, locked.
    struct Next {
        fileprivate let path: String
        fileprivate let file: ImageFile
    }

    /// - Parameter discards: what was written since is thrown away; without it that is an error.
    /// - Throws: when there is none, or it cannot be used.
    func next(discards: Bool) throws(ImageError) -> Next {
        var last = lastUndone
        if last > 0, FileName.isSame(path, undone(last)) {
            // A rollback that was cut short: this is what the disk is still.
            FileName.drop(undone(last), of: path)
            last -= 1
        }
        guard last > 0 else { throw ImageError(.refused, path, "was not rolled back: there is nothing to go forward to") }
        let isUnchanged = try isUnchanged()
        guard discards || isUnchanged else {
            throw ImageError(.refused, path, "was written since it was rolled back, which would be lost: -f does it all the same")
        }
        let chain = try ImageChain(
            ImageLocation(path: undone(last), format: .qcow2), ImageOpening(isReadOnly: false, allowedBases: allowedBases))
        // A point that was made since is no part of that history.
        guard members.count < 2 || chain.members.contains(where: { $0.name == members[1].name }) else {
            throw ImageError(.refused, path, "has another history by now: \(undone(last)) does not stand on its base")
        }
        return Next(path: undone(last), file: try chain.top().file)
    }

    /// The disk becomes again what it was before the last `rollBack`. What it is now goes when the step is finished.
    func rollForward(to next: Next) throws(ImageError) -> Step {
        let former = unusedName
        try FileName.add(former, to: path)
        do throws(ImageError) {
            try FileName.move(next.path, to: path)
        } catch {
            FileName.drop(former, of: path)
            throw error
        }
        return Step(path: path, present: next.file, former: former, origin: next.path)
    }

    // MARK: - Parts

    /// The disk holds nothing of its own.
    func isUnchanged() throws(ImageError) -> Bool {
        // Snapshots are the image's own too.
        guard members.count > 1, image.snapshots.isEmpty else { return false }
        var offset: UInt64 = 0
        while offset < image.byteCount {
            let (kind, count) = try image.allocation(at: offset, count: image.byteCount - offset)
            guard kind == .unallocated else { return false }
            offset += count
        }
        return true
    }

    /// Puts an empty image into the disk's place.
    /// - Parameter former: the name of what was there from then on; it may have it already.
    private func replace(keeping former: String, backing: QCOW2Backing, byteCount: UInt64) throws(ImageError) -> Step {
        let isAdded = !FileName.isSame(path, former)
        if isAdded { try FileName.add(former, to: path) }
        do throws(ImageError) {
            let new = try NewFile(path, replaces: true)
            new.takeRights(of: image.file.descriptor)
            var options = QCOW2Options(byteCount: byteCount)
            options.clusterSize = 1 << UInt64(image.header.clusterBits)
            options.compression = image.header.compression
            options.backing = backing
            let file = try new.open()
            try ImageLock.exclusive.take(file.descriptor, path)
            try QCOW2Image.create(file, options)
            try new.finish(as: .qcow2, isDurable: true)
            return Step(path: path, present: file, former: former, origin: nil)
        } catch {
            if FileName.isSame(path, former) {
                if isAdded { unlink(former) }
            } else {
                // It has the path, but is not known to have it on the medium.
                try? FileName.move(former, to: path)
            }
            throw error
        }
    }

    private func undone(_ number: Int) -> String { "\(path).undone-\(number)" }

    private var lastUndone: Int {
        var number = 0
        var status = stat()
        while number < 100_000, lstat(undone(number + 1), &status) == 0 { number += 1 }
        return number
    }

    /// For what is thrown away when all disks are done.
    private var unusedName: String {
        var number = 1
        var status = stat()
        while number < 100_000, lstat("\(path).discarded-\(number)", &status) == 0 { number += 1 }
        return "\(path).discarded-\(number)"
    }
}

/// Names of files, of which one file may have several.
private enum FileName {
    static func add(_ name: String, to path: String) throws(ImageError) {
        guard link(path, name) == 0 else { throw failure(SystemError("link", errno: errno), name) }
    }

    /// What had that path loses it.
    static func move(_ name: String, to path: String) throws(ImageError) {
        guard rename(name, path) == 0 else { throw failure(SystemError("rename", errno: errno), path) }
    }

    /// Only as long as it is a second one: behind the rename it is the only name that what was on the disk has.
    static func drop(_ name: String, of path: String) {
        if isSame(path, name) { unlink(name) }
    }

    /// Whether both are names of one file, and not one name written in two ways or a symbolic link and where it leads: to take one
    /// of them away leaves the other.
    static func isSame(_ path: String, _ name: String) -> Bool {
        var first = stat()
        var second = stat()
        guard lstat(path, &first) == 0, lstat(name, &second) == 0 else { return false }
        return first.st_dev == second.st_dev && first.st_ino == second.st_ino && first.st_nlink > 1
    }

    static func failure(_ error: SystemError, _ path: String) -> ImageError {
        ImageError(.system(error), path, error.errno == EEXIST ? "exists already: take another name" : "\(error.reason)")
    }
}
