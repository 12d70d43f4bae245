import CLinux
import Glibc
import Linux

/// A file that gets its name when it is whole: before that it is nobody's, and gone when it goes out of scope or its process
/// dies.
public struct NewFile: ~Copyable {
    public let path: String
    private let descriptor: FileDescriptor
    /// Where a file cannot be without a name, or takes another's place.
    private var temporaryPath: String?
    private let replaces: Bool

    /// - Parameter replaces: takes the place of a file that there is; otherwise that is an error.
    public init(_ path: String, replaces: Bool = false) throws(ImageError) {
        self.path = path
        self.replaces = replaces
        var status = stat()
        guard !path.isEmpty, replaces || lstat(path, &status) != 0 else { throw Self.exists(path) }
        do {
            // Only a name can take another's place.
            if !replaces, let nameless = try Self.openNameless(Self.folder(of: path)) {
                descriptor = nameless
            } else {
                let name = path.split(separator: "/").last.map(String.init) ?? ""
                let temporary = "\(Self.folder(of: path))/.\(name.prefix(200)).\(UInt32.random(in: 0 ... .max))"
                descriptor = try FileDescriptor(open: temporary, flags: O_RDWR | O_CREAT | O_EXCL)
                temporaryPath = temporary
            }
        } catch {
            throw ImageError(.system(error), path, "cannot be made: \(error.reason)")
        }
    }

    /// - Returns: `nil` where the file system knows no files without names.
    private static func openNameless(_ folder: String) throws(SystemError) -> FileDescriptor? {
        do {
            return FileDescriptor(owning: try retrying("open") { clinux_open_nameless(folder, 0o600) })
        } catch where error.errno == EOPNOTSUPP || error.errno == EISDIR || error.errno == EINVAL {
            return nil
        }
    }

    deinit { if let temporaryPath { unlink(temporaryPath) } }

    /// The file, to be written.
    public func open(observer: (any FileObserver)? = nil) throws(ImageError) -> ImageFile {
        do {
            return ImageFile(
                owning: try FileDescriptor(duplicating: descriptor.raw), name: path, isReadOnly: false, synchronizes: false,
                observer: observer)
        } catch {
            throw ImageError(.system(error), path, "\(error.reason)")
        }
    }

    /// Whose it is and who may use it, as far as that can be: as with another file.
    func takeRights(of other: CInt) {
        var status = stat()
        guard fstat(other, &status) == 0 else { return }
        _ = fchown(descriptor.raw, status.st_uid, status.st_gid)
        _ = fchmod(descriptor.raw, status.st_mode & 0o777)
    }

    /// Gives it its name, unless there is one of that name by now.
    /// - Parameters:
    ///   - format: kept with the file.
    ///   - isDurable: only when all of it is on the medium, and the name too.
    public consuming func finish(as format: ImageFormat? = nil, isDurable: Bool) throws(ImageError) {
        let number = descriptor.raw
        if let format { _ = FormatNote.write(format, number) }
        let target = path
        do {
            // Opened before it has its name: who is told of an error may rely on there being no such file.
            let folder = isDurable ? try FileDescriptor(open: Self.folder(of: target), flags: O_RDONLY | O_DIRECTORY).release() : -1
            defer { if folder >= 0 { close(folder) } }
            if isDurable { _ = try retrying("fsync") { fsync(number) } }
            if let temporary = temporaryPath {
                try Self.rename(temporary, target, replaces: replaces)
                temporaryPath = nil
            } else {
                _ = try retrying("link") { clinux_name_file("/proc/self/fd/\(number)", target) }
            }
            if isDurable {
                _ = try retrying("fsync") { fsync(folder) }
            }
        } catch where error.errno == EEXIST {
            throw Self.exists(target)
        } catch {
            throw ImageError(.system(error), target, "cannot be made: \(error.reason)")
        }
    }

    private static func rename(_ temporary: String, _ target: String, replaces: Bool) throws(SystemError) {
        do {
            _ = try retrying("rename") { replaces ? Glibc.rename(temporary, target) : clinux_rename_new(temporary, target) }
        } catch where error.errno == EINVAL && !replaces {
            // A file system that cannot promise that nothing is replaced; a second name it refuses where there is one.
            _ = try retrying("link") { link(temporary, target) }
            unlink(temporary)
        }
    }

    private static func exists(_ path: String) -> ImageError {
        path.isEmpty
            ? ImageError(.refused, "image", "a path is missing")
            : ImageError(.system(SystemError("open", errno: EEXIST)), path, "exists already: remove it, or take another name")
    }

    static func folder(of path: String) -> String {
        guard let slash = path.lastIndex(of: "/") else { return "." }
        return slash == path.startIndex ? "/" : String(path[..<slash])
    }
}
