import CLinux
import Glibc

/// What parts of a program need. Found by strace of Swift programs with threads, timers and event loops, and by reading
/// what glibc's malloc and pthreads call.
extension SystemCallPolicy {
    /// Memory that cannot be executed.
    public static let memory =
        SystemCallPolicy([
            Rule("mmap", [.argument(2, lacks: UInt64(PROT_EXEC))]),
            Rule("mprotect", [.argument(2, lacks: UInt64(PROT_EXEC))]),
        ]) + SystemCallPolicy("munmap", "mremap", "madvise", "brk")

    /// Memory of every kind: for translated code.
    public static let executableMemory = SystemCallPolicy("mmap", "mprotect")

    /// Starting, ending and synchronising threads; signals among them; who one is.
    public static let threads =
        SystemCallPolicy([
            // Whatever glibc sets of the optional flags, it is a thread: everything is shared, nothing is new.
            Rule("clone", [.argument(0, masked: ~optionalThreadFlags, is: threadFlags)]),
            // Its flags are in memory. glibc then takes clone (clone_internal, since 2.34).
            Rule("clone3", failure: ENOSYS),
            Rule("tgkill", [.isOwnProcess(0)]),
        ])
        + call("prctl", argument: 0, isOneOf: [PR_SET_NAME, PR_GET_NAME, PR_GET_DUMPABLE, PR_GET_NO_NEW_PRIVS].map { UInt32($0) })
        + SystemCallPolicy(
            "futex", "set_robust_list", "rseq", "gettid", "getpid", "getppid", "getuid", "geteuid",
            "getgid", "getegid", "sched_yield", "sched_getaffinity",
            "membarrier", "rt_sigprocmask", "rt_sigaction", "rt_sigreturn", "sigaltstack", "restart_syscall", "exit",
            "exit_group")

    private static let threadFlags: UInt64 = 0x0001_0F00  // CLONE_VM, FS, FILES, SIGHAND, THREAD
    /// CLONE_SYSVSEM, SETTLS, PARENT_SETTID, CHILD_CLEARTID, DETACHED, CHILD_SETTID. The kernel takes 32 bits.
    private static let optionalThreadFlags: UInt64 = 0xFFFF_FFFF_017C_0000

    /// Clocks and sleeping. Most reads of clocks are not even calls.
    public static let time = SystemCallPolicy(
        "clock_gettime", "clock_getres", "clock_nanosleep", "nanosleep", "gettimeofday")

    public static let randomness = SystemCallPolicy("getrandom")

    private static let emptyPath: UInt32 = 0x1000  // AT_EMPTY_PATH

    /// Reading, writing and closing what is open.
    public static let descriptors =
        SystemCallPolicy("read", "write", "readv", "writev", "pread64", "pwrite64", "preadv", "pwritev", "lseek", "close",
            "fstat", "dup", "close_range")
        // glibc's fstat. The empty path of AT_EMPTY_PATH cannot be told from another: the empty root must do that.
        + call("newfstatat", argument: 3, isOneOf: [emptyPath])
        + call(
            "fcntl", argument: 1,
            isOneOf: [F_GETFD, F_SETFD, F_GETFL, F_SETFL, F_DUPFD_CLOEXEC].map { UInt32($0) })

    /// Changing the sizes of open files, and bringing them to the medium.
    public static let files = SystemCallPolicy(
        "fsync", "fdatasync", "sync_file_range", "fallocate", "ftruncate", "preadv2", "pwritev2", "fadvise64")

    /// Using rings that were made before: `IORing`. They take reads and writes of open files, and nothing else.
    public static let rings = SystemCallPolicy("io_uring_enter")
    /// Making them. A ring of somebody else's making could do what this filter forbids.
    public static let ringSetup = rings + SystemCallPolicy("io_uring_setup", "io_uring_register")

    /// Event loops, timers, and signals as events.
    public static let events = SystemCallPolicy(
        "epoll_create1", "epoll_ctl", "epoll_wait", "epoll_pwait", "epoll_pwait2", "poll", "ppoll", "eventfd2",
        "timerfd_create", "timerfd_settime", "timerfd_gettime", "signalfd4", "pipe2")

    /// Packets on sockets that the process was handed.
    public static let sockets =
        SystemCallPolicy("sendmsg", "recvmsg", "shutdown")
        + call("getsockopt", argument: 1, isOneOf: [UInt32(SOL_SOCKET)])
        // `ServiceNotification`: no other address than the one connected to.
        + SystemCallPolicy([Rule("sendto", [.argument(4, masked: .max, is: 0)])])

    /// Pairs of connected sockets of this host, one end of which is handed on.
    public static let socketPairs = call("socketpair", argument: 0, isOneOf: [UInt32(AF_UNIX)])

    /// Taking connections of a listening socket that the process was handed.
    public static let accepting = SystemCallPolicy("accept4")

    /// Modes and size of terminals; not TIOCSTI, which types for somebody else.
    public static let terminals = ioctl(
        [TCGETS, TCSETS, TCSETSW, TCSETSF, TIOCGWINSZ, TIOCSWINSZ, TIOCGPGRP].map { UInt32($0) })

    /// The segment base of a thread that runs translated code: ARCH_SET_GS and ARCH_GET_GS.
    public static let segmentBases = call("arch_prctl", argument: 0, isOneOf: [0x1001, 0x1004])

    /// `ChildProcess`: starting the program that it holds a descriptor of, watching and reaping it.
    ///
    /// The filter stays with the child, so the role must allow what the child needs too: `programStart`, and
    /// `sandboxEntry` when it enters a narrower sandbox.
    public static let children =
        SystemCallPolicy([
            Rule("clone", [.argument(0, masked: 0xFFFF_FFFF, is: 0x1000 | UInt64(SIGCHLD))]),  // CLONE_PIDFD
            Rule("execveat", [.argument(4, is: emptyPath)]),
            Rule("waitid", [.argument(0, is: 3)]),  // P_PIDFD
        ])
        + call("prctl", argument: 0, isOneOf: [UInt32(PR_SET_PDEATHSIG)])
        // tgkill: children have other numbers than the process that `threads` means; they narrow it again to theirs.
        + SystemCallPolicy("pidfd_send_signal", "setsid", "dup3", "tgkill")

    /// What the dynamic linker and the C library do before `main`. Code is mapped: by itself this is no wall against
    /// executable memory. Files are opened: the root must hold only the libraries.
    public static let programStart =
        executableMemory
        + SystemCallPolicy([
            Rule("openat", [.argument(2, lacks: UInt64(O_ACCMODE | O_CREAT | O_TRUNC))]),
            Rule("arch_prctl", [.argument(0, is: 0x1002)]),  // ARCH_SET_FS
            Rule("arch_prctl", [.argument(0, is: 0x3001)]),  // ARCH_CET_STATUS
            // Reading limits only.
            Rule("prlimit64", [.argument(2, masked: .max, is: 0)]),
        ])
        + SystemCallPolicy(
            "access", "readlink", "newfstatat", "set_tid_address", "set_robust_list", "rseq", "uname", "getrandom",
            "sysinfo")

    /// What `Sandbox.enter` itself calls: for a role whose children enter narrower sandboxes.
    public static let sandboxEntry =
        call(
            "prctl", argument: 0,
            isOneOf: [
                PR_SET_NO_NEW_PRIVS, PR_GET_NO_NEW_PRIVS, PR_SET_DUMPABLE, PR_GET_DUMPABLE, PR_CAP_AMBIENT,
                PR_CAPBSET_DROP, PR_CAPBSET_READ, PR_SET_SECUREBITS, PR_SET_KEEPCAPS, PR_SET_PDEATHSIG,
                PR_GET_PDEATHSIG, PR_SET_SECCOMP,
            ].map { UInt32($0) })
        + SystemCallPolicy(
            "unshare", "mount", "umount2", "mount_setattr", "pivot_root", "chdir", "mkdir", "openat", "umask", "seccomp",
            "capset", "capget", "setgroups", "setresgid", "setresuid", "prlimit64", "getuid", "geteuid", "getgid",
            "getegid", "getppid")
}
