import Glibc
import Linux
import Testing

/// A folder of a test's own, gone with the object.
final class ScratchFolder: Sendable {
    let path: String

    init() throws {
        var template = Array("/tmp/vmd-images-XXXXXX".utf8CString)
        let made = template.withUnsafeMutableBufferPointer { $0.baseAddress.flatMap { mkdtemp($0) } != nil }
        try #require(made)
        path = String(decoding: template.dropLast().map { UInt8(bitPattern: $0) }, as: UTF8.self)
    }

    deinit { _ = try? Peer.run(["rm", "-rf", path]) }

    /// A path in the folder.
    subscript(_ name: String) -> String { path + "/" + name }

    func write(_ name: String, _ bytes: [UInt8]) throws {
        let file = try FileDescriptor(open: self[name], flags: O_WRONLY | O_CREAT | O_TRUNC)
        try Stream.writeAll(file.raw, bytes)
    }

    func read(_ name: String) throws -> [UInt8] {
        let file = try RegularFile(self[name])
        return try file.read(at: 0, count: Int(file.byteCount))
    }

    /// The names in it, sorted.
    var names: [String] {
        let listing = (try? Peer.run(["ls", "-A", path]).output) ?? ""
        return listing.split(separator: "\n").map(String.init).sorted()
    }
}

/// Other programs, above all QEMU's.
enum Peer {
    struct Result {
        let status: CInt
        let output: String
    }

    static let hasQEMU = access("/usr/bin/qemu-img", X_OK) == 0

    /// Waits for the program's end; one that takes longer than 60 s is killed.
    static func run(_ words: [String], in folder: String = "/tmp") throws -> Result {
        let pipe = try Pipe()
        var actions = posix_spawn_file_actions_t()
        posix_spawn_file_actions_init(&actions)
        defer { posix_spawn_file_actions_destroy(&actions) }
        posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0)
        posix_spawn_file_actions_adddup2(&actions, pipe.writeEnd, 1)
        posix_spawn_file_actions_adddup2(&actions, pipe.writeEnd, 2)
        var arguments: [UnsafeMutablePointer<CChar>?] = (["timeout", "60", "env", "-C", folder] + words).map { (word: String) in strdup(word) }
        arguments.append(nil)
        defer { for argument in arguments { free(argument) } }
        var pid = pid_t()
        try #require(posix_spawnp(&pid, "timeout", &actions, nil, &arguments, environ) == 0)
        pipe.closeWriteEnd()
        var output: [UInt8] = []
        while case let bytes = try Stream.read(pipe.readEnd, limit: 65536), !bytes.isEmpty { output += bytes }
        var status: CInt = 0
        waitpid(pid, &status, 0)
        return Result(status: status >> 8 & 0xFF, output: String(decoding: output, as: UTF8.self))
    }

    /// The same, when only success is expected.
    @discardableResult
    static func must(_ words: String..., in folder: String = "/tmp") throws -> String {
        let result = try run(words, in: folder)
        try #require(result.status == 0, "\(words.joined(separator: " ")): \(result.output)")
        return result.output
    }

    private final class Pipe {
        private(set) var ends: [CInt] = [-1, -1]
        var readEnd: CInt { ends[0] }
        var writeEnd: CInt { ends[1] }
        init() throws {
            try #require(pipe(&ends) == 0)
            for end in ends { _ = fcntl(end, F_SETFD, FD_CLOEXEC) }
        }
        func closeWriteEnd() {
            close(ends[1])
            ends[1] = -1
        }
        deinit { for end in ends where end >= 0 { close(end) } }
    }
}

extension ImageFileTests {
    /// A file of memory.
    static func memory(_ byteCount: Int = 0) throws -> FileDescriptor { try FileDescriptor.memory("disk", byteCount: byteCount) }
}
