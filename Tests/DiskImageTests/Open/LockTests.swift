import DiskImage
import DiskTestSupport
import Glibc
import Linux
import Testing

/// Who may have an image open beside us, tried with a second process.
@Suite("Locks of images", .timeLimit(.minutes(1))) struct LockTests {
    private let folder: ScratchFolder

    init() throws {
        folder = try ScratchFolder()
        try folder.write("disk.raw", [UInt8](repeating: 0, count: 1 << 20))
    }

    private func open(isReadOnly: Bool) throws -> ImageChain {
        try ImageChain(ImageLocation(folder["disk.raw"]), ImageOpening(isReadOnly: isReadOnly))
    }

    private func refusal(isReadOnly: Bool) -> ImageError? {
        do {
            _ = try open(isReadOnly: isReadOnly)
            return nil
        } catch {
            return error as? ImageError
        }
    }

    @Test func `one writes alone, many read together`() throws {
        do {
            let writer = try open(isReadOnly: false)
            #expect(refusal(isReadOnly: false)?.kind == .inUse)
            #expect(refusal(isReadOnly: true)?.kind == .inUse)
            _ = writer.members
        }
        let first = try open(isReadOnly: true)
        let second = try open(isReadOnly: true)
        #expect(refusal(isReadOnly: false)?.kind == .inUse)
        _ = (first.members, second.members)
    }

    @Test func `lock goes with the descriptor, and ends with the last one`() throws {
        let copy: FileDescriptor
        do {
            let writer = try open(isReadOnly: false)
            copy = try FileDescriptor(duplicating: try #require(writer.descriptors.numbers.first))
        }
        #expect(refusal(isReadOnly: false)?.kind == .inUse)
        close(copy.release())
        #expect(refusal(isReadOnly: false) == nil)
    }

    @Test(.enabled(if: Peer.hasQEMU, "no qemu-img: install qemu-utils"))
    func `QEMU's tools and we keep each other out`() throws {
        let path = folder["disk.raw"]
        do {
            let writer = try open(isReadOnly: false)
            let result = try Peer.run(["qemu-io", "-r", "-f", "raw", "-c", "read 0 512", path])
            #expect(result.status != 0 && result.output.contains("lock"), "\(result.output)")
            _ = writer.members
        }
        do {
            let reader = try open(isReadOnly: true)
            #expect(try Peer.run(["qemu-io", "-r", "-f", "raw", "-c", "read 0 512", path]).status == 0)
            let result = try Peer.run(["qemu-io", "-f", "raw", "-c", "write 0 512", path])
            #expect(result.status != 0 && result.output.contains("lock"), "\(result.output)")
            _ = reader.members
        }
        let other = try Holder(["qemu-io", "-f", "raw", path])
        defer { other.end() }
        try other.waitUntil { refusal(isReadOnly: false) != nil }
        let writing = try #require(refusal(isReadOnly: false))
        #expect(writing.reason.contains("qemu-io (process \(other.pid))"), "\(writing)")
        #expect(refusal(isReadOnly: true)?.kind == .inUse)
    }

    /// A program that waits for its standard input.
    private final class Holder {
        let pid: pid_t
        private let input: CInt
        private let output: CInt

        init(_ words: [String]) throws {
            var ends: [CInt] = [-1, -1]
            try #require(pipe(&ends) == 0)
            for end in ends { _ = fcntl(end, F_SETFD, FD_CLOEXEC) }
            (output, input) = (ends[0], ends[1])
            var actions = posix_spawn_file_actions_t()
            posix_spawn_file_actions_init(&actions)
            defer { posix_spawn_file_actions_destroy(&actions) }
            posix_spawn_file_actions_adddup2(&actions, output, 0)
            posix_spawn_file_actions_addopen(&actions, 1, "/dev/null", O_WRONLY, 0)
            posix_spawn_file_actions_addopen(&actions, 2, "/dev/null", O_WRONLY, 0)
            var arguments: [UnsafeMutablePointer<CChar>?] = words.map { (word: String) in strdup(word) }
            arguments.append(nil)
            defer { for argument in arguments { free(argument) } }
            var pid = pid_t()
            try #require(posix_spawnp(&pid, words[0], &actions, nil, &arguments, environ) == 0)
            self.pid = pid
        }

        /// At most ten seconds, or until it ends.
        func waitUntil(_ condition: () -> Bool) throws {
            for _ in 0..<200 {
                if condition() { return }
                var status: CInt = 0
                try #require(waitpid(pid, &status, WNOHANG) == 0, "it has ended")
                usleep(50_000)
            }
            Issue.record("it does not open the file")
        }

        func end() {
            close(input)
            close(output)
            kill(pid, SIGKILL)
            var status: CInt = 0
            waitpid(pid, &status, 0)
        }
    }
}
