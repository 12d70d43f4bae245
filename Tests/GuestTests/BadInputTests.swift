import Glibc
import Testing

extension GuestTests {
    /// What a user may get wrong: one line that names the file or value, and a status that scripts can tell apart.
    @Suite struct BadInput {
        struct Case: CustomTestStringConvertible, Sendable {
            let name: String
            /// The arguments after `run`, given a folder for files.
            let arguments: @Sendable (Scratch) throws -> [String]
            /// What the line must name.
            let naming: String
            var status: CInt = 1
            var testDescription: String { name }
        }

        static let cases: [Case] = [
            Case(name: "no such kernel", arguments: { _ in ["-b", "/nonexistent/kernel"] }, naming: "/nonexistent/kernel"),
            Case(name: "a folder as kernel", arguments: { _ in ["-b", "/etc"] }, naming: "/etc"),
            Case(name: "a device as kernel", arguments: { _ in ["-b", "/dev/zero"] }, naming: "/dev/zero"),
            Case(name: "an empty kernel", arguments: { ["-b", try $0.file("empty")] }, naming: "empty"),
            Case(
                name: "a truncated kernel",
                arguments: { ["-b", try $0.file("short", try File.bytes(Paths.kernel, limit: 1 << 20))] }, naming: "short"),
            Case(
                name: "a kernel cut inside its header",
                arguments: { ["-b", try $0.file("cut", try File.bytes(Paths.kernel, limit: 0x220))] }, naming: "cut"),
            Case(
                name: "an oversized kernel",
                arguments: { ["-b", try $0.file("huge", TinyKernel.image(code: [], paragraphs: 1 << 28), byteCount: 1 << 33)] },
                naming: "huge"),
            Case(name: "a foreign kernel", arguments: { _ in ["-b", "/bin/busybox"] }, naming: "/bin/busybox"),
            Case(
                name: "a text file as kernel", arguments: { ["-b", try $0.file("text", Array("hello\n".utf8))] },
                naming: "text"),
            Case(
                name: "no such initrd", arguments: { _ in ["-b", Paths.kernel, "--initrd", "/nonexistent/initrd"] },
                naming: "/nonexistent/initrd"),
            Case(
                name: "an initrd that does not fit",
                arguments: { ["-m", "128M", "-b", Paths.kernel, "--initrd", try $0.file("large", byteCount: 200 << 20)] },
                naming: "large"),
            Case(
                name: "no such module", arguments: { _ in ["-b", Paths.multiboot, "--module", "/nonexistent/module,x"] },
                naming: "/nonexistent/module"),
            Case(name: "a folder as module", arguments: { _ in ["-b", Paths.multiboot, "--module", "/etc"] }, naming: "/etc"),
            Case(name: "an empty module name", arguments: { _ in ["-b", Paths.multiboot, "--module", ",x"] }, naming: "module"),
            Case(
                name: "a module that does not fit",
                arguments: { ["-m", "64M", "-b", Paths.multiboot, "--module", try $0.file("vast", byteCount: 63 << 20)] },
                naming: "vast"),
            Case(
                name: "a module for Linux", arguments: { ["-b", Paths.kernel, "--module", try $0.file("alien", [1])] },
                naming: "alien"),
            Case(
                name: "a multiboot kernel cut short",
                arguments: { ["-b", try $0.file("part", try File.bytes(Paths.multiboot, limit: 0x1400))] }, naming: "part"),
            Case(
                name: "an over-long command line for a multiboot kernel",
                arguments: { _ in ["-b", Paths.multiboot, "--cmdline", String(repeating: "word ", count: 20000)] },
                naming: "command line"),
            Case(
                name: "a debug exit port that is the serial port's",
                arguments: { _ in ["-b", Paths.kernel, "--debug-exit", "0x3f8"] }, naming: "0x3f8"),
            Case(
                name: "a debug exit port beyond the last", arguments: { _ in ["-b", Paths.kernel, "--debug-exit", "65536"] },
                naming: "65536", status: 2),
            Case(
                name: "a debug exit port that is no number",
                arguments: { _ in ["-b", Paths.kernel, "--debug-exit", "f4"] }, naming: "f4", status: 2),
            Case(
                name: "a debug exit port with nothing behind 0x",
                arguments: { _ in ["-b", Paths.kernel, "--debug-exit", "0x"] }, naming: "0x", status: 2),
            Case(name: "too little memory", arguments: { _ in ["-m", "15M", "-b", Paths.kernel] }, naming: "15M"),
            Case(name: "memory that the kernel does not fit in", arguments: { _ in ["-m", "16M", "-b", Paths.kernel] }, naming: "16M"),
            Case(name: "more memory than a host can map", arguments: { _ in ["-m", "900000G", "-b", Paths.kernel] }, naming: "memory"),
            Case(
                name: "an over-long command line",
                arguments: { _ in ["-b", Paths.kernel, "--cmdline", String(repeating: "word ", count: 1000)] }, naming: "command line"),
            Case(name: "no such CPU", arguments: { _ in ["-b", Paths.kernel, "--cpu", "z80"] }, naming: "z80"),
            Case(name: "an initrd without a kernel", arguments: { _ in ["--initrd", Paths.initrd] }, naming: "-b"),
            Case(name: "no such boot device", arguments: { _ in ["-B", "tape"] }, naming: "tape", status: 2),
            Case(name: "no such option", arguments: { _ in ["-b", Paths.kernel, "--frob"] }, naming: "--frob", status: 2),
            Case(name: "no such engine", arguments: { _ in ["-b", Paths.kernel, "--engine", "steam"] }, naming: "steam", status: 2),
            Case(name: "no size", arguments: { _ in ["-b", Paths.kernel, "-m", "much"] }, naming: "much", status: 2),
            Case(name: "a negative size", arguments: { _ in ["-b", Paths.kernel, "-m", "-5"] }, naming: "-m", status: 2),
        ]

        @Test(arguments: cases)
        func `is told in one line`(input: Case) throws {
            let scratch = try Scratch()
            let process = try GuestProcess(["run"] + input.arguments(scratch), input: .nothing)
            #expect(try process.status(within: 20) == input.status)
            #expect(process.output.isEmpty)
            let lines = process.errorText.split(separator: "\n")
            #expect(lines.first?.hasPrefix("vmctl: ") == true)
            #expect(lines.first?.contains(input.naming) == true, "\(process.errorText)")
            // Wrong usage is followed by the usage.
            #expect(input.status == 2 || lines.count == 1, "\(process.errorText)")
        }

        @Test(.enabled(if: geteuid() != 0, "root may read every file"))
        func `an unreadable kernel is told in one line`() throws {
            let scratch = try Scratch()
            let kernel = try scratch.file("locked", mode: 0)
            let process = try GuestProcess(["run", "-b", kernel], input: .nothing)
            #expect(try process.status(within: 20) == 1)
            #expect(process.errorText.contains("locked"))
        }

        @Test func `help goes to standard output`() throws {
            let process = try GuestProcess(["run", "--help"], input: .nothing)
            #expect(try process.status(within: 20) == 0)
            #expect(process.text.contains("--initrd"))
            #expect(process.errorText.isEmpty)
        }
    }
}
