import CLinux
import Glibc
import Linux

/// What an image's format is, kept with the file as an extended attribute: no guest can write there.
///
/// A guest owns every byte of a raw disk, so the bytes cannot say that it is none. What the administrator says decides, by a
/// word, a prefix or a suffix; else the first answer does, which is kept. Only a file that nobody said anything about, and that
/// has no note, is asked by its header.
enum FormatNote {
    private static let attribute = "user.vmd.format"

    /// - Returns: `nil` when there is none.
    static func read(_ descriptor: CInt) -> ImageFormat? {
        withUnsafeTemporaryAllocation(byteCount: 16, alignment: 1) { buffer -> ImageFormat? in
            let count = fgetxattr(descriptor, attribute, buffer.baseAddress, buffer.count)
            guard count > 0 else { return nil }
            return ImageFormat(rawValue: String(decoding: buffer.prefix(count), as: UTF8.self))
        }
    }

    /// - Returns: whether it is kept: not every file system can, and not everybody may.
    static func write(_ format: ImageFormat, _ descriptor: CInt) -> Bool {
        let text = Array(format.rawValue.utf8)
        return fsetxattr(descriptor, attribute, text, text.count, 0) == 0
    }

    /// What an open image is.
    /// - Parameters:
    ///   - stated: what a word or prefix said, or the image above it.
    ///   - keeps: nothing is written, and the header is believed: for those who only look, and open no other file.
    static func decide(
        _ file: ImageFile, path: String, stated: ImageFormat?, keeps: Bool
    ) throws(ImageError) -> ImageFormat {
        let number = file.descriptor
        let kept = read(number)
        if let stated {
            if keeps, kept != stated { _ = write(stated, number) }
            return stated
        }
        if let suffix = ImageLocation.format(bySuffixOf: path) {
            if let kept, kept != suffix {
                throw ImageError(
                    .refused, file.name,
                    "is named as \(suffix.rawValue), but has been used as \(kept.rawValue): say \(kept.rawValue): or \(suffix.rawValue): in front of its path"
                )
            }
            if keeps, kept == nil { _ = write(suffix, number) }
            return suffix
        }
        if let kept { return kept }
        let found = try formatByHeader(file)
        guard keeps else { return found }
        // An image that leads to other files has to be called one: its header may be a guest's.
        if found == .qcow2, try QCOW2Header(reading: file).namesOtherFiles {
            throw ImageError(
                .refused, file.name,
                "only its content says that it is qcow2, which a guest may have written, and it names another file: say qcow2: or raw: in front of its path"
            )
        }
        if !write(found, number), found != .raw {
            throw ImageError(
                .refused, file.name,
                "only its content says that it is \(found.rawValue), which a guest may have written, and the answer cannot be kept with the file: say \(found.rawValue): or raw: in front of its path"
            )
        }
        return found
    }

    /// What the first bytes look like.
    static func formatByHeader(_ file: ImageFile) throws(ImageError) -> ImageFormat {
        let bytes = HeapBytes(count: 32)
        let count = try file.read(into: bytes.bytes, at: 0)
        let start = Array(bytes.readable.prefix(count))
        if QCOW2Header.isMagic(start) { return .qcow2 }
        return VMDKImage.recognises(start) ? .vmdk : .raw
    }
}

extension QCOW2Header {
    var namesOtherFiles: Bool { backing != nil || dataFileName != nil || incompatible.contains(.externalData) }
}
