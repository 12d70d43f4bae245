import DiskImage
import DiskTestSupport
import Glibc
import Linux
import Testing

/// Several disks of one machine: all of them or none.
@Suite("Snapshots of several disks") struct DiskSnapshotTests {
    private let recorders = (0..<3).map { _ in Recorder() }
    private let disks: [QCOW2Image]

    init() throws {
        disks = try recorders.map { recorder in
            let file = try ImageFile.memory(recorder)
            try QCOW2Image.create(file, QCOW2Options(byteCount: 1 << 20))
            return try QCOW2Image(file)
        }
    }

    private func write(_ byte: UInt8) throws { for disk in disks { try disk.put([byte, byte], at: 4096) } }

    private func read() throws -> [UInt8] {
        try disks.map { disk in
            var bytes: [UInt8] = [0xEE]
            try bytes.withUnsafeMutableBytes { try disk.read(into: $0, at: 4096) }
            return bytes[0]
        }
    }

    private func names() -> [[String]] { disks.map { $0.snapshots.map(\.name) } }

    @Test func `all get it, go back to it and lose it`() throws {
        let set = try DiskSnapshots(disks)
        try write(1)
        try set.create("one")
        try write(2)
        try set.create("two")
        #expect(names() == Array(repeating: ["one", "two"], count: 3))
        try set.apply("one")
        #expect(try read() == [1, 1, 1])
        #expect(names() == Array(repeating: ["one", "two"], count: 3))
        try set.delete("one")
        #expect(throws: ImageError.self) { try set.apply("one") }
        #expect(throws: ImageError.self) { try set.delete("one") }
        try set.apply("two")
        #expect(try read() == [2, 2, 2])
        for disk in disks { #expect(try disk.check().isClean) }
    }

    @Test func `one that cannot have it is found before anything is done`() throws {
        try disks[2].createSnapshot(name: "taken")
        let set = try DiskSnapshots(disks)
        #expect(throws: ImageError.self) { try set.create("taken") }
        #expect(throws: ImageError.self) { try set.apply("taken") }
        #expect(names() == [[], [], ["taken"]])
        // A disk that came later has not got it.
        try set.delete("taken")
        #expect(names() == [[], [], []])
    }

    @Test(arguments: [0, 1, 2]) func `when one fails in the middle all are as they were`(bad: Int) throws {
        let set = try DiskSnapshots(disks)
        try write(1)
        try set.create("old")
        try write(2)
        for disk in disks { try disk.flush() }
        for after in [0, 1, 2, 4, 6, 8, 11, 14, 17, 20] {
            recorders[bad].fail(after: after, with: EIO)
            do {
                try set.create("new")
                // It was over before that.
                recorders[bad].heal()
                try set.delete("new")
                #expect(after > 5)
                break
            } catch {}
            recorders[bad].heal()
            #expect(names() == Array(repeating: ["old"], count: 3))
            #expect(try read() == [2, 2, 2])
        }
        var isRefused = false
        // Somewhere in the making of the way back, or on the way.
        for after in stride(from: 0, to: 40, by: 3) {
            recorders[bad].fail(after: after, with: EIO)
            do {
                try set.apply("old")
                recorders[bad].heal()
            } catch {
                isRefused = true
                recorders[bad].heal()
                let now = try read()
                #expect(Set(now).count == 1, "\(now) after \(after)")
            }
            try write(2)
        }
        #expect(isRefused)
        for disk in disks { #expect(try disk.check().corruptions == 0) }
    }

    @Test func `what was applied is not said to have failed when only what it was is left over`() throws {
        let set = try DiskSnapshots(disks)
        var isSeen = false
        for after in 0..<60 where !isSeen {
            for name in Set(names().flatMap(\.self)) { try set.delete(name) }
            try write(1)
            try set.create("old")
            try write(2)
            for disk in disks { try disk.flush() }
            recorders[1].fail(after: after, with: EIO)
            defer { recorders[1].heal() }
            do throws(ImageError) {
                try set.apply("old")
            } catch where error.reason.contains("was applied") {
                isSeen = true
                recorders[1].heal()
                #expect(error.reason.hasPrefix("\"old\" was applied; its snapshot \"before old 1\" is left: delete it: "))
                #expect(try read() == [1, 1, 1])
                #expect(names() == [["old"], ["old", "before old 1"], ["old"]])
            } catch {
                recorders[1].heal()
                #expect(try read() == [2, 2, 2], "\(error)")
            }
        }
        #expect(isSeen)
    }

    @Test func `a disk that cannot be written is left out`() throws {
        let file = try ImageFile.memory()
        try QCOW2Image.create(file, QCOW2Options(byteCount: 1 << 20))
        let fixed = try QCOW2Image(
            ImageFile(owning: try FileDescriptor(duplicating: file.descriptor), name: "fixed", isReadOnly: true))
        try DiskSnapshots([disks[0], fixed]).create("one")
        #expect(fixed.snapshots.isEmpty && disks[0].snapshots.count == 1)
        let error = #expect(throws: ImageError.self) { try DiskSnapshots([fixed]) }
        #expect(error?.reason == "there is no disk that can be written")
    }

    @Test func `ids are each image's own, so several disks have names only`() throws {
        try disks[0].createSnapshot(name: "other")
        let set = try DiskSnapshots(disks)
        try set.create("one")
        #expect(disks.map { $0.snapshots.last?.id } == ["2", "1", "1"])
        #expect(throws: ImageError.self) { try set.apply("1") }
        try DiskSnapshots([disks[0]]).apply("1")
    }

    @Test func `only qcow2 images have snapshots, and there must be one`() throws {
        let raw = try RawImage(try ImageFile.memory())
        let error = #expect(throws: ImageError.self) { try DiskSnapshots([disks[0], raw]) }
        #expect(error?.description.contains("only qcow2 images have snapshots: `vmctl image convert disk NEW.qcow2`") == true)
        #expect(throws: ImageError.self) { try DiskSnapshots([]) }
    }

    @Test func `an open disk says the same of itself as its file`() throws {
        let folder = try ScratchFolder()
        let base = try NewFile(folder["base.raw"])
        try RawImage.create(try base.open(), byteCount: 1 << 20)
        try base.finish(as: .raw, isDurable: false)
        let new = try NewFile(folder["top.qcow2"])
        var options = QCOW2Options(byteCount: 1 << 20)
        options.backing = QCOW2Backing(name: "base.raw", format: "raw")
        try QCOW2Image.create(try new.open(), options)
        try new.finish(as: .qcow2, isDurable: false)
        let location = ImageLocation(folder["top.qcow2"])
        let image = try ImageChain(location, ImageOpening(isReadOnly: false)).assemble()
        try (image as? QCOW2Image)?.createSnapshot(name: "a")
        #expect(try ImageSummary.chain(of: image) == ImageSummary.chain(location, allowedBases: []))
    }

    // MARK: commit and rebase

    /// What a signal does.
    private struct Stop {
        static let error = ImageError(.refused, "disk", "was interrupted")
    }

    @Test func `a commit that is interrupted leaves the disk as it reads, and is done again`() throws {
        let base = disks[0]
        let file = try ImageFile.memory()
        var options = QCOW2Options(byteCount: 1 << 20)
        options.backing = QCOW2Backing(name: "base", format: "qcow2")
        try QCOW2Image.create(file, options)
        let top = try QCOW2Image(file, backing: base)
        try top.put([UInt8](repeating: 7, count: 300_000), at: 0)
        try top.put([UInt8](repeating: 8, count: 100_000), at: 700_000)
        func contents() throws -> [UInt8] {
            var bytes = [UInt8](repeating: 0, count: 1 << 20)
            try bytes.withUnsafeMutableBytes { try top.read(into: $0, at: 0) }
            return bytes
        }
        let before = try contents()
        #expect(throws: Stop.error) { try top.commit { done throws(ImageError) in if done > 400_000 { throw Stop.error } } }
        #expect(try contents() == before)
        #expect(try top.allocation(at: 0, count: 1).kind == .data)
        #expect(try top.check().isClean && base.check().isClean)
        try top.commit()
        #expect(try contents() == before)
        #expect(try top.allocation(at: 0, count: 1 << 20).kind == .unallocated)
    }

    @Test func `a rebase that is interrupted leaves what the image stands on`() throws {
        try disks[0].put([UInt8](repeating: 7, count: 300_000), at: 0)
        let file = try ImageFile.memory()
        var options = QCOW2Options(byteCount: 1 << 20)
        options.backing = QCOW2Backing(name: "base", format: "qcow2")
        try QCOW2Image.create(file, options)
        let top = try QCOW2Image(file, backing: disks[0])
        #expect(throws: Stop.error) { try top.rebase(nil, onto: nil) { _ throws(ImageError) in throw Stop.error } }
        #expect(top.header.backing == options.backing)
        var bytes = [UInt8](repeating: 0, count: 300_000)
        try bytes.withUnsafeMutableBytes { try top.read(into: $0, at: 0) }
        #expect(bytes.allSatisfy { $0 == 7 })
        #expect(try top.check().isClean)
    }
}
