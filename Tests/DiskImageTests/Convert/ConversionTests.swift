import DiskImage
import DiskTestSupport
import Glibc
import Linux
import Synchronization
import TestSupport
import Testing

/// Images made of others, by every way there is, compared with qemu-img's.
@Suite("Conversions", .timeLimit(.minutes(3))) struct ConversionTests {
    private let folder: ScratchFolder

    init() throws { folder = try ScratchFolder() }

    private static let kinds = ["raw", "qcow2", "qcow2-zlib", "qcow2-zstd", "vmdk", "vmdk-stream"]

    private func target(_ kind: String, _ random: inout SplitMix64) -> Conversion.Target {
        switch kind {
        case "raw": return .raw
        case "vmdk": return .vmdk(isStreamOptimized: false)
        case "vmdk-stream": return .vmdk(isStreamOptimized: true)
        default:
            var options = QCOW2Options(byteCount: 0)
            options.clusterSize = 512 << UInt64.random(in: 0...12, using: &random)
            options.refcountBits = 1 << Int.random(in: 0...6, using: &random)
            if kind == "qcow2-zstd" { options.compression = .zstd }
            return .qcow2(options, isCompressed: kind != "qcow2")
        }
    }

    private func open(_ path: String, _ format: ImageFormat) throws -> any BlockImage {
        try ImageChain(ImageLocation(path: path, format: format), ImageOpening(isReadOnly: true)).assemble()
    }

    /// A raw disk with data, zeros that are written down, and holes.
    private func disk(_ name: String, _ random: inout SplitMix64, sectors: Int = 12_000) throws -> [UInt8] {
        let size = Int.random(in: 1...sectors, using: &random) * 512
        let file = try ImageFile.open(folder[name], create: true)
        try RawImage.create(file, byteCount: UInt64(size))
        var model = DiskModel(byteCount: size)
        for _ in 0..<10 { try model.change(try RawImage(file), &random) }
        return model.bytes
    }

    private func convert(_ source: any BlockImage, _ target: Conversion.Target, to name: String, threads: Int = 2) throws {
        let new = try NewFile(folder[name])
        var conversion = Conversion(target, byteCount: source.byteCount)
        conversion.threadCount = threads
        try conversion.run(from: source, into: try new.open(), fileName: name)
        try new.finish(as: target.format, isDurable: false)
    }

    @Test(arguments: kinds, kinds) func `any format becomes any other`(first: String, second: String) throws {
        var random = SplitMix64(seed: UInt64(first.utf8.count * 31 + second.utf8.count) &* 977)
        let expected = try disk("start", &random)
        try convert(try open(folder["start"], .raw), target(first, &random), to: "first", threads: 3)
        let between = try open(folder["first"], target(first, &random).format)
        #expect(DiskModel.difference(try DiskModel.contents(of: between), expected) == nil)
        try convert(between, target(second, &random), to: "second")
        let end = try open(folder["second"], target(second, &random).format)
        #expect(DiskModel.difference(try DiskModel.contents(of: end), expected) == nil)
    }

    @Test(.enabled(if: Peer.hasQEMU, "no qemu-img: install qemu-utils"), arguments: kinds, 0..<3)
    func `qemu-img reads what we convert to`(kind: String, seed: UInt64) throws {
        var random = SplitMix64(seed: UInt64(kind.utf8.count) &* 977 &+ seed)
        let expected = try disk("start", &random)
        let target = target(kind, &random)
        try convert(try open(folder["start"], .raw), target, to: "ours", threads: 3)
        let format = target.format.rawValue
        try Peer.must("qemu-img", "convert", "-f", format, "-O", "raw", folder["ours"], folder["theirs"])
        #expect(DiskModel.difference(Array(try folder.read("theirs").prefix(expected.count)), expected) == nil)
        if format == "qcow2" { try Peer.must("qemu-img", "check", "-f", format, folder["ours"]) }
    }

    @Test(.enabled(if: Peer.hasQEMU, "no qemu-img: install qemu-utils"), arguments: 0..<8)
    func `qemu-img's images with random options are read as it reads them`(seed: UInt64) throws {
        var random = SplitMix64(seed: seed &+ 4000)
        let expected = try disk("start", &random)
        var options = ["cluster_size=\(512 << Int.random(in: 0...12, using: &random))"]
        if Bool.random(using: &random) {
            options.append("compat=0.10")
        } else {
            options += ["compat=1.1", "refcount_bits=\(1 << Int.random(in: 0...6, using: &random))"]
            if Bool.random(using: &random) { options.append("lazy_refcounts=on") }
            if Bool.random(using: &random) { options.append("compression_type=zstd") }
        }
        var words = ["qemu-img", "convert", "-f", "raw", "-O", "qcow2", "-o", options.joined(separator: ",")]
        if Bool.random(using: &random) { words.append("-c") }
        let made = try Peer.run(words + [folder["start"], folder["theirs.qcow2"]])
        try #require(made.status == 0, "\(options): \(made.output)")
        let theirs = try open(folder["theirs.qcow2"], .qcow2)
        #expect(DiskModel.difference(try DiskModel.contents(of: theirs), expected) == nil, "\(options)")
        try convert(theirs, .raw, to: "ours.raw")
        #expect(DiskModel.difference(try folder.read("ours.raw"), expected) == nil, "\(options)")
    }

    @Test(arguments: ["raw", "qcow2", "vmdk"]) func `zeros stay holes`(kind: String) throws {
        var random = SplitMix64(seed: 5)
        let file = try ImageFile.open(folder["start"], create: true)
        try RawImage.create(file, byteCount: 1 << 30)
        let image = try RawImage(file)
        try image.put([1], at: 512 << 20)
        // Zeros that are written down are left out too.
        try image.put([UInt8](repeating: 0, count: 8 << 20), at: 1 << 20)
        let target: Conversion.Target = kind == "qcow2" ? .qcow2(QCOW2Options(byteCount: 0), isCompressed: false) : target(kind, &random)
        try convert(image, target, to: "end")
        let summary = try ImageSummary(ImageLocation(path: folder["end"], format: target.format))
        #expect(summary.byteCount == 1 << 30)
        #expect(summary.hostByteCount < 1 << 20)
        #expect(try open(folder["end"], target.format).bytes(at: 512 << 20, count: 2) == [1, 0])
    }

    @Test func `image above others is flattened`() throws {
        var random = SplitMix64(seed: 6)
        let base = try disk("base.raw", &random)
        var options = QCOW2Options(byteCount: UInt64(base.count) + (1 << 20))
        options.backing = QCOW2Backing(name: "base.raw", format: "raw")
        try QCOW2Image.create(try .open(folder["top.qcow2"], create: true), options)
        var model = DiskModel(bytes: base + [UInt8](repeating: 0, count: 1 << 20))
        do {
            let top = try ImageChain(ImageLocation(folder["top.qcow2"]), ImageOpening(isReadOnly: false)).assemble()
            for _ in 0..<10 { try model.change(top, &random) }
            try (top as? QCOW2Image)?.close()
        }
        try convert(try open(folder["top.qcow2"], .qcow2), .raw, to: "end.raw")
        #expect(DiskModel.difference(try folder.read("end.raw"), model.bytes) == nil)
    }

    @Test func `larger disk ends with zeros, a smaller one is refused`() throws {
        var random = SplitMix64(seed: 7)
        let expected = try disk("start", &random)
        let source = try open(folder["start"], .raw)
        for kind in Self.kinds {
            let size = UInt64(expected.count) + (3 << 20) + 512
            let new = try NewFile(folder[kind])
            try Conversion(target(kind, &random), byteCount: size).run(from: source, into: try new.open(), fileName: kind)
            try new.finish(isDurable: true)
            let end = try open(folder[kind], target(kind, &random).format)
            #expect(end.byteCount == size)
            #expect(DiskModel.difference(try DiskModel.contents(of: end), expected + [UInt8](repeating: 0, count: (3 << 20) + 512)) == nil)
            let small = try NewFile(folder["small"]).open()
            let conversion = Conversion(target(kind, &random), byteCount: source.byteCount - 512)
            #expect(throws: ImageError.self) { try conversion.run(from: source, into: small, fileName: kind) }
        }
    }

    // MARK: What goes wrong

    @Test(arguments: kinds) func `full disk is an error at any write, and nothing is left`(kind: String) throws {
        var random = SplitMix64(seed: 8)
        _ = try disk("start", &random, sectors: 2000)
        let source = try open(folder["start"], .raw)
        var options = QCOW2Options(byteCount: 0)
        options.compression = kind == "qcow2-zstd" ? .zstd : .zlib
        let target: Conversion.Target = kind.hasPrefix("qcow2") ? .qcow2(options, isCompressed: kind != "qcow2") : target(kind, &random)
        var failures = 0
        var count = 0
        while count < 10_000 {
            // At each of the first ones, and then at some.
            defer { count += 1 + count / 16 }
            let new = try NewFile(folder["new"])
            let conversion = Conversion(target, byteCount: source.byteCount)
            let recorder = Recorder()
            recorder.fail(after: count, with: ENOSPC, times: .max)
            let file = try new.open(observer: recorder)
            do {
                try conversion.run(from: source, into: file, fileName: "new")
                break
            } catch {
                failures += 1
                #expect("\(error)".contains("No space left"), "\(error)")
            }
        }
        #expect(failures > 0 && failures < 10_000)
        #expect(folder.names == ["start"])
    }

    @Test func `cancelled one ends, and leaves nothing`() throws {
        var random = SplitMix64(seed: 9)
        _ = try disk("start", &random)
        let source = try open(folder["start"], .raw)
        for kind in Self.kinds {
            let new = try NewFile(folder["new"])
            let file = try new.open()
            var conversion = Conversion(target(kind, &random), byteCount: source.byteCount)
            conversion.isCancelled = { true }
            #expect(throws: ImageError.self) { try conversion.run(from: source, into: file, fileName: "new") }
        }
        #expect(folder.names == ["start"])
    }

    @Test func `progress reaches the end, and never goes back`() throws {
        var random = SplitMix64(seed: 10)
        let expected = try disk("start", &random)
        let steps = Mutex<[UInt64]>([])
        var conversion = Conversion(.raw, byteCount: UInt64(expected.count))
        conversion.progress = { done, total in steps.withLock { $0.append(done + (total - UInt64(expected.count))) } }
        try conversion.run(from: try open(folder["start"], .raw), into: try NewFile(folder["new"]).open(), fileName: "new")
        let seen = steps.withLock { $0 }
        #expect(seen.last == UInt64(expected.count) && seen == seen.sorted())
    }
}

@Suite("New files") struct NewFileTests {
    @Test func `file has no name before it is whole`() throws {
        let folder = try ScratchFolder()
        do {
            let new = try NewFile(folder["a"])
            try RawImage.create(try new.open(), byteCount: 4096)
        }
        #expect(folder.names == [])
        let new = try NewFile(folder["a"])
        try RawImage.create(try new.open(), byteCount: 4096)
        try new.finish(as: .raw, isDurable: true)
        #expect(folder.names == ["a"])
        #expect(try folder.read("a").count == 4096)
        var status = stat()
        #expect(stat(folder["a"], &status) == 0 && status.st_mode & 0o777 == 0o600)
    }

    @Test func `file that is there is left alone`() throws {
        let folder = try ScratchFolder()
        let new = try NewFile(folder["a"])
        try folder.write("a", [1])
        do {
            try new.finish(isDurable: false)
            Issue.record("it took the place of another")
        } catch {
            #expect(error.reason.contains("exists already"))
        }
        #expect(throws: ImageError.self) { _ = try NewFile(folder["a"]) }
        symlink("nowhere", folder["link"])
        #expect(throws: ImageError.self) { _ = try NewFile(folder["link"]) }
        #expect(try folder.read("a") == [1])
    }

    @Test func `file that takes another's place does so at once`() throws {
        let folder = try ScratchFolder()
        try folder.write("a", [1])
        do {
            let new = try NewFile(folder["a"], replaces: true)
            try RawImage.create(try new.open(), byteCount: 512)
        }
        #expect(folder.names == ["a"])
        #expect(try folder.read("a") == [1])
        let new = try NewFile(folder["a"], replaces: true)
        try RawImage.create(try new.open(), byteCount: 512)
        try new.finish(isDurable: false)
        #expect(folder.names == ["a"])
        #expect(try folder.read("a").count == 512)
    }
}
