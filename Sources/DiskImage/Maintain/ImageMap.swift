/// What an image has where.
public enum ImageMap {
    public struct Part: Hashable, Sendable {
        public enum Kind: String, Hashable, Sendable {
            case data, zero
            /// What it stands on shows.
            case base
        }

        public let kind: Kind
        public let offset: UInt64
        public let byteCount: UInt64
    }

    /// Calls `body` with the parts of a disk in their order, no two alike beside each other. No other file is opened.
    public static func forEach<E: Error>(
        _ location: ImageLocation, _ opening: ImageOpening, _ body: (Part) throws(E) -> Void
    ) throws {
        let (file, format) = try ImageChain(location, opening).top()
        let image: any BlockImage
        switch format {
        case .raw: image = try RawImage(file)
        case .vmdk: image = try VMDKImage(file)
        case .qcow2: image = try QCOW2Image(file, for: .check)
        }
        var last: Part?
        var offset: UInt64 = 0
        while offset < image.byteCount {
            let (kind, count) = try kind(image, at: offset, count: image.byteCount - offset)
            if let part = last, part.kind == kind {
                last = Part(kind: kind, offset: part.offset, byteCount: part.byteCount + count)
            } else {
                if let last { try body(last) }
                last = Part(kind: kind, offset: offset, byteCount: count)
            }
            offset += count
        }
        if let last { try body(last) }
    }

    private static func kind(
        _ image: any BlockImage, at offset: UInt64, count: UInt64
    ) throws(ImageError) -> (Part.Kind, UInt64) {
        if let qcow2 = image as? QCOW2Image {
            let (kind, alike) = try qcow2.allocation(at: offset, count: count)
            switch kind {
            case .data: return (.data, alike)
            case .zero: return (.zero, alike)
            case .unallocated: return (qcow2.header.backing == nil ? .zero : .base, alike)
            }
        }
        let (isZero, alike) = try SourceMap.next(image, at: offset, count: count)
        return (isZero ? .zero : .data, alike)
    }
}
