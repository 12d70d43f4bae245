import CLinux
import Glibc
import Linux

/// Finds the file that an image names as its base. The name is whoever's who wrote the image: it is followed inside of the
/// image's own folder, and further only where the administrator's word allows it.
///
/// What is checked is what is opened: a descriptor that can do nothing (O_PATH) comes first, all questions are asked of it, and
/// then the same file is opened for reading through it.
struct BaseFile {
    /// The image that names it.
    let image: String
    let imageStatus: stat
    /// Its folder, as a path without links.
    let folder: String
    let allowed: [String]
    /// Whose rights count for all that is looked at; `nil`: see `open(_:_:isAllowed:)`.
    let credentials: FileCredentials?

    /// - Parameter descriptor: of the image that names bases.
    init(of descriptor: CInt, _ image: String, _ opening: ImageOpening) throws(ImageError) {
        self.image = image
        allowed = opening.allowedBases
        credentials = opening.credentials
        var status = stat()
        let path = Self.path(of: descriptor)
        // The link's text is no path any more when the file has lost its name.
        var named = stat()
        guard fstat(descriptor, &status) == 0, let path, let slash = path.lastIndex(of: "/"), lstat(path, &named) == 0,
            named.st_dev == status.st_dev, named.st_ino == status.st_ino
        else {
            throw ImageError(.refused, image, "its folder cannot be found, so neither can its base")
        }
        imageStatus = status
        folder = slash == path.startIndex ? "/" : String(path[..<slash])
    }

    /// Who answers for what the image says of its base: who named it, or else whose file it is. `nil`: we ourselves.
    var writer: FileCredentials? { credentials ?? imageOwner }

    private var imageOwner: FileCredentials? {
        let owner = imageStatus.st_uid
        guard geteuid() == 0, owner != 0 else { return nil }
        let user = try? UserDatabase.user(owner)
        return FileCredentials(
            userID: owner, groupID: user?.groupID ?? imageStatus.st_gid, groups: user.map(UserDatabase.groups) ?? [])
    }

    /// A base, opened for reading.
    struct Found: ~Copyable {
        let descriptor: FileDescriptor
        /// Without links.
        let path: String

        consuming func take() -> FileDescriptor { descriptor }
    }

    func open(_ name: String, forWriting: Bool = false) throws(ImageError) -> Found {
        try FileCredentials.run(as: credentials, orElse: { refusal(name, "cannot be looked for: \($0.reason)") }) {
            () throws(ImageError) in try find(name, forWriting)
        }
    }

    private func find(_ name: String, _ forWriting: Bool) throws(ImageError) -> Found {
        // QEMU takes this prefix off.
        let path = name.hasPrefix("file:") && !name.hasPrefix("file:/" + "/") ? String(name.dropFirst(5)) : name
        guard !path.isEmpty, !path.utf8.contains(0) else { throw ImageError(.malformed, image, "the name of its base is empty") }
        if let colon = path.firstIndex(of: ":"), !path[..<colon].contains("/") {
            throw refusal(name, "is no path of a file: rebase the image")
        }
        let parts = path.split(separator: "/", omittingEmptySubsequences: true)
        if !path.hasPrefix("/"), !parts.contains(".."), let found = try beneath(path) {
            guard let real = Self.path(of: found.raw) else { throw refusal(name, "cannot be found again") }
            return Found(descriptor: try open(found, name, isAllowed: false, forWriting), path: real)
        }
        let absolute = path.hasPrefix("/") ? path : folder + "/" + path
        guard let found = try? FileDescriptor(open: absolute, flags: CInt(CLINUX_O_PATH)), let real = Self.path(of: found.raw),
            isAllowed(real)
        else {
            // Whether there is such a file is not told.
            throw refusal(
                name, "is outside of the image's folder, and \"allow base\" names no folder with it")
        }
        return Found(descriptor: try open(found, name, isAllowed: true, forWriting), path: real)
    }

    /// - Returns: `nil` when the way leads out of the folder.
    private func beneath(_ path: String) throws(ImageError) -> FileDescriptor? {
        do {
            let start = try FileDescriptor(open: folder, flags: CInt(CLINUX_O_PATH) | O_DIRECTORY)
            var tries = 0
            while true {
                do {
                    return FileDescriptor(
                        owning: try retrying("openat2") {
                            clinux_open_beneath(start.raw, path, CInt(CLINUX_O_PATH) | O_CLOEXEC)
                        })
                } catch where error.errno == EAGAIN && tries < 100 {
                    // Something was renamed on the way.
                    tries += 1
                }
            }
        } catch where error.errno == EXDEV || error.errno == ELOOP {
            return nil
        } catch where error.errno == ENOSYS || error.errno == EPERM {
            return try walk(path)
        } catch {
            throw ImageError(.system(error), image, "cannot open its base \(path): \(error.reason)")
        }
    }

    /// The same without openat2 (Linux 5.6): no links at all.
    func walk(_ path: String) throws(ImageError) -> FileDescriptor? {
        do {
            var place = try FileDescriptor(open: folder, flags: CInt(CLINUX_O_PATH) | O_DIRECTORY)
            for part in path.split(separator: "/") where part != "." {
                guard part != ".." else { return nil }
                let number = place.raw
                place = FileDescriptor(
                    owning: try retrying("openat") {
                        clinux_openat(number, String(part), CInt(CLINUX_O_PATH) | O_NOFOLLOW | O_CLOEXEC, 0)
                    })
                var status = stat()
                guard fstat(place.raw, &status) == 0, status.st_mode & S_IFMT != S_IFLNK else { return nil }
            }
            return place
        } catch {
            throw ImageError(.system(error), image, "cannot open its base \(path): \(error.reason)")
        }
    }

    /// Opens what has been found, as the user who owns the image: root opens nothing for others that they may not read.
    private func open(
        _ found: borrowing FileDescriptor, _ name: String, isAllowed: Bool, _ forWriting: Bool
    ) throws(ImageError) -> FileDescriptor {
        var status = stat()
        guard fstat(found.raw, &status) == 0 else { throw refusal(name, "cannot be looked at") }
        let kind = status.st_mode & S_IFMT
        guard kind == S_IFREG || kind == S_IFBLK && isAllowed else { throw refusal(name, "is no regular file") }
        let owner = imageStatus.st_uid
        let reader = isAllowed || credentials != nil ? nil : imageOwner
        let path = "/proc/self/fd/\(found.raw)"
        do {
            return try FileCredentials.run(as: reader, orElse: { $0 }) { () throws(SystemError) in
                try FileDescriptor(open: path, flags: (forWriting ? O_RDWR : O_RDONLY) | O_NONBLOCK | O_NOCTTY)
            }
        } catch where reader != nil && error.isPermission {
            throw refusal(name, "may not be read by \(UserDatabase.name(ofUser: owner)), whose image it is")
        } catch {
            throw ImageError(.system(error), image, "cannot open its base \(name): \(error.reason)")
        }
    }

    /// - Parameter path: without links.
    private func isAllowed(_ path: String) -> Bool {
        allowed.contains { entry in
            guard entry.hasPrefix("/"), let real = try? FilePaths.resolved(entry) else { return false }
            return path == real || path.hasPrefix(real == "/" ? "/" : real + "/")
        }
    }

    private func refusal(_ name: String, _ reason: String) -> ImageError {
        ImageError(.refused, image, "its base \(name) \(reason)")
    }

    /// The path of an open file, without links; `nil` without /proc.
    static func path(of descriptor: CInt) -> String? {
        withUnsafeTemporaryAllocation(byteCount: Int(PATH_MAX), alignment: 1) { buffer -> String? in
            guard let base = buffer.bindMemory(to: CChar.self).baseAddress else { return nil }
            let count = readlink("/proc/self/fd/\(descriptor)", base, buffer.count)
            guard count > 0, count < buffer.count else { return nil }
            let text = String(decoding: buffer.prefix(count), as: UTF8.self)
            return text.hasPrefix("/") ? text : nil
        }
    }
}
