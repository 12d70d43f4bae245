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
        guard !name.isEmpty, !name.contains("/"), name != ".", name != "..", !name.contains(":") else {
            throw ImageError(.refused, path, "a point's name is that of a file in the image's folder, not \(name)")
        }
        let disk = try Disk(location, allowedBases)
        let point = NewFile.folder(of: path) + "/" + name
        try Self.link(path, point)
        do throws(ImageError) {
            try replace(disk, backing: QCOW2Backing(name: name, format: ImageFormat.qcow2.rawValue), byteCount: disk.image.byteCount)
        } catch {
            Self.dropSecondName(point, of: path)
            throw error
        }
    }

    /// The disk becomes what the image below it holds; when it is that already, what the one below that holds.
    /// - Returns: the path of the image that the disk is like now.
    public func rollBack() throws(ImageError) -> String {
        let disk = try Disk(location, allowedBases)
        let step = try disk.isUnchanged() ? 2 : 1
        guard disk.members.count > step else {
            throw ImageError(
                .refused, path, step == 1 ? "stands on no other image: there is nothing to go back to" : "is at the beginning of its history")
        }
        let base = disk.members[step]
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

    /// The disk becomes again what it was before the last `rollBack`.
    /// - Parameter discards: what was written since is thrown away; without it that is an error.
    public func rollForward(discards: Bool) throws(ImageError) {
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
        guard rename(undone(last), path) == 0 else { throw Self.failure("rename", path) }
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
        var mine = stat()
        var other = stat()
        if last > 0, stat(path, &mine) == 0, stat(undone(last), &other) == 0, mine.st_ino == other.st_ino, mine.st_dev == other.st_dev {
            return undone(last)
        }
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
        var (mine, other) = (stat(), stat())
        guard stat(path, &mine) == 0, stat(name, &other) == 0, mine.st_ino == other.st_ino, mine.st_dev == other.st_dev else { return }
        unlink(name)
    }

    private static func link(_ path: String, _ name: String) throws(ImageError) {
        guard Glibc.link(path, name) == 0 else { throw failure("link", name) }
    }

    private static func failure(_ call: String, _ path: String) -> ImageError {
        let error = SystemError(call, errno: errno)
        return ImageError(.system(error), path, error.errno == EEXIST ? "exists already: take another name" : "\(error.reason)")
    }
}
