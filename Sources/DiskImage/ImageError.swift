public import Linux

/// Why an image cannot be opened, read, written or made.
///
/// The description is one line for a person: the file, what is wrong with it, and what to do.
public struct ImageError: Error, Hashable, Sendable, CustomStringConvertible {
    public enum Kind: Hashable, Sendable {
        /// The host could not do it: no space, no permission, a failing disk.
        case system(SystemError)
        /// Somebody else has it open; the text says who.
        case inUse
        /// The file is not what its format allows, or is damaged.
        case malformed
        /// It uses something of its format that this program does not know.
        case unsupported
        /// It may not be written.
        case readOnly
        /// The range does not lie on the disk.
        case outOfRange
        /// What was asked for cannot be done with this image.
        case refused
    }

    public let kind: Kind
    /// The file's path, or how it was named to us.
    public let file: String
    public let reason: String

    /// - Parameter reason: what is wrong and what to do, without the file's name.
    public init(_ kind: Kind, _ file: String, _ reason: String) {
        self.kind = kind
        self.file = file
        self.reason = reason
    }

    public var description: String { "\(file): \(reason)" }
}
