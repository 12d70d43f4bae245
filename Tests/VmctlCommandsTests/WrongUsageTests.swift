import Testing

@testable import VmctlCommands

/// What a command line shows to be wrong by itself: OpenBSD's words, then the command's usage, then status 2.
@Suite("Wrong usage") struct WrongUsageTests {
    static let long = String(repeating: "x", count: 64)
    static let cases: [([String], String)] = [
        (["start"], "missing vmid argument"),
        (["start", "a", "b"], "one machine at a time: b"),
        (["start", "4294967296"], "invalid id: 4294967296"),
        (["start", ""], "invalid id: "),
        (["start", long], "name too long"),
        (["start", "-B", "disk", "-B", "net", "a"], "boot device specified multiple times"),
        (["start", "-B", "floppy", "a"], "unknown boot device floppy"),
        (["start", "-b", "/a", "-b", "/b", "a"], "boot image specified multiple times"),
        (["start", "-b", "", "a"], "invalid boot image path"),
        (["start", "-d", "/etc/passwd"] + ["-d/etc/group", "-d/etc/passwd", "-d/etc/group", "-d/etc/passwd"] + ["a"], "too many disks"),
        (["start", "-i", "1", "-i", "2", "a"], "interfaces specified multiple times"),
        (["start", "-i", "0", "a"], "invalid interface count"),
        (["start", "-i", "many", "a"], "count is invalid: many"),
        (["start", "-i", "99999999999", "a"], "count is too large: 99999999999"),
        (["start", "-i", "99999999999999999999", "a"], "count is too large: 99999999999999999999"),
        (["start", "-i", "5", "a"], "too many network interfaces"),
        (["start", "-LLL", "-n", "x", "-n", "y", "a"], "too many network interfaces"),
        (["start", "-m", "1G", "-m", "1G", "a"], "memory specified multiple times"),
        (["start", "-m", "1048575", "a"], "memory size must be at least 1MB"),
        (["start", "-m", "129G", "a"], "memory size too large (limit is 128G)"),
        (["start", "-m", "much", "a"], "invalid memory size: much"),
        (["start", "-m", "-5", "a"], "Missing value for '-m'"),
        (["start", "-p", "0", "a"], "cpu count is too small: 0"),
        (["start", "-p", "65", "a"], "cpu count is too large: 65"),
        (["start", "-p", "1", "-p", "1", "a"], "cpus specified multiple times"),
        (["start", "-r", "/etc/passwd", "-r", "/etc/passwd", "a"], "iso image specified multiple times"),
        (["start", "-t", long, "a"], "instance vm name too long"),
        (["start", "--engine", "steam", "a"], "unknown engine steam: give one of auto, kvm, translator"),
        (["start", "--cpu", "z80", "a"], "unknown cpu z80: give one of "),
        (["start", "--cmdline", String(repeating: "x", count: 4096), "a"], "command line too long"),
        (["start", "-L", "a"], "starting without disks"),
        (["start", "--frob", "a"], "Unknown option '--frob'"),
        (["stop"], "missing vmid argument"),
        (["stop", "-a", "a"], "either -a or a machine, not both"),
        (["stop", "-x", "a"], "Unknown option '-x'"),
        (["console"], "missing vmid argument"),
        (["pause"], "missing vmid argument"),
        (["unpause"], "missing vmid argument"),
        (["wait"], "missing vmid argument"),
        (["wait", "a", "b"], "one machine at a time: b"),
        (["status", "a", "b"], "one machine at a time: b"),
        (["load"], "give one file to load"),
        (["load", "a", "b"], "give one file to load"),
        (["reload", "a"], "Unexpected argument 'a'"),
        (["reset", "vm"], "unknown argument: vm: give all, switches or vms"),
        (["log"], "give brief or verbose"),
        (["create"], "give one image to make"),
        (["create", "a", "b"], "give one image to make"),
        (["create", "a.qcow2"], "could not create a.qcow2: missing size argument"),
        (["create", "-b", "a", "-i", "b", "c"], "conflicting -b and -i arguments"),
        (["create", "-b", "a", "c.raw"], "base images require qcow2 disk format"),
        (["create", "-b", "a", "c"], "base images require qcow2 disk format"),
        (["create", "-s", "1048575", "c"], "disk size must be at least 1MB"),
        (["create", "-s", "much", "c"], "invalid disk size: much"),
        (["create", "-s", "9999999T", "c"], "disk size too large: 9999999T"),
        (["create", "-s", "1M", "-c", "c"], "raw images are not compressed"),
        (["create", "-s", "1M", "--cluster-size", "64K", "c"], "--cluster-size, --compression and --refcount-bits are for qcow2"),
        (["create", "-s", "1M", "--cluster-size", "96K", "c.qcow2"], "invalid cluster size: 96K"),
        (["create", "-s", "1M", "--refcount-bits", "3", "c.qcow2"], "invalid refcount width: 3"),
        (["create", "-s", "1M", "--compression", "rar", "c.qcow2"], "unknown compression rar: give zlib or zstd"),
        (["snapshot"], "unknown argument: : give create, list, apply or delete"),
        (["snapshot", "make", "a"], "unknown argument: make: give create, list, apply or delete"),
        (["snapshot", "create", "a"], "give a machine or an image and the snapshot's name"),
        (["snapshot", "list", "a", "b"], "give one machine or image"),
        (["snapshot", "apply", "-d", "a", "b"], "-d is for create"),
        (["snapshot", "delete", "-j", "a", "b"], "-j is for list"),
        (["rollback"], "give one machine or image"),
        (["rollforward", "a", "b"], "give one machine or image"),
        (["image"], "unknown argument: : give one of info, check, map, repair, resize, commit, rebase, convert"),
        (["image", "info"], "give one machine or image"),
        (["image", "resize", "a"], "give a machine or an image and the new size"),
        (["image", "convert", "a"], "give a machine or an image and the new one"),
        (["image", "info", "-k", "a"], "-k is for image commit"),
        (["image", "check", "-c", "a"], "-c is for image convert"),
        (["image", "rebase", "-u", "a"], "-u needs a base"),
        (["image", "resize", "a", "+5"], "disk size must be at least 1MB"),
        (["image", "check", "--disk", "x", "a"], "The value 'x' is invalid for '--disk <number>'"),
        (["cdrom"], "unknown argument: : give insert, eject or show"),
        (["cdrom", "insert", "a"], "give a machine and an ISO image"),
        (["cdrom", "eject", "a", "b"], "give one machine"),
        (["cdrom", "show", "-f", "a"], "-f is for insert and eject"),
        (["export", "a"], "give a machine or images, and a directory"),
        (["export", "-m", "1", "a", "b"], "memory size must be at least 1MB"),
        (["log", "loud"], "unknown argument: loud: give brief or verbose"),
    ]

    @Test(arguments: cases)
    func `is told with the command's usage`(arguments: [String], text: String) {
        // Those that ask no daemon leave it alone.
        let call = Call(["-s", "/nonexistent"] + arguments)
        #expect(call.status == 2, "\(call.error)")
        #expect(call.output.isEmpty)
        #expect(call.complaint.hasPrefix("vmctl: \(text)"), "\(call.error)")
        #expect(call.error.contains("\nusage:\tvmctl [-v] \(arguments[0])"), "\(call.error)")
    }

    static let files: [([String], String)] = [
        (["start", "-b", "/nonexistent", "a"], "cannot open kernel '/nonexistent': No such file or directory"),
        (["start", "-b", "/etc", "a"], "kernel must be a regular file: '/etc' is a directory"),
        (["start", "--initrd", "/nonexistent", "a"], "cannot open initrd '/nonexistent': No such file or directory"),
        (["start", "-d", "qcow2:/nonexistent", "a"], "invalid disk path: qcow2:/nonexistent: No such file or directory"),
        (["start", "-r", "/nonexistent", "a"], "invalid iso image path: /nonexistent: No such file or directory"),
        (["create", "-i", "/nonexistent", "/tmp/x.raw"], "failed to open source image file: /nonexistent: No such file or directory"),
        (["create", "-s", "1M", "/nonexistent/x.raw"],
            "create imagefile operation failed: /nonexistent/x.raw: cannot be made: No such file or directory"),
        (["create", "-b", "/nonexistent", "/tmp/x.qcow2"], "create imagefile operation failed: /nonexistent: No such file or directory"),
        (["snapshot", "list", "/nonexistent"], "/nonexistent: No such file or directory"),
        (["rollback", "/etc/passwd/x"], "/etc/passwd/x: Not a directory"),
        (["image", "info", "/nonexistent"], "/nonexistent: No such file or directory"),
        (["image", "check", "/etc"], "/etc: is a directory"),
        (["export", "/nonexistent", "/tmp"], "/nonexistent: No such file or directory"),
        (["cdrom", "insert", "a", "/nonexistent"], "invalid iso image path: /nonexistent: No such file or directory"),
        (["load", "/nonexistent"], "/nonexistent: No such file or directory"),
        (["status"], "connect: /nonexistent/s: No such file or directory: vmd is not running: start it with `vmd -s /nonexistent/s`"),
    ]

    @Test(arguments: files)
    func `files and daemons that are not there are told in one line`(arguments: [String], text: String) {
        let call = Call(["-s", "/nonexistent/s"] + arguments)
        #expect(call.status == 1)
        #expect(call.error.split(separator: "\n").last.map(String.init) == "vmctl: \(text)", "\(call.error)")
        #expect(!call.error.contains("usage:"))
    }
}
