import DiskImage
import DiskTestSupport
import Glibc
import Linux
import TestSupport
import Testing

/// Images that go back and forth between this program and QEMU's.
@Suite("qcow2: QEMU as the peer", .enabled(if: Peer.hasQEMU, "qemu-utils is not installed")) struct QCOW2PeerTests {
    /// - Returns: what `qemu-img check` has to say against it.
    static func complaint(_ path: String) throws -> String? {
        let result = try Peer.run(["qemu-img", "check", "-f", "qcow2", path])
        return result.status == 0 ? nil : result.output
    }

    /// The disk as QEMU reads it.
    static func contents(_ path: String, _ folder: ScratchFolder) throws -> [UInt8] {
        _ = try? Peer.run(["rm", "-f", folder["out.raw"]])
        try Peer.must("qemu-img", "convert", "-f", "qcow2", "-O", "raw", path, folder["out.raw"])
        return try folder.read("out.raw")
    }

    @Test(arguments: 1...12) func `whatever one writes the other reads`(seed: UInt64) throws {
        var random = SplitMix64(seed: seed)
        let folder = try ScratchFolder()
        let path = folder["disk.qcow2"]
        let size = 512 * UInt64.random(in: 1...6000, using: &random)
        var options = QCOW2Options.random(byteCount: size, &random)
        if Int.random(in: 0...3, using: &random) == 0 { options.preallocation = .allCases.randomElement(using: &random) ?? .off }
        let says = Comment(rawValue: "seed \(seed): \(options)")
        do {
            let file = try ImageFile.open(path, create: true)
            try QCOW2Image.create(file, options)
        }
        #expect(try Self.complaint(path) == nil, says)
        var model = DiskModel(byteCount: Int(size))
        for _ in 0..<4 {
            do {
                let image = try QCOW2Image(try ImageFile.open(path))
                for _ in 0..<25 { try model.change(image, &random) }
                for _ in 0..<Int.random(in: 0...8, using: &random) { try compress(image, &model, &random) }
                #expect(DiskModel.difference(try DiskModel.contents(of: image), model.bytes) == nil, says)
                try image.close()
                let result = try image.check()
                #expect(result.isClean, "seed \(seed): \(result.messages)")
                #expect(DiskModel.difference(try DiskModel.contents(of: image), model.bytes) == nil, says)
            }
            try #require(try Self.complaint(path) == nil, says)
            try #require(DiskModel.difference(try Self.contents(path, folder), model.bytes) == nil, says)
            // QEMU's turn.
            for _ in 0..<8 {
                let offset = Int.random(in: 0..<Int(size / 512), using: &random) * 512
                let count = min(Int(size) - offset, 512 * Int.random(in: 1...200, using: &random))
                let pattern = UInt8.random(in: 0...255, using: &random)
                switch UInt8.random(in: 0...3, using: &random) {
                case 0: try Self.write("-z", offset, count, 0, path, &model)
                case 1:
                    let cluster = Int(options.clusterSize)
                    let first = offset / cluster * cluster
                    // QEMU refuses where there is a cluster already.
                    try Self.write("-c -P \(pattern)", first, min(Int(size) - first, cluster), pattern, path, &model, mayFail: true)
                default: try Self.write("-P \(pattern)", offset, count, pattern, path, &model)
                }
            }
        }
        let image = try QCOW2Image(try ImageFile.open(path))
        #expect(DiskModel.difference(try DiskModel.contents(of: image), model.bytes) == nil, says)
        #expect(try image.check().isClean, says)
    }

    private static func write(
        _ how: String, _ offset: Int, _ count: Int, _ byte: UInt8, _ path: String, _ model: inout DiskModel, mayFail: Bool = false
    ) throws {
        let result = try Peer.run(["qemu-io", "-f", "qcow2", "-c", "write \(how) \(offset) \(count)", path])
        if result.status == 0 { model.fill(offset, count, byte) }
        try #require(result.status == 0 || mayFail, "\(how) \(offset) \(count): \(result.output)")
    }

    /// A cluster written compressed.
    private func compress(_ image: QCOW2Image, _ model: inout DiskModel, _ random: inout SplitMix64) throws {
        let cluster = try image.info.clusterSize
        let offset = UInt64.random(in: 0...(image.byteCount - 1) / cluster, using: &random) * cluster
        let count = Int(min(cluster, image.byteCount - offset))
        let period = Int.random(in: 1...1000, using: &random)
        let bytes = (0..<count).map { UInt8(truncatingIfNeeded: $0 / period) }
        try bytes.withUnsafeBytes { try image.writeCompressed($0, at: offset) }
        model.replace(Int(offset), bytes)
    }
}

extension DiskModel {
    mutating func fill(_ offset: Int, _ count: Int, _ byte: UInt8) {
        replace(offset, [UInt8](repeating: byte, count: count))
    }

    mutating func replace(_ offset: Int, _ new: [UInt8]) {
        var bytes = self.bytes
        self = DiskModel(bytes: [])
        bytes.replaceSubrange(offset..<(offset + new.count), with: new)
        self = DiskModel(bytes: bytes)
    }
}
