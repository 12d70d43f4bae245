import CLinux
import Glibc
public import Linux

/// How an image is opened.
public struct ImageOpening: Hashable, Sendable {
    public var isReadOnly: Bool
    /// What the administrator allows images to stand on besides files of their own folder: absolute paths of files, and of
    /// folders with all that is in them.
    public var allowedBases: [String]
    /// Whether others are kept out: all of them from what is written, writers from what is read.
    public var locks = true
    /// The bases too. Without them only the image itself is opened, and what it stands on is not looked at.
    public var opensBases = true
    /// Whose rights count; `nil`: the process's own. Where that is root, an image of somebody else's leads only to bases that its
    /// owner may read.
    public var credentials: FileCredentials?
    /// The image's own base may be written too: for `commit`.
    public var writesBase = false
    /// Whether what is found out of its format may be written down with the file.
    public var keepsFormat = true

    public init(isReadOnly: Bool, allowedBases: [String] = []) {
        self.isReadOnly = isReadOnly
        self.allowedBases = allowedBases
    }

    /// To say what an image is: nothing else is opened, nothing kept, nobody kept out.
    public static let look: ImageOpening = {
        var opening = ImageOpening(isReadOnly: true)
        (opening.locks, opening.opensBases, opening.keepsFormat) = (false, false, false)
        return opening
    }()
}

extension ImageChain {
    /// Opens an image and what it stands on.
    /// - Throws: `inUse`, `refused` and what the formats find wrong.
    public init(_ location: ImageLocation, _ opening: ImageOpening) throws(ImageError) {
        let access = opening.isReadOnly ? O_RDONLY : O_RDWR
        let descriptor: FileDescriptor
        do {
            descriptor = try FileCredentials.run(as: opening.credentials, orElse: { $0 }) { () throws(SystemError) in
                try FileDescriptor(open: location.path, flags: access | O_NONBLOCK | O_NOCTTY)
            }
        } catch {
            throw ImageError(.system(error), location.path, "\(error.reason)")
        }
        try self.init(descriptor, location, opening, isByPath: true)
    }

    /// The same with the image itself opened by somebody else; its path is then for messages and its suffix only.
    public init(
        opened: consuming FileDescriptor, _ location: ImageLocation, _ opening: ImageOpening
    ) throws(ImageError) {
        try self.init(opened, location, opening, isByPath: false)
    }

    private init(
        _ opened: consuming FileDescriptor, _ location: ImageLocation, _ opening: ImageOpening, isByPath: Bool
    ) throws(ImageError) {
        var members: [Member] = []
        var descriptors = FileDescriptorList()
        var seen: Set<FileNumber> = []
        var name = location.path
        var stated = location.format
        var isReadOnly = opening.isReadOnly
        // A format is noted with its file, and counts for all who use it later: only who may write the file may say it.
        var writer = opening.credentials
        var next: FileDescriptor? = opened
        while let descriptor = next.take() {
            let number = descriptor.raw
            descriptors.append(descriptor)
            try Self.checkKind(number, name)
            guard seen.insert(try FileNumber(number, name)).inserted else {
                throw ImageError(.malformed, location.path, "stands on itself: \(name) is in its chain twice")
            }
            guard seen.count <= Self.depthLimit else {
                throw ImageError(.refused, location.path, "stands on more than \(Self.depthLimit - 1) images: commit some of them")
            }
            if opening.locks {
                try (isReadOnly ? ImageLock.shared : .exclusive).take(number, name)
                if isByPath, members.isEmpty { try Self.checkPath(number, name, opening) }
            }
            let file = try ImageFile.borrowing(number, name)
            let format = try FileCredentials.run(
                as: writer, orElse: { ImageError(.system($0), name, "cannot be looked at: \($0.reason)") }
            ) { () throws(ImageError) in
                try FormatNote.decide(file, path: name, stated: stated, keeps: opening.keepsFormat)
            }
            members.append(Member(name: name, format: format, isReadOnly: isReadOnly))
            guard opening.opensBases, format == .qcow2, let backing = try QCOW2Header(reading: file).backing else { break }
            let search = try BaseFile(of: number, name, opening)
            writer = search.writer
            let base = try search.open(backing.name, forWriting: opening.writesBase && members.count == 1)
            stated = try backing.format.map { word throws(ImageError) in try Self.format(word, name) }
            (name, isReadOnly) = (base.path, !(opening.writesBase && members.count == 1))
            next = base.take()
        }
        self.init(members, descriptors)
    }

    /// Who had the lock until now may have given the path to another image (`ImageHistory`).
    private static func checkPath(_ descriptor: CInt, _ path: String, _ opening: ImageOpening) throws(ImageError) {
        let present = try FileCredentials.run(
            as: opening.credentials, orElse: { ImageError(.system($0), path, "cannot be looked at: \($0.reason)") }
        ) { () throws(ImageError) in FileNumber(path: path) }
        guard try FileNumber(descriptor, path) == present else {
            throw ImageError(.inUse, path, "was exchanged for another image just now: do it again")
        }
    }

    private static func checkKind(_ descriptor: CInt, _ name: String) throws(ImageError) {
        var status = stat()
        guard fstat(descriptor, &status) == 0 else { throw ImageError(.refused, name, "cannot be looked at") }
        let kind = status.st_mode & S_IFMT
        guard kind == S_IFREG || kind == S_IFBLK else {
            throw ImageError(.refused, name, kind == S_IFDIR ? "is a directory" : "is no regular file and no block device")
        }
    }

    /// The format of a base, as an image above it has it.
    private static func format(_ word: String, _ name: String) throws(ImageError) -> ImageFormat {
        guard let format = ImageFormat(rawValue: word) else {
            throw ImageError(.unsupported, name, "its base has format \(word.prefix(40)): raw, qcow2 and vmdk are read")
        }
        return format
    }
}

/// Which file it is, whatever it is called.
struct FileNumber: Hashable {
    let device: dev_t
    let number: ino_t

    init(_ descriptor: CInt, _ name: String) throws(ImageError) {
        var status = stat()
        guard fstat(descriptor, &status) == 0 else { throw ImageError(.refused, name, "cannot be looked at") }
        (device, number) = (status.st_dev, status.st_ino)
    }

    /// Of what a path leads to now; `nil` when that is nothing.
    init?(path: String) {
        var status = stat()
        guard stat(path, &status) == 0 else { return nil }
        (device, number) = (status.st_dev, status.st_ino)
    }
}

extension ImageFile {
    /// The file of a descriptor that somebody else owns, to look into it. Locks stay: they are the open file's.
    static func borrowing(_ descriptor: CInt, _ name: String) throws(ImageError) -> ImageFile {
        do {
            return ImageFile(owning: try FileDescriptor(duplicating: descriptor), name: name, isReadOnly: true)
        } catch {
            throw ImageError(.system(error), name, "\(error.reason)")
        }
    }
}
