import DiskTestSupport
import Glibc
import Linux
import Testing

@testable import DiskImage

/// The way below a folder on a kernel without openat2.
@Suite("Bases without openat2") struct BaseFileTests {
    @Test func `no link is followed, and nothing above is reached`() throws {
        let folder = try ScratchFolder()
        mkdir(folder["sub"], 0o755)
        for name in ["top", "base", "sub/base"] { try folder.write(name, Array(name.utf8)) }
        symlink("sub", folder["folder-link"])
        symlink("base", folder["link"])
        let image = try FileDescriptor(open: folder["top"], flags: O_RDONLY)
        let base = try BaseFile(of: image.raw, "top", ImageOpening(isReadOnly: true))
        for name in ["base", "sub/base", "./sub/./base"] {
            #expect(try isFound(base, name), "\(name)")
        }
        for name in ["link", "folder-link/base", "../\(folder.path.split(separator: "/").last ?? "")/base", "sub/../base"] {
            #expect(try !isFound(base, name), "\(name)")
        }
        #expect(throws: ImageError.self) { _ = try base.walk("missing") }
        #expect(throws: ImageError.self) { _ = try base.walk("base/x") }
    }

    private func isFound(_ base: BaseFile, _ name: String) throws -> Bool {
        if let found = try base.walk(name) { return found.raw >= 0 }
        return false
    }

    @Test func `image that has lost its name has no folder`() throws {
        let folder = try ScratchFolder()
        try folder.write("top", [1])
        let image = try FileDescriptor(open: folder["top"], flags: O_RDONLY)
        unlink(folder["top"])
        #expect(throws: ImageError.self) { _ = try BaseFile(of: image.raw, "top", ImageOpening(isReadOnly: true, allowedBases: ["/"])) }
        // Another file by its path is not the image.
        try folder.write("top", [1])
        #expect(throws: ImageError.self) { _ = try BaseFile(of: image.raw, "top", ImageOpening(isReadOnly: true, allowedBases: ["/"])) }
    }
}
