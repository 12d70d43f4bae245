import Glibc
import Testing

extension GuestTests {
    /// What boots a PC and is neither Linux nor written here, as far as a serial console shows. Firmware reads all of it from discs and
    /// disks, and shows on the console what it prints by the BIOS or writes to the screen.
    struct OtherSystems {
        /// Types as fast as a BIOS's 16 keys of buffer are sure to take it: a key when the one before was shown.
        private func type(_ text: String, to guest: GuestProcess) throws {
            for character in text {
                guest.send(String(character))
                _ = try guest.wait(for: String(character))
            }
            guest.send("\r")
        }

        private func end(_ guest: GuestProcess) throws {
            guest.signal(SIGTERM)
            #expect(try guest.status() == 143)
        }

        @Test(.fetched("grub.iso"))
        func `GRUB's rescue CD comes to its prompt, and halts the machine by ACPI`() throws {
            let guest = try GuestProcess(
                ["run", "-m", "64M", "-r", "\(Paths.others)/grub.iso"] + Paths.engine, input: .terminal)
            _ = try guest.wait(for: "GNU GRUB")
            _ = try guest.wait(for: "for a command-line")
            guest.send("c")
            _ = try guest.wait(for: "grub> ")
            try type("halt", to: guest)
            #expect(try guest.status() == 0)
        }

        @Test(.fetched("ipxe.iso"))
        func `iPXE's CD comes to its prompt and takes commands`() throws {
            let guest = try GuestProcess(
                ["run", "-m", "64M", "-r", "\(Paths.others)/ipxe.iso"] + Paths.engine, input: .terminal)
            for text in ["ISOLINUX ", "iPXE initialising devices...ok", "Ctrl-B"] { _ = try guest.wait(for: text) }
            guest.send("\u{02}")
            _ = try guest.wait(for: "iPXE> ")
            try type("show version", to: guest)
            _ = try guest.wait(for: "builtin/version:string = ")
            try end(guest)
        }

        /// Its real-mode part calls the BIOS, so firmware starts first. iPXE takes its command line for a command, here one that lists
        /// what it has beside itself: the ramdisk.
        @Test(.fetched("ipxe.lkrn"))
        func `a kernel for real mode gets a BIOS, its command line and its ramdisk, and gives back`() throws {
            let scratch = try Scratch()
            let guest = try GuestProcess(
                [
                    "run", "-m", "64M", "-b", "\(Paths.others)/ipxe.lkrn", "--initrd", try scratch.file("file", byteCount: 12345),
                    "--cmdline", "imgstat",
                ] + Paths.engine, input: .nothing)
            _ = try guest.wait(for: "iPXE initialising devices...ok")
            _ = try guest.wait(for: "<INITRD> : 12345 bytes")
            _ = try guest.wait(for: "No bootable device.")
            try end(guest)
        }

        @Test(.fetched("isolinux.iso"))
        func `isolinux draws its menu, and boots what is chosen`() throws {
            let guest = try GuestProcess(
                ["run", "-m", "32M", "-r", "\(Paths.others)/isolinux.iso"] + Paths.engine, input: .terminal)
            _ = try guest.wait(for: "Systems on this CD")
            _ = try guest.wait(for: "Boot the disk")
            _ = try guest.wait(for: "Press [Tab] to edit options")
            guest.send("\r")
            _ = try guest.wait(for: "Memtest86+")
            try end(guest)
        }

        /// From the first sector on it brings all that it needs: a loader that runs in real mode, and a screen of its own.
        @Test(.fetched("memtest.iso"))
        func `memtest86+'s CD starts itself, and shows its screen`() throws {
            let guest = try GuestProcess(
                ["run", "-m", "16M", "-r", "\(Paths.others)/memtest.iso"] + Paths.engine, input: .terminal)
            _ = try guest.wait(for: "Memtest86+")
            _ = try guest.wait(for: "Memory  :   16MB")
            _ = try guest.wait(for: "Status: Testing")
            try end(guest)
        }

        @Test(.fetched("uboot.rom"))
        func `U-Boot starts as firmware, takes commands and resets`() throws {
            let guest = try GuestProcess(
                ["run", "-m", "128M", "-b", "\(Paths.others)/uboot.rom"] + Paths.engine, input: .terminal)
            _ = try guest.wait(for: "DRAM:  128 MiB")
            _ = try guest.wait(for: "stop autoboot")
            guest.send(" ")
            _ = try guest.wait(for: "=> ")
            guest.send("echo 4$fdtcontroladdr\r")
            _ = try guest.wait(for: "\n4")
            _ = try guest.wait(for: "=> ")
            guest.send("reset\r")
            _ = try guest.wait(for: "U-Boot 20")
            try end(guest)
        }

        /// The one for amd64, which is an ELF file of 64 bit that is entered in 32-bit code.
        @Test(.fetched("gnumach"))
        func `GNU Mach looks at its machine, and asks for its first task`() throws {
            let guest = try GuestProcess(
                ["run", "-m", "64M", "-b", "\(Paths.others)/gnumach", "--cmdline", "console=com0"] + Paths.engine, input: .nothing)
            let head = try guest.wait(for: "No bootstrap code loaded with the kernel!")
            for text in ["GNU Mach 1.", "000000000000100000:000000000004000000, available", "RTC time is 20"] {
                let hasText = head.contains(text)
                #expect(hasText, "\(text)")
            }
            try end(guest)
        }
    }

    /// The one for i386, which drives devices by itself, and has a task of ours in Hurd's place.
    @Suite(.enabled(if: Paths.hasMach, "make guests fetches GNU Mach for i386"))
    struct Mach {
        @Test func `GNU Mach runs its first task, which calls it through a gate`() throws {
            let guest = try GuestProcess(
                [
                    "run", "-m", "64M", "-b", "\(Paths.guests32)/gnumach", "--cmdline", "console=com0", "--module",
                    "\(Paths.guests32)/mach-task,$(task-create) $(task-resume)",
                ] + Paths.engine, input: .nothing)
            _ = try guest.wait(for: "Using configuration type 1")
            _ = try guest.wait(for: "task: runs in user mode")
            guest.signal(SIGTERM)
            #expect(try guest.status() == 143)
        }

        @Test func `GNU Mach, which GRUB loads from a disk, asks the BIOS for PCI's devices`() throws {
            let guest = try GuestProcess(
                ["run", "-m", "64M", "-d", "\(Paths.guests32)/mach.raw"] + Paths.engine, input: .nothing)
            _ = try guest.wait(for: "PCI BIOS revision")
            _ = try guest.wait(for: "task: runs in user mode")
            guest.signal(SIGTERM)
            #expect(try guest.status() == 143)
        }
    }
}
