import CLinux
import Glibc
import Linux

/// A disk's history as a chain of derived images. The disk is always the same path; what it was lies below it, and what was
/// taken back lies beside it, as PATH.undone-1 and so on, the last taken back with the highest number.
///
/// Each step makes the new file whole first and then gives it the path in one rename, so there is a good image by that path at
/// any time; what a step leaves behind when it is cut short is a second name of the same file.
public struct ImageHistory: Sendable {
    private let location: ImageLocation
    public let allowedBases: [String]

    public init(_ location: ImageLocation, allowedBases: [String] = []) {
        self.location = location
        self.allowedBases = allowedBases
    }

    public var path: String { location.path }

    /// What is on the disk now becomes a point in its history: an image of that name in the same folder, on which the disk
    /// stands from now on.
    public func addPoint(_ name: String) throws(ImageError) {
        let disk = try openForPoint(name)
        let point = self.point(name)
        try Self.link(path, point)
        do throws(ImageError) {
            try replace(disk, backing: QCOW2Backing(name: name, format: ImageFormat.qcow2.rawValue), byteCount: disk.image.byteCount)
        } catch {
            Self.dropSecondName(point, of: path)
            throw error
        }
    }

    private func openForPoint(_ name: String) throws(ImageError) -> Disk {
        guard !name.isEmpty, !name.contains("/"), name != ".", name != "..", !name.contains(":") else {
            throw ImageError(.refused, path, "a point's name is that of a file in the image's folder, not \(name)")
        }
        return try Disk(location, allowedBases)
    }

    private func point(_ name: String) -> String { NewFile.folder(of: path) + "/" + name }

    /// - Throws: why `addPoint` would not do it.
    func checkPoint(_ name: String) throws(ImageError) {
        _ = try openForPoint(name)
        var status = stat()
        guard lstat(point(name), &status) != 0 else { throw Self.failure(SystemError("link", errno: EEXIST), point(name)) }
    }

    /// Undoes `addPoint`, as long as nothing was written since.
    func removePoint(_ name: String) throws(ImageError) {
        let disk = try Disk(location, allowedBases)
        guard disk.members.count > 1, try disk.isUnchanged(), Self.isSameFile(disk.members[1].name, point(name)) else {
            throw ImageError(.refused, path, "was used meanwhile: it stands on \(name) now")
        }
        guard rename(point(name), path) == 0 else { throw Self.failure("rename", path) }
    }

    /// The disk becomes what the image below it holds; when it is that already, what the one below that holds.
    /// - Returns: the path of the image that the disk is like now.
    public func rollBack() throws(ImageError) -> String {
        let (disk, base) = try openForRollBack()
        let undone = try keep(disk)
        do throws(ImageError) {
            let name = try BaseName.name(of: base.name, in: path).name
            var opening = ImageOpening(isReadOnly: true, allowedBases: allowedBases)
            opening.locks = false
            let size = try ImageChain(ImageLocation(path: base.name, format: base.format), opening).assemble().byteCount
            try replace(disk, backing: QCOW2Backing(name: name, format: base.format.rawValue), byteCount: size)
        } catch {
            Self.dropSecondName(undone, of: path)
            throw error
        }
        return base.name
    }

    private func openForRollBack() throws(ImageError) -> (disk: Disk, base: ImageChain.Member) {
        let disk = try Disk(location, allowedBases)
        let step = try disk.isUnchanged() ? 2 : 1
        guard disk.members.count > step else {
            throw ImageError(
                .refused, path, step == 1 ? "stands on no other image: there is nothing to go back to" : "is at the beginning of its history")
        }
        return (disk, disk.members[step])
    }

    /// - Throws: why `rollBack` would not do it.
    func checkRollBack() throws(ImageError) { _ = try openForRollBack() }

    /// The disk becomes again what it was before the last `rollBack`.
    /// - Parameter discards: what was written since is thrown away; without it that is an error.
    public func rollForward(discards: Bool) throws(ImageError) {
        let (disk, undone) = try openForRollForward(discards: discards)
        // The lock of `disk` keeps others out until then.
        try withExtendedLifetime(disk) { () throws(ImageError) in
            guard rename(undone, path) == 0 else { throw Self.failure("rename", path) }
        }
    }

    /// - Throws: why `rollForward` would not do it.
    func checkRollForward(discards: Bool) throws(ImageError) { _ = try openForRollForward(discards: discards) }

    private func openForRollForward(discards: Bool) throws(ImageError) -> (disk: Disk, undone: String) {
        let last = lastUndone
        guard last > 0 else { throw ImageError(.refused, path, "was not rolled back: there is nothing to go forward to") }
        let disk = try Disk(location, allowedBases)
        let isUnchanged = try disk.isUnchanged()
        guard discards || isUnchanged else {
            throw ImageError(.refused, path, "was written since it was rolled back, which would be lost: -f does it all the same")
        }
        var opening = ImageOpening(isReadOnly: true, allowedBases: allowedBases)
        opening.locks = false
        let chain = try ImageChain(ImageLocation(path: undone(last), format: .qcow2), opening)
        // A point that was made since is no part of that history.
        guard disk.members.count < 2 || chain.members.contains(where: { $0.name == disk.members[1].name }) else {
            throw ImageError(.refused, path, "has another history by now: \(undone(last)) does not stand on its base")
        }
        return (disk, undone(last))
    }

    // MARK: - Steps

    /// The disk, opened so that nobody else has it.
    private struct Disk {
        let image: QCOW2Image
        let members: [ImageChain.Member]

        init(_ location: ImageLocation, _ allowedBases: [String]) throws(ImageError) {
            let chain = try ImageChain(location, ImageOpening(isReadOnly: false, allowedBases: allowedBases))
            members = chain.members
            guard let image = try chain.assemble() as? QCOW2Image else {
                throw ImageError(.refused, location.path, "only qcow2 images have a history: convert it")
            }
            self.image = image
        }

        /// It holds nothing of its own.
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
    }

    /// Puts an empty image into the disk's place.
    private func replace(_ disk: Disk, backing: QCOW2Backing, byteCount: UInt64) throws(ImageError) {
        let new = try NewFile(path, replaces: true)
        new.takeRights(of: disk.image.file.descriptor)
        var options = QCOW2Options(byteCount: byteCount)
        options.clusterSize = 1 << UInt64(disk.image.header.clusterBits)
        options.compression = disk.image.header.compression
        options.backing = backing
        try QCOW2Image.create(try new.open(), options)
        try new.finish(as: .qcow2, isDurable: true)
    }

    /// Gives the disk's file a second name.
    private func keep(_ disk: Disk) throws(ImageError) -> String {
        // What a step that was cut short has left.
        let last = lastUndone
        if last > 0, Self.isSameFile(path, undone(last)) { return undone(last) }
        try Self.link(path, undone(last + 1))
        return undone(last + 1)
    }

    private func undone(_ number: Int) -> String { "\(path).undone-\(number)" }

    private var lastUndone: Int {
        var number = 0
        var status = stat()
        while number < 100_000, lstat(undone(number + 1), &status) == 0 { number += 1 }
        return number
    }

    /// Only as long as it is a second one: behind the rename it is the only name that what was on the disk has.
    private static func dropSecondName(_ name: String, of path: String) {
        if isSameFile(path, name) { unlink(name) }
    }

    private static func isSameFile(_ path: String, _ name: String) -> Bool {
        var (mine, other) = (stat(), stat())
        return stat(path, &mine) == 0 && stat(name, &other) == 0 && mine.st_ino == other.st_ino && mine.st_dev == other.st_dev
    }

    private static func link(_ path: String, _ name: String) throws(ImageError) {
        guard Glibc.link(path, name) == 0 else { throw failure("link", name) }
    }

    private static func failure(_ call: String, _ path: String) -> ImageError { failure(SystemError(call, errno: errno), path) }

    private static func failure(_ error: SystemError, _ path: String) -> ImageError {
        ImageError(.system(error), path, error.errno == EEXIST ? "exists already: take another name" : "\(error.reason)")
    }
}
