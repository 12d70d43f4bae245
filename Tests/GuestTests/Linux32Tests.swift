import Glibc
import Testing

extension GuestTests {
    /// Debian's 32-bit kernels: without PAE (two-level page tables) and with it.
    @Suite(.enabled(if: Paths.has32BitGuests, "no 32-bit guests: make guests32 fetches them from Debian's i386 archive"))
    struct Linux32 {
        static func boot(_ kernel: String, _ words: String = "quiet", memory: String = "512M") -> [String] {
            ["run", "-m", memory, "-b", "\(Paths.guests32)/vmlinuz-\(kernel)", "--initrd", "\(Paths.guests32)/initramfs.cpio"]
                + ["--cmdline", "console=ttyS0 \(words)"] + Paths.engine
        }

        @Test(arguments: ["686", "686-pae"])
        func `kernel boots to a shell that runs a 32-bit program and powers off`(kernel: String) throws {
            let guest = try GuestProcess(Self.boot(kernel), input: .pipe)
            _ = try guest.wait(for: GuestProcess.prompt, within: 2 * Paths.patience)
            #expect(try guest.shell("uname -m").contains("i686"))
            let isPAE = try guest.shell("grep -wc pae /proc/cpuinfo").contains("1")
            #expect(isPAE)
            let lines = try guest.shell("guest-test").split(separator: "\n")
            for line in lines where line.hasPrefix("FAIL ") { Issue.record("\(line)") }
            let last = lines.last { $0.hasPrefix("guest-test: ") } ?? "guest-test printed no last line"
            #expect(last.hasSuffix(" passed, 0 failed"))
            guest.send("poweroff -f\n")
            #expect(try guest.status() == 0)
        }

        @Test(arguments: ["686", "686-pae"])
        func `kernel finds nothing to complain about`(kernel: String) throws {
            let guest = try GuestProcess(Self.boot(kernel, "vmd.run=demo"), input: .nothing)
            #expect(try guest.status(within: 2 * Paths.patience) == 0)
            let hasShown = guest.text.contains("kernel:   Linux 6")
            #expect(hasShown)
            let complaints = guest.text.split(separator: "\n").filter {
                ["Call Trace", "WARNING:", "BUG:", "Oops"].contains(where: $0.contains)
            }
            #expect(complaints.isEmpty)
        }

        /// Memory above 4 GB needs PAE; below, highmem.
        @Test(arguments: [("686", "2G", 2.0), ("686-pae", "5G", 5.0)])
        func `kernel uses memory that it cannot map at once`(kernel: String, size: String, gigabytes: Double) throws {
            let guest = try GuestProcess(Self.boot(kernel, "quiet vmd.run=demo", memory: size), input: .nothing)
            #expect(try guest.status(within: 2 * Paths.patience) == 0)
            let line = guest.text.split(separator: "\n").last { $0.hasPrefix("memory:") } ?? ""
            let kilobytes = line.split(separator: " ").dropFirst().first.flatMap { Double($0) } ?? 0
            #expect(kilobytes > gigabytes * 1_048_576 * 0.9 && kilobytes < gigabytes * 1_048_576)
        }
    }
}
