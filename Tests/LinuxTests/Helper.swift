import Glibc
import Linux
import Testing

/// Runs `sandbox-helper`, whose arguments are steps (Tests/SandboxHelper/main.swift). A program of its own: the test
/// runner has threads, and could neither fork safely nor enter a sandbox.
enum Helper {
    /// It is built beside the test runner.
    static var path: String {
        var buffer = [CChar](repeating: 0, count: Int(PATH_MAX))
        let count = readlink("/proc/self/exe", &buffer, buffer.count)
        let runner = String(decoding: buffer.prefix(max(0, count)).map { UInt8(bitPattern: $0) }, as: UTF8.self)
        return runner.split(separator: "/").dropLast().reduce("") { "\($0)/\($1)" } + "/sandbox-helper"
    }

    struct Result {
        let status: ChildProcess.ExitStatus
        let lines: [String]

        /// What stands behind a word at the beginning of a line.
        func all(_ word: String) -> [String] {
            lines.filter { $0.hasPrefix(word + " ") }.map { String($0.dropFirst(word.count + 1)) }
        }
    }

    static func run(
        _ steps: [String], environment: [(name: String, value: String)] = [], descriptors: [CInt] = [],
        change: (inout ChildProcess.Options) -> Void = { _ in }
    ) throws -> Result {
        var ends: [CInt] = [0, 0]
        try #require(pipe(&ends) == 0)
        let reader = FileDescriptor(owning: ends[0])
        let writer = FileDescriptor(owning: ends[1])
        try reader.setCloseOnExec()
        try writer.setCloseOnExec()
        var options = ChildProcess.Options(arguments: ["helper"] + steps)
        options.environment = environment
        options.output = .descriptor(writer.raw)
        options.descriptors = descriptors
        // Threads of the test runner come and go.
        options.diesWithParent = false
        change(&options)
        var child = try ChildProcess(try Program(path: path), options)
        close(writer.release())
        var bytes: [UInt8] = []
        while case let more = try Stream.read(reader.raw, limit: 65536), !more.isEmpty { bytes += more }
        let lines = String(decoding: bytes, as: UTF8.self).split(separator: "\n").map(String.init)
        return Result(status: try child.wait(), lines: lines)
    }

    static var isRoot: Bool { geteuid() == 0 }
    /// What an ordinary process of this host cannot have: tests of walls that need it are skipped.
    static let missing: [String] = (try? run(["user", "root=empty", "enter"]))?.all("missing") ?? ["helper"]
    static let missingAsUser: [String] = isRoot ? (try? run(["become=65534", "root=empty", "enter"]))?.all("missing") ?? ["helper"] : missing
}

/// How many descriptors this process has. Other suites open and close some meanwhile, so leaks are looked for by many
/// rounds.
func openDescriptorCount() -> Int {
    (0..<4096).count { fcntl($0, F_GETFD) != -1 }
}
