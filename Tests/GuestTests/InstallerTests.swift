import Glibc
import Testing

extension GuestTests {
    /// Debian's installer, which draws its dialogs on the serial console. It has no network here: how far it comes without is what is
    /// tested, by keys, as a user would go.
    @Suite(.enabled(if: Paths.hasInstaller, "make installer fetches it, 140 MB")) struct Installer {
        @Test func `its kernel and ramdisk boot to the first dialog, drawn with a terminal's lines`() throws {
            let guest = try GuestProcess(
                [
                    "run", "-m", "1G", "-b", "\(Paths.installer)/linux", "--initrd", "\(Paths.installer)/initrd.gz", "--cmdline",
                    "console=ttyS0",
                ] + Paths.engine, input: .terminal)
            _ = try guest.wait(for: "[!!] Select a language", within: 2 * Paths.patience)
            let dialog = try guest.wait(for: "<Go Back>")
            for text in ["Choose the language to be used for the installation process.", "English"] {
                let hasText = dialog.contains(text)
                #expect(hasText, "\(text)")
            }
            guest.signal(SIGTERM)
            #expect(try guest.status() == 143)
        }

        @Test func `from its CD it finds disk and drive, partitions and formats, and goes on to ask for a network`() throws {
            let scratch = try Scratch()
            let disk = scratch.later("disk.qcow2")
            #expect(try GuestProcess(["create", "-s", "1G", disk]).status() == 0)
            let guest = try GuestProcess(
                ["run", "-m", "1G", "-d", disk, "-r", "\(Paths.installer)/installer.iso"] + Paths.engine, input: .terminal)
            _ = try guest.wait(for: "press Enter to install")
            guest.send("\r")
            // Each is answered with what it offers.
            for title in ["Select a language", "Select your location", "Configure the keyboard"] {
                _ = try guest.wait(for: title, within: 2 * Paths.patience)
                _ = try guest.wait(for: "<Go Back>")
                guest.send("\r")
            }
            _ = try guest.wait(for: "No Ethernet card was detected", within: 2 * Paths.patience)
            // The second of the console's windows is a shell. The ends of its lines are made by the shell, and numbered, since what is
            // typed and what was there is drawn as well.
            guest.send("\u{01}2")
            _ = try guest.wait(for: "built-in shell (ash)")
            var lines = 0
            func shell(_ line: String) throws -> String {
                lines += 1
                guest.send("\(line); echo do\"\"ne \(lines).\r")
                return try guest.wait(for: "done \(lines).", within: 2 * Paths.patience)
            }
            _ = try shell("b=/bin/busybox-static; printf 'n\\np\\n1\\n\\n\\nw\\n' | $b fdisk /dev/vda >/dev/null 2>&1")
            _ = try shell("$b mke2fs -L first /dev/vda1 >/dev/null; modprobe ext4; modprobe isofs; mkdir -p /a /b")
            let mounted = try shell(
                "mount -t ext4 /dev/vda1 /a && mount -t iso9660 -o ro /dev/sr0 /b && cp /b/linux /a && umount /a && echo is wri\"\"tten")
            #expect(mounted.contains("is written"))
            let compared = try shell("mount -t ext4 /dev/vda1 /a && cmp /a/linux /b/linux && umount /a && echo is the sa\"\"me")
            #expect(compared.contains("is the same"))
            guest.send("\u{01}1")
            for title in ["No Ethernet card was detected", "No network interfaces detected", "Please enter the hostname"] {
                _ = try guest.wait(for: title)
                guest.send("\r")
            }
            _ = try guest.wait(for: "Choose a mirror of the Debian archive")
            guest.send("\u{01}2")
            guest.send("poweroff -f\r")
            #expect(try guest.status() == 0)
            #expect(try GuestProcess(["image", "check", disk]).status() == 0)
        }
    }
}
