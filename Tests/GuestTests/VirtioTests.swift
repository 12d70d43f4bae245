import Glibc
import Testing

extension GuestTests {
    /// Linux's virtio drivers, both kinds, on our devices.
    @Suite struct Virtio {
        /// A guest with these disks whose drivers are loaded.
        private func guest(disks: [String], _ words: String = "quiet", legacy: Bool = false, more: [String] = []) throws -> GuestProcess {
            let arguments = ["run", "-m", "512M", "-b", Paths.kernel, "--initrd", Paths.virtioInitrd, "--cmdline", "console=ttyS0 \(words)"]
                + disks.flatMap { ["-d", $0] } + more + Paths.engine
            let guest = try GuestProcess(arguments)
            _ = try guest.wait(for: GuestProcess.prompt)
            let loads = legacy
                ? "load-virtio virtio_ring virtio virtio_pci_legacy_dev virtio_pci_modern_dev && insmod /modules/virtio_pci.ko force_legacy=1 && load-virtio virtio_blk virtio-rng"
                : "load-virtio"
            #expect(try guest.shell("\(loads) && echo lo''aded").contains("loaded"))
            return guest
        }

        /// The MD5 checksums in a text.
        private func checksums(_ text: String) -> [String] {
            text.split(whereSeparator: \.isWhitespace).filter { $0.count == 32 }.map { String($0) }
        }

        @Test(arguments: [false, true])
        func `disk is found, written, flushed, discarded and read back`(legacy: Bool) throws {
            let scratch = try Scratch()
            let disk = try scratch.file("disk", byteCount: 64 << 20)
            let second = try scratch.file("second", [UInt8]("second disk".utf8), byteCount: 1 << 20)
            let guest = try guest(disks: [disk, second], legacy: legacy)
            #expect(try guest.shell("cat /sys/block/vda/size /sys/block/vdb/size").contains("131072\n2048"))
            #expect(try guest.shell("cat /sys/block/vda/serial").contains("vmd-disk0"))
            // VIRTIO_F_VERSION_1 and VIRTIO_F_RING_PACKED, which Linux takes where it is offered: bits 32 and 34.
            let features = try guest.shell("cat /sys/block/vda/device/features").split(whereSeparator: \.isWhitespace)
            let bits = features.first { $0.count == 64 && $0.allSatisfy { $0 == "0" || $0 == "1" } }.map { Array($0) }
            #expect(bits.map { [$0[32], $0[34]] } == (legacy ? ["0", "0"] : ["1", "1"]))
            #expect(try guest.shell("head -c 11 /dev/vdb").contains("second disk"))
            // All of the kernel's own bytes, past the page cache of the guest.
            let sum = "dd if=/dev/vda bs=64k count=256 iflag=direct 2>/dev/null | md5sum | cut -d ' ' -f 1"
            let written = try guest.shell(
                "dd if=/dev/urandom of=/tmp/data bs=64k count=256 2>/dev/null; dd if=/tmp/data of=/dev/vda bs=64k oflag=direct conv=fsync 2>/dev/null; sync; "
                    + "md5sum </tmp/data | cut -d ' ' -f 1; \(sum)")
            let sums = checksums(written)
            let onHost = try checksum(File.bytes(disk, limit: 16 << 20))
            #expect(sums == [onHost, onHost])
            // A file system on it, through the page cache: mount, fill, unmount, mount again.
            let tree = try guest.shell(
                "mke2fs /dev/vda >/dev/null 2>&1; mkdir -p /mnt; mount -t ext4 /dev/vda /mnt && cp /bin/busybox /mnt/ && umount /mnt && "
                    + "mount -t ext4 /dev/vda /mnt && cmp /bin/busybox /mnt/busybox && umount /mnt && echo sa''me")
            #expect(tree.contains("same"))
            if !legacy {
                #expect(try guest.shell("cat /sys/block/vda/queue/discard_max_bytes /sys/block/vda/queue/write_zeroes_max_bytes").contains("2147483648\n2147483648"))
                #expect(try guest.shell("blkdiscard /dev/vda 2>&1; echo $?").contains("0"))
            }
            #expect(!(try guest.shell("dmesg | grep -i 'error\\|warn'")).contains("I/O"))
            guest.send("poweroff -f\n")
            #expect(try guest.status() == 0)
        }

        @Test func `entropy device gives random numbers`() throws {
            let guest = try guest(disks: [])
            #expect(try guest.shell("cat /sys/class/misc/hw_random/rng_current").contains("virtio_rng"))
            let sums = try guest.shell("for i in 1 2; do dd if=/dev/hwrng bs=4096 count=4 2>/dev/null | md5sum; done")
            #expect(Set(checksums(sums)).count == 2)
            guest.send("poweroff -f\n")
            #expect(try guest.status() == 0)
        }

        @Test func `drivers can be taken off and put back`() throws {
            let scratch = try Scratch()
            let guest = try guest(disks: [try scratch.file("disk", byteCount: 1 << 20)])
            #expect(try guest.shell("rmmod virtio_blk && ls /dev/vda 2>&1; load-virtio virtio_blk; head -c 512 /dev/vda | wc -c").contains("512"))
            guest.send("poweroff -f\n")
            #expect(try guest.status() == 0)
        }

        /// An ISO 9660 image of a folder.
        private func makeISO(_ folder: String, _ path: String) throws {
            let maker = try GuestProcess(
                ["-as", "mkisofs", "-quiet", "-R", "-V", "VMDTEST", "-o", path, folder], program: Paths.isoMaker)
            guard try maker.status() == 0 else { throw GuestFailure(description: "xorriso: \(maker.errorText)") }
        }

        @Test(.enabled(if: access(Paths.isoMaker, X_OK) == 0, "needs xorriso"), arguments: [false, true])
        func `CD is mounted and read`(legacy: Bool) throws {
            let scratch = try Scratch()
            let folder = scratch.path + "/tree"
            mkdir(folder, 0o755)
            let big = (0..<5_000_000).map { UInt8(truncatingIfNeeded: $0 &* 7 &+ $0 >> 9) }
            _ = try scratch.file("tree/big", big)
            _ = try scratch.file("tree/hello", Array("hello from a disc\n".utf8))
            let iso = scratch.path + "/test.iso"
            try makeISO(folder, iso)
            let disk = try scratch.file("disk", byteCount: 1 << 20)
            let guest = try guest(disks: [disk], legacy: legacy, more: ["-r", iso])
            #expect(try guest.shell("load-virtio scsi_common scsi_mod virtio_scsi cdrom sr_mod isofs && echo lo''aded").contains("loaded"))
            #expect(try guest.shell("while ! [ -e /sys/block/sr0/size ]; do sleep 0.1; done; cat /sys/block/sr0/device/model").contains("VMM CD-ROM"))
            #expect(try guest.shell("mkdir -p /mnt; mount -t iso9660 -o ro /dev/sr0 /mnt && cat /mnt/hello").contains("hello from a disc"))
            #expect(try guest.shell("md5sum < /mnt/big").contains(checksum(big)))
            // All of it, past the guest's page cache, and not a byte more.
            let image = try File.bytes(iso, limit: 64 << 20)
            let sums = try guest.shell("umount /mnt; cat /sys/block/sr0/size; dd if=/dev/sr0 bs=64k 2>/dev/null | md5sum")
            #expect(sums.contains("\(image.count / 512)\n"))
            #expect(try sums.contains(checksum(image)))
            // One drive, and no complaint.
            #expect(try guest.shell("ls /sys/class/scsi_device").contains("0:0:0:0"))
            #expect(!(try guest.shell("dmesg | grep -i 'error\\|warn\\|reset'")).contains("sr"))
            guest.send("poweroff -f\n")
            #expect(try guest.status() == 0)
        }

        @Test func `missing CD is named`() throws {
            let run = try GuestProcess(boot() + ["-r", "/nonexistent/iso"])
            #expect(try run.status() == 1)
            #expect(run.errorText.contains("cdrom /nonexistent/iso: No such file or directory: give a file that can be read\n"))
        }

        @Test func `missing disk is named`() throws {
            let run = try GuestProcess(boot() + ["-d", "/nonexistent/disk"])
            #expect(try run.status() == 1)
            #expect(run.errorText.contains("disk /nonexistent/disk: No such file or directory"))
        }
    }
}
