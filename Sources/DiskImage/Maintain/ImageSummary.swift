import CLinux
import Glibc
import Linux

/// What an image says of itself. No other file is opened.
public struct ImageSummary: Hashable, Sendable {
    public var path: String
    public let format: ImageFormat
    /// The disk's size.
    public let byteCount: UInt64
    /// The file's size.
    public let fileByteCount: UInt64
    /// What the file takes of the host's disk.
    public let hostByteCount: UInt64
    public var qcow2: QCOW2Info?
    /// `monolithicSparse` or `streamOptimized`.
    public let vmdkKind: String?

    /// What somebody else has said of an image.
    public init(
        path: String, format: ImageFormat, byteCount: UInt64, fileByteCount: UInt64, hostByteCount: UInt64, qcow2: QCOW2Info?,
        vmdkKind: String?
    ) {
        self.path = path
        self.format = format
        self.byteCount = byteCount
        self.fileByteCount = fileByteCount
        self.hostByteCount = hostByteCount
        self.qcow2 = qcow2
        self.vmdkKind = vmdkKind
    }

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

extension ImageSummary {
    /// Of a disk that is open and in use, and of each image that it stands on. Reads no table, so it may be asked for at any time.
    /// - Parameter count: so many images of the chain at most.
    public static func chain(of disk: any BlockImage, atMost count: Int = ImageChain.depthLimit) throws(ImageError) -> [ImageSummary] {
        var summaries: [ImageSummary] = []
        var next: (any BlockImage)? = disk
        while let image = next, summaries.count < count {
            next = nil
            switch image {
            case let raw as RawImage: summaries.append(try ImageSummary(raw.file, .raw, raw.byteCount))
            case let vmdk as VMDKImage:
                summaries.append(try ImageSummary(vmdk.file, .vmdk, vmdk.byteCount, vmdkKind: vmdk.descriptor.kind.rawValue))
            case let qcow2 as QCOW2Image:
                summaries.append(try ImageSummary(qcow2.file, .qcow2, qcow2.byteCount, qcow2: try qcow2.info))
                next = qcow2.backing
            default: break
            }
        }
        return summaries
    }

    private init(
        _ file: ImageFile, _ format: ImageFormat, _ byteCount: UInt64, qcow2: QCOW2Info? = nil, vmdkKind: String? = nil
    ) throws(ImageError) {
        self.init(
            path: file.name, format: format, byteCount: byteCount, fileByteCount: try file.byteCount(),
            hostByteCount: try file.hostByteCount(), qcow2: qcow2, vmdkKind: vmdkKind)
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
