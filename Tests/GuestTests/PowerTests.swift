import Glibc
import Testing

extension GuestTests {
    /// Power-off, restarts, and guests that cannot start.
    @Suite struct Power {
        @Test func `a reboot starts the same machine again`() throws {
            let guest = try GuestProcess.atShell()
            for _ in 0..<2 {
                guest.send("reboot -f\n")
                _ = try guest.wait(for: "first user process")
                _ = try guest.wait(for: GuestProcess.prompt)
            }
            #expect(try guest.shell("uname -s").contains("Linux"))
            guest.send("poweroff -f\n")
            #expect(try guest.status() == 0)
        }

        @Test(arguments: ["k", "t", "p"])
        func `each way of restarting works`(way: String) throws {
            // Keyboard controller, triple fault, port 0xcf9.
            let guest = try GuestProcess.atShell("quiet reboot=\(way)")
            guest.send("reboot -f\n")
            _ = try guest.wait(for: GuestProcess.prompt)
            guest.send("poweroff -f\n")
            #expect(try guest.status() == 0)
        }

        @Test func `a kernel panic restarts the guest`() throws {
            let guest = try GuestProcess.atShell("quiet panic=1")
            guest.send("echo c >/proc/sysrq-trigger\n")
            _ = try guest.wait(for: "Kernel panic - not syncing: sysrq triggered crash")
            _ = try guest.wait(for: GuestProcess.prompt)
            guest.send("poweroff -f\n")
            #expect(try guest.status() == 0)
        }

        @Test func `a guest that fails at once is given up after three restarts`() throws {
            let scratch = try Scratch()
            let kernel = try scratch.file("broken", TinyKernel.image(code: [0x0F, 0x0B]))  // ud2, with no IDT
            let guest = try GuestProcess(["run", "-m", "64M", "-b", kernel], input: .nothing)
            #expect(try guest.status() == 1)
            let lines = guest.errorText.split(separator: "\n")
            #expect(lines.count == 1)
            #expect(guest.errorText.contains("rip"))
        }

        /// Nothing can wake it, so waiting for it would be waiting for ever.
        @Test func `a guest that halts for good is told and ends`() throws {
            let scratch = try Scratch()
            let kernel = try scratch.file("halted", TinyKernel.image(code: [0xFA, 0xF4, 0xEB, 0xFD]))  // cli; 1: hlt; jmp 1b
            let guest = try GuestProcess(["run", "-m", "64M", "-b", kernel], input: .nothing)
            #expect(try guest.status(within: 10) == 1)
            #expect(guest.errorText.contains("halted"))
        }

        @Test func `a guest that loops for good ends by a signal`() throws {
            let scratch = try Scratch()
            let kernel = try scratch.file("looping", TinyKernel.image(code: [0xFA, 0xEB, 0xFE]))  // cli; 1: jmp 1b
            let guest = try GuestProcess(["run", "-m", "64M", "-b", kernel], input: .nothing)
            try guest.idle(0.5)
            guest.signal(SIGTERM)
            #expect(try guest.status(within: 10) == 143)
        }
    }
}

/// The smallest file that a loader of 64-bit Linux takes: a setup header and some code at the 64-bit entry point.
enum TinyKernel {
    static func image(code: [UInt8], paragraphs: UInt32 = 0x400 / 16) -> [UInt8] {
        var image = [UInt8](repeating: 0, count: 0x400 + 0x400)
        func set<T: FixedWidthInteger>(_ offset: Int, _ value: T) {
            for i in 0..<T.bitWidth / 8 { image[offset + i] = UInt8(truncatingIfNeeded: value >> (8 * i)) }
        }
        set(0x1F1, UInt8(1))  // setup_sects
        set(0x1F4, paragraphs)  // syssize
        set(0x1FE, UInt16(0xAA55))  // boot_flag
        set(0x200, UInt16(0x66EB))  // jump: the header ends at 0x268
        set(0x202, UInt32(0x5372_6448))  // HdrS
        set(0x206, UInt16(0x20F))  // version
        set(0x211, UInt8(1))  // loadflags: LOADED_HIGH
        set(0x22C, UInt32(0x7FFF_FFFF))  // initrd_addr_max
        set(0x230, UInt32(0x20_0000))  // kernel_alignment
        set(0x234, UInt8(1))  // relocatable_kernel
        set(0x236, UInt16(1))  // xloadflags: XLF_KERNEL_64
        set(0x238, UInt32(2047))  // cmdline_size
        set(0x258, UInt64(0x100_0000))  // pref_address
        set(0x260, UInt32(0x10000))  // init_size
        image.replaceSubrange(0x600..<0x600 + code.count, with: code)
        return image
    }
}
