import ControlProtocol
import Glibc
import Linux
import Testing

extension GuestTests.DaemonTests {
    /// How it is started: as whom, by whom, and in the background.
    @Suite struct Services {
        @Test(.enabled(if: isRoot, "needs root to become another user"))
        func `an ordinary user's daemon finds its places, and serves that user and root`() throws {
            let folder = try Scratch()
            chmod(folder.path, 0o777)
            let kernel = try folder.file("kernel", try File.bytes(Paths.controlKernel), mode: 0o644)
            mkdir("\(folder.path)/vmd", 0o755)
            defer { rmdir("\(folder.path)/vmd") }
            let daemon = try LiveDaemon(MachineText.machine("one", kernel: kernel), folder: folder) {
                $0.wrapper = ["/usr/bin/setpriv", "--reuid=65501", "--regid=65500", "--clear-groups"]
                $0.environment = [("XDG_CONFIG_HOME", folder.path), ("XDG_RUNTIME_DIR", folder.path)]
                $0.names = ("vmd/vm.conf", false)
                $0.socket = nil
            }
            let row = try daemon.wait(for: "one", .running)
            #expect(row.owner == "65501")
            var status = stat()
            #expect(stat(daemon.socketPath, &status) == 0 && status.st_uid == 65501 && status.st_mode & 0o777 == 0o600)
            #expect(stat("/proc/\(try #require(row.pid))", &status) == 0)
            // What root may, its user may.
            let user = TestUser(uid: 65501, gid: 65500)
            #expect(try TestClient.connect(daemon.socketPath, as: user).ask(.reload) == .done)
            #expect(try TestClient.connect(daemon.socketPath, as: user).list(.stop(.name("one"), isForced: true, waits: true)).count == 2)
            #expect(throws: UnixSocket.Failure.self) { try TestClient.connect(daemon.socketPath, as: TestUser(uid: 65502, gid: 65500)) }
            // No setting changes that: the socket is the user's.
            daemon.signal(SIGTERM)
            #expect(try daemon.status() == .exited(0))
        }

        @Test func `the service manager's socket is taken over, and it is told what happens`() throws {
            let folder = try Scratch()
            let path = "\(folder.path)/vmd.sock"
            let listener = try UnixListener(path: path, mode: 0o600)
            // What systemd listens on for news.
            let news = FileDescriptor(owning: socket(AF_UNIX, CInt(SOCK_DGRAM.rawValue | SOCK_CLOEXEC.rawValue), 0))
            let address = "\(folder.path)/notify"
            #expect(bindUnix(news.raw, address) == 0)
            defer { unlink(address) }
            let daemon = try LiveDaemon(MachineText.machine("one"), folder: folder) {
                $0.wrapper = ["/bin/sh", "-c", "LISTEN_PID=$$ exec \"$0\" \"$@\""]
                $0.environment = [("LISTEN_FDS", "1"), ("NOTIFY_SOCKET", address)]
                $0.descriptors = [listener.raw]
                $0.socket = nil
            }
            func next() throws -> String {
                var entry = pollfd(fd: news.raw, events: Int16(POLLIN), revents: 0)
                guard poll(&entry, 1, Int32(Paths.patience * 1000)) > 0 else { throw daemon.failure("says nothing") }
                return String(decoding: try Stream.read(news.raw, limit: 4096), as: UTF8.self)
            }
            #expect(try next() == "READY=1")
            try daemon.wait(for: "one", .running)
            daemon.signal(SIGHUP)
            #expect(try next().hasPrefix("RELOADING=1\nMONOTONIC_USEC="))
            #expect(try next() == "READY=1")
            daemon.signal(SIGTERM)
            #expect(try next() == "STOPPING=1")
            daemon.signal(SIGTERM)
            #expect(try daemon.status() == .exited(0))
            // The manager's socket stays where it is.
            #expect(access(path, F_OK) == 0)
            listener.removeFile()
        }

        @Test func `in the background it returns when it is ready, or says why it is not`() throws {
            let folder = try Scratch()
            let socket = "\(folder.path)/vmd.sock"
            let file = try folder.file("vm.conf", Array(MachineText.machine("one").utf8))
            let starter = try GuestProcess(["-f", file, "-s", socket], input: .nothing, program: Paths.vmd)
            #expect(try starter.status() == 0, "\(starter.errorText)")
            #expect(starter.errorText.isEmpty)
            // Who called listen is who serves.
            let client = try TestClient(socket)
            let pid = try UnixSocket(adopting: FileDescriptor(duplicating: client.raw)).peerCredentials().processID
            #expect(pid != starter.pid && kill(pid, 0) == 0 && getsid(pid) == pid)
            defer { kill(pid, SIGKILL) }
            #expect(try client.list(.status(nil, isRunningOnly: false)).count == 1)

            let second = try GuestProcess(["-f", file, "-s", socket], input: .nothing, program: Paths.vmd)
            #expect(try second.status() == 1)
            #expect(second.errorText.contains("another vmd serves it"))
            let wrong = try folder.file("wrong.conf", Array("nonsense\nvm {\n".utf8))
            let third = try GuestProcess(["-f", wrong, "-s", socket + "2"], input: .nothing, program: Paths.vmd)
            #expect(try third.status() == 1)
            #expect(third.errorText.contains("wrong.conf:1: "))

            kill(pid, SIGTERM)
            usleep(50_000)
            kill(pid, SIGTERM)
            let deadline = Clock.seconds() + Paths.patience
            while ProcessList.isAlive(pid), Clock.seconds() < deadline { usleep(2000) }
            #expect(!ProcessList.isAlive(pid))
            #expect(access(socket, F_OK) != 0)
        }

        @Test func `files are checked without starting anything`() throws {
            let folder = try Scratch()
            let file = try folder.file("vm.conf", Array((MachineText.machine("one") + "memory = \"1G\"\n").utf8))
            let good = try GuestProcess(["-n", "-f", file], input: .nothing, program: Paths.vmd)
            #expect(try good.status() == 0)
            #expect(good.errorText.hasSuffix("configuration OK\n") && good.errorText.contains("macro 'memory' not used"))
            let wrong = try folder.file("wrong.conf", Array("vm \"a\" {\n memory 12Q\n owner \"no-such-user\"\n}\n".utf8))
            let bad = try GuestProcess(["-n", "-f", wrong], input: .nothing, program: Paths.vmd)
            #expect(try bad.status() == 1)
            #expect(bad.errorText.contains("wrong.conf:2: "))
        }
    }
}

/// bind(2) with a path.
private func bindUnix(_ number: CInt, _ path: String) -> CInt {
    var address = sockaddr_un()
    address.sun_family = sa_family_t(AF_UNIX)
    withUnsafeMutableBytes(of: &address.sun_path) { $0.copyBytes(from: path.utf8) }
    return withUnsafePointer(to: &address) { pointer in
        pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) { bind(number, $0, socklen_t(MemoryLayout<sockaddr_un>.size)) }
    }
}
