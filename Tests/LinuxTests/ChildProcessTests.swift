import Glibc
import Linux
import Testing

@Suite("Child processes", .serialized, .timeLimit(.minutes(1))) struct ChildProcessTests {
    @Test func `program gets its arguments, environment and descriptors, and nothing else`() throws {
        // Numbers that are other places': they must not overwrite each other.
        let zero = try FileDescriptor(open: "/dev/zero", flags: O_RDONLY)
        let leaked = dup(zero.raw)
        defer { close(leaked) }
        signal(SIGPIPE, SIG_IGN)
        var mask = sigset_t()
        sigemptyset(&mask)
        sigaddset(&mask, SIGUSR2)
        pthread_sigmask(SIG_BLOCK, &mask, nil)
        defer { pthread_sigmask(SIG_UNBLOCK, &mask, nil) }
        let result = try Helper.run(
            ["describe"], environment: [("A", "1"), ("B", "two words")], descriptors: [zero.raw, 2, zero.raw]
        ) { $0.startsSession = true }
        #expect(result.status == .exited(0))
        #expect(result.lines == [
            "arguments [\"helper\", \"describe\"]", "descriptors [0, 1, 2, 3, 4, 5]", "blocked [] ignored []",
            "leader true", "variable A=1", "variable B=two words",
        ])
    }

    @Test func `descriptors arrive in their order whatever their numbers were`() throws {
        let pairs = try (0..<6).map { _ in
            var ends: [CInt] = [0, 0]
            try #require(pipe(&ends) == 0)
            return ends
        }
        defer { for pair in pairs { close(pair[0]) } }
        for (index, pair) in pairs.enumerated() {
            try Stream.writeAll(pair[1], [UInt8(index)])
            close(pair[1])
        }
        // The child is a copy of us whose 3, 4, 5... are taken already.
        let order = [5, 0, 3, 1, 4, 2]
        var options = ChildProcess.Options(arguments: ["sh", "-c", "cat <&3 >/dev/null; cat <&8 >/dev/null; exit 0"])
        options.descriptors = order.map { pairs[$0][0] }
        options.diesWithParent = false
        var child = try ChildProcess(try Program(path: "/bin/sh"), options)
        _ = try child.wait()
        // 3 was the last pipe, 8 was the third: read empty by the child; the others have their byte still.
        for (index, pair) in pairs.enumerated() {
            var count: CInt = -1
            #expect(ioctl(pair[0], UInt(FIONREAD), &count) == 0)
            #expect(count == (index == 5 || index == 2 ? 0 : 1), "\(index)")
        }
    }

    @Test(arguments: [(["exit=7"], .exited(7)), (["raise=9"], .killed(signal: SIGKILL)), (["raise=11"], .killed(signal: SIGSEGV))]
        as [([String], ChildProcess.ExitStatus)])
    func `end is told apart`(steps: [String], expected: ChildProcess.ExitStatus) throws {
        #expect(try Helper.run(steps).status == expected)
    }

    @Test func `failed exec says why, and leaves neither process nor descriptor`() throws {
        let before = openDescriptorCount()
        for _ in 0..<50 {
            #expect(throws: SystemError("execveat", errno: EACCES)) {
                var options = ChildProcess.Options(arguments: ["x"])
                options.diesWithParent = false
                _ = try ChildProcess(try Program(path: "/etc/passwd"), options)
            }
            #expect(throws: SystemError("dup3", errno: EBADF)) {
                var options = ChildProcess.Options(arguments: ["x"])
                options.descriptors = [4000]
                _ = try ChildProcess(try Program(path: "/bin/true"), options)
            }
        }
        #expect(openDescriptorCount() < before + 40)
        #expect(waitpid(-1, nil, WNOHANG) <= 0)
    }

    @Test func `event loop sees the end, and a signal goes to a living child only`() throws {
        var options = ChildProcess.Options(arguments: ["helper", "sleep"])
        options.diesWithParent = false
        var child = try ChildProcess(try Program(path: Helper.path), options)
        do {
            let end = try child.poll()
            #expect(end == nil)
        }
        let loop = try EventLoop()
        try loop.watch(child.raw, .readable) { loop.stop() }
        child.signal(SIGTERM)
        try loop.run()
        do {
            let end = try child.poll()
            #expect(end == .killed(signal: SIGTERM))
        }
        do {
            let end = try child.poll()
            #expect(end == .killed(signal: SIGTERM))
        }
        let reached = child.signal(SIGTERM)
        #expect(!reached)
    }

    @Test func `dropped child is gone`() throws {
        var pid: pid_t = 0
        do {
            var options = ChildProcess.Options(arguments: ["helper", "sleep"])
            options.diesWithParent = false
            let child = try ChildProcess(try Program(path: Helper.path), options)
            pid = child.processID
            #expect(kill(pid, 0) == 0)
        }
        #expect(kill(pid, 0) == -1 && errno == ESRCH)
    }

    /// Also after a change of user, a user namespace, and inside a whole sandbox: each clears the signal.
    @Test(arguments: [["sleep"], ["identity=65533", "enter", "sleep"], ["user", "root=empty", "enter", "say=in", "sleep"]])
    func `child dies with its parent`(steps: [String]) throws {
        if steps.first == "identity=65533", !Helper.isRoot { return }
        var ends: [CInt] = [0, 0]
        try #require(pipe(&ends) == 0)
        var options = ChildProcess.Options(arguments: ["helper", "hold"] + steps)
        options.output = .descriptor(ends[1])
        options.diesWithParent = false
        var parent = try ChildProcess(try Program(path: Helper.path), options)
        close(ends[1])
        defer { close(ends[0]) }
        var text = ""
        let wanted = steps.contains("enter") ? ["holds", "entered"] : ["holds"]
        while !wanted.allSatisfy({ text.contains($0) }) {
            try #require(try Stream.wait(for: ends[0], .readable, timeoutMilliseconds: 30_000), "\(text)")
            let bytes = try Stream.read(ends[0], limit: 1000)
            try #require(!bytes.isEmpty, "\(text)")
            text += String(decoding: bytes, as: UTF8.self)
        }
        parent.signal(SIGKILL)
        _ = try parent.wait()
        // The pipe ends when the last holder of its writing end is gone.
        var entry = pollfd(fd: ends[0], events: Int16(POLLIN), revents: 0)
        while true {
            // Still there after that long, it would never go.
            try #require(poll(&entry, 1, 5000) == 1)
            if try Stream.read(ends[0], limit: 1000).isEmpty { break }
        }
    }
}
