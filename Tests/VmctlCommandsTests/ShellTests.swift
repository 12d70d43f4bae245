import ControlTestSupport
import Glibc
import Linux
import Testing

@testable import VmctlCommands

/// The repository's folder.
let root = String(#filePath.dropLast("Tests/VmctlCommandsTests/ShellTests.swift".count))

func text(of file: String) throws -> String {
    let file = try RegularFile(root + file)
    return String(decoding: try file.read(at: 0, count: Int(file.byteCount)), as: UTF8.self)
}

/// The options of a command, as its help lists them: `-b`, `--initrd`.
func options(of command: any VmctlCommand.Type) -> [String] {
    Call([CommandWord.name(of: command), "--help"]).output.split(separator: "\n").flatMap { line -> [String] in
        guard line.hasPrefix("  -") else { return [] }
        return line.split(separator: " ", omittingEmptySubsequences: true).prefix { $0.hasPrefix("-") }.map {
            $0.hasSuffix(",") ? String($0.dropLast()) : String($0)
        }
    }
}

/// bash itself completes, with a vmctl in front of it that lists two machines.
@Suite("Completions", .timeLimit(.minutes(1))) struct CompletionTests {
    /// What bash offers for the last of the words.
    private func complete(_ words: String...) throws -> [String] { try run(words).offered }

    private func run(_ words: [String]) throws -> (offered: [String], asked: String) {
        let folder = "/tmp/completion-tests-\(getpid())-\(UInt32.random(in: 0 ... .max))"
        try #require(mkdir(folder, 0o700) == 0)
        defer { for name in ["/vmctl", "/asked", "/out", ""] { remove(folder + name) } }
        try write(
            folder + "/vmctl",
            "#!/bin/sh\necho \"$*\" >>\(folder)/asked\necho '   ID NAME'\necho '    1 web'\necho '    2 mail'\n", mode: 0o700)
        let list = words.map { "'\($0)'" }.joined(separator: " ")
        let script = """
            PATH=\(folder):$PATH; . '\(root)Completions/vmctl.bash'
            COMP_WORDS=(vmctl \(list)); COMP_CWORD=\(words.count)
            _vmctl vmctl "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD - 1]}"
            printf '%s\\n' "${COMPREPLY[@]}" >\(folder)/out
            """
        var arguments: [UnsafeMutablePointer<CChar>?] = ["bash", "--norc", "-c", script].map { (word: String) in strdup(word) }
        arguments.append(nil)
        defer { for argument in arguments { free(argument) } }
        var pid = pid_t()
        try #require(posix_spawnp(&pid, "bash", nil, nil, &arguments, environ) == 0)
        var status: CInt = 0
        waitpid(pid, &status, 0)
        #expect(status == 0)
        let lines = try read(folder + "/out").split(separator: "\n").map(String.init)
        return (lines.sorted(), (try? read(folder + "/asked")) ?? "")
    }

    private func read(_ path: String) throws -> String {
        let file = try RegularFile(path)
        return String(decoding: try file.read(at: 0, count: 1 << 16), as: UTF8.self)
    }

    private func write(_ path: String, _ text: String, mode: mode_t) throws {
        let file = try FileDescriptor(open: path, flags: O_WRONLY | O_CREAT, mode: mode)
        try Stream.writeAll(file.raw, Array(text.utf8))
    }

    @Test func `commands are offered, and their beginnings completed`() throws {
        #expect(try complete("st") == ["start", "status", "stop"])
        #expect(try complete("-v", "-s", "/x", "un") == ["unpause"])
        let all = try complete("")
        for command in CommandWord.commands { #expect(all.contains(CommandWord.name(of: command))) }
    }

    @Test(arguments: CommandWord.commands.map(CommandWord.name))
    func `every option of a command is offered, and no other`(name: String) throws {
        let expected = options(of: try CommandWord.find(name)).sorted()
        #expect(expected.contains("-v") && expected.contains("--help"))
        #expect(try run([name, "-"]).offered == expected)
    }

    @Test func `machines are asked of the daemon that is meant`() throws {
        let start = try run(["-s", "/tmp/x.sock", "start", ""])
        #expect(start.offered == ["mail", "web"] && start.asked == "-s /tmp/x.sock status\n")
        let stop = try run(["sto", "-f", "w"])
        #expect(stop.offered == ["web"] && stop.asked == "status -r\n")
        #expect(try run(["stop", "web", ""]).offered == [])
        #expect(try run(["status", "-r", "m"]).offered == ["mail"])
        #expect(try run(["start", "-t", "w"]).offered == ["web"])
    }

    @Test func `values and paths follow their options`() throws {
        #expect(try complete("start", "-B", "") == ["cdrom", "disk", "net"])
        #expect(try complete("run", "--engine", "k") == ["kvm"])
        #expect(try complete("start", "-b", root + "Pack").contains(root + "Package.swift"))
        #expect(try complete("load", root + "Makef") == [root + "Makefile"])
        #expect(try complete("log", "") == ["brief", "verbose"])
        #expect(try complete("reset", "") == ["all", "switches", "vms"])
        #expect(try complete("start", "--cmdline", "") == [])
    }

    @Test(arguments: ["Completions/_vmctl", "Completions/vmctl.fish"])
    func `the other shells know every option`(file: String) throws {
        let script = try text(of: file)
        for command in CommandWord.commands {
            #expect(script.contains(CommandWord.name(of: command)))
            for option in options(of: command) {
                let long = option.hasPrefix("--")
                let name = option.drop { $0 == "-" }
                let known = file.hasSuffix("fish") ? script.contains(long ? "-l \(name) " : "-s \(name) ") : script.contains(option)
                #expect(known, "\(option)")
            }
        }
    }
}

/// The manual says what the program does.
@Suite("vmctl(8)") struct ManualTests {
    @Test func `every command and option is in the manual`() throws {
        // A flag on a line with others is a letter of a word.
        let manual = try text(of: "man/vmctl.8")
        for command in CommandWord.commands {
            let name = CommandWord.name(of: command)
            let parts = manual.split(separator: "\n.It ").filter { part in
                let words = part.split(maxSplits: 3) { $0 == " " || $0 == "\n" }
                return words.prefix(2) == ["Cm", name[...]] || words.prefix(3) == ["Xo", "Cm", name[...]]
            }
            // One that has words of its own has a part for each.
            #expect(!parts.isEmpty, "\(name)")
            for option in options(of: command) where !["-h", "--help", "-s", "-v"].contains(option) {
                let mdoc = option.hasPrefix("--") ? "Fl -\(option.dropFirst(2))" : "Fl "
                let isThere = manual.split(separator: "\n").contains { line in
                    guard option.hasPrefix("--") else {
                        return line.contains(mdoc) && line.split(separator: " ").contains { $0 == option.dropFirst() }
                            || line.contains("Op Fl cL") && option.dropFirst().allSatisfy("cL".contains)
                    }
                    return line.contains(mdoc)
                }
                #expect(isThere, "\(name) \(option)")
            }
        }
    }

    @Test func `every field of the JSON is in the manual's table, and no other`() throws {
        let manual = try text(of: "man/vmctl.8")
        let table = manual.split(separator: ".Bl -column").dropFirst().first?.split(separator: "\n.El").first ?? ""
        let rows = table.split(separator: "\n").filter { $0.hasPrefix(".It ") && !$0.contains("Sy") }
        #expect(Set(rows.map { String($0.split(separator: " ")[1]) }) == StatusTests.fields)
    }

    /// `Tests/GuestTests` runs them.
    @Test func `examples are commands of this program`() throws {
        let examples = try text(of: "man/vmctl.8").split(separator: "\n").filter { $0.hasPrefix(".Dl $ vmctl ") }
        #expect(examples.count >= 8)
        for example in examples {
            let words = example.dropFirst(".Dl $ vmctl ".count).split(separator: " ").map(String.init)
            guard case .command(let command, let rest) = try CommandWord.read(words) else {
                Issue.record("\(example)")
                continue
            }
            _ = try Program.parse(command, rest)
        }
    }
}
