import Glibc
import Linux

/// A folder of a test's own, gone with the object.
package final class ScratchFolder: Sendable {
    package let path: String

    package init() throws {
        var template = Array("/tmp/vmd-images-XXXXXX".utf8CString)
        let made = template.withUnsafeMutableBufferPointer { $0.baseAddress.flatMap { mkdtemp($0) } != nil }
        guard made else { throw SystemError("mkdtemp", errno: errno) }
        path = String(decoding: template.dropLast().map { UInt8(bitPattern: $0) }, as: UTF8.self)
    }

    deinit { _ = try? Peer.run(["rm", "-rf", path]) }

    /// A path in the folder.
    package subscript(_ name: String) -> String { path + "/" + name }

    package func write(_ name: String, _ bytes: [UInt8]) throws {
        let file = try FileDescriptor(open: self[name], flags: O_WRONLY | O_CREAT | O_TRUNC)
        try Stream.writeAll(file.raw, bytes)
    }

    package func read(_ name: String) throws -> [UInt8] {
        let file = try RegularFile(self[name])
        return try file.read(at: 0, count: Int(file.byteCount))
    }

    /// The names in it, sorted.
    package var names: [String] {
        let listing = (try? Peer.run(["ls", "-A", path]).output) ?? ""
        return listing.split(separator: "\n").map(String.init).sorted()
    }
}

/// Other programs, above all QEMU's.
package enum Peer {
    package struct Result {
        package let status: CInt
        package let output: String
    }

    package static let hasQEMU = access("/usr/bin/qemu-img", X_OK) == 0

    /// Waits for the program's end; one that takes longer than 60 s is killed.
    package static func run(_ words: [String], in folder: String = "/tmp") throws -> Result {
        var pipe = try Pipe()
        guard let writer = pipe.writingEnd else { throw Failure(description: "a pipe without an end") }
        var actions = posix_spawn_file_actions_t()
        posix_spawn_file_actions_init(&actions)
        defer { posix_spawn_file_actions_destroy(&actions) }
        posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0)
        posix_spawn_file_actions_adddup2(&actions, writer, 1)
        posix_spawn_file_actions_adddup2(&actions, writer, 2)
        var arguments: [UnsafeMutablePointer<CChar>?] = (["timeout", "60", "env", "-C", folder] + words).map { (word: String) in
            strdup(word)
        }
        arguments.append(nil)
        defer { for argument in arguments { free(argument) } }
        var pid = pid_t()
        let code = posix_spawnp(&pid, "timeout", &actions, nil, &arguments, environ)
        guard code == 0 else { throw SystemError("posix_spawn", errno: code) }
        pipe.closeWriter()
        var output: [UInt8] = []
        while case let bytes = try Stream.read(pipe.reader.raw, limit: 65536), !bytes.isEmpty { output += bytes }
        var status: CInt = 0
        waitpid(pid, &status, 0)
        return Result(status: status >> 8 & 0xFF, output: String(decoding: output, as: UTF8.self))
    }

    /// The same, when only success is expected.
    @discardableResult
    package static func must(_ words: String..., in folder: String = "/tmp") throws -> String {
        let result = try run(words, in: folder)
        guard result.status == 0 else { throw Failure(description: "\(words.joined(separator: " ")): \(result.output)") }
        return result.output
    }

    package struct Failure: Error, CustomStringConvertible {
        package let description: String
    }
}
