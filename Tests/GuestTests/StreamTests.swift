import Glibc
import Testing

extension GuestTests {
    /// The console on pipes and files, as scripts have it.
    @Suite struct Streams {
        @Test func `a paste of 64 KB loses no byte`() throws {
            let guest = try GuestProcess.atShell()
            var generator = SystemRandomNumberGenerator()
            let paste = (0..<65536).map { _ in UInt8.random(in: 0...255, using: &generator) }
            guest.send("stty raw -echo; echo re\"\"ady; head -c 65536 | md5sum; stty sane\n")
            _ = try guest.wait(for: "ready\n")
            guest.send(paste)
            _ = try guest.wait(for: try checksum(paste))
            guest.send("poweroff -f\n")
            #expect(try guest.status() == 0)
        }

        @Test func `64 KB of lines typed at a program arrive whole`() throws {
            let guest = try GuestProcess.atShell()
            let line = Array("The quick brown fox jumps over the lazy dog, and then once more\n".utf8)
            let paste = (0..<1024).flatMap { _ in line }
            guest.send("stty -echo\n")
            try guest.start("md5sum")
            guest.send(paste + [4])
            _ = try guest.wait(for: try checksum(paste))
            guest.send("poweroff -f\n")
            #expect(try guest.status() == 0)
        }

        @Test func `every byte of a long output arrives`() throws {
            let guest = try GuestProcess.atShell()
            let printed = try guest.shell("seq 1 30000")
            #expect(printed.split(separator: "\n").elementsEqual((1...30000).map(Substring.init(describing:))))
            guest.send("poweroff -f\n")
            #expect(try guest.status() == 0)
        }

        @Test func `commands from a file are run`() throws {
            let scratch = try Scratch()
            let script = try scratch.file("script", Array("uname -s\necho $((6 * 7))\npoweroff -f\n".utf8))
            let guest = try GuestProcess(boot("quiet"), input: .file(script))
            #expect(try guest.status() == 0)
            #expect(guest.text.contains("\nLinux\n"))
            #expect(guest.text.contains("\n42\n"))
        }

        @Test func `a guest without input shows what runs and powers off`() throws {
            let guest = try GuestProcess(boot("vmd.run=demo"), input: .nothing)
            #expect(try guest.status() == 0)
            let hasShown = guest.text.contains("kernel:   Linux 6")
            #expect(hasShown)
            #expect(guest.errorText.isEmpty)
        }

        @Test func `the end of input does not end the machine`() throws {
            let guest = try GuestProcess.atShell()
            guest.send("sleep 1; echo still $((20 + 1)); poweroff -f\n")
            guest.endInput()
            _ = try guest.wait(for: "still 21")
            #expect(try guest.status() == 0)
        }
    }
}

extension Substring {
    fileprivate init(describing number: Int) { self = "\(number)" }
}
