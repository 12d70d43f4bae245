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

    /// Opens an image and what it stands on, for reading only when that is all that we may.
    /// - Parameter allowedBases: absolute paths of files and folders outside of the image's own that it may stand on.
    public static func open(_ location: ImageLocation, allowedBases: [String] = []) throws(MachineError) -> DiskSource {
        do throws(ImageError) {
            do {
                return DiskSource(try ImageChain(location, ImageOpening(isReadOnly: false, allowedBases: allowedBases)).assemble())
            } catch {
                guard case .system(let reason) = error.kind, reason.isPermission || reason.errno == EROFS else { throw error }
                return DiskSource(try ImageChain(location, ImageOpening(isReadOnly: true, allowedBases: allowedBases)).assemble())
            }
        } catch {
            throw MachineError("disk \(error)\(advice(error, "read and written"))")
        }
    }

    /// Opens a CD or DVD image, which is only read.
    public static func disc(_ path: String) throws(MachineError) -> DiskSource {
        do throws(ImageError) {
            let image = try ImageChain(ImageLocation(path: path, format: .raw), ImageOpening(isReadOnly: true)).assemble()
            guard image.byteCount > 0 else { throw ImageError(.refused, path, "is empty: give an ISO image") }
            return DiskSource(image)
        } catch {
            throw MachineError("cdrom \(error)\(advice(error, "read"))")
        }
    }

    /// The formats' errors say what to do; the host's say only what is wrong.
    private static func advice(_ error: ImageError, _ access: String) -> String {
        if case .system = error.kind { ": give a file that can be \(access)" } else { "" }
    }
}
