/// The text inside of a VMDK file that says what the file is ("Virtual Disk Format 5.0", The Descriptor).
///
/// Of what it may say only images are taken that are one file without a parent. The names of files in it mean nothing here:
/// nothing is ever opened by them.
struct VMDKDescriptor: Hashable {
    enum Kind: String, Hashable, CaseIterable { case monolithicSparse, streamOptimized }

    /// Anew with each change of content; ffffffff is nobody's.
    var contentID: UInt32
    var kind: Kind
    /// In sectors.
    var capacity: UInt64
    /// What the extent's line calls the file.
    var fileName: String

    /// The text for a file.
    /// - Parameter padding: bytes that it has room for.
    func bytes(padding: Int) -> [UInt8] {
        // What the tools of VMware take for a disk on a SCSI adapter: 255 heads of 63 sectors.
        let cylinders = max(1, min(capacity / (255 * 63), 65535))
        let id = String(contentID, radix: 16)
        let text = """
            # Disk DescriptorFile
            version=1
            CID=\(String(repeating: "0", count: 8 - id.count) + id)
            parentCID=ffffffff
            createType="\(kind.rawValue)"

            # Extent description
            RW \(capacity) SPARSE "\(Self.plain(fileName))"

            # The Disk Data Base
            #DDB

            ddb.virtualHWVersion = "8"
            ddb.geometry.cylinders = "\(cylinders)"
            ddb.geometry.heads = "255"
            ddb.geometry.sectors = "63"
            ddb.adapterType = "lsilogic"

            """
        var bytes = Array(text.utf8.prefix(padding))
        bytes.pad(to: padding)
        return bytes
    }

    /// The last part of a path, without what the text has a meaning for.
    private static func plain(_ path: String) -> String {
        let name = path.split(separator: "/").last.map(String.init) ?? ""
        let isPlain = !name.isEmpty && name.utf8.count < 256 && name.utf8.allSatisfy { $0 >= 0x20 && $0 != 0x22 && $0 != 0x7F }
        return isPlain ? name : "disk.vmdk"
    }

    init(contentID: UInt32, kind: Kind, capacity: UInt64, fileName: String) {
        self.contentID = contentID
        self.kind = kind
        self.capacity = capacity
        self.fileName = fileName
    }

    /// - Throws: `malformed`, `unsupported`.
    init(_ bytes: UnsafeRawBufferPointer, _ name: String) throws(ImageError) {
        func malformed(_ reason: String) -> ImageError { ImageError(.malformed, name, "VMDK descriptor: \(reason)") }
        let text = bytes.prefix { $0 != 0 }
        guard text.allSatisfy({ $0 >= 0x20 && $0 != 0x7F || $0 == 0x0A || $0 == 0x0D || $0 == 0x09 }) else {
            throw malformed("it is no text")
        }
        var fields: [String: String] = [:]
        var extents: [[Substring]] = []
        for line in String(decoding: text, as: UTF8.self).split(whereSeparator: { $0.isNewline }) {
            let line = line.trimmed
            if line.isEmpty || line.hasPrefix("#") { continue }
            if let access = ["RW ", "RDONLY ", "NOACCESS "].first(where: line.hasPrefix) {
                // The file's name is quoted, and may have blanks.
                let parts = line.split(separator: "\"", maxSplits: 1, omittingEmptySubsequences: false)
                extents.append(parts[0].split(separator: " ") + (parts.count > 1 ? [parts[1].prefix { $0 != "\"" }] : []))
                guard access == "RW " else { throw malformed("an extent that is not RW") }
                continue
            }
            guard let equals = line.firstIndex(of: "=") else { throw malformed("a line without meaning") }
            let key = line[..<equals].trimmed.lowercased()
            // Of a repeated field two readers might take different ones.
            guard fields.updateValue(String(line[line.index(after: equals)...].trimmed), forKey: key) == nil else {
                throw malformed("\(key.prefix(40)) stands there twice")
            }
        }
        guard fields["version"] == "1" || fields["version"] == "2" || fields["version"] == "3" else {
            throw malformed("no version that is known")
        }
        guard let word = fields["cid"], let id = UInt32(word, radix: 16) else { throw malformed("no CID") }
        guard let parent = fields["parentcid"], UInt32(parent, radix: 16) == .max else {
            throw ImageError(.unsupported, name, "a VMDK image that stands on another is not read: merge them by VMware's tools")
        }
        let type = (fields["createtype"] ?? "").filter { $0 != "\"" }
        guard let kind = Kind.allCases.first(where: { $0.rawValue == type }) else {
            throw ImageError(
                .unsupported, name,
                "VMDK images of type \(type.prefix(40)) are not read, only monolithicSparse and streamOptimized: convert it")
        }
        guard extents.count == 1, let extent = extents.first else { throw malformed("\(extents.count) extents; one is read") }
        guard extent.count == 4, extent[2] == "SPARSE", let capacity = UInt64(extent[1]) else {
            throw malformed("an extent's line that is not like RW 2048 SPARSE \"file\"")
        }
        self.init(contentID: id, kind: kind, capacity: capacity, fileName: String(extent[3]))
    }
}

extension StringProtocol {
    /// Without blanks and tabs at both ends.
    fileprivate var trimmed: SubSequence {
        let start = firstIndex { $0 != " " && $0 != "\t" } ?? endIndex
        let end = lastIndex { $0 != " " && $0 != "\t" }.map(index(after:)) ?? endIndex
        return start < end ? self[start..<end] : self[endIndex...]
    }
}
