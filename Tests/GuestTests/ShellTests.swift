import Glibc
import Testing

extension GuestTests {
    /// The console on a terminal, as someone who types sees it.
    @Suite struct Shell {
        @Test func `a guest boots to a shell that runs commands and powers off`() throws {
            let guest = try GuestProcess(boot(), input: .terminal)
            let banner = try guest.wait(for: GuestProcess.prompt)
            #expect(banner.contains("Linux version 6"))
            #expect(banner.contains("To leave: poweroff, or ~."))
            #expect(try guest.shell("uname -s").contains("Linux"))
            #expect(try guest.shell("echo $((6 * 7))").contains("42"))
            #expect(try guest.shell("tty").contains("/dev/ttyS0"))
            #expect(try guest.shell("ls / | tr '\\n' ' '").contains("bin dev etc init proc"))
            #expect(try guest.shell("seq 1 20000 | md5sum").contains(try checksum(numbers(to: 20000))))
            // Job control needs a session with the console as its terminal.
            #expect(try guest.shell("sleep 100 & jobs").contains("Running"))
            try guest.start("sleep 1000")
            guest.send("\u{3}")
            _ = try guest.wait(for: GuestProcess.prompt)
            guest.send("poweroff\n")
            _ = try guest.wait(for: "Power down")
            #expect(try guest.status() == 0)
        }

        @Test func `tilde dot ends the machine and gives the terminal back`() throws {
            let guest = try GuestProcess(boot("quiet"), input: .terminal)
            let before = guest.terminalModes()
            _ = try guest.wait(for: GuestProcess.prompt)
            let during = guest.terminalModes()
            #expect(during.c_lflag & tcflag_t(ICANON | ECHO | ISIG) == 0)
            #expect(during.c_iflag & tcflag_t(ICRNL | IXON) == 0)
            guest.send("\r~.")
            #expect(try guest.status() == 0)
            #expect(isEqual(guest.terminalModes(), before))
        }

        @Test func `two tildes send one and BREAK reaches the kernel`() throws {
            let guest = try GuestProcess.atShell(input: .terminal)
            try guest.start("cat")
            guest.send("~~.x\r")
            // Once as the echo, once by cat.
            _ = try guest.wait(for: "~.x\n~.x\n")
            guest.send("a~.b\r")
            _ = try guest.wait(for: "a~.b\na~.b\n")
            guest.send("~#h")
            _ = try guest.wait(for: "sysrq: HELP")
            guest.send("\r~.")
            #expect(try guest.status() == 0)
        }

        @Test(arguments: [SIGTERM, SIGINT, SIGHUP])
        func `a signal ends the machine, with the terminal as it was`(number: CInt) throws {
            let guest = try GuestProcess(boot("quiet"), input: .terminal)
            let before = guest.terminalModes()
            _ = try guest.wait(for: GuestProcess.prompt)
            guest.signal(number)
            #expect(try guest.status() == 128 + number)
            #expect(isEqual(guest.terminalModes(), before))
        }

        @Test func `a signal ends a machine that is still booting`() throws {
            let guest = try GuestProcess(boot(), input: .nothing)
            _ = try guest.wait(for: "Linux version")
            guest.signal(SIGTERM)
            #expect(try guest.status(within: 10) == 143)
        }
    }
}

private func numbers(to last: Int) -> [UInt8] { (1...last).flatMap { Array("\($0)\n".utf8) } }

private func isEqual(_ a: termios, _ b: termios) -> Bool {
    a.c_iflag == b.c_iflag && a.c_oflag == b.c_oflag && a.c_cflag == b.c_cflag && a.c_lflag == b.c_lflag
        && withUnsafeBytes(of: a.c_cc) { a in withUnsafeBytes(of: b.c_cc) { b in a.elementsEqual(b) } }
}
