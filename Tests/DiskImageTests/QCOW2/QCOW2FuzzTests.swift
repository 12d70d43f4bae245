import DiskImage
import Glibc
import Linux
import TestSupport
import Testing

/// Images that somebody has tampered with. They get an error or wrong data, never a crash, and no more than the disk's own file is
/// touched. `VMD_FUZZ_SECONDS=n` goes on with new seeds for so long.
@Suite("qcow2: hostile images") struct QCOW2FuzzTests {
    private static let seconds = getenv("VMD_FUZZ_SECONDS").flatMap { Double(String(cString: $0)) } ?? 0

    @Test func `tables with anything in them crash nothing`() throws {
        let end = ContinuousClock.now + .seconds(Self.seconds)
        var seed: UInt64 = 1
        repeat {
            try round(seed)
            seed += 1
        } while seed <= 60 || ContinuousClock.now < end
    }

    /// Values that break what does not look.
    private static let values: [UInt64] = [
        0, 1, 2, 511, 512, 4096, 65536, 1 << 31, (1 << 32) - 1, 1 << 32, 1 << 55, (1 << 56) - 512, 1 << 61, 1 << 62, 1 << 63, .max, .max - 511,
        1 << 63 | 4096, 1 << 63 | 1024, 1 << 62 | 0x1234, 1 << 63 | 1 << 62 | 0xFFFF_FFFF, 0x7FFF_FFFF_FFFF_FFFF,
    ]

    private func round(_ seed: UInt64) throws {
        var random = SplitMix64(seed: seed)
        let file = try ImageFile.memory()
        var options = QCOW2Options.random(byteCount: 512 * UInt64.random(in: 1...600, using: &random), &random)
        options.clusterSize = min(options.clusterSize, options.extendedL2 ? 16384 : 4096)
        try QCOW2Image.create(file, options)
        do {
            let image = try QCOW2Image(file)
            var model = DiskModel(byteCount: Int(options.byteCount))
            for i in 0..<20 {
                try model.change(image, &random)
                if i == 9, options.refcountBits >= 8 { try image.createSnapshot(name: "snapshot") }
            }
            let cluster = Int(min(options.clusterSize, options.byteCount))
            try [UInt8](repeating: 7, count: cluster).withUnsafeBytes { try image.writeCompressed($0, at: 0) }
            try image.close()
        }
        let header = try QCOW2Header(reading: file)
        // Tables lie in front and behind; the header is hit most often.
        let size = Int(try file.byteCount())
        for _ in 0..<Int.random(in: 1...6, using: &random) {
            let span = [112, 4 << header.clusterBits, size][Int.random(in: 0...2, using: &random)]
            let offset = Int.random(in: 0..<max(1, min(span, size) - 8), using: &random)
            let place = UInt64(Bool.random(using: &random) ? offset & ~7 : offset)
            let bits = UInt64.random(in: 0...63, using: &random)
            let value: UInt64
            switch UInt8.random(in: 0...3, using: &random) {
            case 0: value = random.next()
            case 1: value = Self.values.randomElement(using: &random) ?? 0
            case 2: value = UInt64.random(in: 0...UInt64(size), using: &random) & ~511 | 1 << 63
            default:
                var old: UInt64 = 0
                _ = try withUnsafeMutableBytes(of: &old) { try file.read(into: $0, at: place) }
                value = UInt64(bigEndian: old) ^ 1 << bits
            }
            try withUnsafeBytes(of: value.bigEndian) { try file.write($0, at: place) }
        }
        try use(file, &random)
    }

    /// Everything that can be done with an image; every error is as good as success.
    private func use(_ file: ImageFile, _ random: inout SplitMix64) throws {
        for repairs in [false, true] {
            try ignoringErrors {
                let image = try QCOW2Image(file, for: .check)
                _ = try image.info
                _ = try image.check()
            }
            if repairs {
                try ignoringErrors {
                    let image = try QCOW2Image(file, for: .check)
                    let result = try image.check(repair: Bool.random(using: &random) ? .all : .leaks)
                    _ = result
                }
            }
            guard let image = try opened(file) else { continue }
            let limit = min(image.byteCount, 1 << 40)
            for _ in 0..<20 {
                let offset = limit == 0 ? 0 : UInt64.random(in: 0..<limit, using: &random)
                let count = min(limit - offset, 1 << UInt64.random(in: 0...14, using: &random))
                let kind = UInt8.random(in: 0...8, using: &random)
                try ignoringErrors {
                    switch kind {
                    case 0: try image.discard(at: offset, count: count)
                    case 1: try image.writeZeroes(at: offset, count: count, mayDiscard: false)
                    case 2: try image.flush()
                    case 3:
                        if let extent = image.beginTransfer(.write, at: offset, count: count) { image.endTransfer(.write, extent) }
                    case 4, 5: _ = try image.bytes(at: offset, count: Int(count))
                    default: try image.put([UInt8](repeating: 0xAA, count: Int(count)), at: offset)
                    }
                }
            }
            try ignoringErrors { try image.createSnapshot(name: "another") }
            for snapshot in image.snapshots.prefix(3) {
                try ignoringErrors { try image.applySnapshot(snapshot.id) }
                try ignoringErrors { try image.deleteSnapshot(snapshot.id) }
            }
            try ignoringErrors { try image.resize(to: 1 << 20, mayShrink: true) }
            try ignoringErrors { try image.close() }
        }
    }

    private func opened(_ file: ImageFile) throws -> QCOW2Image? {
        var image: QCOW2Image?
        try ignoringErrors { image = try QCOW2Image(file) }
        return image
    }

    private func ignoringErrors(_ body: () throws -> Void) throws {
        do {
            try body()
        } catch is ImageError {}
    }

    // MARK: One thing at a time

    private func image(_ options: QCOW2Options = QCOW2Options(byteCount: 1 << 20)) throws -> ImageFile {
        let file = try ImageFile.memory()
        try QCOW2Image.create(file, options)
        return file
    }

    private func put(_ value: UInt64, _ byteCount: Int = 8, at offset: UInt64, _ file: ImageFile) throws {
        try withUnsafeBytes(of: value.bigEndian) { try file.write(UnsafeRawBufferPointer(rebasing: $0.suffix(byteCount)), at: offset) }
    }

    /// The field of the header, its width, and what it must not be.
    @Test(arguments: [
        (4, 4, 4, "version 4"), (8, 8, 1 << 40, "backing file"), (20, 4, 30, "2^30"), (24, 8, .max, "too large"), (32, 4, 1, "encrypted"),
        (36, 4, 0, "too small"), (36, 4, 1 << 30, "32 MiB"), (40, 8, 100, "no cluster"), (40, 8, 1 << 40, "past the end"),
        (48, 8, 77, "no cluster"), (48, 8, 1 << 40, "past the end"), (56, 4, 1 << 20, "8 MiB"), (60, 4, 65537, "snapshots"),
        (64, 8, 3, "no cluster"), (72, 8, 1 << 2, "another file"), (72, 8, 1 << 40, "bit 40"), (96, 4, 7, "2^7"), (100, 4, 8, "length"),
        (104, 1, 1, "contradict"),
    ] as [(UInt64, Int, UInt64, String)])
    func `a field of the header that is not to be is named`(offset: UInt64, byteCount: Int, value: UInt64, text: String) throws {
        let file = try image()
        try put(value, byteCount, at: offset, file)
        let error = #expect(throws: ImageError.self) { try QCOW2Image(file) }
        #expect(error?.description.contains(text) == true, "\(error?.description ?? "")")
    }

    @Test func `an unknown feature is called by its name in the file`() throws {
        let file = try image()
        var bytes = [UInt8](repeating: 0, count: 8 + 48)
        bytes.replaceSubrange(0..<8, with: [0x68, 0x03, 0xF8, 0x57, 0, 0, 0, 48])
        bytes.replaceSubrange(8..<10, with: [0, 17])
        bytes.replaceSubrange(10..<(10 + 11), with: Array("time travel".utf8))
        try bytes.withUnsafeBytes { try file.write($0, at: 112) }
        try put(1 << 17, at: 72, file)
        let error = #expect(throws: ImageError.self) { try QCOW2Image(file) }
        #expect(error?.description.contains("time travel") == true)
    }

    @Test func `a corrupt image is read, but not written before it is repaired`() throws {
        let file = try image()
        try put(2, at: 72, file)
        #expect(throws: ImageError.self) { try QCOW2Image(file) }
        #expect(try QCOW2Image(file, for: .check).check(repair: .all).isClean)
        try QCOW2Image(file).put([1], at: 0)
    }

    @Test func `a guest cannot write to a table by an L2 entry that points at it`() throws {
        let file = try image()
        do {
            let image = try QCOW2Image(file)
            try image.put([1], at: 0)
            try image.close()
        }
        let bytes = try file.contents()
        let l1 = bytes.numbers(bytes.numbers(40))
        let l2 = l1 & 0x00FF_FFFF_FFFF_FE00
        for target in [bytes.numbers(40), bytes.numbers(48), l2, 0] {
            // In place, as the flag allows.
            try put(target | 1 << 63, at: l2, file)
            let before = try file.contents()
            let image = try QCOW2Image(file)
            #expect(image.beginTransfer(.write, at: 0, count: 512) == nil)
            if target != 0 {
                let error = #expect(throws: ImageError.self) { try image.put([0x55], at: 700) }
                #expect(error?.kind == .malformed)
                #expect(image.header.incompatible.contains(.corrupt))
                var after = try file.contents()
                // The mark.
                after[79] = before[79]
                #expect(after == before)
            }
            try put(0, at: 72, file)
        }
    }

    /// Half a terabyte of L2 tables in a file of a few megabytes.
    @Test(.timeLimit(.minutes(1))) func `tables in holes of the file keep nobody busy`() throws {
        let file = try ImageFile.memory()
        var options = QCOW2Options(byteCount: 1 << 57)
        options.clusterSize = 2 << 20
        try QCOW2Image.create(file, options)
        let count = 1 << 18
        // l1_table_offset (qcow2.txt, "Header").
        var l1Offset: UInt64 = 0
        _ = try withUnsafeMutableBytes(of: &l1Offset) { try file.read(into: $0, at: 40) }
        let first = try file.byteCount()
        let entries = (0..<UInt64(count)).map { (first + $0 << 21).bigEndian }
        try entries.withUnsafeBytes { try file.write($0, at: UInt64(bigEndian: l1Offset)) }
        try file.setByteCount(first + UInt64(count) << 21)
        let result = try QCOW2Image(file, for: .check).check()
        #expect(result.corruptions == count && result.errors == 0 && result.allocatedClusters == 0)
    }

    @Test func `compressed bytes that make more or less than a cluster are an error`() throws {
        for kind in QCOW2Compression.allCases {
            var options = QCOW2Options(byteCount: 1 << 20)
            options.clusterSize = 4096
            options.compression = kind
            let small = try image(options)
            let large = try image(options)
            options.clusterSize = 8192
            let source = try image(options)
            let donor = try QCOW2Image(source)
            try [UInt8](repeating: 9, count: 8192).withUnsafeBytes { try donor.writeCompressed($0, at: 0) }
            try donor.close()
            let bytes = try source.contents()
            let entry = bytes.numbers(bytes.numbers(bytes.numbers(40)) & 0x00FF_FFFF_FFFF_FE00)
            let place = Int(entry & ((1 << 57) - 1))
            for (file, packed) in [(small, Array(bytes[place...].prefix(512))), (large, [UInt8](repeating: 0x11, count: 512))] {
                let image = try QCOW2Image(file)
                try [UInt8](repeating: 1, count: 4096).withUnsafeBytes { try image.writeCompressed($0, at: 0) }
                try image.close()
                let old = try file.contents()
                let l2 = old.numbers(old.numbers(40)) & 0x00FF_FFFF_FFFF_FE00
                let target = old.numbers(l2) & ((1 << 58) - 1)
                try packed.withUnsafeBytes { try file.write($0, at: target) }
                #expect(throws: ImageError.self) { try QCOW2Image(file).bytes(at: 0, count: 10) }
            }
        }
    }
}

extension [UInt8] {
    /// The number at an offset.
    func numbers(_ offset: UInt64) -> UInt64 {
        self[Int(offset)..<(Int(offset) + 8)].reduce(0) { $0 << 8 | UInt64($1) }
    }
}
