import ArgumentParser
import DiskImage
import Linux
import VMConfig

/// What all commands on image files have in common.
struct ImageOptions: ParsableArguments {
    @Option(
        parsing: .unconditionalSingleValue,
        help: ArgumentHelp(
            "A file, or a folder with all in it, that images may stand on besides files of their own folder; may be repeated.",
            valueName: "path"))
    var allowBase: [String] = []

    /// As absolute paths: the word of who types it is good for where he is.
    var allowedBases: [String] {
        get throws(Failure) {
            try allowBase.map { path throws(Failure) in
                do throws(SystemError) {
                    return try FilePaths.resolved(path)
                } catch {
                    throw Failure("\(path): \(error.reason)")
                }
            }
        }
    }

    /// - Parameter operand: whose machine's administrator allows some as well.
    func allowedBases(_ operand: DiskOperand) throws(Failure) -> [String] { try allowedBases + operand.allowedBases }

    func reading(_ operand: DiskOperand? = nil, locks: Bool = true) throws(Failure) -> ImageOpening {
        var opening = ImageOpening(isReadOnly: true, allowedBases: try allowedBases + (operand?.allowedBases ?? []))
        opening.locks = locks
        return opening
    }

    func writing(_ operand: DiskOperand) throws(Failure) -> ImageOpening {
        ImageOpening(isReadOnly: false, allowedBases: try allowedBases(operand))
    }
}

/// The texts of images' options as values.
extension OptionValues {
    /// A disk in whole megabytes, rounded down.
    static func disk(_ text: String, _ warn: (String) -> Void) throws(WrongUsage) -> UInt64 {
        guard let bytes = ByteSize.parse(text) else {
            throw WrongUsage("invalid disk size: \(text): give a number with K, M, G or T")
        }
        guard bytes >= 1 << 20 else { throw WrongUsage("disk size must be at least 1MB") }
        guard bytes <= DiskSize.limit else { throw WrongUsage("disk size too large: \(text)") }
        let rounded = bytes - bytes % (1 << 20)
        if rounded != bytes { warn("disk size rounded to \(ByteSize.describe(rounded))") }
        return rounded
    }

    static func clusterSize(_ text: String) throws(WrongUsage) -> UInt64 {
        guard let bytes = ByteSize.parse(text), (512...(2 << 20)).contains(bytes), bytes & (bytes - 1) == 0 else {
            throw WrongUsage("invalid cluster size: \(text): give a power of two from 512 to 2M")
        }
        return bytes
    }

    static func refcountBits(_ text: String) throws(WrongUsage) -> Int {
        guard let bits = Int(text), [1, 2, 4, 8, 16, 32, 64].contains(bits) else {
            throw WrongUsage("invalid refcount width: \(text): give 1, 2, 4, 8, 16, 32 or 64")
        }
        return bits
    }

    static func compression(_ text: String) throws(WrongUsage) -> QCOW2Compression {
        guard let method = QCOW2Compression(rawValue: text) else {
            throw WrongUsage("unknown compression \(text): give zlib or zstd")
        }
        return method
    }
}

/// How a new image is to be, as `create` and `image convert` take it.
struct NewImageOptions: ParsableArguments {
    @Flag(name: .customShort("c"), help: "Compress: qcow2 with -i, or a stream-optimised VMDK.")
    var isCompressed = false

    @Option(help: ArgumentHelp("Size of qcow2 clusters, 512 to 2M. (default: 64K)", valueName: "size"))
    var clusterSize: String?

    @Option(help: ArgumentHelp("How clusters are compressed: zlib or zstd.", valueName: "method"))
    var compression: String?

    @Option(help: ArgumentHelp("Width of qcow2 refcounts, 1 to 64. (default: 16)", valueName: "bits"))
    var refcountBits: String?

    /// What to make, with the size still to be filled in.
    func target(_ format: ImageFormat) throws(WrongUsage) -> Conversion.Target {
        guard format == .qcow2 || clusterSize == nil && compression == nil && refcountBits == nil else {
            throw WrongUsage("--cluster-size, --compression and --refcount-bits are for qcow2 images")
        }
        switch format {
        case .raw:
            guard !isCompressed else { throw WrongUsage("raw images are not compressed: take qcow2 or vmdk") }
            return .raw
        case .vmdk: return .vmdk(isStreamOptimized: isCompressed)
        case .qcow2:
            var options = QCOW2Options(byteCount: 0)
            if let clusterSize { options.clusterSize = try OptionValues.clusterSize(clusterSize) }
            if let compression { options.compression = try OptionValues.compression(compression) }
            if let refcountBits { options.refcountBits = try OptionValues.refcountBits(refcountBits) }
            return .qcow2(options, isCompressed: isCompressed)
        }
    }
}
