import Glibc
import Linux
import Testing

@Suite("File credentials", .enabled(if: geteuid() == 0, "needs root to become other users")) struct FileCredentialsTests {
    private static let nobody = FileCredentials(userID: 65534, groupID: 65534, groups: [65534])

    /// A file of root's that only its group may read.
    private func withFile(_ body: (String) throws -> Void) throws {
        var name = Array("/tmp/identity-XXXXXX".utf8CString)
        let file = FileDescriptor(owning: mkstemp(&name))
        let path = String(decoding: name.dropLast().map { UInt8(bitPattern: $0) }, as: UTF8.self)
        defer { unlink(path) }
        try #require(file.raw >= 0 && fchown(file.raw, 0, 4711) == 0 && fchmod(file.raw, 0o640) == 0)
        try body(path)
    }

    private func open(_ path: String, as user: FileCredentials, _ flags: CInt = O_RDONLY) throws(SystemError) {
        _ = try FileCredentials.run(as: user, orElse: { $0 }) { () throws(SystemError) in try FileDescriptor(open: path, flags: flags) }
    }

    @Test func `opens what the user may open, by group as well`() throws {
        try withFile { path in
            #expect(throws: SystemError("open", errno: EACCES)) { try open(path, as: Self.nobody) }
            let member = FileCredentials(userID: 65534, groupID: 65534, groups: [4711])
            try open(path, as: member)
            #expect(throws: SystemError("open", errno: EACCES)) { try open(path, as: member, O_RDWR) }
            try open(path, as: FileCredentials(userID: 65534, groupID: 4711, groups: []))
        }
    }

    @Test func `root is root again behind it, also behind an error`() throws {
        try withFile { path in
            let before = Set(groups())
            try? open(path, as: Self.nobody)
            #expect(Set(groups()) == before)
            _ = try FileDescriptor(open: path, flags: O_RDWR)
            #expect(try FileCredentials.run(as: nil, orElse: { $0 }) { () throws(SystemError) in 7 } == 7)
            _ = try FileDescriptor(open: path, flags: O_RDWR)
        }
    }

    private func groups() -> [gid_t] {
        var list = [gid_t](repeating: 0, count: 1024)
        return Array(list.prefix(Int(max(0, getgroups(1024, &list)))))
    }
}
