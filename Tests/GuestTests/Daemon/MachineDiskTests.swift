import ControlProtocol
import DiskImage
import Glibc
import Linux
import Testing

extension GuestTests.DaemonTests {
    /// Disks and discs of machines that run, and what vmctl does with those of machines that do not.
    @Suite struct MachineDisks {
        /// One call, with the daemon's socket.
        @discardableResult
        private func vmctl(_ daemon: LiveDaemon, _ words: String..., fails: Bool = false) throws -> GuestProcess {
            let process = try GuestProcess(["-s", daemon.socketPath] + words, input: .nothing)
            let status = try process.status()
            guard (status != 0) == fails else { throw GuestFailure(description: "vmctl \(words): \(process.errorText)\n\(daemon.log.suffix(1000))") }
            return process
        }

        private func run(_ program: String, _ words: String...) throws {
            let process = try GuestProcess(words, input: .nothing, program: program)
            guard try process.status() == 0 else { throw GuestFailure(description: "\(program) \(words): \(process.text)\(process.errorText)") }
        }

        private func makeDisks(_ folder: Scratch, _ names: String...) throws {
            for name in names { try run(Paths.vmctl, "create", "-s", "64M", folder.later(name)) }
        }

        /// A machine of Linux with its shell on the console, whose drivers are loaded.
        private func linux(_ folder: Scratch, _ options: String, drivers: String = "") throws -> (LiveDaemon, ConsoleStream) {
            let daemon = try LiveDaemon(
                "vm \"one\" {\n memory 256M\n boot \"\(Paths.kernel)\"\n initrd \"\(Paths.virtioInitrd)\"\n cmdline \"console=ttyS0 quiet\"\n \(options)\n}\n",
                folder: folder)
            try daemon.wait(for: "one", .running)
            let console = try ConsoleStream(daemon, "one")
            try console.read(until: GuestProcess.prompt)
            try shell(console, "load-virtio")
            if !drivers.isEmpty { try shell(console, "load-virtio \(drivers)") }
            return (daemon, console)
        }

        /// Runs a line in the guest's shell, and waits for its end.
        @discardableResult
        private func shell(_ console: ConsoleStream, _ line: String) throws -> String {
            let start = console.bytes.count
            try console.send("\(line); echo e''nd-of-line\n")
            func rest() -> String { String(decoding: console.bytes[start...].filter { $0 != 0x0D }, as: UTF8.self) }
            let deadline = Clock.seconds() + Paths.patience
            while !rest().contains("end-of-line\n") {
                guard Clock.seconds() < deadline, try console.readMore() else { throw GuestFailure(description: "console: \(rest().suffix(500))") }
            }
            return rest()
        }

        private func stop(_ daemon: LiveDaemon) throws {
            _ = try daemon.client().list(.stop(.name("one"), isForced: true, waits: true))
            try daemon.wait(for: "one", .stopped)
        }

        private func bytes(_ folder: Scratch, _ disk: String, at offset: Int, _ count: Int) throws -> String {
            let raw = folder.later("copy.raw")
            unlink(raw)
            try run(Paths.vmctl, "image", "convert", "\(folder.path)/\(disk)", raw)
            let all = try File.bytes(raw, limit: offset + count)
            return String(decoding: all[offset...].prefix { $0 != 0 && $0 != 0x20 && $0 != 0x0A }, as: UTF8.self)
        }

        @Test func `a snapshot taken while the guest writes is of all disks at one moment, and is come back to`() throws {
            let folder = try Scratch()
            try makeDisks(folder, "a.qcow2", "b.qcow2")
            let (daemon, console) = try linux(folder, "disk \"a.qcow2\"\n disk \"b.qcow2\"")
            // What is to be there again.
            try shell(console, "for d in a b; do echo before | dd of=/dev/vd$d bs=512 seek=1024 conv=notrunc,sync 2>/dev/null; done; sync")
            // A count that goes to the first disk, then to the second: they are never more than one apart. And much else meanwhile.
            // By fsync, since Linux promises less of direct writes beside others to the same disk.
            try shell(
                console,
                "(i=100000; while [ -e /bin ]; do i=$((i+1)); for d in a b; do echo $i | dd of=/dev/vd$d bs=512 conv=notrunc,sync,fsync 2>/dev/null || echo FAILED $d $i; done; done) & "
                    + "(while [ -e /bin ]; do for d in a b; do dd if=/dev/urandom of=/dev/vd$d bs=64k seek=$((16 + i % 400)) count=8 conv=notrunc 2>/dev/null; i=$((i+7)); done; done) & true")
            try shell(console, "sleep 1")
            for name in ["one", "two", "three"] {
                try vmctl(daemon, "snapshot", "create", "one", name)
                try shell(console, "sleep 0.3")
            }
            let taken = try vmctl(daemon, "snapshot", "create", "one", "two", fails: true)
            #expect(taken.errorText.contains("a.qcow2: has a snapshot \"two\" already"), "\(taken.errorText)")
            let list = try vmctl(daemon, "snapshot", "list", "one").text
            #expect(list.contains("disk 1, \(folder.path)/b.qcow2:") && list.contains("three"), "\(list)")
            try vmctl(daemon, "snapshot", "delete", "one", "one")
            #expect(try vmctl(daemon, "image", "info", "--disk", "1", "one").text.contains("two, three\n"))
            for words in [["snapshot", "apply", "one", "two"], ["image", "check", "one"], ["rollback", "one"], ["export", "one", "\(folder.path)/none"]] {
                let refused = try GuestProcess(["-s", daemon.socketPath] + words, input: .nothing)
                #expect(try refused.status() == 1)
                #expect(refused.errorText.hasPrefix("vmctl: vm one runs: "), "\(refused.errorText)")
            }
            try shell(console, "for d in a b; do echo after | dd of=/dev/vd$d bs=512 seek=1024 conv=notrunc,sync oflag=direct 2>/dev/null; done")
            #expect(!(try shell(console, "dmesg | grep -i 'error\\|stall\\|lockup'")).contains("vda"))
            try stop(daemon)
            for disk in ["a", "b"] {
                #expect(try bytes(folder, "\(disk).qcow2", at: 1 << 19, 16) == "after")
                try run(Paths.vmctl, "image", "check", "\(folder.path)/\(disk).qcow2")
            }
            for name in ["three", "two"] {
                try vmctl(daemon, "snapshot", "apply", "one", name)
                #expect(try bytes(folder, "a.qcow2", at: 1 << 19, 16) == "before" && bytes(folder, "b.qcow2", at: 1 << 19, 16) == "before")
                let (first, second) = (Int(try bytes(folder, "a.qcow2", at: 0, 16)) ?? 0, Int(try bytes(folder, "b.qcow2", at: 0, 16)) ?? 0)
                #expect(first > 100_000 && (first == second || first == second + 1), "\(name): \(first), \(second)")
                if access("/usr/bin/qemu-img", X_OK) == 0 {
                    for disk in ["a", "b"] { try run("/usr/bin/qemu-img", "check", "-q", "\(folder.path)/\(disk).qcow2") }
                }
            }
            #expect(try daemon.ask(.start(StartRequest(.name("one")))).isStarted)
            // Also while it stands still.
            #expect(try daemon.ask(.pause(.name("one"))).machineState == .paused)
            try vmctl(daemon, "snapshot", "create", "one", "paused")
            #expect(try daemon.machine("one")?.state == .paused)
            try stop(daemon)
            try run(Paths.vmctl, "image", "check", "\(folder.path)/a.qcow2")
        }

        @Test func `what a machine's disks cannot do is refused, and nothing is done`() throws {
            let folder = try Scratch()
            try makeDisks(folder, "a.qcow2")
            _ = try folder.file("b.raw", byteCount: 1 << 20)
            let daemon = try LiveDaemon(
                MachineText.machine("one", "halt", "disk \"a.qcow2\"\n disk \"b.raw\"") + MachineText.machine("none", "halt"), folder: folder)
            try daemon.wait(for: "one", .running)
            try daemon.wait(for: "none", .running)
            let refused = try daemon.ask(.disks(.name("one"), .createSnapshot("x")))
            #expect(refused.refusal == .invalid && refused.text.contains("b.raw: only qcow2 images have snapshots: `vmctl image convert"), "\(refused)")
            #expect(try daemon.ask(.disks(.name("none"), .createSnapshot("x"))).text == "vm none has no disk")
            let images = try daemon.client().list(.disks(.name("one"), .describe)).compactMap { if case .image(let image) = $0 { image } else { nil } }
            #expect(images.map(\.image.path) == ["\(folder.path)/a.qcow2", "\(folder.path)/b.raw"] && images.map(\.disk) == [0, 1])
            #expect(images.allSatisfy { $0.image.qcow2?.snapshots.isEmpty ?? true })
            #expect(try daemon.client().list(.disks(.name("one"), .describeTop)).count == 2)
            #expect(try daemon.ask(.disks(.name("one"), .createSnapshot(""))).refusal == .invalid)
            #expect(try daemon.ask(.ejectDisc(.name("one"), isForced: true)).text.contains("has no CD-ROM drive: `cdrom` in vm.conf"))
            #expect(try daemon.ask(.insertDisc(.name("one"), path: "\(folder.path)/b.raw", isForced: true)).refusal == .invalid)
            #expect(try daemon.ask(.disks(.name("two"), .describe)).refusal == .noSuchMachine)
            _ = try daemon.client().list(.stop(.name("one"), isForced: true, waits: true))
            #expect(try daemon.ask(.disks(.name("one"), .describe)).refusal == .notRunning)
            guard case .description(let description) = try daemon.ask(.describe(.name("one"))) else {
                Issue.record("no description")
                return
            }
            #expect(description.disks == ["\(folder.path)/a.qcow2", "\(folder.path)/b.raw"] && !description.isRunning && !description.hasDrive)
            #expect(description.memory == 16 << 20)
        }

        @Test func `a stopped machine's disks are vmctl's, and it does not start meanwhile`() throws {
            let folder = try Scratch()
            try makeDisks(folder, "a.qcow2", "b.qcow2")
            let daemon = try LiveDaemon(
                MachineText.machine("one", "halt", "disable\n disk \"a.qcow2\"\n disk \"b.qcow2\"", kernel: Paths.controlKernel), folder: folder)
            try vmctl(daemon, "snapshot", "create", "one", "monday")
            for name in ["point.qcow2", "point-b.qcow2"] { try vmctl(daemon, "snapshot", "create", "-d", "one", name) }
            try vmctl(daemon, "rollback", "one")
            try vmctl(daemon, "rollforward", "one")
            try vmctl(daemon, "image", "check", "--chain", "1")
            let out = folder.path + "/out"
            try vmctl(daemon, "export", "-c", "one", out)
            #expect(File.paths("\(out)/*") == ["one-0.vmdk", "one-1.vmdk", "one.vmx"].map { "\(out)/\($0)" })
            for path in File.paths("\(folder.path)/point*") + File.paths("\(out)/*") { unlink(path) }
            rmdir(out)
        }

        /// More reports than a machine may send unasked in 5 s, and no pause between them.
        @Test func `a machine whose disks are listed again and again goes on running`() throws {
            let folder = try Scratch()
            try makeDisks(folder, "a-0.qcow2", "b-0.qcow2")
            for disk in ["a", "b"] {
                for point in 1...15 {
                    try run(Paths.vmctl, "create", "-b", "\(folder.path)/\(disk)-\(point - 1).qcow2", "\(folder.path)/\(disk)-\(point).qcow2")
                }
            }
            let daemon = try LiveDaemon(MachineText.machine("one", "tick", "disk \"a-15.qcow2\"\n disk \"b-15.qcow2\""), folder: folder)
            let pid = try daemon.wait(for: "one", .running).pid
            let clients = try (0..<4).map { _ in try daemon.client() }
            // 64 reports in each of 60 windows.
            for _ in 0..<30 {
                for client in clients { try client.send(.disks(.name("one"), .describe)) }
                for client in clients {
                    var count = 0
                    while let answer = try client.receive(), answer != .end { count += 1 }
                    try #require(count == 32)
                }
            }
            #expect(try daemon.machine("one")?.pid == pid)
        }

        // MARK: Discs

        private func disc(_ folder: Scratch, _ name: String, _ text: String) throws -> String {
            try folder.file(name, Array(text.utf8), byteCount: 64 * 2048)
        }

        @Test func `the guest reads the disc that is in its drive, and may lock it`() throws {
            let folder = try Scratch()
            let discs = try ["A", "B"].map { try disc(folder, "\($0).iso", "this is disc \($0)\n") }
            let (daemon, console) = try linux(folder, "cdrom \"A.iso\"", drivers: "scsi_common scsi_mod virtio_scsi cdrom sr_mod")
            try shell(console, "while ! [ -e /dev/sr0 ]; do sleep 0.1; done")
            let look = "head -c 15 /dev/sr0"
            #expect(try shell(console, look).contains("this is disc A"))
            #expect(try vmctl(daemon, "cdrom", "show", "one").text == discs[0] + "\n")
            try vmctl(daemon, "cdrom", "eject", "one")
            #expect(try vmctl(daemon, "cdrom", "show", "one").text == "-\n")
            #expect(try shell(console, look).contains("No medium found"))
            try vmctl(daemon, "cdrom", "insert", "one", discs[1])
            #expect(try shell(console, look).contains("this is disc B"))
            #expect(try shell(console, "cat /sys/block/sr0/size").contains("256\n"))
            // In place of the other, without a word; B is free, and A is not.
            try vmctl(daemon, "cdrom", "insert", "one", discs[0])
            #expect(try shell(console, look).contains("this is disc A"))
            let inUse = try GuestProcess(["image", "resize", "raw:" + discs[0], "1M"], input: .nothing)
            #expect(try inUse.status() == 1)
            #expect(inUse.errorText.contains("is in use by vmd: one"), "\(inUse.errorText)")
            // Whoever has it open has locked it.
            try shell(console, "exec 3</dev/sr0")
            let locked = try vmctl(daemon, "cdrom", "eject", "one", fails: true)
            #expect(locked.errorText == "vmctl: command failed: vm one: the guest has locked the drive, and was asked for the disc: try again, or take it with -f\n")
            #expect(try daemon.ask(.insertDisc(.name("one"), path: discs[1], isForced: false)).refusal == .busy)
            #expect(daemon.log.count(of: "disc taken out by") == 1 && daemon.log.count(of: "B.iso put in by") == 1)
            #expect(try vmctl(daemon, "cdrom", "show", "one").text == discs[0] + "\n")
            try vmctl(daemon, "cdrom", "insert", "-f", "one", discs[1])
            try shell(console, "exec 3<&-")
            #expect(try shell(console, look).contains("this is disc B"))
            // Its own reset leaves the disc in; the next start begins with the configuration's.
            let empty = try folder.file("empty.iso")
            #expect(try vmctl(daemon, "cdrom", "insert", "one", empty, fails: true).errorText.contains("empty"))
            #expect(try vmctl(daemon, "cdrom", "insert", "one", folder.path, fails: true).errorText.contains("directory"))
            #expect(try shell(console, look).contains("this is disc B"))
            try stop(daemon)
            #expect(try vmctl(daemon, "cdrom", "show", "one").text == discs[0] + "\n")
        }

        @Test func `who asks for discs and goes, again and again, leaves little behind, also with a machine that does not answer`() throws {
            let folder = try Scratch()
            let path = try disc(folder, "A.iso", "A")
            let daemon = try LiveDaemon(MachineText.machine("one", "tick", "cdrom \"A.iso\""), folder: folder) { $0.arguments = ["-v"] }
            try daemon.wait(for: "one", .running)
            let pid = try daemon.process("one")
            let before = daemon.holdings(), files = File.paths("/proc/\(pid)/fd/*").count
            let request = Request.insertDisc(.name("one"), path: path, isForced: true)
            kill(pid, SIGSTOP)
            for _ in 0..<16 { try daemon.client().send(request) }
            try daemon.wait("16 requests") { daemon.log.count(of: "disc for one asked for by") == 16 }
            for _ in 0..<500 { try #require(try daemon.ask(request, within: 5).refusal == .busy) }
            #expect(daemon.log.count(of: "put in by") == 0)
            kill(pid, SIGCONT)
            try daemon.wait("16 discs") { daemon.log.count(of: "put in by") == 16 }
            // And one after the other.
            for _ in 0..<500 { try #require(try daemon.ask(request) == .done) }
            #expect(try daemon.process("one") == pid)
            // The last is closed behind its answer; the first had a ring, which a machine that runs cannot make.
            try daemon.wait("\(files) files in the machine's process") { File.paths("/proc/\(pid)/fd/*").count <= files }
            try daemon.wait("the end of what clients held") { daemon.holdings() == before }
        }

        // MARK: Rights

        @Test(.enabled(if: isRoot, "needs root to become other users"))
        func `disks and discs are for those who may control the machine, with their own files`() throws {
            let folder = try Scratch()
            chmod(folder.path, 0o755)
            try makeDisks(folder, "a.qcow2")
            let owner = TestUser(uid: 65501, gid: 65501, groups: [65500])
            let stranger = TestUser(uid: 65502, gid: 65502, groups: [65500])
            let mine = try disc(folder, "mine.iso", "mine"), others = try disc(folder, "others.iso", "others")
            try #require(chown(mine, owner.uid, owner.gid) == 0)
            let daemon = try LiveDaemon(
                "socket owner \":65500\"\n" + MachineText.machine("one", "halt", "owner \"\(owner.uid)\"\n disk \"a.qcow2\"\n cdrom \"others.iso\""),
                folder: folder)
            try daemon.wait(for: "one", .running)
            let requests: [Request] = [
                .describe(.name("one")), .disks(.name("one"), .describe), .disks(.name("one"), .createSnapshot("x")),
                .disks(.name("one"), .deleteSnapshot("x")), .insertDisc(.name("one"), path: mine, isForced: false), .ejectDisc(.name("one"), isForced: false),
            ]
            for request in requests {
                let answer = try TestClient.connect(daemon.socketPath, as: stranger).ask(request)
                #expect(answer.refusal == .permission, "\(request): \(answer)")
            }
            func ask(_ request: Request) throws -> Response { try TestClient.connect(daemon.socketPath, as: owner).ask(request) }
            #expect(try ask(requests[2]) == .done)
            #expect(try ask(requests[3]) == .done)
            let refusal = try ask(.insertDisc(.name("one"), path: others, isForced: false))
            #expect(refusal.refusal == .invalid && refusal.text.contains("Permission denied"), "\(refusal)")
            let inserted = try ask(.insertDisc(.name("one"), path: mine, isForced: false))
            #expect(inserted == .done, "\(inserted) \(daemon.log)")
            #expect(try ask(.insertDisc(.name("one"), path: "mine.iso", isForced: false)).text.contains("absolute"))
            guard case .description(let description) = try ask(.describe(.name("one"))) else {
                Issue.record("no description")
                return
            }
            #expect(description.disc == mine && description.disks == ["\(folder.path)/a.qcow2"] && description.isRunning)
            #expect(try ask(.ejectDisc(.name("one"), isForced: false)) == .done)
            // The log has what was done, and no more.
            let empty = try disc(folder, "empty.iso", "")
            try #require(truncate(empty, 0) == 0 && chown(empty, owner.uid, owner.gid) == 0)
            #expect(try ask(.insertDisc(.name("one"), path: empty, isForced: false)).text.contains("the disc is empty"))
            let lines = daemon.log.split(separator: "\n").filter { $0.contains("vm one: disc ") }
            #expect(lines.count == 2 && lines.first?.contains("disc \(mine) put in by ") == true && lines.last?.contains("disc taken out by ") == true, "\(lines)")
        }

        /// The process that does it is ended in the middle.
        @Test func `a machine that is killed in the middle of work on its disks leaves them sound`() throws {
            let folder = try Scratch()
            try makeDisks(folder, "a.qcow2", "b.qcow2")
            let daemon = try LiveDaemon(MachineText.machine("one", "tick", "disable\n disk \"a.qcow2\"\n disk \"b.qcow2\""), folder: folder)
            for round in 0..<6 {
                #expect(try daemon.ask(.start(StartRequest(.name("one")))).isStarted)
                let pid = try daemon.process("one")
                let clients = try (0..<8).map { _ in try daemon.client() }
                for (index, client) in clients.enumerated() {
                    try client.send(.disks(.name("one"), index % 3 == 2 ? .deleteSnapshot("\(round)-\(index - 1)") : .createSnapshot("\(round)-\(index)")))
                }
                usleep(useconds_t(round * 4000))
                if round % 2 == 0 { kill(pid, SIGKILL) } else { try daemon.client().send(.stop(.name("one"), isForced: true, waits: false)) }
                // Everybody gets an answer.
                for client in clients { #expect(try client.receive() != nil) }
                try daemon.wait("the end") { try daemon.machine("one")?.pid == nil }
                for disk in ["a", "b"] { try run(Paths.vmctl, "image", "repair", "\(folder.path)/\(disk).qcow2") }
                // Ended in order, it has all of a snapshot or nothing.
                if round % 2 == 1 {
                    let list = try vmctl(daemon, "snapshot", "list", "-j", "one").text
                    for index in 0..<8 {
                        let count = list.split(separator: "\"\(round)-\(index)\"", omittingEmptySubsequences: false).count - 1
                        #expect(count == 0 || count == 2, "\(list)")
                    }
                }
            }
        }
    }
}

extension String {
    /// How often it has a text.
    fileprivate func count(of text: String) -> Int { split(separator: text, omittingEmptySubsequences: false).count - 1 }
}
