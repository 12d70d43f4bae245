import DiskImage
import Glibc
import Linux
import TestSupport

/// What a disk should hold: written at random, and compared.
struct DiskModel {
    private(set) var bytes: [UInt8]

    init(bytes: [UInt8]) { self.bytes = bytes }
    init(byteCount: Int) { bytes = [UInt8](repeating: 0, count: byteCount) }

    /// Does something to a disk and to the model.
    mutating func change(_ image: any BlockImage, _ random: inout SplitMix64) throws {
        let offset = Int.random(in: 0..<bytes.count, using: &random)
        let count = min(bytes.count - offset, 1 << Int.random(in: 0...17, using: &random))
        switch UInt8.random(in: 0...9, using: &random) {
        case 0:
            try image.writeZeroes(at: UInt64(offset), count: UInt64(count), mayDiscard: .random(using: &random))
            bytes.replaceSubrange(offset..<offset + count, with: repeatElement(0, count: count))
        case 1: try image.flush()
        default:
            let seed = UInt8.random(in: 1...255, using: &random)
            let data = (0..<count).map { UInt8(truncatingIfNeeded: $0 &* 7) ^ seed }
            try image.put(data, at: UInt64(offset))
            bytes.replaceSubrange(offset..<offset + count, with: data)
        }
    }

    /// Everything on the disk, in pieces of odd length.
    static func contents(of image: any BlockImage) throws -> [UInt8] {
        var bytes: [UInt8] = []
        while bytes.count < Int(image.byteCount) {
            bytes += try image.bytes(at: UInt64(bytes.count), count: min(100_003, Int(image.byteCount) - bytes.count))
        }
        return bytes
    }

    /// Where two disks differ first.
    static func difference(_ a: [UInt8], _ b: [UInt8]) -> String? {
        if a.count != b.count { return "\(a.count) bytes and \(b.count)" }
        guard a != b, let index = a.indices.first(where: { a[$0] != b[$0] }) else { return nil }
        return "at \(index): \(a[index]) and \(b[index])"
    }
}

/// Open files by path.
extension ImageFile {
    static func open(_ path: String, isReadOnly: Bool = false, create: Bool = false, observer: (any FileObserver)? = nil) throws -> ImageFile {
        let flags = (isReadOnly ? O_RDONLY : O_RDWR) | (create ? O_CREAT | O_EXCL : 0)
        return ImageFile(
            owning: try FileDescriptor(open: path, flags: flags), name: path, isReadOnly: isReadOnly, observer: observer)
    }
}
