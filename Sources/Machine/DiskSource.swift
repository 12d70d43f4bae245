public import DiskImage
import Glibc
import Linux

/// A disk of a machine: an image that somebody has opened.
public struct DiskSource: Hashable, Sendable {
    public let image: any BlockImage
    /// What the guest finds as its serial number; 20 bytes count. `nil` for one by its place.
    public var identifier: String?

    public init(_ image: any BlockImage, identifier: String? = nil) {
        self.image = image
        self.identifier = identifier
    }

    public static func == (a: DiskSource, b: DiskSource) -> Bool { a.image === b.image && a.identifier == b.identifier }
    public func hash(into hasher: inout Hasher) {
        hasher.combine(ObjectIdentifier(image))
        hasher.combine(identifier)
    }

    /// Opens a raw image, for reading only when that is all that we may.
    public static func raw(_ path: String) throws(MachineError) -> DiskSource {
        do {
            return DiskSource(try open(path, isReadOnly: false))
        } catch where error.isReadOnly {
            do {
                return DiskSource(try open(path, isReadOnly: true))
            } catch {
                throw MachineError("disk \(error.text)")
            }
        } catch {
            throw MachineError("disk \(error.text)")
        }
    }

    /// Opens a CD or DVD image, which is only read.
    public static func disc(_ path: String) throws(MachineError) -> DiskSource {
        let image: RawImage
        do {
            image = try open(path, isReadOnly: true)
        } catch {
            throw MachineError("cdrom \(error.text)")
        }
        guard image.byteCount > 0 else { throw MachineError("cdrom \(path): is empty: give an ISO image") }
        return DiskSource(image)
    }

    private struct Failure: Error {
        let text: String
        var isReadOnly = false
    }

    private static func open(_ path: String, isReadOnly: Bool) throws(Failure) -> RawImage {
        let descriptor: FileDescriptor
        do {
            // A FIFO given by mistake would block until somebody opens its other end.
            let access = isReadOnly ? O_RDONLY : O_RDWR
            descriptor = try FileDescriptor(open: path, flags: access | O_CLOEXEC | O_NONBLOCK | O_NOCTTY)
        } catch {
            throw Failure(
                text: "\(path): \(error.reason): give a file that can be read\(isReadOnly ? "" : " and written")",
                isReadOnly: error.errno == EACCES || error.errno == EROFS)
        }
        var status = stat()
        let kind = unsafe fstat(descriptor.raw, &status) == 0 ? status.st_mode & S_IFMT : 0
        guard kind == S_IFREG || kind == S_IFBLK else {
            throw Failure(text: "\(path) is neither a regular file nor a block device")
        }
        do {
            return try RawImage(ImageFile(owning: descriptor, name: path, isReadOnly: isReadOnly))
        } catch {
            throw Failure(text: error.description)
        }
    }
}
