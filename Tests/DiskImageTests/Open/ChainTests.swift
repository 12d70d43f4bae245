import CLinux
import DiskImage
import DiskTestSupport
import Glibc
import Linux
import Testing

/// Images that stand on others: which files are opened for an image, and which are not.
@Suite("Chains of images", .timeLimit(.minutes(1))) struct ChainTests {
    private let folder: ScratchFolder
    /// The images' own folder.
    private let home: String

    init() throws {
        folder = try ScratchFolder()
        home = folder["home"]
        mkdir(home, 0o755)
        mkdir(home + "/sub", 0o755)
        mkdir(folder["outside"], 0o755)
        chmod(folder.path, 0o755)
        for name in ["home/base.raw", "home/sub/base.raw", "outside/base.raw"] {
            try folder.write(name, Array(name.utf8) + [UInt8](repeating: 0, count: 1 << 20))
        }
        symlink("../outside/base.raw", home + "/out-link.raw")
        symlink("sub/base.raw", home + "/in-link.raw")
        symlink("../outside", home + "/out-folder")
    }

    /// A qcow2 image with a name of a base in it, whatever that is.
    @discardableResult
    private func image(_ name: String, on backing: String?, format: String? = "raw") throws -> String {
        let path = home + "/" + name
        var options = QCOW2Options(byteCount: 1 << 20)
        options.backing = backing.map { QCOW2Backing(name: $0, format: format) }
        try QCOW2Image.create(try .open(path, create: true), options)
        return path
    }

    private func names(_ path: String, allowed: [String] = []) throws -> [String] {
        try ImageChain(ImageLocation(path: path, format: .qcow2), ImageOpening(isReadOnly: false, allowedBases: allowed)).members
            .map { String($0.name.dropFirst(folder.path.count + 1)) }
    }

    private func refusal(_ path: String, allowed: [String] = []) -> ImageError? {
        do {
            _ = try names(path, allowed: allowed)
            return nil
        } catch {
            return error as? ImageError
        }
    }

    @Test(arguments: [
        ("base.raw", "home/base.raw"), ("./base.raw", "home/base.raw"), ("sub/base.raw", "home/sub/base.raw"),
        ("in-link.raw", "home/sub/base.raw"), ("file:base.raw", "home/base.raw"), ("sub//base.raw", "home/sub/base.raw"),
    ])
    func `names in the own folder are followed`(name: String, found: String) throws {
        #expect(try names(try image("top.qcow2", on: name)) == ["home/top.qcow2", found])
    }

    @Test(arguments: [
        "../outside/base.raw", "sub/../base.raw", "out-link.raw", "out-folder/base.raw", "../../../../../etc/passwd", "/etc/passwd",
        "/nonexistent",
    ])
    func `names that lead out are refused without the administrator's word`(name: String) throws {
        let path = try image("top.qcow2", on: name)
        let error = try #require(refusal(path))
        #expect(error.kind == .refused && error.reason.contains("allow base"), "\(error)")
        // Whether there is such a file is not told.
        #expect(!error.reason.contains("No such file"))
    }

    @Test(arguments: ["nbd://host/x", "json:{\"driver\":\"file\"}", "http://x/y", "fat:rw:/tmp", "ssh:x", "file://x", "a:b"])
    func `names that are no paths are refused at all`(name: String) throws {
        let error = try #require(refusal(try image("top.qcow2", on: name), allowed: ["/"]))
        #expect(error.kind == .refused && error.reason.contains("no path of a file"), "\(error)")
    }

    @Test func `administrator's word opens folders and files`() throws {
        let path = try image("top.qcow2", on: "../outside/base.raw")
        let found = ["home/top.qcow2", "outside/base.raw"]
        #expect(try names(path, allowed: [folder["outside"]]) == found)
        #expect(try names(path, allowed: [folder["outside/base.raw"]]) == found)
        #expect(try names(path, allowed: ["/"]) == found)
        // By its own path, too, whatever links lead to it.
        symlink(folder["outside"], folder["link"])
        #expect(try names(path, allowed: [folder["link"]]) == found)
        #expect(refusal(path, allowed: [folder["out"]]) != nil)
        #expect(refusal(path, allowed: [folder["outside/base.ra"]]) != nil)
        #expect(refusal(path, allowed: ["outside"]) != nil)
        #expect(refusal(try image("passwd.qcow2", on: "/etc/passwd"), allowed: [folder["outside"]]) != nil)
    }

    @Test func `base of a base is looked for in that one's folder`() throws {
        try image("sub/middle.qcow2", on: "base.raw")
        let path = try image("top.qcow2", on: "sub/middle.qcow2", format: "qcow2")
        #expect(try names(path) == ["home/top.qcow2", "home/sub/middle.qcow2", "home/sub/base.raw"])
    }

    @Test func `all but the first are read-only, and locked as such`() throws {
        let path = try image("top.qcow2", on: "base.raw")
        let chain = try ImageChain(ImageLocation(path), ImageOpening(isReadOnly: false))
        #expect(chain.members.map(\.isReadOnly) == [false, true])
        #expect(chain.descriptors.numbers.map { fcntl($0, F_GETFL) & O_ACCMODE } == [O_RDWR, O_RDONLY])
        let disk = try chain.assemble()
        #expect(try disk.bytes(at: 0, count: 4) == Array("home".utf8))
    }

    @Test func `loops end`() throws {
        try image("a.qcow2", on: "b.qcow2", format: "qcow2")
        try image("b.qcow2", on: "a.qcow2", format: "qcow2")
        try image("self.qcow2", on: "self.qcow2", format: "qcow2")
        for name in ["a.qcow2", "self.qcow2"] {
            let error = try #require(refusal(home + "/" + name))
            #expect(error.reason.contains("stands on itself"), "\(error)")
        }
        link(home + "/self.qcow2", home + "/twin.qcow2")
        #expect(refusal(home + "/twin.qcow2")?.reason.contains("stands on itself") == true)
    }

    @Test func `depth is limited`() throws {
        try image("0.qcow2", on: nil)
        for level in 1..<17 { try image("\(level).qcow2", on: "\(level - 1).qcow2", format: "qcow2") }
        #expect(try names(home + "/15.qcow2").count == 16)
        #expect(refusal(home + "/16.qcow2")?.kind == .refused)
    }

    @Test(arguments: [("base.qcow2", nil, ImageFormat.qcow2), ("base.raw", nil, .raw), ("base.qcow2", "raw", .raw)] as [(String, String?, ImageFormat)])
    func `base's format is what the image says, or the suffix`(name: String, word: String?, format: ImageFormat) throws {
        if name == "base.qcow2" { try image(name, on: nil) }
        let path = try image("top.qcow2", on: name, format: word)
        #expect(try ImageChain(ImageLocation(path), ImageOpening(isReadOnly: true)).members.last?.format == format)
    }

    @Test func `base without a word and suffix is not believed to lead further`() throws {
        try image("middle", on: "base.raw")
        let error = try #require(refusal(try image("top.qcow2", on: "middle", format: nil)))
        #expect(error.kind == .refused && error.reason.contains("names another file"))
    }

    @Test func `base that is no file is refused`() throws {
        mkfifo(home + "/fifo", 0o644)
        #expect(refusal(try image("a.qcow2", on: "fifo"))?.reason.contains("no regular file") == true)
        #expect(refusal(try image("b.qcow2", on: "sub"))?.reason.contains("no regular file") == true)
        #expect(refusal(try image("c.qcow2", on: "missing"))?.reason.contains("No such file") == true)
        #expect(refusal(try image("d.qcow2", on: "base.raw", format: "vhdx"))?.kind == .unsupported)
    }

    @Test(.enabled(if: geteuid() == 0, "only root opens files for others"))
    func `root opens no base for a user that he may not read himself`() throws {
        chmod(home, 0o755)
        chmod(home + "/base.raw", 0o600)
        let path = try image("top.qcow2", on: "base.raw")
        #expect(refusal(path) == nil)
        chown(path, 65534, 65534)
        let error = try #require(refusal(path))
        #expect(error.reason.contains("may not be read by"), "\(error)")
        chmod(home + "/base.raw", 0o644)
        #expect(refusal(path) == nil)
        // The thread is root again.
        #expect(access("/root", W_OK) == 0)
    }

    @Test(.enabled(if: geteuid() == 0, "only root opens files for others"), arguments: [false, true])
    func `what a user's image says of its base is noted only where the user may write`(isNamed: Bool) throws {
        let path = try image("theirs.qcow2", on: "plain", format: "raw")
        for (name, owner) in [("plain", uid_t(0)), ("theirs.qcow2", 65501)] {
            if name == "plain" { try folder.write("home/plain", [UInt8](repeating: 0, count: 1 << 20)) }
            try #require(chown(home + "/" + name, owner, owner) == 0 && chmod(home + "/" + name, 0o644) == 0)
        }
        var opening = ImageOpening(isReadOnly: false, allowedBases: isNamed ? [] : [home])
        if isNamed { opening.credentials = FileCredentials(userID: 65501, groupID: 65501, groups: []) }
        #expect(try ImageChain(ImageLocation(path: path, format: .qcow2), opening).members.map(\.format) == [.qcow2, .raw])
        #expect(getxattr(home + "/plain", "user.vmd.format", nil, 0) == -1)
        #expect(getxattr(path, "user.vmd.format", nil, 0) == 5)
    }

    @Test func `descriptors go to a process that opens nothing`() throws {
        let chain = try ImageChain(ImageLocation(try image("top.qcow2", on: "base.raw")), ImageOpening(isReadOnly: false))
        let members = chain.members
        var descriptors = FileDescriptorList()
        for number in chain.descriptors.numbers { descriptors.append(try FileDescriptor(duplicating: number)) }
        let disk = try ImageChain(members, descriptors).assemble()
        try disk.put([9], at: 3)
        #expect(try disk.bytes(at: 0, count: 5) == Array("hom".utf8) + [9, 0x2F])
        // What does not fit together is refused.
        #expect(refusal(members, []) != nil)
        #expect(refusal(Array(members.prefix(1)), ["top.qcow2"]) != nil)
        #expect(refusal(members.reversed(), ["base.raw", "top.qcow2"]) != nil)
        #expect(refusal(members, ["top.qcow2", "base.raw"]) == nil)
    }

    private func refusal(_ members: [ImageChain.Member], _ files: [String]) -> ImageError? {
        do {
            var descriptors = FileDescriptorList()
            for file in files { descriptors.append(try FileDescriptor(open: home + "/" + file, flags: O_RDWR)) }
            _ = try ImageChain(members, descriptors).assemble()
            return nil
        } catch {
            return error as? ImageError
        }
    }
}
