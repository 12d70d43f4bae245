public import DiskImage

/// What a machine that runs can be asked to do with its disks.
public enum DiskCommand: Hashable, Sendable, WireValue {
    /// A snapshot of all disks that can be written, at one moment.
    case createSnapshot(String)
    case deleteSnapshot(String)
    /// What the images are, each with all that it stands on.
    case describe
    /// What the images are, without what they stand on.
    case describeTop

    /// It is answered by a list of images.
    public var isList: Bool { self == .describe || self == .describeTop }

    public func write(to writer: inout MessageWriter) {
        switch self {
        case .createSnapshot(let name):
            writer.put(0 as UInt8)
            writer.put(name)
        case .deleteSnapshot(let name):
            writer.put(1 as UInt8)
            writer.put(name)
        case .describe: writer.put(2 as UInt8)
        case .describeTop: writer.put(3 as UInt8)
        }
    }

    public init(from reader: inout MessageReader) throws(MalformedMessage) {
        let form: UInt8 = try reader.number()
        switch form {
        case 0: self = .createSnapshot(try reader.string())
        case 1: self = .deleteSnapshot(try reader.string())
        case 2: self = .describe
        case 3: self = .describeTop
        default: throw MalformedMessage("unknown command \(form) for disks")
        }
    }
}

/// What an image of a machine's disk is. One with many snapshots comes in parts, which are alike but for those.
public struct DiskReport: Hashable, Sendable, WireValue {
    /// Which of the machine's disks.
    public var disk: UInt32
    /// 0 for the disk's image itself, 1 for what that stands on, and so on.
    public var level: UInt32
    public var image: ImageSummary

    /// So that a report, with whatever is put around it, goes into a packet.
    static let longest = 24 << 10

    /// What is to be said of an image, in as many parts as it takes. Texts that are too long are cut.
    public static func parts(disk: UInt32, level: UInt32, _ image: ImageSummary) -> [DiskReport] {
        var rest = (image.qcow2?.snapshots ?? []).map(\.cut)[...]
        var empty = image
        empty.path = image.path.cut(to: textByteCount)
        empty.qcow2?.snapshots = []
        if let backing = image.qcow2?.backing {
            empty.qcow2?.backing = QCOW2Backing(
                name: backing.name.cut(to: textByteCount), format: backing.format?.cut(to: textByteCount))
        }
        var parts: [DiskReport] = []
        repeat {
            var part = DiskReport(disk: disk, level: level, image: empty)
            var byteCount = 0
            while let next = rest.first {
                // Names' counts and numbers are 22 bytes.
                byteCount += next.id.utf8.count + next.name.utf8.count + 32
                if byteCount > longest / 2 { break }
                part.image.qcow2?.snapshots.append(next)
                rest.removeFirst()
            }
            parts.append(part)
        } while !rest.isEmpty
        return parts
    }

    public init(disk: UInt32, level: UInt32, image: ImageSummary) {
        self.disk = disk
        self.level = level
        self.image = image
    }

    private static let textByteCount = 1024

    public func write(to writer: inout MessageWriter) {
        writer.put(disk)
        writer.put(level)
        image.write(to: &writer)
    }

    public init(from reader: inout MessageReader) throws(MalformedMessage) {
        disk = try reader.number()
        level = try reader.number()
        image = try reader.value()
        var writer = MessageWriter()
        image.write(to: &writer)
        guard writer.bytes.count <= Self.longest else { throw MalformedMessage("a report on an image is too long") }
    }
}

extension ImageSnapshot {
    /// With texts that a message has room for.
    fileprivate var cut: ImageSnapshot {
        var copy = self
        (copy.id, copy.name) = (id.cut(to: 64), name.cut(to: 1024))
        return copy
    }
}

extension String {
    /// At most so many bytes of UTF-8, without what no message carries.
    fileprivate func cut(to byteCount: Int) -> String {
        let text = contains("\0") ? replacing("\0", with: " ") : self
        guard text.utf8.count > byteCount else { return text }
        // Whole letters: what is cut in two would become longer.
        var short = text.unicodeScalars.prefix(byteCount)
        while short.reduce(0, { $0 + UTF8.width($1) }) > byteCount - 3 { short.removeLast() }
        return String(short) + "..."
    }
}
