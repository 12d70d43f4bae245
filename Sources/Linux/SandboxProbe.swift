import CLinux
import Glibc

/// Tries from inside what a sandbox should forbid, and says what happened. For tests of each role: a probe that gets
/// through does as little harm as it can (wrong arguments, no effect, undone at once), so it may run as root too.
public enum SandboxProbe {
    public enum Outcome: Hashable, Sendable, CustomStringConvertible {
        case failed(errno: CInt)
        case succeeded

        /// It was refused, not merely called with arguments that could not work.
        public var isRefused: Bool { self == .failed(errno: EPERM) || self == .failed(errno: EACCES) }
        public var description: String {
            switch self {
            case .failed(let code): String(cString: strerror(code))
            case .succeeded: "succeeded"
            }
        }
    }

    public struct Finding: Hashable, Sendable, CustomStringConvertible {
        public let name: String
        public let outcome: Outcome
        public init(name: String, outcome: Outcome) {
            self.name = name
            self.outcome = outcome
        }
        public var description: String { "\(name): \(outcome)" }
    }

    /// Tries everything.
    /// - Parameter other: a process of the same user, outside: it is attached to, read and signalled (with signal 0).
    public static func run(against other: pid_t) -> [Finding] {
        files() + calls(against: other) + memory() + processes()
    }

    private static func finding(_ name: String, _ result: Int) -> Finding {
        let code = errno
        return Finding(name: name, outcome: result < 0 ? .failed(errno: code) : .succeeded)
    }

    private static func files() -> [Finding] {
        var findings: [Finding] = []
        for path in ["/", "/etc/passwd", "/proc/self/status", "/dev/null", "/etc/shadow"] {
            findings.append(descriptor("open \(path)") { Int(clinux_open(path, O_RDONLY, 0)) })
        }
        for path in ["/created", "/tmp/vmd-probe", "/dev/shm/vmd-probe"] {
            findings.append(descriptor("create \(path)") { Int(clinux_open(path, O_CREAT | O_RDWR | O_EXCL, 0o600)) })
            if findings.last?.outcome == .succeeded { unlink(path) }
        }
        return findings
    }

    /// Closes what was opened.
    private static func descriptor(_ name: String, _ body: () -> Int) -> Finding {
        let result = body()
        let found = finding(name, result)
        if result >= 0 { close(CInt(truncatingIfNeeded: result)) }
        return found
    }

    /// Whether a call's result is a descriptor, and what undoes it.
    private struct Call {
        let name: String
        let number: Int32
        let arguments: [UInt]
        var opens = false

        init(_ name: String, _ number: Int32, _ arguments: [UInt] = [], opens: Bool = false) {
            self.name = name
            self.number = number
            self.arguments = arguments
            self.opens = opens
        }
    }

    private static func calls(against other: pid_t) -> [Finding] {
        let pid = UInt(truncatingIfNeeded: other)
        let none = UInt.max
        // Room for structures that calls read and write; zeroes.
        let scratch = UnsafeMutableRawPointer.allocate(byteCount: 4096, alignment: 64)
        scratch.initializeMemory(as: UInt8.self, repeating: 0, count: 4096)
        defer { scratch.deallocate() }
        let zeroes = UInt(bitPattern: scratch)
        // An iovec of one byte, and a path "/".
        scratch.storeBytes(of: zeroes + 2048, toByteOffset: 1024, as: UInt.self)
        scratch.storeBytes(of: 1, toByteOffset: 1032, as: UInt.self)
        scratch.storeBytes(of: UInt8(ascii: "/"), toByteOffset: 1536, as: UInt8.self)
        let (vector, path) = (zeroes + 1024, zeroes + 1536)
        let sockets = [("unix", AF_UNIX), ("inet", AF_INET), ("inet6", AF_INET6), ("netlink", AF_NETLINK), ("packet", AF_PACKET), ("vsock", 40)]
        var list = sockets.flatMap { name, family in
            [("stream", 1), ("dgram", 2), ("raw", 3)].map { kind, type in
                Call("socket \(name) \(kind)", SYS_socket, [UInt(family), UInt(type)], opens: true)
            }
        }
        list += [
            Call("socketpair", SYS_socketpair, [UInt(AF_UNIX), 1, 0, 0]), Call("connect", SYS_connect, [none, zeroes, 110]),
            Call("bind", SYS_bind, [none, zeroes, 110]), Call("listen", SYS_listen, [none, 1]),
            Call("execve", SYS_execve, [zeroes, 0, 0]), Call("execveat path", SYS_execveat, [none, zeroes, 0, 0, 0]),
            Call("unshare user", SYS_unshare, [0x1000_0000]), Call("unshare mount", SYS_unshare, [0x2_0000]),
            Call("setns", SYS_setns, [none, 0]), Call("mount", SYS_mount, [0, path, 0, 0x1000, 0]),
            Call("umount2", SYS_umount2, [zeroes, 2]), Call("pivot_root", SYS_pivot_root, [zeroes, zeroes]),
            Call("chroot", SYS_chroot, [path]), Call("open_tree", 428, [none, zeroes, 1], opens: true),
            Call("fsopen", 430, [zeroes, 0], opens: true), Call("move_mount", 429, [none, zeroes, none, zeroes, 4]),
            Call("ptrace seize", SYS_ptrace, [0x4206, pid, 0, 0]), Call("ptrace traceme", SYS_ptrace, [0x4200, none, 0, 0]),
            Call("process_vm_readv", SYS_process_vm_readv, [pid, vector, 1, vector, 1, 0]),
            Call("process_vm_writev", SYS_process_vm_writev, [pid, vector, 0, vector, 0, 0]),
            Call("kill", SYS_kill, [pid, 0]), Call("tkill", SYS_tkill, [pid, 0]), Call("tgkill", SYS_tgkill, [pid, pid, 0]),
            Call("rt_sigqueueinfo", SYS_rt_sigqueueinfo, [pid, 0, zeroes]),
            Call("pidfd_open", 434, [pid, 0], opens: true), Call("pidfd_getfd", 438, [none, 0, 0], opens: true),
            Call("kcmp", SYS_kcmp, [pid, pid, 2, 0, 0]), Call("setuid 0", SYS_setuid, [0]), Call("setgid 0", SYS_setgid, [0]),
            Call("setresuid 0", SYS_setresuid, [0, 0, 0]), Call("setgroups", SYS_setgroups, [0, 0]),
            Call("capset", SYS_capset, [zeroes, zeroes]), Call("memfd_create", 319, [zeroes, 1], opens: true),
            Call("memfd_secret", 447, [0], opens: true), Call("perf_event_open", SYS_perf_event_open, [zeroes, 0, none, none, 0], opens: true),
            Call("bpf", 321, [9999, zeroes, 128]), Call("keyctl", SYS_keyctl, [0, UInt(bitPattern: -3), 0]),
            Call("add_key", SYS_add_key, [zeroes, zeroes, 0, 0, 0]), Call("userfaultfd", SYS_userfaultfd, [1], opens: true),
            Call("io_uring_setup", 425, [1, zeroes + 3072], opens: true), Call("ioctl TIOCSTI", SYS_ioctl, [0, 0x5412, zeroes]),
            Call("ioctl TIOCSCTTY", SYS_ioctl, [0, 0x540E, 0]), Call("reboot", SYS_reboot, [0, 0, 0, 0]),
            Call("kexec_load", SYS_kexec_load, [0, 99, 0, none]), Call("init_module", SYS_init_module, [0, 0, zeroes]),
            Call("finit_module", SYS_finit_module, [none, zeroes, 0]), Call("delete_module", SYS_delete_module, [zeroes, 0x800]),
            Call("personality", SYS_personality, [0xFFFF_FFFF]), Call("iopl", SYS_iopl, [0]), Call("ioperm", SYS_ioperm, [0, 0, 0]),
            Call("modify_ldt", SYS_modify_ldt, [0, zeroes, 0]), Call("syslog", SYS_syslog, [10, 0, 0]),
            Call("quotactl", SYS_quotactl, [none, 0, 0, 0]), Call("swapon", SYS_swapon, [zeroes, 0]), Call("acct", SYS_acct, [zeroes]),
            Call("settimeofday", SYS_settimeofday, [0, zeroes + 8]), Call("clock_settime", SYS_clock_settime, [99, zeroes]),
            Call("sethostname", SYS_sethostname, [zeroes, 9999]), Call("mkdir", SYS_mkdir, [zeroes, 0]),
            Call("unlink", SYS_unlink, [zeroes]), Call("rename", SYS_rename, [zeroes, zeroes]), Call("symlink", SYS_symlink, [zeroes, zeroes]),
            Call("chmod", SYS_chmod, [zeroes, 0]), Call("stat /", SYS_stat, [path, zeroes + 512]),
            Call("readlink", SYS_readlink, [path, zeroes + 512, 8]), Call("inotify_init1", SYS_inotify_init1, [0], opens: true),
            Call("fanotify_init", SYS_fanotify_init, [0, 0], opens: true), Call("open_by_handle_at", SYS_open_by_handle_at, [none, zeroes, 0], opens: true),
            Call("shmget", SYS_shmget, [0, 0, 0]), Call("msgget", SYS_msgget, [1, 0]), Call("semget", SYS_semget, [1, 0, 0]),
            Call("mq_open", SYS_mq_open, [zeroes, 0], opens: true), Call("seccomp", 317, [99, 0, 0]),
            Call("prctl dumpable", SYS_prctl, [UInt(PR_SET_DUMPABLE), 9]), Call("prctl mm", SYS_prctl, [35, 99, 0, 0, 0]),
            Call("pkey_mprotect", 329, [zeroes & ~4095, 0, 0, none]), Call("setsid", SYS_setsid), Call("vhangup", SYS_vhangup),
            Call("process_madvise", 440, [none, 0, 0, 0, 0]), Call("landlock_create_ruleset", 444, [0, 0, 1]),
        ]
        return list.map { call in
            func argument(_ index: Int) -> UInt { index < call.arguments.count ? call.arguments[index] : 0 }
            let attempt = {
                clinux_syscall(
                    Int(call.number), argument(0), argument(1), argument(2), argument(3), argument(4), argument(5))
            }
            let found = call.opens ? descriptor(call.name, attempt) : finding(call.name, attempt())
            if call.name == "ptrace seize", found.outcome == .succeeded {
                // PTRACE_DETACH works on a stopped process only; the end of this one detaches otherwise.
                _ = clinux_syscall(Int(SYS_ptrace), 17, pid, 0, 0, 0, 0)
            }
            return found
        }
    }

    /// Memory that could hold new code.
    private static func memory() -> [Finding] {
        let size = 4096
        func map(_ protection: CInt) -> Int {
            clinux_syscall(Int(SYS_mmap), 0, UInt(size), UInt(protection), UInt(MAP_PRIVATE | MAP_ANONYMOUS), .max, 0)
        }
        let executable = map(PROT_READ | PROT_EXEC)
        var findings = [finding("mmap executable", executable)]
        if executable > 0 { munmap(UnsafeMutableRawPointer(bitPattern: executable), size) }
        let plain = map(PROT_READ | PROT_WRITE)
        guard plain > 0 else { return findings }
        let result = clinux_syscall(Int(SYS_mprotect), UInt(plain), UInt(size), UInt(PROT_READ | PROT_EXEC), 0, 0, 0)
        findings.append(finding("mprotect executable", result))
        munmap(UnsafeMutableRawPointer(bitPattern: plain), size)
        return findings
    }

    private static func processes() -> [Finding] {
        [
            finding("fork", Int(clinux_probe_fork())), finding("vfork", Int(clinux_probe_vfork())),
            finding("clone user", Int(clinux_probe_clone(0x1000_0000 | UInt(SIGCHLD)))),
            finding("clone pid", Int(clinux_probe_clone(0x2000_0000 | UInt(SIGCHLD)))),
            finding("clone network", Int(clinux_probe_clone(0x4000_0000 | UInt(SIGCHLD)))),
        ]
    }

    /// Makes a call fail with EPERM from here on, as a container's runtime does: for tests of degraded hosts.
    public static func forbid(_ call: String) throws(SystemError) { try SeccompFilter.forbid(call) }

    /// What prctl(2) says of the process: PR_GET_DUMPABLE, PR_GET_NO_NEW_PRIVS.
    public static func processControl(_ operation: CInt) -> CInt { clinux_prctl(operation, 0, 0) }

    /// Calls by the entry for 32-bit programs, then by the x32 numbers. Under a filter each kills the process.
    public static func callBy32BitEntry() -> Int { clinux_probe_int80() }
    public static func callByX32Number() -> Int { clinux_probe_x32() }
}
