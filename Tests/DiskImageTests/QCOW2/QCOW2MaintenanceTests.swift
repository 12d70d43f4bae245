import DiskImage
import DiskTestSupport
import Glibc
import Linux
import TestSupport
import Testing

@Suite("qcow2: snapshots, sizes and repair") struct QCOW2MaintenanceTests {
    /// Does random things to a disk.
    private func scribble(_ image: QCOW2Image, _ model: inout DiskModel, _ random: inout SplitMix64) throws {
        for _ in 0..<15 { try model.change(image, &random) }
    }

    @Test(arguments: 1...6) func `snapshots keep what was, whatever happens to the disk`(seed: UInt64) throws {
        var random = SplitMix64(seed: seed)
        let size = 512 * UInt64.random(in: 100...3000, using: &random)
        var options = QCOW2Options.random(byteCount: size, &random)
        options.refcountBits = max(options.refcountBits, 8)
        let file = try ImageFile.memory()
        try QCOW2Image.create(file, options)
        let image = try QCOW2Image(file)
        var model = DiskModel(byteCount: Int(size))
        var kept: [(id: String, model: DiskModel)] = []
        for step in 0..<12 {
            try scribble(image, &model, &random)
            switch UInt8.random(in: 0...3, using: &random) {
            case 0 where !kept.isEmpty:
                let chosen = kept.remove(at: Int.random(in: 0..<kept.count, using: &random))
                try image.deleteSnapshot(chosen.id)
            case 1 where !kept.isEmpty:
                let chosen = kept[Int.random(in: 0..<kept.count, using: &random)]
                try image.applySnapshot(chosen.id)
                model = chosen.model
            default: kept.append((try image.createSnapshot(name: "step \(step)").id, model))
            }
            try #require(DiskModel.difference(try DiskModel.contents(of: image), model.bytes) == nil, "seed \(seed), step \(step), \(options)")
            let result = try image.check()
            try #require(result.isClean, "seed \(seed), step \(step), \(options): \(result.messages)")
        }
        #expect(image.snapshots.map(\.id) == kept.map(\.id))
        try image.close()
        let again = try QCOW2Image(file)
        for snapshot in kept {
            try again.applySnapshot(snapshot.id)
            #expect(DiskModel.difference(try DiskModel.contents(of: again), snapshot.model.bytes) == nil)
        }
        for snapshot in kept { try again.deleteSnapshot(snapshot.id) }
        #expect(try again.check().isClean)
        #expect(throws: ImageError.self) { try again.applySnapshot("1") }
    }

    @Test func `a name is taken once, and refcounts of one bit count no snapshot`() throws {
        let image = try QCOW2Image(try QCOW2ImageTests.make())
        try image.createSnapshot(name: "a")
        #expect(throws: ImageError.self) { try image.createSnapshot(name: "a") }
        #expect(throws: ImageError.self) { try image.createSnapshot(name: "") }
        let narrow = try QCOW2Image(try QCOW2ImageTests.make { $0.refcountBits = 1 })
        try narrow.put([1], at: 0)
        let error = #expect(throws: ImageError.self) { try narrow.createSnapshot(name: "a") }
        #expect(error?.kind == .refused)
        try narrow.put([2], at: 8192)
        try narrow.close()
        #expect(try narrow.check().isClean)
        #expect(try narrow.bytes(at: 8192, count: 1) == [2])
    }

    @Test(.enabled(if: Peer.hasQEMU, "qemu-utils is not installed"), arguments: 1...4)
    func `snapshots of either are the other's`(seed: UInt64) throws {
        var random = SplitMix64(seed: seed)
        let folder = try ScratchFolder()
        let path = folder["disk"]
        var options = QCOW2Options.random(byteCount: 512 * UInt64.random(in: 100...3000, using: &random), &random)
        options.refcountBits = max(options.refcountBits, 8)
        try QCOW2Image.create(try ImageFile.open(path, create: true), options)
        var model = DiskModel(byteCount: Int(options.byteCount))
        var kept: [String: DiskModel] = [:]
        for step in 0..<5 {
            do {
                let image = try QCOW2Image(try ImageFile.open(path))
                try scribble(image, &model, &random)
                try image.createSnapshot(name: "ours\(step)")
                kept["ours\(step)"] = model
                try scribble(image, &model, &random)
                if step == 3 {
                    try image.deleteSnapshot("theirs1")
                    kept["theirs1"] = nil
                }
                try image.close()
            }
            try #require(try QCOW2PeerTests.complaint(path) == nil, "seed \(seed), step \(step), \(options)")
            try Peer.must("qemu-img", "snapshot", "-c", "theirs\(step)", path)
            kept["theirs\(step)"] = model
            if step == 3 {
                try Peer.must("qemu-img", "snapshot", "-d", "ours1", path)
                kept["ours1"] = nil
            }
            try Peer.must("qemu-io", "-f", "qcow2", "-c", "write -P 77 0 3000", path)
            model.fill(0, 3000, 77)
            let result = try QCOW2Image(try ImageFile.open(path)).check()
            try #require(result.isClean, "seed \(seed), step \(step), \(options): \(result.messages)")
        }
        for (name, old) in kept.sorted(by: { $0.key < $1.key }) {
            try Peer.must("qemu-img", "snapshot", "-a", name, path)
            #expect(DiskModel.difference(try QCOW2PeerTests.contents(path, folder), old.bytes) == nil, "\(name)")
            let image = try QCOW2Image(try ImageFile.open(path))
            try image.applySnapshot(name)
            #expect(DiskModel.difference(try DiskModel.contents(of: image), old.bytes) == nil, "\(name)")
        }
        #expect(try QCOW2PeerTests.complaint(path) == nil)
    }

    @Test(.enabled(if: Peer.hasQEMU, "qemu-utils is not installed"), arguments: 1...6)
    func `a disk grows with zeros and shrinks when it may`(seed: UInt64) throws {
        var random = SplitMix64(seed: seed)
        let folder = try ScratchFolder()
        let path = folder["disk"]
        let options = QCOW2Options.random(byteCount: 300 * 1024, &random)
        try QCOW2Image.create(try ImageFile.open(path, create: true), options)
        let image = try QCOW2Image(try ImageFile.open(path))
        var model = DiskModel(byteCount: 300 * 1024)
        for _ in 0..<6 {
            try scribble(image, &model, &random)
            let size = 512 * Int.random(in: 1...4000, using: &random)
            if size < model.bytes.count { #expect(throws: ImageError.self) { try image.resize(to: UInt64(size)) } }
            try image.resize(to: UInt64(size), mayShrink: true)
            model = DiskModel(bytes: Array(model.bytes.prefix(size)) + [UInt8](repeating: 0, count: max(0, size - model.bytes.count)))
            try #require(DiskModel.difference(try DiskModel.contents(of: image), model.bytes) == nil, "seed \(seed), \(size), \(options)")
            try image.close()
            try #require(try QCOW2PeerTests.complaint(path) == nil, "seed \(seed), \(size), \(options)")
            #expect(DiskModel.difference(try QCOW2PeerTests.contents(path, folder), model.bytes) == nil)
        }
    }

    @Test func `growing over a larger image below shows none of it`() throws {
        let base = ImageFile(owning: try FileDescriptor.memory("base", byteCount: 0), name: "base", isReadOnly: true)
        let below = try RawImage(ImageFile(owning: try FileDescriptor.memory("base", byteCount: 1 << 20), name: "base", isReadOnly: false))
        try below.put([UInt8](repeating: 3, count: 1 << 20), at: 0)
        _ = base
        let file = try QCOW2ImageTests.make(100 * 1024) { $0.backing = QCOW2Backing(name: "base", format: "raw") }
        let image = try QCOW2Image(file, backing: below)
        try image.resize(to: 2 << 20)
        #expect(try image.bytes(at: 0, count: 100 * 1024).allSatisfy { $0 == 3 })
        #expect(try image.bytes(at: 100 * 1024, count: 2 << 20 - 100 * 1024).allSatisfy { $0 == 0 })
        #expect(try image.check().isClean)
    }

    @Test func `commit moves everything down and empties the image`() throws {
        let below = try RawImage(ImageFile(owning: try FileDescriptor.memory("base", byteCount: 1 << 20), name: "base", isReadOnly: false))
        try below.put([UInt8](repeating: 3, count: 1 << 20), at: 0)
        let file = try QCOW2ImageTests.make { $0.backing = QCOW2Backing(name: "base", format: "raw") }
        let image = try QCOW2Image(file, backing: below)
        var model = DiskModel(bytes: [UInt8](repeating: 3, count: 1 << 20))
        var random = SplitMix64(seed: 5)
        try scribble(image, &model, &random)
        try image.commit(keeps: true)
        #expect(DiskModel.difference(try DiskModel.contents(of: below), model.bytes) == nil)
        #expect(try image.check().allocatedClusters > 0)
        try scribble(image, &model, &random)
        var last: UInt64 = 0
        try image.commit { last = $0 }
        #expect(last == 1 << 20)
        #expect(DiskModel.difference(try DiskModel.contents(of: below), model.bytes) == nil)
        #expect(DiskModel.difference(try DiskModel.contents(of: image), model.bytes) == nil)
        let result = try image.check()
        #expect(result.isClean && result.allocatedClusters == 0)
    }

    @Test func `rebase keeps the disk as it is above another image`() throws {
        func base(_ byte: UInt8, _ count: Int) throws -> RawImage {
            let image = try RawImage(ImageFile(owning: try FileDescriptor.memory("base", byteCount: 1 << 20), name: "base", isReadOnly: false))
            try image.put([UInt8](repeating: byte, count: count), at: 0)
            return image
        }
        let old = try base(3, 1 << 20)
        let new = try base(3, 500_000)
        let file = try QCOW2ImageTests.make { $0.backing = QCOW2Backing(name: "old", format: "raw") }
        var model = DiskModel(bytes: [UInt8](repeating: 3, count: 1 << 20))
        var random = SplitMix64(seed: 6)
        do {
            let image = try QCOW2Image(file, backing: old)
            try scribble(image, &model, &random)
            try image.rebase(QCOW2Backing(name: "a/new name", format: "raw"), onto: new)
        }
        #expect(try QCOW2Header(reading: file).backing == QCOW2Backing(name: "a/new name", format: "raw"))
        do {
            let image = try QCOW2Image(file, backing: new)
            #expect(DiskModel.difference(try DiskModel.contents(of: image), model.bytes) == nil)
            try image.rebase(nil, onto: nil)
        }
        let image = try QCOW2Image(file)
        #expect(DiskModel.difference(try DiskModel.contents(of: image), model.bytes) == nil)
        #expect(try image.check().isClean)
        try image.rebase(QCOW2Backing(name: "x", format: nil))
        #expect(try QCOW2Header(reading: file).backing == QCOW2Backing(name: "x", format: nil))
    }

    // MARK: Check and repair

    /// The first numbers of the refcount block and of the first L2 table.
    private func places(_ file: ImageFile) throws -> (block: UInt64, l2: UInt64) {
        let bytes = try file.contents()
        return (bytes.numbers(bytes.numbers(48)), bytes.numbers(bytes.numbers(40)) & 0x00FF_FFFF_FFFF_FE00)
    }

    private func filled() throws -> (ImageFile, DiskModel) {
        let file = try QCOW2ImageTests.make(1 << 20, clusterSize: 65536)
        let image = try QCOW2Image(file)
        var model = DiskModel(byteCount: 1 << 20)
        for cluster in 0..<8 {
            try image.put([UInt8](repeating: UInt8(cluster + 1), count: 65536), at: UInt64(cluster) << 16)
            model.fill(cluster << 16, 65536, UInt8(cluster + 1))
        }
        try image.close()
        return (file, model)
    }

    @Test func `leaks are found and given back`() throws {
        let (file, model) = try filled()
        try file.setByteCount(4 << 20)
        try [UInt8]([0, 1, 0, 1]).withUnsafeBytes { try file.write($0, at: try places(file).block + 60) }
        let image = try QCOW2Image(file, for: .check)
        #expect(try image.check().leaks == 2)
        let result = try image.check(repair: .leaks)
        #expect(result.isClean && result.leaksFixed == 2)
        #expect(DiskModel.difference(try DiskModel.contents(of: image), model.bytes) == nil)
    }

    /// Of a disk of 128 GB with the smallest clusters each has 32 MiB.
    @Test func `many snapshots with large L1 tables are looked at`() throws {
        let file = try QCOW2ImageTests.make(128 << 30, clusterSize: 512)
        let image = try QCOW2Image(file)
        for number in 0..<5 {
            try image.put([UInt8(number + 1)], at: UInt64(number) << 30)
            try image.createSnapshot(name: "s\(number)")
        }
        try image.close()
        let result = try image.check()
        #expect(result.isClean, "\(result.messages)")
    }

    /// A snapshot table of so many snapshots without names, each with an L1 table of so many entries (qcow2.txt, "Snapshots").
    private func snapshotTable(_ count: Int, l1Offset: (Int) -> UInt64, l1Entries: (Int) -> UInt32) -> [UInt8] {
        var bytes: [UInt8] = []
        for number in 0..<count {
            withUnsafeBytes(of: l1Offset(number).bigEndian) { bytes += $0 }
            withUnsafeBytes(of: l1Entries(number).bigEndian) { bytes += $0 }
            bytes += [UInt8](repeating: 0, count: 28)
        }
        return bytes
    }

    /// Tables that are too many to look at, and such that overlap.
    @Test(arguments: [true, false]) func `what snapshots that are not looked at use is no leak`(overlaps: Bool) throws {
        let (file, model) = try filled()
        // Two clusters behind the others have a refcount.
        try [UInt8]([0, 1, 0, 1]).withUnsafeBytes { try file.write($0, at: try places(file).block + 60) }
        let count = overlaps ? 2 : 1100
        let spacing: UInt64 = overlaps ? 1 << 16 : 1 << 17
        let table = snapshotTable(count, l1Offset: { 8 << 20 + UInt64($0) * spacing }, l1Entries: { _ in 16384 })
        try table.withUnsafeBytes { try file.write($0, at: 4 << 20) }
        try file.setByteCount(160 << 20)
        // nb_snapshots and snapshots_offset.
        try withUnsafeBytes(of: UInt32(count).bigEndian) { try file.write($0, at: 60) }
        try withUnsafeBytes(of: UInt64(4 << 20).bigEndian) { try file.write($0, at: 64) }
        let image = try QCOW2Image(file, for: .check)
        func start() throws -> [UInt8] {
            var bytes = [UInt8](repeating: 0, count: 4 << 20)
            _ = try bytes.withUnsafeMutableBytes { try file.read(into: $0, at: 0) }
            return bytes
        }
        let before = try start()
        for repair in [QCOW2Repair.none, .leaks, .all] {
            let result = try image.check(repair: repair)
            #expect(result.errors == 1 && result.leaks == 0, "\(result.messages)")
            #expect(result.messages.contains { $0.contains(overlaps ? "overlap" : "delete snapshots") }, "\(result.messages)")
        }
        #expect(try start() == before)
        #expect(DiskModel.difference(try DiskModel.contents(of: image), model.bytes) == nil)
    }

    @Test func `refcounts, flags and overlapping clusters are repaired`() throws {
        let (file, model) = try filled()
        let (block, l2) = try places(file)
        // Refcounts of tables and data 0; one data cluster twice; one flag gone.
        try [UInt8](repeating: 0, count: 12).withUnsafeBytes { try file.write($0, at: block + 4) }
        let bytes = try file.contents()
        try Array(bytes[Int(l2)..<Int(l2) + 8]).withUnsafeBytes { try file.write($0, at: l2 + 8) }
        try [UInt8]([0]).withUnsafeBytes { try file.write($0, at: l2 + 16) }
        let image = try QCOW2Image(file, for: .check)
        let before = try image.check()
        #expect(before.corruptions > 5)
        let result = try image.check(repair: .all)
        #expect(result.isClean && result.corruptionsFixed == before.corruptions, "\(result)")
        var expected = model
        expected.fill(65536, 65536, 1)
        let again = try QCOW2Image(file)
        #expect(DiskModel.difference(try DiskModel.contents(of: again), expected.bytes) == nil)
        // The two are separate from now on.
        try again.put([0xFF], at: 0)
        #expect(try again.bytes(at: 65536, count: 1) == [1])
        // Only the flag of what is now alone is left, as with QEMU.
        #expect(try again.check().corruptions == 1)
        #expect(try again.check(repair: .all).isClean)
    }

    @Test func `an entry that leads nowhere becomes zeros`() throws {
        let (file, model) = try filled()
        let l2 = try places(file).l2
        try [UInt8]([0x80, 0, 0, 0x7F, 0, 0, 0, 0]).withUnsafeBytes { try file.write($0, at: l2) }
        try [UInt8]([0x80, 0, 0, 0, 0, 5, 2, 0]).withUnsafeBytes { try file.write($0, at: l2 + 8) }
        let image = try QCOW2Image(file, for: .check)
        #expect(try image.check().corruptions >= 2)
        #expect(try image.check(repair: .all).isClean)
        var expected = model
        expected.fill(0, 131072, 0)
        #expect(DiskModel.difference(try DiskModel.contents(of: try QCOW2Image(file)), expected.bytes) == nil)
    }

    @Test(.enabled(if: Peer.hasQEMU, "qemu-utils is not installed"), arguments: 1...10)
    func `what is damaged at random is found as QEMU finds it, and is sound after the repair`(seed: UInt64) throws {
        var random = SplitMix64(seed: seed)
        let folder = try ScratchFolder()
        let path = folder["disk"]
        var options = QCOW2Options.random(byteCount: 512 * UInt64.random(in: 100...2000, using: &random), &random)
        options.lazyRefcounts = false
        options.refcountBits = max(options.refcountBits, 8)
        let file = try ImageFile.open(path, create: true)
        try QCOW2Image.create(file, options)
        do {
            let image = try QCOW2Image(file)
            var model = DiskModel(byteCount: Int(options.byteCount))
            try scribble(image, &model, &random)
            try image.createSnapshot(name: "one")
            try scribble(image, &model, &random)
            try image.close()
        }
        let bytes = try file.contents()
        let tables = [bytes.numbers(bytes.numbers(48)), bytes.numbers(bytes.numbers(40)) & 0x00FF_FFFF_FFFF_FE00]
        for _ in 0..<Int.random(in: 1...4, using: &random) {
            let place = tables[Int.random(in: 0...1, using: &random)] + UInt64.random(in: 0..<min(256, options.clusterSize), using: &random)
            try [UInt8]([UInt8.random(in: 0...3, using: &random)]).withUnsafeBytes { try file.write($0, at: place) }
        }
        let ours = try QCOW2Image(file, for: .check).check()
        let theirs = try Peer.run(["qemu-img", "check", "-f", "qcow2", path])
        #expect((theirs.status == 2) == (ours.corruptions > 0), "seed \(seed): \(ours.messages) \(theirs.output)")
        #expect((theirs.status == 0) == ours.isClean, "seed \(seed): \(ours.messages) \(theirs.output)")
        let repaired = try QCOW2Image(file, for: .check).check(repair: .all)
        #expect(repaired.isClean, "seed \(seed): \(repaired.messages)")
        let complaint = try QCOW2PeerTests.complaint(path)
        #expect(complaint == nil, "seed \(seed): \(complaint ?? "")")
    }

    @Test(.enabled(if: Peer.hasQEMU, "qemu-utils is not installed"))
    func `bitmaps are in use until the image is written, and no longer valid then`() throws {
        let folder = try ScratchFolder()
        let path = folder["disk"]
        try Peer.must("qemu-img", "create", "-f", "qcow2", path, "16M")
        try Peer.must("qemu-img", "bitmap", "--add", path, "changes")
        do {
            let image = try QCOW2Image(try ImageFile.open(path, isReadOnly: true), for: .check)
            #expect(try image.info.bitmapCount == 1)
            #expect(try image.check().isClean)
        }
        do {
            let image = try QCOW2Image(try ImageFile.open(path))
            try image.put([1], at: 0)
            #expect(try image.info.bitmapCount == 0)
        }
        // Their clusters leak, as QEMU says too.
        #expect(try Peer.run(["qemu-img", "check", path]).status == 3)
        #expect(try QCOW2Image(try ImageFile.open(path), for: .check).check(repair: .leaks).isClean)
        #expect(try QCOW2PeerTests.complaint(path) == nil)
    }
}
