import ControlProtocol
import Glibc
import Linux
import Machine
import Testing
import VMConfig

@testable import Daemon

extension DaemonTests {
    /// Parts of the parent that need no process.
    @Suite("Daemon's parts", .timeLimit(.minutes(1))) struct PartTests {
        private func plan(_ name: String, uid: UInt32 = 0) -> MachinePlan {
            MachinePlan(name: name, owner: ResolvedOwner(uid: uid, gid: nil, text: "\(uid)"))
        }

        // MARK: Sandbox

        @Test func `running machine may ask no ioctl but those it needs`() {
            func requests(_ policy: SystemCallPolicy) -> Set<UInt64> {
                Set(
                    policy.rules.filter { $0.name == "ioctl" }.map { rule in
                        guard let request = rule.conditions.first, case .number(let value) = request.value, request.argument == 1,
                            request.mask == 0xFFFF_FFFF
                        else { return .max }
                        return value
                    })
            }
            let running = requests(Role.machineRunning)
            // KVM_RUN, KVM_SIGNAL_MSI, KVM_SET_LAPIC
            #expect(running.isSuperset(of: [0xAE80, 0x4020_AEA5, 0x4400_AE8F]))
            // KVM_CREATE_VM, KVM_CREATE_VCPU, KVM_ENABLE_CAP, KVM_SET_USER_MEMORY_REGION, KVM_SET_CPUID2, KVM_X86_SET_MSR_FILTER
            #expect(running.isDisjoint(with: [0xAE01, 0xAE41, 0x4068_AEA3, 0x4020_AE46, 0x4008_AE90, 0x4188_AEC6, .max]))
            // KVM's kind, in all its uses.
            #expect(running.filter { $0 & 0xFF00 == 0xAE00 }.count == EngineChoice.runningRequests.count)
        }

        // MARK: Ids

        @Test func `a name of one owner keeps its id, also while it is away`() {
            var table = MachineTable()
            let one = table.add(plan("one"), isConfigured: true)
            let two = table.add(plan("two"), isConfigured: true)
            table.remove(one)
            let others = table.add(plan("one", uid: 7), isConfigured: false)
            #expect([one.id, two.id, others.id] == [1, 2, 3])
            table.remove(others)
            #expect(table.add(plan("one"), isConfigured: false).id == 1)
            #expect(table.records.map(\.id) == [1, 2])
            #expect(table.find(.id(2)) === two && table.find(.name("two")) === two && table.find(.id(3)) == nil)
        }

        @Test func `numbering begins again when ids are forgotten, beside those that are still in use`() {
            var table = MachineTable()
            let records = ["a", "b", "c"].map { table.add(plan($0), isConfigured: true) }
            table.remove(records[0])
            table.remove(records[2])
            table.forgetIDs()
            #expect(table.add(plan("x"), isConfigured: true).id == 1)
            #expect(table.add(plan("y"), isConfigured: true).id == 3)
            #expect(Set(table.records.map(\.id)).count == 3)
        }

        @Test func `ids do not use up memory`() {
            var table = MachineTable()
            for number in 0..<100_010 { table.remove(table.add(plan("\(number)"), isConfigured: false)) }
            #expect(table.add(plan("last"), isConfigured: false).id == 100_011)
        }

        // MARK: Names

        @Test(arguments: [
            ("wbe", "web"), ("web1", "web"), ("we", "web"), ("datbaase", "database"), ("Database", "database"), ("nothing", nil), ("", nil),
            ("w", nil), (String(repeating: "w", count: 30_000), nil),
        ]) func `the name that was meant is found`(name: String, nearest: String?) {
            var table = MachineTable()
            for name in ["web", "database", "mail"] { _ = table.add(plan(name), isConfigured: true) }
            #expect(table.nearest(to: name) == nearest)
        }

        @Test func `distances count what has to be typed`() {
            #expect(editDistance("abc", "abc") == 0 && editDistance("", "abc") == 3 && editDistance("abc", "") == 3)
            #expect(editDistance("abc", "acb") == 1 && editDistance("abc", "abcd") == 1 && editDistance("kitten", "sitting") == 3)
        }

        // MARK: Turns

        @Test func `so many start at once, the next after the delay`() {
            var queue = StartQueue(parallel: 2, delay: 100)
            #expect(queue.deadline == nil && queue.take(at: 0) == [])
            for id in 1...5 { queue.add(UInt32(id)) }
            queue.add(3)
            #expect(queue.deadline == 0)
            #expect(queue.take(at: 1000) == [1, 2])
            #expect(queue.take(at: 1099) == [] && queue.deadline == 1100)
            queue.remove(3)
            #expect(queue.take(at: 1100) == [4, 5])
            #expect(queue.deadline == nil)
            queue.add(6)
            // Who comes later waits for the turn all the same, unless there is room in it.
            #expect(queue.take(at: 1150) == [] && queue.take(at: 1200) == [6])
            queue.add(7)
            queue.add(8)
            #expect(queue.deadline == 0 && queue.take(at: 1250) == [7])
            #expect(queue.deadline == 1300 && queue.take(at: 1299) == [] && queue.take(at: 1300) == [8])
        }

        @Test func `new rules keep who waits, and what has begun`() {
            var queue = StartQueue(parallel: 1, delay: 100)
            for id in 1...5 { queue.add(UInt32(id)) }
            #expect(queue.take(at: 0) == [1])
            var same = StartQueue(queue, parallel: 1, delay: 200)
            #expect(same.take(at: 199) == [] && same.take(at: 200) == [2])
            var more = StartQueue(queue, parallel: 3, delay: 100)
            #expect(more.take(at: 50) == [2, 3] && more.take(at: 99) == [] && more.take(at: 100) == [4, 5])
            var nobody = StartQueue(parallel: 0, delay: .max)
            nobody.add(1)
            nobody.add(2)
            #expect(nobody.take(at: 5) == [1] && nobody.take(at: .max - 1) == [] && nobody.deadline == .max)
        }

        // MARK: Permissions

        @Test func `root and the daemon's user may all, others what is theirs`() {
            let root = Peer(uid: 0, groups: [0], pid: 1), daemon = Peer(uid: 1000, groups: [1000], pid: 2)
            let owner = Peer(uid: 7, groups: [7], pid: 3), member = Peer(uid: 8, groups: [8, 50], pid: 4), stranger = Peer(uid: 9, groups: [9], pid: 5)
            let permissions = Permissions(daemonUID: 1000)
            #expect(permissions.isAdministrator(root) && permissions.isAdministrator(daemon) && !permissions.isAdministrator(owner))
            let theirs = ResolvedOwner(uid: 7, gid: 50, text: "7:50")
            // Stopped: its owner, or the group. Running: who started it, or the group.
            for (peer, stopped, startedByOwner, startedByRoot) in [
                (root, true, true, true), (daemon, true, true, true), (owner, true, true, false), (member, true, true, true), (stranger, false, false, false),
            ] {
                #expect(permissions.mayControl(peer, theirs, startedBy: nil) == stopped, "\(peer)")
                #expect(permissions.mayControl(peer, theirs, startedBy: 7) == startedByOwner, "\(peer)")
                #expect(permissions.mayControl(peer, theirs, startedBy: 0) == startedByRoot, "\(peer)")
            }
            #expect(!Permissions(daemonUID: 0).mayControl(owner, ResolvedOwner(uid: 0, gid: nil, text: "root"), startedBy: nil))
        }

        @Test func `a peer is who the kernel says, on a socket of the listener's`() throws {
            let path = "/tmp/daemon-tests-\(getpid())"
            let listener = try UnixListener(path: path, mode: 0o600)
            defer { listener.removeFile() }
            let name = try listener.localName()
            func peer(of socket: consuming FileDescriptor, _ name: [UInt8]) -> UInt32? { try? Peer(of: socket, acceptedBy: name).uid }
            let client = try UnixSocket(connectingTo: path)
            guard let accepted = try listener.accept() else { Issue.record("nobody"); return }
            #expect(peer(of: accepted.release(), name) == geteuid())
            // Others: the client's own end, a pair, another kind, no socket at all.
            #expect(peer(of: client.release(), name) == nil)
            let pair = try UnixSocket.pair()
            #expect(peer(of: try FileDescriptor(duplicating: pair.first.raw), name) == nil)
            #expect(peer(of: try FileDescriptor(duplicating: pair.first.raw), []) == nil)
            #expect(peer(of: try FileDescriptor(open: "/dev/null", flags: O_RDWR), name) == nil)
        }

        // MARK: Plans

        @Test func `a request's options take the place of the plan's, within its bounds`() throws {
            var made = plan("one")
            var request = StartRequest(.name("one"))
            request.memory = 5 << 20 | 12345
            request.engine = "translator"
            request.interfaces = [.local]
            request.interfaceCount = 3
            try made.apply(request, opener: nil)
            #expect(made.memory == 5 << 20 && made.engine == .translator && made.interfaceCount == 3)
            for change in [
                { $0.memory = 0 }, { $0.memory = .max }, { $0.engine = "qemu" }, { $0.cpuModel = "pentium" },
            ] as [(inout StartRequest) -> Void] {
                var wrong = StartRequest(.name("one"))
                change(&wrong)
                #expect(throws: Refusal.self) { var copy = made; try copy.apply(wrong, opener: nil) }
            }
        }

        // MARK: Deadlines

        @Test func `deadlines come in order, and those that were taken back do not come`() throws {
            let loop = try EventLoop()
            let deadlines = try Deadlines(loop)
            var events: [String] = []
            var later: Deadlines.Token?
            let now = SystemTime.monotonic()
            deadlines.schedule(at: now + 2) { events.append("second") }
            deadlines.schedule(at: now + 1) {
                events.append("first")
                deadlines.cancel(later)
            }
            // Due in the same moment as who takes it back.
            later = deadlines.schedule(at: now + 3) { events.append("never") }
            deadlines.schedule(after: 20_000_000) {
                events.append("last")
                loop.stop()
            }
            deadlines.cancel(deadlines.schedule(after: 1) { events.append("never") })
            deadlines.cancel(nil)
            try loop.run()
            #expect(events == ["first", "second", "last"])
        }

        /// The timer's event has been found, and another handler of the same round sets the timer anew before it is read.
        @Test func `a deadline that is moved while it fires does not hold the loop up`() throws {
            let loop = try EventLoop()
            let deadlines = try Deadlines(loop)
            let event = try EventDescriptor()
            var token: Deadlines.Token?
            var rounds = 0
            // The event is always ready, so that it shares its round with the timer; which of them comes first is epoll's.
            event.signal()
            try loop.watch(event.raw, .readable) {
                deadlines.cancel(token)
                token = deadlines.schedule(after: 1000) {}
                rounds += 1
                let end = SystemTime.monotonic() + 5000
                while SystemTime.monotonic() < end {}
                if rounds == 2000 {
                    deadlines.cancel(token)
                    loop.stop()
                } else if rounds % 2 == 0 {
                    // Now the timer is disarmed: to wait for it would be for ever.
                    deadlines.cancel(token)
                }
            }
            try loop.run()
            #expect(rounds == 2000)
        }
    }
}
