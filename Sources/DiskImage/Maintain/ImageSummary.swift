import CLinux
import Glibc
import Linux

/// What an image says of itself. No other file is opened.
public struct ImageSummary: Sendable {
    public let path: String
    public let format: ImageFormat
    /// The disk's size.
    public let byteCount: UInt64
    /// The file's size.
    public let fileByteCount: UInt64
    /// What the file takes of the host's disk.
    public let hostByteCount: UInt64
    public let qcow2: QCOW2Info?
    /// `monolithicSparse` or `streamOptimized`.
    public let vmdkKind: String?

    public init(_ location: ImageLocation) throws(ImageError) {
        let (file, format) = try ImageChain(location, .look).top()
        try self.init(file, format)
    }

    /// Of each image in a chain.
    public static func chain(_ location: ImageLocation, allowedBases: [String]) throws(ImageError) -> [ImageSummary] {
        var opening = ImageOpening.look
        opening.opensBases = true
        opening.allowedBases = allowedBases
        let chain = try ImageChain(location, opening)
        var summaries: [ImageSummary] = []
        for (member, number) in zip(chain.members, chain.descriptors.numbers) {
            summaries.append(try ImageSummary(try ImageFile.borrowing(number, member.name), member.format))
        }
        return summaries
    }

    private init(_ file: ImageFile, _ format: ImageFormat) throws(ImageError) {
        path = file.name
        self.format = format
        fileByteCount = try file.byteCount()
        hostByteCount = try file.hostByteCount()
        switch format {
        case .raw:
            byteCount = try RawImage(file).byteCount
            (qcow2, vmdkKind) = (nil, nil)
        case .qcow2:
            let info = try QCOW2Image(file, for: .check).info
            byteCount = info.byteCount
            (qcow2, vmdkKind) = (info, nil)
        case .vmdk:
            let image = try VMDKImage(file)
            byteCount = image.byteCount
            (qcow2, vmdkKind) = (nil, image.descriptor.kind.rawValue)
        }
    }
}

extension ImageChain {
    /// The first image alone, without what it stands on.
    public consuming func top() throws(ImageError) -> (file: ImageFile, format: ImageFormat) {
        guard let member = members.first, let descriptor = descriptors.takeFirst() else {
            throw ImageError(.malformed, "image", "no image")
        }
        return (ImageFile(owning: descriptor, name: member.name, isReadOnly: member.isReadOnly), member.format)
    }
}
