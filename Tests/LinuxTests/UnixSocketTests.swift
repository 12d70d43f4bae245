import Glibc
import Linux
import Testing

@Suite("UNIX sockets", .serialized, .timeLimit(.minutes(1))) struct UnixSocketTests {
    /// Rounds of leak tests: far more than other suites have open.
    static let rounds = 300

    private func received(_ socket: borrowing UnixSocket, limit: Int = 100) throws -> [UInt8]? {
        switch try socket.receive(limit: limit) {
        case .packet(let packet): packet.bytes
        case .nothing: nil
        case .closed: nil
        }
    }

    private func isClosed(_ socket: borrowing UnixSocket) throws -> Bool {
        switch try socket.receive(limit: 100) {
        case .closed: true
        case .packet: false
        case .nothing: false
        }
    }

    @Test func `packets arrive whole and in order, and nothing is not the end`() throws {
        let pair = try UnixSocket.pair()
        #expect(try received(pair.second) == nil)
        #expect(try !isClosed(pair.second))
        #expect(try pair.first.send([1, 2, 3]))
        #expect(try pair.first.send([4]))
        #expect(try received(pair.second) == [1, 2, 3])
        #expect(try received(pair.second) == [4])
    }

    @Test func `peer that is gone is the end for the reader and EPIPE for the writer`() throws {
        var ends: [CInt] = [0, 0]
        try #require(socketpair(AF_UNIX, CInt(SOCK_SEQPACKET.rawValue), 0, &ends) == 0)
        let mine = FileDescriptor(owning: ends[0])
        close(ends[1])
        let socket = try UnixSocket(adopting: mine)
        #expect(try isClosed(socket))
        #expect(throws: SystemError("sendmsg", errno: EPIPE)) { _ = try socket.send([1]) }
    }

    @Test func `full queue is not an error, and an empty packet is one`() throws {
        let pair = try UnixSocket.pair()
        var sent = 0
        while try pair.first.send([UInt8](repeating: 7, count: 4096)) { sent += 1 }
        #expect(sent > 1)
        #expect(throws: SystemError("sendmsg", errno: EINVAL)) { _ = try pair.first.send([]) }
    }

    @Test func `sixteen descriptors arrive, work, and are closed with their owner`() throws {
        let before = openDescriptorCount()
        for _ in 0..<Self.rounds {
            let pair = try UnixSocket.pair()
            let file = try FileDescriptor(open: "/dev/zero", flags: O_RDONLY)
            #expect(try pair.first.send([9], descriptors: [CInt](repeating: file.raw, count: 16)))
            guard case .packet(var packet) = try pair.second.receive(limit: 10) else {
                Issue.record("no packet")
                return
            }
            #expect(packet.descriptors.count == 16)
            guard let one = packet.descriptors.takeFirst() else { return }
            #expect(try Stream.read(one.raw, limit: 3) == [0, 0, 0])
            #expect(fcntl(one.raw, F_GETFD) & FD_CLOEXEC != 0)
        }
        #expect(openDescriptorCount() < before + Self.rounds)
    }

    @Test func `packet that is too long is an error, and its descriptors are closed`() throws {
        let before = openDescriptorCount()
        for _ in 0..<Self.rounds {
            let pair = try UnixSocket.pair()
            #expect(try pair.first.send([1, 2, 3, 4], descriptors: [0]))
            #expect(throws: UnixSocket.ReceiveFailure.packetTooLong(limit: 3)) { _ = try pair.second.receive(limit: 3) }
            #expect(try pair.first.send([5]))
            #expect(try received(pair.second) == [5])
        }
        #expect(openDescriptorCount() < before + Self.rounds)
    }

    @Test func `more descriptors than the limit are an error, and closed`() throws {
        let before = openDescriptorCount()
        for _ in 0..<Self.rounds {
            let pair = try UnixSocket.pair()
            #expect(try pair.first.send([1], descriptors: [0, 1, 2]))
            #expect(throws: UnixSocket.ReceiveFailure.tooManyDescriptors(limit: 2)) {
                _ = try pair.second.receive(limit: 3, descriptorLimit: 2)
            }
        }
        #expect(openDescriptorCount() < before + Self.rounds)
    }

    /// By hand: our own sender refuses it.
    @Test func `more descriptors than a packet may carry are cut off by the kernel, an error, and closed`() throws {
        let before = openDescriptorCount()
        for _ in 0..<Self.rounds {
            let pair = try UnixSocket.pair()
            #expect(throws: SystemError("sendmsg", errno: E2BIG)) {
                _ = try pair.first.send([1], descriptors: [CInt](repeating: 0, count: UnixSocket.mostDescriptors + 1))
            }
            let count = UnixSocket.mostDescriptors + 24
            var control = [UInt64](repeating: 0, count: 2 + count / 2)
            control[0] = UInt64(16 + count * 4)
            control[1] = UInt64(SOL_SOCKET) | 1 << 32  // SCM_RIGHTS
            var byte: UInt8 = 1
            let sent = control.withUnsafeMutableBytes { control in
                withUnsafeMutableBytes(of: &byte) { bytes in
                    var vector = iovec(iov_base: bytes.baseAddress, iov_len: 1)
                    return withUnsafeMutablePointer(to: &vector) { vector in
                        var message = msghdr()
                        message.msg_iov = vector
                        message.msg_iovlen = 1
                        message.msg_control = control.baseAddress
                        message.msg_controllen = 16 + count * 4
                        return sendmsg(pair.first.raw, &message, 0)
                    }
                }
            }
            try #require(sent == 1)
            #expect(throws: UnixSocket.ReceiveFailure.tooManyDescriptors(limit: UnixSocket.mostDescriptors)) {
                _ = try pair.second.receive(limit: 3)
            }
        }
        #expect(openDescriptorCount() < before + Self.rounds)
    }

    @Test func `peer is known by process, user and groups`() throws {
        let pair = try UnixSocket.pair()
        let peer = try pair.first.peerCredentials()
        #expect(peer.processID == getpid() && peer.userID == geteuid() && peer.groupID == getegid())
        var groups = [gid_t](repeating: 0, count: 256)
        let count = getgroups(256, &groups)
        #expect(peer.groups.sorted() == groups.prefix(Int(count)).sorted())
    }

    private let path = "/tmp/vmd-test-socket-\(getpid())"

    @Test func `listener has its mode, is found, and takes connections until nobody waits`() throws {
        let listener = try UnixListener(path: path, mode: 0o640, owner: (geteuid(), getegid()))
        defer { listener.removeFile() }
        var status = stat()
        #expect(lstat(path, &status) == 0 && status.st_mode & 0o7777 == 0o640)
        #expect(try { if case .some = try listener.accept() { false } else { true } }())
        let client = try UnixSocket(connectingTo: path)
        guard let server = try listener.accept() else {
            Issue.record("no connection")
            return
        }
        #expect(try client.send([1]))
        #expect(try received(server) == [1])
        #expect(try server.peerCredentials().processID == getpid())
    }

    @Test func `living listener is not replaced, a stale one is, and only the own file is removed`() throws {
        do {
            let first = try UnixListener(path: path, mode: 0o600)
            #expect(throws: UnixSocket.Failure.inUse) { _ = try UnixListener(path: path, mode: 0o600) }
            #expect(first.raw > 2)
        }
        var old = stat()
        #expect(lstat(path, &old) == 0)
        #expect(throws: UnixSocket.Failure.system(SystemError("connect", errno: ECONNREFUSED))) {
            _ = try UnixSocket(connectingTo: path)
        }
        let second = try UnixListener(path: path, mode: 0o600)
        _ = try UnixSocket(connectingTo: path)
        unlink(path)
        let other = try UnixListener(path: path, mode: 0o600)
        second.removeFile()
        #expect(access(path, F_OK) == 0)
        other.removeFile()
        #expect(access(path, F_OK) != 0)
        // No temporary name is left.
        #expect(access("/tmp/.\(String(getpid(), radix: 36))", F_OK) != 0)
    }

    @Test func `path that is too long or no socket says so`() throws {
        let long = "/tmp/" + String(repeating: "x", count: 103)
        #expect(throws: UnixSocket.Failure.badPath(limit: 107)) { _ = try UnixListener(path: long, mode: 0o600) }
        #expect(throws: UnixSocket.Failure.badPath(limit: 107)) { _ = try UnixSocket(connectingTo: "") }
        let longest = "/tmp/" + String(repeating: "x", count: 102)
        try UnixListener(path: longest, mode: 0o600).removeFile()
        let file = "/tmp/vmd-test-file-\(getpid())"
        close(creat(file, 0o600))
        defer { unlink(file) }
        #expect(throws: UnixSocket.Failure.notSocket) { _ = try UnixListener(path: file, mode: 0o600) }
        #expect(throws: UnixSocket.Failure.notSocket) {
            _ = try UnixListener(adopting: try FileDescriptor(open: file, flags: O_RDONLY))
        }
        #expect(throws: UnixSocket.Failure.wrongKind) {
            _ = try UnixListener(adopting: FileDescriptor(owning: socket(AF_UNIX, CInt(SOCK_STREAM.rawValue), 0)))
        }
    }
}
