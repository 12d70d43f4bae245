import DiskImage
import Glibc
import Linux
import TestSupport
import Testing

/// VMDK files that somebody made to harm whoever reads them.
@Suite("Hostile VMDK images", .timeLimit(.minutes(5))) struct VMDKHostileTests {
    private static func sparse(_ byteCount: UInt64 = 4 << 20) throws -> [UInt8] {
        let file = ImageFile(owning: try FileDescriptor.memory("disk", byteCount: 0), name: "disk", isReadOnly: false)
        try VMDKImage.create(file, byteCount: byteCount, fileName: "disk.vmdk")
        let image = try VMDKImage(file)
        for place: UInt64 in [0, 100_000, 2 << 20] where place < byteCount { try image.put([1, 2, 3], at: place) }
        return try bytes(file)
    }

    private static func stream() throws -> [UInt8] {
        let source = try RawImage(ImageFile(owning: try FileDescriptor.memory("disk", byteCount: 4 << 20), name: "disk", isReadOnly: false))
        for place: UInt64 in [0, 100_000, 2 << 20] { try source.put([1, 2, 3], at: place) }
        let file = ImageFile(owning: try FileDescriptor.memory("disk", byteCount: 0), name: "disk", isReadOnly: false)
        try Conversion(.vmdk(isStreamOptimized: true), byteCount: 4 << 20).run(from: source, into: file, fileName: "disk.vmdk")
        return try bytes(file)
    }

    private static func bytes(_ file: ImageFile) throws -> [UInt8] {
        var bytes = [UInt8](repeating: 0, count: Int(try file.byteCount()))
        _ = try bytes.withUnsafeMutableBytes { try file.read(into: $0, at: 0) }
        return bytes
    }

    private static func file(_ bytes: [UInt8]) throws -> ImageFile {
        let file = ImageFile(owning: try FileDescriptor.memory("disk", byteCount: 0), name: "disk", isReadOnly: false)
        try bytes.withUnsafeBytes { try file.write($0, at: 0) }
        return file
    }

    private func refusal(_ bytes: [UInt8]) throws -> ImageError? {
        do {
            _ = try VMDKImage(try Self.file(bytes))
            return nil
        } catch {
            return error as? ImageError
        }
    }

    /// Fields of the header: offset, size, bad values.
    @Test(arguments: [
        (0, 4, [0]), (4, 4, [0, 4, 0xFFFF_FFFF]), (8, 4, [1 << 3, 1 << 31, 1 << 16, 1 << 17]),
        (12, 8, [0, 1 << 33, .max, 8193]), (20, 8, [0, 1, 7, 24, 8192, .max]), (28, 8, [0, .max, 1 << 31]), (36, 8, [0, 4096, .max]),
        (44, 4, [0, 1, 513, 0xFFFF_FFFF]), (48, 8, [0, .max, 1 << 40, 1 << 20]), (56, 8, [0, .max, 1 << 40, 1 << 20]),
        (73, 1, [0x0D]), (77, 2, [1, 2]),
    ] as [(Int, Int, [UInt64])])
    func `field that cannot be is refused`(offset: Int, size: Int, values: [UInt64]) throws {
        let good = try Self.sparse()
        #expect(try refusal(good) == nil)
        for value in values {
            var bytes = good
            for index in 0..<size { bytes[offset + index] = UInt8(truncatingIfNeeded: value >> UInt64(8 * index)) }
            #expect(try refusal(bytes) != nil, "\(value) at \(offset)")
        }
    }

    @Test(arguments: [
        ("version=1", "version=9"), ("parentCID=ffffffff", "parentCID=12345678"), ("monolithicSparse", "monolithicFlat\n#"),
        ("RW 8192", "RW 8191"), ("RW 8192", "RDONLY 8192"), (" SPARSE ", " FLAT "), ("\n# Extent description", "\nRW 8192 SPARSE \"/etc/passwd\""),
        ("\n#DDB", "\nCID=1"), ("\n#DDB", "\nnonsense"), ("#DDB", "\u{7}DB"), ("CID=", "DIC="),
    ])
    func `descriptor that says something else is refused`(from: String, to: String) throws {
        let good = try Self.sparse()
        let text = String(decoding: good[512..<512 * 21].prefix { $0 != 0 }, as: UTF8.self)
        #expect(text.contains(from))
        var changed = Array(text.replacing(from, with: to).utf8)
        changed += [UInt8](repeating: 0, count: 20 * 512 - changed.count)
        #expect(try refusal(Array(good[..<512]) + changed + Array(good[(512 * 21)...])) != nil)
    }

    @Test func `grain among the tables is not read, and not written`() throws {
        var bytes = try Self.sparse()
        let table = try Self.firstTable(bytes)
        for index in 0..<4 { bytes[table + index] = index == 0 ? 2 : 0 }
        let image = try VMDKImage(try Self.file(bytes))
        #expect { _ = try image.bytes(at: 0, count: 1) } throws: { ($0 as? ImageError)?.kind == .malformed }
        #expect { try image.put([1], at: 0) } throws: { ($0 as? ImageError)?.kind == .malformed }
        #expect(try VMDKCheck(try Self.file(bytes)).count > 0)
    }

    @Test func `check finds grains that are two's, outside, and copies that differ`() throws {
        let good = try Self.sparse()
        let table = try Self.firstTable(good)
        var twice = good
        twice.replaceSubrange(table + 4..<table + 8, with: good[table..<table + 4])
        #expect(try VMDKCheck(try Self.file(twice)).findings.contains { $0.contains("another's too") })
        #expect(try VMDKCheck(try Self.file(twice)).findings.contains { $0.contains("two copies") })
        var outside = good
        outside.replaceSubrange(table..<table + 4, with: [0, 0, 0, 0x10])
        #expect(try VMDKCheck(try Self.file(outside)).findings.contains { $0.contains("not in the file") })
        // It reads as zeros, and new grains lie behind it.
        let image = try VMDKImage(try Self.file(outside))
        #expect(try image.bytes(at: 0, count: 4) == [0, 0, 0, 0])
        #expect(try VMDKCheck(try Self.file(good)).count == 0)
    }

    /// Each entry of each table lies on all of them: 8192 times 512 times 8192 meetings, if somebody went through them.
    @Test func `check of tables that are all one, and grains that all lie on it, ends`() throws {
        var bytes = try Self.sparse(256 << 30)
        let table = try Self.firstTable(bytes)
        func put(_ value: Int, at offset: Int) { for index in 0..<4 { bytes[offset + index] = UInt8(truncatingIfNeeded: value >> (8 * index)) } }
        // No overhead: grains may lie anywhere behind the header.
        for field in [64, 68] { put(0, at: field) }
        for index in 0..<512 { put(table / 512, at: table + 4 * index) }
        for directory in [48, 56] {
            let start = (0..<4).reduce(0) { $0 | Int(bytes[directory + $1]) << (8 * $1) } * 512
            for index in 0..<8192 { put(table / 512, at: start + 4 * index) }
        }
        let check = try VMDKCheck(try Self.file(bytes))
        #expect(check.count >= 8192)
        #expect(check.findings.allSatisfy { $0.contains("is another's too") })
    }

    /// Where the first grain table lies, by the grain directory.
    private static func firstTable(_ bytes: [UInt8]) throws -> Int {
        func number(_ offset: Int) -> Int { (0..<4).reduce(0) { $0 | Int(bytes[offset + $1]) << (8 * $1) } }
        return number(number(56) * 512) * 512
    }

    @Test func `footer that differs from the header is refused`() throws {
        let good = try Self.stream()
        #expect(try refusal(good) == nil)
        var bytes = good
        bytes[good.count - 1024 + 12] ^= 1
        #expect(try refusal(bytes) != nil)
        #expect(try refusal(good.dropLast(512)) != nil)
        #expect(try refusal(Array(good.prefix(65536))) != nil)
    }

    @Test func `compressed grain of another place or length is refused`() throws {
        let good = try Self.stream()
        // The first grain lies behind header and descriptor.
        let grain = 65536
        for (offset, value): (Int, UInt8) in [(0, 128), (8, 0), (10, 0xFF), (13, 0xEE), (12, 0)] {
            var bytes = good
            if offset == 8 { for index in 0..<4 { bytes[grain + 8 + index] = 0 } } else { bytes[grain + offset] = value }
            let image = try VMDKImage(try Self.file(bytes))
            #expect { _ = try image.bytes(at: 0, count: 1) } throws: { ($0 as? ImageError)?.kind == .malformed }
        }
    }

    /// Random damage: an error or some bytes, and nothing else. `VMD_FUZZ_SECONDS=n` goes on with new seeds for so long.
    @Test func `random damage is survived`() throws {
        let seconds = getenv("VMD_FUZZ_SECONDS").flatMap { Double(String(cString: $0)) } ?? 0
        let end = SystemTime.monotonic() &+ UInt64(seconds * 1e9)
        var seed: UInt64 = seconds > 0 ? SystemTime.monotonic() : 1
        let good = [try Self.sparse(), try Self.stream()]
        var rounds = 0
        while rounds < 300 || SystemTime.monotonic() < end {
            var random = SplitMix64(seed: seed)
            var bytes = good[Int.random(in: 0...1, using: &random)]
            for _ in 0..<Int.random(in: 1...12, using: &random) {
                // Mostly where numbers are.
                let places = [512, 1024, 65536 + 64, bytes.count]
                let place = Int.random(in: 0..<(places.randomElement(using: &random) ?? 512), using: &random)
                bytes[place] = Bool.random(using: &random) ? .random(in: 0...255, using: &random) : [0, 1, 0x7F, 0x80, 0xFF].randomElement(using: &random) ?? 0
            }
            if UInt8.random(in: 0...9, using: &random) == 0 { bytes = Array(bytes.prefix(.random(in: 0...bytes.count, using: &random))) }
            let file = try Self.file(bytes)
            if let image = try? VMDKImage(file) {
                for _ in 0..<8 {
                    let offset = UInt64.random(in: 0..<image.byteCount, using: &random)
                    let count = Int(min(image.byteCount - offset, .random(in: 1...200_000, using: &random)))
                    _ = try? image.bytes(at: offset, count: count)
                    try? image.put([UInt8](repeating: 7, count: min(count, 5000)), at: offset)
                    try? image.discard(at: offset, count: UInt64(count))
                    _ = image.beginTransfer(.read, at: offset, count: UInt64(count))
                }
            }
            if let check = try? VMDKCheck(file) { try? check.mend(file) }
            _ = try? VMDKCheck(file)
            // A table of the damaged file may lie anywhere, but the file does not grow without bound.
            #expect(try file.byteCount() <= 4 << 40, "seed \(seed)")
            seed &+= 1
            rounds += 1
        }
    }

    // MARK: Crashes

    @Test(arguments: [false, true])
    func `image is good after a crash at any write`(losesWrites: Bool) throws {
        let recorder = Recorder()
        let file = ImageFile(owning: try FileDescriptor.memory("disk", byteCount: 0), name: "disk", isReadOnly: false, observer: recorder)
        try VMDKImage.create(file, byteCount: 2 << 20, fileName: "disk.vmdk")
        try file.synchronize()
        let image = try VMDKImage(file)
        var marks: [Int: [UInt8]] = [:]
        var model = DiskModel(byteCount: 2 << 20)
        var random = SplitMix64(seed: 3)
        let created = recorder.count
        for _ in 0..<30 {
            try model.change(image, &random)
            marks[recorder.count] = model.bytes
        }
        let changes = recorder.changes
        for count in created...changes.count {
            let replay = ImageFile(
                owning: try Recorder.replay(changes[..<count]) { losesWrites ? .random(using: &random) : true }, name: "crashed",
                isReadOnly: false)
            let found = try VMDKImage(replay)
            let contents = try DiskModel.contents(of: found)
            // A process that ends loses nothing; a power failure only what was not flushed.
            let isFlushed = if case .synchronize = changes[count - 1] { true } else { false }
            if let mark = marks[count], !losesWrites || isFlushed {
                #expect(DiskModel.difference(contents, mark) == nil, "after \(count) changes")
            }
            // A table's second copy may be ahead, and an entry may lead to a grain that was lost.
            let check = try VMDKCheck(replay)
            #expect(check.findings.allSatisfy { $0.contains("two copies") || losesWrites && $0.contains("not in the file") }, "\(check.findings)")
            // Of a process that ends at any point all is mended.
            if !losesWrites {
                try check.mend(replay)
                #expect(try VMDKCheck(replay).findings == [])
            }
            // It is written on as if nothing had been.
            for place in stride(from: UInt64(0), to: 2 << 20, by: 65536) { try found.put([7], at: place) }
            let shared = try VMDKCheck(replay).findings.filter { $0.contains("another's") }
            #expect(shared.isEmpty, "\(shared)")
        }
    }
}
