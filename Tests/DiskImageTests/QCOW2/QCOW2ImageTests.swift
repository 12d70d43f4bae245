import DiskImage
import DiskTestSupport
import Glibc
import Linux
import Synchronization
import TestSupport
import Testing

@Suite("qcow2 image") struct QCOW2ImageTests {
    /// An image in memory.
    static func make(_ byteCount: UInt64 = 1 << 20, clusterSize: UInt64 = 4096, _ change: (inout QCOW2Options) -> Void = { _ in }) throws -> ImageFile {
        let file = try ImageFile.memory()
        var options = QCOW2Options(byteCount: byteCount)
        options.clusterSize = clusterSize
        change(&options)
        try QCOW2Image.create(file, options)
        return file
    }

    @Test func `a new image is zeros and says what it is`() throws {
        let file = try Self.make(1_000_000, clusterSize: 65536) {
            $0.compression = .zstd
            $0.lazyRefcounts = true
            $0.refcountBits = 8
            $0.backing = QCOW2Backing(name: "base.raw", format: "raw")
        }
        let header = try QCOW2Header(reading: file)
        #expect(header.backing == QCOW2Backing(name: "base.raw", format: "raw"))
        #expect(throws: ImageError.self) { try QCOW2Image(file) }
        let base = try RawImage(ImageFile(owning: try FileDescriptor.memory("base", byteCount: 4096), name: "base", isReadOnly: true))
        let image = try QCOW2Image(file, backing: base)
        #expect(image.byteCount == 1_000_448)
        let info = try image.info
        #expect(info.version == 3 && info.clusterSize == 65536 && info.refcountBits == 8 && info.compression == .zstd)
        #expect(info.hasLazyRefcounts && !info.hasExtendedL2 && !info.isDirty && !info.isCorrupt && info.snapshots.isEmpty)
        #expect(try DiskModel.contents(of: image) == [UInt8](repeating: 0, count: 1_000_448))
    }

    @Test func `options that no image has are refused`() throws {
        let wrong: [(String, (inout QCOW2Options) -> Void)] = [
            ("clusters", { $0.clusterSize = 3000 }), ("clusters", { $0.clusterSize = 4 << 20 }), ("refcounts", { $0.refcountBits = 3 }),
            ("version", { $0.version = 4 }), ("version 2", { $0.version = 2; $0.refcountBits = 8 }),
            ("version 2", { $0.version = 2; $0.lazyRefcounts = true }), ("larger clusters", { $0.byteCount = 1 << 60; $0.clusterSize = 512 }),
            ("subclusters", { $0.clusterSize = 4096; $0.extendedL2 = true }), ("512 bytes", { $0.byteCount = 0 }),
            ("does not fit", { $0.clusterSize = 512; $0.backing = QCOW2Backing(name: String(repeating: "x", count: 600), format: nil) }),
        ]
        for (text, change) in wrong {
            let error = #expect(throws: ImageError.self) { try Self.make(1 << 20, change) }
            #expect(error?.kind == .refused)
            #expect(error?.description.contains(text) == true, "\(error?.description ?? "")")
        }
    }

    @Test(arguments: [2, 3]) func `what is not written shows from below, and below is never changed`(version: Int) throws {
        let base = ImageFile(owning: try FileDescriptor.memory("base", byteCount: 0), name: "base", isReadOnly: false)
        let below = (0..<300_000).map { UInt8(truncatingIfNeeded: $0 / 100) }
        try below.withUnsafeBytes { try base.write($0, at: 0) }
        let file = try Self.make(400 * 1024, clusterSize: 8192) {
            $0.version = version
            $0.backing = QCOW2Backing(name: "base", format: "raw")
        }
        let image = try QCOW2Image(file, backing: try RawImage(base))
        var model = DiskModel(bytes: below + [UInt8](repeating: 0, count: 400 * 1024 - below.count))
        #expect(DiskModel.difference(try DiskModel.contents(of: image), model.bytes) == nil)
        var random = SplitMix64(seed: 7)
        for _ in 0..<60 { try model.change(image, &random) }
        #expect(DiskModel.difference(try DiskModel.contents(of: image), model.bytes) == nil)
        #expect(try base.contents() == below)
        // Zeros hide what lies below, and what is not needed any more does not come back.
        try image.writeZeroes(at: 0, count: 100_000, mayDiscard: true)
        #expect(try image.bytes(at: 0, count: 100_000).allSatisfy { $0 == 0 })
        try image.discard(at: 0, count: image.byteCount)
        try image.close()
        #expect(try image.check().isClean)
    }

    @Test func `transfers are for what lies in the file, and hold it`() throws {
        let image = try QCOW2Image(try Self.make())
        #expect(image.beginTransfer(.write, at: 0, count: 4096) == nil)
        #expect(image.beginTransfer(.read, at: 0, count: 1 << 30) == Extent(.zeros, byteCount: 1 << 20))
        #expect(image.beginTransfer(.read, at: 1 << 20, count: 1) == nil)
        // Three clusters in a row.
        try image.put([UInt8](repeating: 1, count: 3 * 4096), at: 8192)
        let extent = try #require(image.beginTransfer(.write, at: 9000, count: 1 << 20))
        #expect(extent.byteCount == 3 * 4096 - 808)
        guard case .file(let descriptor, let offset) = extent.place else { throw ImageError(.refused, "", "no place") }
        try #require(pwrite(descriptor, [0x77], 1, off_t(offset)) == 1)
        #expect(try image.bytes(at: 9000, count: 2) == [0x77, 1])
        // Freed, and on the medium: but somebody is still writing there.
        try image.discard(at: 8192, count: 3 * 4096)
        try image.flush()
        try image.put([UInt8](repeating: 2, count: 3 * 4096), at: 1 << 19)
        let other = try #require(image.beginTransfer(.read, at: 1 << 19, count: 1 << 20))
        guard case .file(_, let place) = other.place else { throw ImageError(.refused, "", "no place") }
        #expect(place + 3 * 4096 <= offset & ~4095 || place >= offset + extent.byteCount)
        image.endTransfer(.read, other)
        image.endTransfer(.write, extent)
        // Now it can be used again, but not before a flush said so.
        try image.flush()
        try image.put([UInt8](repeating: 3, count: 3 * 4096), at: 0)
        let reused = try #require(image.beginTransfer(.read, at: 0, count: 4096))
        guard case .file(_, let again) = reused.place else { throw ImageError(.refused, "", "no place") }
        #expect(again == offset & ~4095)
        image.endTransfer(.read, reused)
        try image.close()
        #expect(try image.check().isClean)
    }

    @Test func `room that was freed is not used again before the tables say so on the medium`() throws {
        let image = try QCOW2Image(try Self.make())
        func place(_ offset: UInt64) throws -> Extent.Place {
            let extent = try #require(image.beginTransfer(.read, at: offset, count: 4096))
            defer { image.endTransfer(.read, extent) }
            return extent.place
        }
        try image.put([UInt8](repeating: 1, count: 4096), at: 0)
        try image.flush()
        let first = try place(0)
        try image.discard(at: 0, count: 4096)
        try image.put([UInt8](repeating: 2, count: 4096), at: 4096)
        #expect(try place(4096) != first)
        try image.flush()
        try image.put([UInt8](repeating: 3, count: 4096), at: 8192)
        #expect(try place(8192) == first)
    }

    @Test func `discard gives room back to the file system`() throws {
        let folder = try ScratchFolder()
        let file = try ImageFile.open(folder["disk.qcow2"], create: true)
        try QCOW2Image.create(file, QCOW2Options(byteCount: 16 << 20))
        let image = try QCOW2Image(file)
        func blocks() -> Int {
            var status = stat()
            _ = fstat(file.descriptor, &status)
            return Int(status.st_blocks) * 512
        }
        try image.put([UInt8](repeating: 5, count: 8 << 20), at: 0)
        try image.flush()
        let full = blocks()
        try image.discard(at: 0, count: 8 << 20)
        try image.flush()
        #expect(full >= 8 << 20)
        #expect(blocks() < 2 << 20)
    }

    @Test func `lazy refcounts are mended when the image was not closed`() throws {
        let recorder = Recorder()
        let file = try ImageFile.memory(recorder)
        var options = QCOW2Options(byteCount: 1 << 20)
        options.lazyRefcounts = true
        try QCOW2Image.create(file, options)
        let image = try QCOW2Image(file)
        try image.put([1, 2, 3], at: 500_000)
        try image.flush()
        let crashed = ImageFile(owning: try Recorder.replay(recorder.changes[...]), name: "crashed", isReadOnly: false)
        #expect(try QCOW2Header(reading: crashed).incompatible.contains(.dirty))
        #expect(try QCOW2Image(crashed, for: .check).check().corruptions > 0)
        let opened = try QCOW2Image(crashed)
        #expect(!opened.header.incompatible.contains(.dirty))
        #expect(try opened.bytes(at: 500_000, count: 3) == [1, 2, 3])
        #expect(try opened.check().isClean)
        try image.close()
        #expect(!image.header.incompatible.contains(.dirty))
    }

    @Test func `compressed clusters share clusters of the file and are read back`() throws {
        for kind in QCOW2Compression.allCases {
            let file = try Self.make(2 << 20, clusterSize: 65536) { $0.compression = kind }
            let image = try QCOW2Image(file)
            var model = DiskModel(byteCount: 2 << 20)
            for cluster in 0..<24 {
                let bytes = (0..<65536).map { UInt8(truncatingIfNeeded: $0 / (cluster + 1)) }
                try bytes.withUnsafeBytes { try image.writeCompressed($0, at: UInt64(cluster) << 16) }
                model.replace(cluster << 16, bytes)
            }
            #expect(throws: ImageError.self) { try [1, 2].withUnsafeBytes { try image.writeCompressed($0, at: 0) } }
            try image.close()
            #expect(try file.byteCount() < 1 << 20)
            // Changed in part: the rest stays.
            try image.put([9, 9, 9], at: 100_000)
            model.replace(100_000, [9, 9, 9])
            #expect(DiskModel.difference(try DiskModel.contents(of: image), model.bytes) == nil)
            try image.close()
            let result = try image.check()
            #expect(result.isClean && result.compressedClusters == 23, "\(result.messages)")
        }
    }

    @Test(.timeLimit(.minutes(1)))
    func `maintenance waits for a caller's transfers, and he can read and write until they are over`() throws {
        let image = try QCOW2Image(try Self.make())
        try image.put([UInt8](repeating: 1, count: 8192), at: 0)
        let extent = try #require(image.beginTransfer(.write, at: 0, count: 4096))
        let outcome = Outcome()
        let thread = try PosixThread("maintenance") {
            do {
                try image.createSnapshot(name: "meanwhile")
                outcome.text.withLock { $0 = "done" }
            } catch {
                outcome.text.withLock { $0 = "\(error)" }
            }
        }
        // Once it waits no transfer begins; until then this one ends at once.
        while let other = image.beginTransfer(.read, at: 4096, count: 1) { image.endTransfer(.read, other) }
        try image.put([7], at: 500_000)
        #expect(try image.bytes(at: 500_000, count: 1) == [7])
        #expect(outcome.text.withLock { $0 } == nil)
        image.endTransfer(.write, extent)
        thread.join()
        #expect(outcome.text.withLock { $0 } == "done")
        #expect(image.snapshots.count == 1)
    }

    @Test func `requests of several threads do not get in each other's way`() throws {
        let file = try Self.make(4 << 20)
        let image = try QCOW2Image(file)
        let results = Mutex<[(DiskModel, Int)]>([])
        let problems = Mutex<[String]>([])
        let share = 1 << 20
        var threads: [PosixThread] = []
        for number in 0..<4 {
            threads.append(
                try PosixThread("disk \(number)") {
                    do {
                        var random = SplitMix64(seed: UInt64(number))
                        // Between each other's clusters: 1500 bytes by turns.
                        var model = DiskModel(byteCount: share)
                        for _ in 0..<300 {
                            let piece = Int.random(in: 0..<(share / 1500), using: &random)
                            let byte = UInt8.random(in: 1...255, using: &random)
                            let bytes = [UInt8](repeating: byte, count: 1500)
                            let offset = (piece * 4 + number) * 1500
                            try image.put(bytes, at: UInt64(offset))
                            model.replace(piece * 1500, bytes)
                            let found = try image.bytes(at: UInt64(offset), count: 1500)
                            if found != bytes { problems.withLock { $0.append("thread \(number), piece \(piece)") } }
                            if byte < 20 { try image.flush() }
                            if byte == 33 { try image.createSnapshot(name: "\(number) \(piece) \(random.next())") }
                        }
                        results.withLock { [model] in $0.append((model, number)) }
                    } catch {
                        problems.withLock { $0.append("\(error)") }
                    }
                })
        }
        for thread in threads { thread.join() }
        #expect(problems.withLock { $0 } == [])
        try image.close()
        let disk = try DiskModel.contents(of: image)
        for (model, number) in results.withLock({ $0 }) {
            for piece in 0..<(share / 1500) where !(0..<1500).allSatisfy({ disk[(piece * 4 + number) * 1500 + $0] == model.bytes[piece * 1500 + $0] }) {
                Issue.record("thread \(number), piece \(piece)")
            }
        }
        let result = try image.check()
        #expect(result.isClean, "\(result.messages)")
    }

    private final class Outcome: Sendable {
        let text = Mutex<String?>(nil)
    }
}
