import DiskImage
import DiskTestSupport
import Glibc
import Linux
import Synchronization
import Testing

/// Several disks of one machine: a step of all of them, or of none, and nobody comes in between.
@Suite("Histories of several disks", .timeLimit(.minutes(2))) struct DiskHistoryTests {
    private let folder: ScratchFolder

    init() throws { folder = try ScratchFolder() }

    private func location(_ name: String) -> ImageLocation { ImageLocation(path: folder[name], format: .qcow2) }

    private func open(_ name: String) throws -> any BlockImage {
        try ImageChain(location(name), ImageOpening(isReadOnly: false)).assemble()
    }

    private func write(_ name: String, _ byte: UInt8) throws {
        let image = try open(name)
        try image.put([byte], at: 0)
        try image.close()
    }

    private func first(_ name: String) throws -> UInt8 { try open(name).bytes(at: 0, count: 1)[0] }

    /// A disk with a point, on which 1 was written before it and 2 since.
    private func make(_ name: String, point: String) throws {
        let new = try NewFile(folder[name])
        try QCOW2Image.create(try new.open(), QCOW2Options(byteCount: 1 << 20))
        try new.finish(as: .qcow2, isDurable: false)
        try write(name, 1)
        _ = try DiskHistories([location(name)]).addPoint(point)
        try write(name, 2)
    }

    @Test func `all disks are locked as long as the histories are there`() throws {
        try make("a", point: "p")
        try make("b", point: "q")
        let histories = try DiskHistories([location("a"), location("b")])
        func isInUse(_ name: String) throws {
            let error = #expect(throws: ImageError.self) { try open(name) }
            #expect(error?.kind == .inUse, "\(name): \(String(describing: error))")
        }
        for name in ["a", "b"] { try isInUse(name) }
        #expect(try histories.rollBack() == [folder["p"], folder["q"]])
        // What was put aside was open, and still is.
        for name in ["a.undone-1", "b.undone-1"] { try isInUse(name) }
        withExtendedLifetime(histories) {}
    }

    @Test func `one of them in use, and nothing is done`() throws {
        try make("a", point: "p")
        try make("b", point: "q")
        let used = try open("b")
        let error = #expect(throws: ImageError.self) { try DiskHistories([location("a"), location("b")]) }
        #expect(error?.kind == .inUse)
        withExtendedLifetime(used) {}
        #expect(folder.names == ["a", "b", "p", "q"])
        #expect(try first("a") == 2)
    }

    /// With a second name of this end its name would be longer than any (NAME_MAX): that step fails, and no check sees it.
    private func name(tooLongFor suffix: String) -> String { String(repeating: "x", count: 256 - suffix.utf8.count) }

    @Test func `a rollback that fails with the second disk leaves the first as it was`() throws {
        let long = name(tooLongFor: ".undone-1")
        try make("a", point: "p")
        try make(long, point: "q")
        let before = try ImageSummary(location("a"))
        let histories = try DiskHistories([location("a"), location(long)])
        #expect(throws: ImageError.self) { try histories.rollBack() }
        #expect(folder.names == ["a", "p", "q", long].sorted())
        #expect(try ImageSummary(location("a")) == before)
        // What it has open is the disk still, so once more is the same.
        #expect(throws: ImageError.self) { try histories.rollBack() }
        #expect(folder.names == ["a", "p", "q", long].sorted())
    }

    @Test func `what was written since a rollback is there when going forward fails with the second disk`() throws {
        let long = name(tooLongFor: ".discarded-1")
        try make("a", point: "p")
        try make(long, point: "q")
        _ = try DiskHistories([location("a"), location(long)]).rollBack()
        try write("a", 3)
        let names = folder.names
        #expect(throws: ImageError.self) { try DiskHistories([location("a"), location(long)]).rollForward(discards: true) }
        #expect(folder.names == names)
        #expect(try [first("a"), first("a.undone-1"), first(long)] == [3, 2, 1])
        // Alone it can, and nothing of it is left.
        try DiskHistories([location("a")]).rollForward(discards: true)
        #expect(try first("a") == 2)
        #expect(!folder.names.contains { $0.hasPrefix("a.") })
    }

    @Test func `a point fails with the second disk and the first has none`() throws {
        try #require(mkdir(folder["here"], 0o700) == 0)
        try make("a", point: "p")
        try make("here/b", point: "q")
        let histories = try DiskHistories([location("a"), location("here/b")])
        // A name that is free, and cannot be given.
        try #require(rename(folder["here"], folder["there"]) == 0)
        #expect(throws: ImageError.self) { try histories.addPoint("new") }
        #expect(folder.names == ["a", "p", "there"])
        withExtendedLifetime(histories) {}
        try #require(rename(folder["there"], folder["here"]) == 0)
        #expect(try histories.addPoint("new") == ["new-0", "new-1"])
        #expect(folder.names == ["a", "here", "new-0", "p"])
    }

    /// The first half of a point is recognised by its being a second name of the disk; these are none.
    @Test func `a point does not take the disk's own name, nor that of a link to it`() throws {
        try make("x-0", point: "p")
        try make("x-1", point: "q")
        try #require(symlink("x-0", folder["link"]) == 0)
        let names = folder.names
        func refuses(_ disks: [String], _ name: String) throws {
            let histories = try DiskHistories(disks.map(location))
            #expect(throws: ImageError.self, "\(disks) \(name)") { try histories.addPoint(name) }
            #expect(folder.names == names)
        }
        try refuses(["x-0"], "x-0")
        try refuses(["x-0", "x-1"], "x")
        try refuses(["x-0"], "link")
        for name in ["x-0", "x-1", "link"] { #expect(try first(name) == 2) }
        // With a second name the disk's own is still no other.
        try #require(link(folder["x-0"], folder["twin"]) == 0)
        let histories = try DiskHistories([location("x-0")])
        #expect(throws: ImageError.self) { try histories.addPoint("x-0") }
        withExtendedLifetime(histories) {}
    }

    @Test func `steps that were cut short are done again`() throws {
        try make("a", point: "p")
        // The first half of a point, and of a rollback.
        try #require(link(folder["a"], folder["new"]) == 0)
        _ = try DiskHistories([location("a")]).addPoint("new")
        #expect(folder.names == ["a", "new", "p"])
        try write("a", 3)
        _ = try DiskHistories([location("a")]).rollBack()
        try #require(link(folder["a"], folder["a.undone-2"]) == 0)
        try DiskHistories([location("a")]).rollForward(discards: false)
        #expect(folder.names == ["a", "new", "p"])
        #expect(try first("a") == 3)
    }

    @Test func `who waited for a disk that was exchanged meanwhile does not get the old one`() throws {
        try make("a", point: "p")
        try make("b", point: "q")
        let (path, other) = (folder["a"], folder["b"])
        let lock = try FileDescriptor(open: path, flags: O_RDWR)
        try ImageLock.exclusive.take(lock.raw, path)
        let holder = Holder(lock)
        let thread = try PosixThread("exchange") {
            // Until somebody has opened it.
            usleep(20_000)
            rename(other, path)
            holder.letGo()
        }
        defer { thread.join() }
        let error = #expect(throws: ImageError.self) { try open("a") }
        #expect(error?.kind == .inUse)
    }

    private final class Holder: Sendable {
        private let descriptor: Mutex<FileDescriptor?>
        init(_ descriptor: consuming FileDescriptor) { self.descriptor = Mutex(descriptor) }
        func letGo() { descriptor.withLock { $0 = nil } }
    }
}
