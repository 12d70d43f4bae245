import Glibc
import Linux
import Testing

@Suite("Users and groups") struct UserDatabaseTests {
    @Test func `root is found by name and by number`() throws {
        let root = try #require(try UserDatabase.user(named: "root"))
        #expect(root.userID == 0 && root.groupID == 0 && root.home == "/root")
        #expect(try UserDatabase.user(0) == root)
        #expect(try UserDatabase.group(named: "root")?.groupID == 0)
        #expect(UserDatabase.groups(of: root).contains(0))
    }

    @Test(arguments: [("root", 0), ("0", 0), ("4000000000", 4_000_000_000), ("no-such-user", nil), ("", nil), ("-1", nil),
        ("4294967295", nil), ("4294967296", nil), ("1x", nil), ("٣", nil)] as [(String, UInt32?)])
    func `user and group may be numbers`(text: String, expected: UInt32?) throws {
        #expect(try UserDatabase.userID(text) == expected)
        #expect(try UserDatabase.groupID(text) == expected)
    }

    @Test func `unknown number is its own name`() {
        #expect(UserDatabase.name(ofUser: 0) == "root")
        #expect(UserDatabase.name(ofUser: 3_999_999_999) == "3999999999")
        #expect(UserDatabase.name(ofGroup: 3_999_999_999) == "3999999999")
    }
}

@Suite("Service manager", .serialized, .timeLimit(.minutes(1))) struct ServiceTests {
    /// A manager's socket; the name is abstract when it begins with "@".
    private func manager(_ name: String) throws -> FileDescriptor {
        let number = socket(AF_UNIX, CInt(SOCK_DGRAM.rawValue), 0)
        var address = sockaddr_un()
        address.sun_family = sa_family_t(AF_UNIX)
        let bytes = [UInt8](name.utf8)
        withUnsafeMutableBytes(of: &address.sun_path) { path in
            for (index, byte) in bytes.enumerated() { path[index] = byte == UInt8(ascii: "@") && index == 0 ? 0 : byte }
        }
        let length = socklen_t(2 + bytes.count + (name.hasPrefix("@") ? 0 : 1))
        let result = withUnsafePointer(to: &address) {
            $0.withMemoryRebound(to: sockaddr.self, capacity: 1) { bind(number, $0, length) }
        }
        try #require(result == 0)
        return FileDescriptor(owning: number)
    }

    @Test(arguments: ["/tmp/vmd-test-notify-\(getpid())", "@vmd-test-notify-\(getpid())"])
    func `states arrive as systemd reads them`(name: String) throws {
        let manager = try manager(name)
        setenv("NOTIFY_SOCKET", name, 1)
        guard let notification = try ServiceNotification() else {
            Issue.record("no notification")
            return
        }
        #expect(getenv("NOTIFY_SOCKET") == nil)
        // It must not need its path again.
        unlink(name)
        try notification.ready(status: "3 machines\nREADY=0")
        try notification.stopping()
        try notification.status("busy")
        try notification.reloading()
        func next() throws -> String { String(decoding: try Stream.read(manager.raw, limit: 1000), as: UTF8.self) }
        #expect(try next() == "READY=1\nSTATUS=3 machines READY=0")
        #expect(try next() == "STOPPING=1")
        #expect(try next() == "STATUS=busy")
        let reload = try next().split(separator: "\n")
        let time = try #require(reload.last?.split(separator: "=").last.flatMap { UInt64($0) })
        #expect(reload.first == "RELOADING=1" && time > 0 && time <= SystemTime.monotonic() / 1000)
    }

    @Test func `nobody to tell is no error, and a manager that is gone is one`() throws {
        unsetenv("NOTIFY_SOCKET")
        #expect(try { if case .some = try ServiceNotification() { false } else { true } }())
        setenv("NOTIFY_SOCKET", "/tmp/vmd-no-such-socket", 1)
        #expect(throws: UnixSocket.Failure.system(SystemError("connect", errno: ENOENT))) { _ = try ServiceNotification() }
    }

    @Test func `passed sockets are taken with their names, by the process that they are for`() throws {
        let listener = try UnixListener(path: "/tmp/vmd-test-passed-\(getpid())", mode: 0o600)
        defer { listener.removeFile() }
        let mine = try Helper.run(["pretend=1", "activation"], environment: [("LISTEN_FDS", "2"), ("LISTEN_FDNAMES", "control:spare")], descriptors: [listener.raw, 2])
        #expect(mine.all("activation") == ["[\"control\", \"spare\"] 2 listener yes environment []"])
        let unnamed = try Helper.run(["pretend=1", "activation"], environment: [("LISTEN_FDS", "1")], descriptors: [listener.raw])
        #expect(unnamed.all("activation") == ["[\"unknown\"] 1 listener yes environment []"])
        let others = try Helper.run(["activation"], environment: [("LISTEN_PID", "1"), ("LISTEN_FDS", "1")], descriptors: [listener.raw])
        #expect(others.all("activation") == ["[] 0 listener no environment []"])
        for count in ["-1", "0", "x", "99999999999", "2147483647"] {
            let wrong = try Helper.run(["pretend=1", "activation"], environment: [("LISTEN_FDS", count)])
            #expect(wrong.all("activation") == ["[] 0 listener no environment []"])
        }
    }
}

@Suite("Pseudo-terminal") struct PseudoTerminalTests {
    @Test func `console's terminal has a path, an owner, a size and no modes of its own`() throws {
        let terminal = try PseudoTerminal()
        try terminal.makeRaw()
        try terminal.setMasterNonBlocking()
        try terminal.setOwner(user: geteuid(), group: getegid(), mode: 0o620)
        try terminal.setWindowSize(.init(rows: 50, columns: 132))
        #expect(try terminal.windowSize() == .init(rows: 50, columns: 132))
        var byPath = stat()
        var own = stat()
        #expect(try stat(terminal.slavePath(), &byPath) == 0)
        #expect(fstat(terminal.slave.raw, &own) == 0)
        #expect(byPath.st_rdev == own.st_rdev && own.st_mode & 0o7777 == 0o620)
        #expect(throws: SystemError("read", errno: EAGAIN)) { _ = try Stream.read(terminal.master.raw, limit: 10) }
        // What a guest prints is read as it is, by whoever opens the path; nothing comes back.
        let reader = try FileDescriptor(open: try terminal.slavePath(), flags: O_RDWR | O_NOCTTY)
        let bytes = (0...255).map { UInt8($0) }
        try Stream.writeAll(terminal.master.raw, bytes)
        var got: [UInt8] = []
        while got.count < 256 {
            try #require(try Stream.wait(for: reader.raw, .readable, timeoutMilliseconds: 30_000))
            let more = try Stream.read(reader.raw, limit: 256)
            try #require(!more.isEmpty)
            got += more
        }
        #expect(got == bytes)
        #expect(throws: SystemError("read", errno: EAGAIN)) { _ = try Stream.read(terminal.master.raw, limit: 10) }
    }
}
