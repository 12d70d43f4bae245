import Glibc
import Testing

extension GuestTests {
    /// Machines that boot by the host's SeaBIOS, as a user sees them.
    struct Firmware {
        @Test func `without a kernel it boots by firmware, and says what that does`() throws {
            let guest = try GuestProcess(["-v", "run", "-m", "16M"] + Paths.engine, input: .nothing)
            _ = try guest.wait(for: "No bootable device.")
            guest.signal(SIGTERM)
            #expect(try guest.status() == 143)
            #expect(guest.errorText.contains("vmctl: firmware: SeaBIOS (version "))
            #expect(guest.text.contains("SeaBIOS (version "))
            #expect(!guest.text.contains("vmctl: "))
        }

        /// What stands on the screen up to the kernel's first line. SeaBIOS moves the cursor in the middle of a line when its
        /// timer's tick comes there.
        private func screen(_ guest: GuestProcess) throws -> String {
            try guest.wait(for: "Linux version", within: 2 * Paths.patience).replacing(#/\u{1B}\[\d+;\d+H/#, with: "")
        }

        private static let disk = Paths.guests + "/grub.raw"

        @Test(.enabled(if: access(disk, R_OK) == 0, "needs `make guests`"))
        func `Linux boots from a disk by GRUB, finds its devices by ACPI and switches off`() throws {
            let guest = try GuestProcess(["run", "-m", "256M", "-d", Self.disk] + Paths.engine, input: .nothing)
            let loader = try screen(guest)
            #expect(loader.contains("GRUB loading.") && loader.contains("grub: loads the kernel\n"))
            let kernel = try guest.wait(for: "init: first user process", within: 2 * Paths.patience)
            for line in ["DMI: OpenBSD VMM", "ACPI: RSDP 0x00000000000F", "ACPI: Interpreter enabled", "x86/PAT: Configuration"] {
                let hasLine = kernel.contains(line)
                #expect(hasLine, "\(line)")
            }
            #expect(!kernel.contains("nobody cared") && !kernel.contains("BUG") && !kernel.contains("WARNING"))
            #expect(try guest.status() == 0)
            // What the kernel prints on the serial console is not there again by the screen.
            #expect(guest.text.ranges(of: "ACPI: Interpreter enabled").count == 1)
        }

        private static let disc = Paths.guests + "/grub.iso"

        @Test(.enabled(if: access(disc, R_OK) == 0, "needs `make guests`"))
        func `Linux boots from a CD by GRUB, though the disk is empty`() throws {
            let scratch = try Scratch()
            let empty = try scratch.file("empty.raw", byteCount: 1 << 20)
            let guest = try GuestProcess(["run", "-m", "256M", "-d", empty, "-r", Self.disc] + Paths.engine, input: .nothing)
            #expect(try screen(guest).contains("grub: loads the kernel from the CD"))
            _ = try guest.wait(for: "init: first user process", within: 2 * Paths.patience)
            #expect(try guest.status() == 0)
        }

        @Test(.enabled(if: access(disc, R_OK) == 0, "needs `make guests`"))
        func `what to boot from is what the user says, and nothing else`() throws {
            for (device, text) in [("cdrom", "grub: loads the kernel from the CD"), ("disk", "grub: loads the kernel\n")] {
                let guest = try GuestProcess(
                    ["run", "-m", "256M", "-B", device, "-d", Self.disk, "-r", Self.disc] + Paths.engine, input: .nothing)
                #expect(try screen(guest).contains(text))
                guest.signal(SIGTERM)
                #expect(try guest.status() == 143)
            }
        }

        /// What an embedded developer does: an image of his own. mov $0x2a, %al; out %al, $0xf4; jmp . at the reset vector.
        @Test func `any image with an instruction at the reset vector is firmware`() throws {
            let scratch = try Scratch()
            let image = try scratch.file("image", [0xB0, 0x2A, 0xE6, 0xF4, 0xEB, 0xFE] + Array(repeating: 0x90, count: 10))
            let guest = try GuestProcess(["run", "-m", "16M", "-b", image, "--debug-exit", "0xf4"] + Paths.engine, input: .nothing)
            #expect(try guest.status() == 0x55)
        }
    }
}
