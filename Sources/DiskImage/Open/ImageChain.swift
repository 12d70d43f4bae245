public import Linux

/// An image and all that it stands on, opened: the one that is written first, then its base, that one's base, and so on.
///
/// Whoever opens and whoever uses may be two processes: members and descriptors go over a socket, and `assemble` makes the disk
/// of them without opening anything.
public struct ImageChain: ~Copyable {
    public struct Member: Hashable, Sendable, Codable {
        /// Its path, for messages.
        public var name: String
        public var format: ImageFormat
        public var isReadOnly: Bool

        public init(name: String, format: ImageFormat, isReadOnly: Bool) {
            self.name = name
            self.format = format
            self.isReadOnly = isReadOnly
        }
    }

    /// Top first.
    public let members: [Member]
    /// Of the members, in their order.
    public var descriptors: FileDescriptorList

    /// Takes what somebody else has opened.
    public init(_ members: [Member], _ descriptors: consuming FileDescriptorList) {
        self.members = members
        self.descriptors = descriptors
    }

    /// How deep images may stand on each other.
    public static let depthLimit = 16

    /// The disk. Opens nothing.
    /// - Throws: what the formats find wrong; `malformed` when the members are not what the images name.
    public consuming func assemble(observer: (any FileObserver)? = nil) throws(ImageError) -> any BlockImage {
        guard let top = members.first, members.count == descriptors.count, members.count <= Self.depthLimit else {
            throw ImageError(.malformed, members.first?.name ?? "image", "\(descriptors.count) descriptors for \(members.count) images")
        }
        var files: [ImageFile] = []
        for member in members {
            guard let descriptor = descriptors.takeFirst() else { break }
            files.append(ImageFile(owning: descriptor, name: member.name, isReadOnly: member.isReadOnly, observer: observer))
        }
        var image: (any BlockImage)?
        for (member, file) in zip(members, files).reversed() {
            image = try member.format.open(file, over: image)
        }
        guard let image else { throw ImageError(.malformed, top.name, "no image") }
        return image
    }
}

extension ImageFormat {
    /// The disk in a file.
    /// - Parameter base: what it stands on.
    func open(_ file: ImageFile, over base: (any BlockImage)?) throws(ImageError) -> any BlockImage {
        if self != .qcow2, base != nil {
            throw ImageError(.malformed, file.name, "a \(rawValue) image stands on no other")
        }
        switch self {
        case .raw: return try RawImage(file)
        case .vmdk: return try VMDKImage(file)
        case .qcow2: return try QCOW2Image(file, backing: base)
        }
    }
}
