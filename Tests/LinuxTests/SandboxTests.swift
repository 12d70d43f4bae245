import Glibc
import Linux
import Testing

@Suite("Sandbox", .serialized, .timeLimit(.minutes(1))) struct SandboxTests {
    private func refusals(_ result: Helper.Result) -> (refused: Int, others: [String]) {
        let probes = result.all("probe")
        let refused = probes.filter { $0.hasSuffix(": Operation not permitted") }
        return (refused.count, probes.filter { !refused.contains($0) })
    }

    @Test func `policy names only calls that libseccomp knows`() {
        let all: SystemCallPolicy =
            .memory + .executableMemory + .threads + .time + .randomness + .descriptors + .files + .events + .sockets
            + .accepting + .terminals + .segmentBases + .ringSetup + .children + .programStart + .sandboxEntry
        #expect(all.unknownNames == [])
        #expect(SystemCallPolicy("no_such_call").unknownNames == ["no_such_call"])
    }

    /// The probe must be able to get through, or its refusals mean nothing.
    @Test func `without a sandbox most probes get through to the kernel`() throws {
        let result = try Helper.run(["probe=\(getpid())", "entry32", "x32"])
        #expect(result.status == .exited(0))
        let (refused, others) = refusals(result)
        #expect(others.count > 60, "\(refused) \(others)")
        for name in ["open /etc/passwd", "fork", "vfork", "mmap executable", "mprotect executable", "socket inet stream", "memfd_create", "kill"] {
            #expect(others.contains("\(name): succeeded"), "\(name)")
        }
    }

    @Test func `filter alone refuses everything, whatever the host allows`() throws {
        let result = try Helper.run(["bare", "root=host", "enter", "probe=\(getpid())", "work"])
        #expect(result.status == .exited(0))
        let (refused, others) = refusals(result)
        #expect(others == [])
        #expect(refused > 100)
        #expect(result.all("worked") == ["8192000 true"])
    }

    @Test(
        .enabled(if: Helper.isRoot && Helper.missing.isEmpty, "needs root and namespaces: \(Helper.missing)"),
        arguments: [["root=empty"], ["root=empty", "identity=65533"], ["root=empty", "user", "identity=65533"], ["root=empty", "user"], ["root=libraries"]])
    func `whole sandbox of root holds, and threads, timers and events work in it`(steps: [String]) throws {
        let result = try Helper.run(steps + ["enter", "probe=\(getpid())", "work", "describe"])
        #expect(result.status == .exited(0), "\(result.lines)")
        #expect(result.all("missing") == [])
        #expect(refusals(result).others == [])
        let user = steps.contains("identity=65533") ? "65533 65533" : "0 0"
        #expect(result.all("entered") == ["\(user) dumpable 0 privileges 1"])
        #expect(result.all("worked") == ["8192000 true"])
    }

    @Test(.enabled(if: Helper.missingAsUser.isEmpty, "needs user namespaces: \(Helper.missingAsUser)"))
    func `whole sandbox of an ordinary user holds`() throws {
        let result = try Helper.run((Helper.isRoot ? ["become=65533"] : []) + ["enter", "probe=\(getpid())", "work"])
        #expect(result.status == .exited(0), "\(result.lines)")
        #expect(result.all("missing") == [])
        #expect(refusals(result).others == [])
    }

    /// Not unshare: in a user namespace of its own the probe would have rights again. Behind the filter: each wall of the kernel's by itself, seen by a role whose filter lets much through.
    @Test(.enabled(if: Helper.missingAsUser.isEmpty, "needs user namespaces: \(Helper.missingAsUser)"), arguments: ["empty", "libraries"])
    func `root holds nothing behind the filter either`(root: String) throws {
        let result = try Helper.run(["root=\(root)", "allow=open,openat,creat,mkdir,stat,newfstatat,readlink,socket,connect,setuid,setresuid,mount,ptrace,process_vm_readv,chroot,getdents64,open_tree", "enter", "probe=\(getpid())", "list=/"])
        #expect(result.status == .exited(0), "\(result.lines)")
        let probes = result.all("probe")
        for path in ["/etc/passwd", "/proc/self/status", "/dev/null", "/etc/shadow"] {
            #expect(probes.contains("open \(path): No such file or directory"), "\(path)")
        }
        #expect(probes.contains("create /created: Read-only file system"))
        for name in ["mount", "chroot", "ptrace seize", "process_vm_readv"] {
            #expect(probes.contains("\(name): Operation not permitted"), "\(probes.filter { $0.hasPrefix(name) })")
        }
        let names = result.all("entries").first ?? ""
        if root == "empty" { #expect(names == "[]") } else { #expect(!names.contains("etc") && names.contains("lib64"), "\(names)") }
    }

    @Test(.enabled(if: Helper.missingAsUser.isEmpty, "needs user namespaces: \(Helper.missingAsUser)"), arguments: [[], ["identity=65533"]])
    func `role with the libraries for a root runs the program again, into a narrower sandbox`(steps: [String]) throws {
        if !steps.isEmpty, !Helper.isRoot { return }
        let libraries = try Helper.run(["libraries"]).all("libraries").first ?? ""
        let program = try Program(path: Helper.path)
        let result = try Helper.run(
            ["root=libraries"] + steps + ["children", "enter", "again", "root=empty", "enter", "probe=\(getpid())", "work"],
            environment: [("LD_LIBRARY_PATH", libraries)], descriptors: [program.raw])
        #expect(result.status == .exited(0))
        #expect(result.all("child") == ["exited with 0"], "\(result.lines)")
        // /proc is not there to say who is who in the namespace.
        #expect(result.all("missing").filter { !$0.hasPrefix("user namespace's map") } == [])
        #expect(refusals(result).others == [])
        #expect(result.all("worked") == ["8192000 true"])
    }

    @Test(arguments: ["entry32", "x32"]) func `calls by other entries kill`(step: String) throws {
        let result = try Helper.run(["bare", "root=host", "enter", step])
        // A kernel without 32-bit programs answers the first with a fault.
        #expect(result.status == .killed(signal: SIGSYS) || step == "entry32" && result.status == .killed(signal: SIGSEGV))
    }

    @Test func `walls that the host does not give are told, and the filter holds all the same`() throws {
        // Namespaces are switched off for it by a limit of its own: no right to make any.
        let result = try Helper.run(["forbid=unshare", "root=empty", "enter", "probe=\(getpid())", "work"])
        #expect(result.status == .exited(0))
        let missing = result.all("missing")
        #expect(missing.contains("mount namespace: Operation not permitted"), "\(missing)")
        #expect(missing.contains("network namespace: Operation not permitted"), "\(missing)")
        #expect(refusals(result).others == [])
        #expect(result.all("worked") == ["8192000 true"])
    }

    @Test func `name that libseccomp does not know is told, not fatal`() throws {
        let result = try Helper.run(["bare", "root=host", "unknown", "enter"])
        #expect(result.all("missing").filter { $0.contains("no_such_call") } == ["system call no_such_call: unknown to libseccomp"])
    }

    @Test func `entering with a second thread is refused`() throws {
        let result = try Helper.run(["thread", "enter"])
        #expect(result.status == .exited(1))
        #expect(result.lines == ["enter failed: enter: Device or resource busy"])
    }

    @Test func `limits hold, and core dumps are off`() throws {
        let result = try Helper.run(["bare", "root=host", "files=5", "enter", "duplicate"])
        #expect(result.all("duplicates") == ["2 Too many open files"])
        #expect(result.all("core") == ["0 0"])
    }
}
