import Glibc
import Testing

extension GuestTests {
    /// Kernels that are no Linux and that nobody here wrote, as far as their serial console shows.
    struct OtherKernels {
        /// Entered as Linux is. It finds its way by the memory map, and runs its tests in 32-bit code with paging off,
        /// or in 64-bit code.
        @Test(.fetched("memtest32"), .fetched("memtest64"), arguments: ["memtest32", "memtest64"])
        func `memtest86+ finds no error in the memory`(kernel: String) throws {
            let guest = try GuestProcess(
                ["run", "-m", "16M", "-b", "\(Paths.others)/\(kernel)", "--cmdline", "console=ttyS0,115200"] + Paths.engine,
                input: .nothing)
            _ = try guest.wait(for: "Memtest86+")
            // Each test until then writes, moves and compares every word. The screen is drawn now and then, so a short
            // test may never be seen; the last one waits for minutes.
            _ = try guest.wait(for: "[Bit fade test", within: 3 * Paths.patience)
            let tested = guest.text
            let hasMemory = tested.contains("Memory  :   16MB")
            #expect(hasMemory)
            let errors = tested.matches(of: #/Errors: *(\d+)/#).map(\.output.1)
            #expect(!errors.isEmpty && errors.allSatisfy { $0 == "0" })
            guest.signal(SIGTERM)
            #expect(try guest.status() == 143)
        }

        /// Its last test waits for minutes, whether bits fade.
        @Test(
            .fetched("memtest64"), .enabled(if: Paths.variable("VMD_MEMTEST") != nil, "takes minutes: make memtest"))
        func `memtest86+ makes one full pass in 16 MB without an error`() throws {
            let guest = try GuestProcess(
                ["run", "-m", "16M", "-b", "\(Paths.others)/memtest64", "--cmdline", "console=ttyS0,115200"] + Paths.engine,
                input: .nothing)
            _ = try guest.wait(for: "Memtest86+")
            _ = try guest.wait(for: "Pass:  1", within: 9 * 60)
            let errors = guest.text.matches(of: #/Errors: *(\d+)/#).map(\.output.1)
            #expect(!errors.isEmpty && errors.allSatisfy { $0 == "0" })
            guest.signal(SIGTERM)
            #expect(try guest.status() == 143)
        }

        /// It has headers of both versions, and asks version 2's loader to put it as high as may be. Behind its timers it looks
        /// for a clock chip, which the FADT does not show (`cmos-rtc-probe` has it look all the same) and which it believes in
        /// when it sees an update begin and end in time: that is the host's load to say.
        @Test(.fetched("xen")) func `Xen finds its way by multiboot and ACPI, with an APIC and its timer`() throws {
            let guest = try GuestProcess(
                ["run", "-m", "1G", "-b", "\(Paths.others)/xen", "--module", Paths.kernel, "--module", Paths.initrd]
                    + ["--cmdline", "com1=115200,8n1 console=com1 loglvl=all"] + Paths.engine, input: .nothing)
            let head = try guest.wait(for: "System RAM: 1023MB")
            for line in [
                "Xen version 4.", "Bootloader: vmd\n", "Command line: com1=115200,8n1 console=com1 loglvl=all\n",
                "Multiboot-e820 RAM map:\n", "[0000000000000000, 000000000008ffff] (usable)\n",
                "[0000000000100000, 000000003fffffff] (usable)\n", "Xen image load base address: 0x3fa00000\n",
            ] {
                let hasLine = head.contains(line)
                #expect(hasLine, "\(line)")
            }
            _ = try guest.wait(for: "ACPI: FACP EFFF")
            let system = try guest.wait(for: "TSC deadline timer enabled")
            for line in ["IOAPIC[0]: apic_id 1, version 32, address 0xfec00000, GSI 0-23", "..TIMER: vector=0xF0 apic1=0 pin1=2"] {
                let hasLine = system.contains(line)
                #expect(hasLine, "\(line)")
            }
            // What it says of tables that contradict each other.
            let hasMismatch = system.contains("FACS address mismatch")
            #expect(!hasMismatch)
            guest.signal(SIGTERM)
            #expect(try guest.status() == 143)
        }
    }
}
