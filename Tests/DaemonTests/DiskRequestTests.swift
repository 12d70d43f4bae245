import ControlProtocol
import DiskImage
import Glibc
import Linux
import Testing

@testable import Daemon

extension DaemonTests {
    /// What is asked of a machine's disks, in the parts of the daemon that it passes through.
    @Suite("Requests on disks", .timeLimit(.minutes(1))) struct DiskRequestTests {
        static let report = DiskReport(disk: 0, level: 0, image: MessageTests.image)

        // MARK: The parent

        /// A parent with one machine that runs, and the other ends of its sockets.
        private final class ParentBench {
            let parent: Parent
            let record: MachineRecord
            let process: MachineProcess
            let control: UnixSocket
            let monitor: UnixSocket
            let priv: UnixSocket
            static let peer = Peer(uid: 0, groups: [], pid: 1)

            init() throws {
                let loop = try EventLoop()
                let controlPair = try UnixSocket.pair(), monitorPair = try UnixSocket.pair(), privPair = try UnixSocket.pair()
                control = try UnixSocket(duplicating: controlPair.second)
                monitor = try UnixSocket(duplicating: monitorPair.second)
                priv = try UnixSocket(duplicating: privPair.second)
                parent = try Parent(
                    DaemonOptions(), DaemonSettings(), loop: loop, log: Log(.standardError(forJournal: false), isVerbose: false),
                    notification: nil, socketName: [],
                    monitor: try MessageChannel(try UnixSocket(duplicating: monitorPair.first), loop),
                    control: try MessageChannel(try UnixSocket(duplicating: controlPair.first), loop),
                    priv: try MessageChannel(try UnixSocket(duplicating: privPair.first), loop))
                var plan = MachinePlan(name: "web", owner: ResolvedOwner(uid: 0, gid: nil, text: "root"))
                plan.disks = [PlannedImage(location: ImageLocation("/a.qcow2"), opener: nil)]
                plan.cdrom = PlannedImage(location: ImageLocation("/a.iso"), opener: nil)
                record = parent.table.add(plan, isConfigured: true)
                process = MachineProcess(run: 1, plan, terminalPath: "/dev/pts/1", starter: 0, startTime: 0)
                record.start(process)
                record.noteRunning()
            }

            /// What control sends: its descriptors are none.
            func tell(_ report: ControlReport) {
                var none = FileDescriptorList()
                parent.handle(report, &none)
            }

            /// What the machine says.
            func hear(_ report: MachineReport) {
                var none = FileDescriptorList()
                parent.handle(.told(run: 1, report), &none)
            }

            func ask(_ client: UInt32, _ request: Request) {
                if parent.clients[client] == nil { parent.clients[client] = .init(peer: Self.peer) }
                tell(.request(client: client, request))
            }

            /// What each client has been told since the last time.
            func answers() throws -> [UInt32: [Response]] {
                var answers: [UInt32: [Response]] = [:]
                while case .packet(let packet) = try control.receive(limit: ControlCommand.longestPacket) {
                    let command = try ControlCommand(packet: packet.bytes, descriptorCount: packet.descriptors.count)
                    if case .answer(let client, let response) = command { answers[client, default: []].append(response) }
                }
                return answers
            }

            /// What the machine has been told to do since the last time, by client.
            func commands() throws -> [MachineCommand] {
                var commands: [MachineCommand] = []
                while case .packet(let packet) = try monitor.receive(limit: MonitorCommand.longestPacket) {
                    let command = try MonitorCommand(packet: packet.bytes, descriptorCount: packet.descriptors.count)
                    if case .tell(_, let command) = command { commands.append(command) }
                }
                return commands
            }
        }

        private static let eject = Request.ejectDisc(.name("web"), isForced: false)
        private static let list = Request.disks(.name("web"), .describe)

        @Test func `a machine is asked for so much at once, also when those who asked go`() throws {
            let bench = try ParentBench()
            let requests = [Self.eject, Self.list, .disks(.name("web"), .describeTop)]
            for client in 1...100 as ClosedRange<UInt32> {
                bench.ask(client, requests[Int(client) % 3])
                if client % 2 == 0 { bench.tell(.gone(client: client)) }
            }
            #expect(try bench.commands().count == 16)
            var answers = try bench.answers()
            #expect(answers.keys.sorted() == Array(17...100))
            for (_, told) in answers {
                #expect(told.count == 1 && told.first?.refusal == .busy && told.first?.refusalText.contains("try again") == true, "\(told)")
            }
            // Before the file is opened.
            bench.ask(101, .insertDisc(.name("web"), path: "/none.iso", isForced: false))
            #expect(try bench.answers()[101]?.first?.refusal == .busy)
            // One who has gone, and one who has not: there is room for one each.
            for (client, next) in [(2, 102), (1, 103)] as [(UInt32, UInt32)] {
                bench.hear(client == 2 ? .diskDone(client: client) : .diskRefused(client: client, .other, "no"))
                bench.ask(next, Self.list)
                bench.ask(next + 10, Self.list)
                #expect(try bench.commands() == [.disks(client: next, .describe)])
                answers = try bench.answers()
                #expect(answers[2] == nil && answers[next] == nil && answers[next + 10]?.first?.refusal == .busy)
                #expect(answers[1] == (client == 1 ? [.failed(.other, "vm web: no")] : nil))
            }
            // The end is told to those who are there.
            var none = FileDescriptorList()
            bench.parent.handle(.exited(run: 1, .exited(0)), &none)
            answers = try bench.answers()
            #expect(Set(answers.keys) == [3, 5, 7, 9, 11, 13, 15, 102, 103])
            #expect(answers.values.allSatisfy { $0.count == 1 && $0.first?.refusal == .notRunning })
        }

        @Test func `a disc that was changed for somebody who has gone is the one that is in the drive`() throws {
            let bench = try ParentBench()
            bench.ask(1, Self.eject)
            bench.tell(.gone(client: 1))
            #expect(bench.process.disc == "/a.iso")
            bench.hear(.diskDone(client: 1))
            #expect(bench.process.disc == nil)
            #expect(try bench.answers().isEmpty)
        }

        @Test func `the end of what was refused meanwhile is not taken for that of the next request`() throws {
            let bench = try ParentBench()
            bench.ask(1, Self.list)
            var told: [Response] = []
            for _ in 0...MachineReport.mostImages {
                bench.hear(.image(client: 1, Self.report))
                told += try bench.answers()[1] ?? []
            }
            #expect(told.count == MachineReport.mostImages + 1 && told.last == .failed(.other, "vm web tells too much of its disks"))
            bench.ask(1, Self.eject)
            bench.hear(.image(client: 1, Self.report))
            told = try bench.answers()[1] ?? []
            #expect(told.count == 1 && told.first?.refusal == .busy)
            // Of others it may be asked something.
            bench.ask(2, Self.eject)
            bench.hear(.diskDone(client: 1))
            #expect(try bench.answers().isEmpty)
            #expect(bench.process.disc == "/a.iso")
            bench.ask(1, Self.list)
            bench.hear(.diskDone(client: 1))
            #expect(try bench.answers() == [1: [.end]])
            #expect(try bench.commands() == [.disks(client: 1, .describe), .ejectDisc(client: 2, isForced: false), .disks(client: 1, .describe)])
        }

        // MARK: vmm

        /// Windows that are filled with what `next` says, until it is enough, or there have been 100.
        private func fill(_ budget: inout ReportBudget, _ next: (inout ReportBudget) -> MachineReport) -> Int {
            for window in 0..<100 {
                for _ in 0..<ReportBudget.reportsPerWindow {
                    let report = next(&budget)
                    budget.note(report)
                }
                if budget.isFlood { return window }
                budget.endWindow()
            }
            return 100
        }

        @Test func `a machine may fill windows with answers, but not with what nobody asked for`() {
            var budget = ReportBudget()
            var count = 0
            // Requests without end, and 32 images to each.
            let asked = fill(&budget) { budget in
                count += 1
                if count % 33 == 1 { budget.note(.disks(client: 5, .describe)) }
                return count % 33 == 0 ? .diskDone(client: 5) : .image(client: 5, DiskRequestTests.report)
            }
            #expect(asked == 100)
            let discs = fill(&budget) { budget in
                budget.note(.ejectDisc(client: 7, isForced: true))
                return .diskRefused(client: 7, .busy, "locked")
            }
            #expect(discs == 100)
            for report: MachineReport in [.log("x"), .image(client: 5, Self.report), .diskDone(client: 5)] {
                var other = ReportBudget()
                other.note(.disks(client: 6, .describe))
                #expect(fill(&other) { _ in report } == ReportBudget.mostFullWindows, "\(report)")
            }
        }

        @Test func `one request is no leave to talk for ever, and answers wait for the next window like the rest`() {
            var budget = ReportBudget()
            budget.note(.disks(client: 5, .describe))
            for _ in 1..<ReportBudget.reportsPerWindow { budget.note(.image(client: 5, Self.report)) }
            #expect(!budget.isSpent)
            budget.note(.image(client: 5, Self.report))
            #expect(budget.isSpent)
            budget.endWindow()
            #expect(!budget.isSpent)
            let left = MachineReport.mostImages / ReportBudget.reportsPerWindow - 1
            #expect(fill(&budget) { _ in .image(client: 5, DiskRequestTests.report) } == left + ReportBudget.mostFullWindows)
        }

        // MARK: The machine's process

        /// Such a process's role in this one, and vmm's end of its socket.
        private final class Bench {
            let loop: EventLoop
            let role: MachineRole
            let channel: MessageChannel<MachineCommand, MachineReport>
            let vmm: UnixSocket

            init() throws {
                loop = try EventLoop()
                let pair = try UnixSocket.pair()
                channel = try MessageChannel(try UnixSocket(duplicating: pair.first), loop)
                vmm = try UnixSocket(duplicating: pair.second)
                role = try MachineRole(loop: loop, monitor: channel)
            }

            /// What has arrived at vmm, or does when it reads.
            func reports() throws -> [MachineReport] {
                var reports: [MachineReport] = []
                var idle = 0
                while idle < 3 {
                    if case .packet(let packet) = try vmm.receive(limit: MachineReport.longestPacket) {
                        reports.append(try MachineReport(packet: packet.bytes, descriptorCount: packet.descriptors.count))
                        idle = 0
                    } else {
                        idle += 1
                        // The last to be called stops the loop: it would wait otherwise.
                        let event = try EventDescriptor()
                        event.signal()
                        try loop.watch(event.raw, .readable) { [loop] in loop.stop() }
                        try loop.run()
                        loop.unwatch(event.raw)
                    }
                }
                return reports
            }
        }

        @Test func `what was done while the machine ended is told before its end`() throws {
            let bench = try Bench()
            let begins = Monitor(false)
            let role = bench.role
            let mailbox = role.mailbox
            mailbox.post(.disks(1, .done))
            try role.diskWork.add {
                begins.withLock { $0 = true }
                begins.broadcast()
                // Long enough for `end` to wait for it.
                usleep(20_000)
                mailbox.post(.disks(2, .refused(.other, "no")))
            }
            try role.diskWork.add { mailbox.post(.disks(3, .done)) }
            begins.withLock(waitingWhile: { !$0 }) { _ in }
            role.end(.stopped, "bye")
            // The third had not begun.
            #expect(try bench.reports() == [.diskDone(client: 1), .diskRefused(client: 2, .other, "no"), .ended(.stopped, "bye")])
        }

        @Test func `answers that wait for room leave before the machine's last word`() throws {
            let bench = try Bench()
            let role = bench.role
            for _ in 0..<200 { role.mailbox.post(.disks(1, .reports(Array(repeating: Self.report, count: 33)))) }
            let number = try UnixSocket(duplicating: bench.vmm).release().release()
            let kinds = Monitor<[UInt16]>([])
            let reader = try PosixThread("reader") {
                guard let socket = try? UnixSocket(adopting: FileDescriptor(owning: number)) else { return }
                while kinds.withLock({ $0.last != MachineReport.ended(.stopped, "").kind }),
                    let arrival = try? socket.receive(limit: MachineReport.longestPacket)
                {
                    switch arrival {
                    case .packet(let packet):
                        let report = try? MachineReport(packet: packet.bytes, descriptorCount: packet.descriptors.count)
                        kinds.withLock { $0.append(report?.kind ?? 0) }
                    case .nothing: usleep(100)
                    case .closed: return
                    }
                }
            }
            role.end(.stopped, "bye")
            bench.channel.close()
            reader.join()
            let image = MachineReport.image(client: 1, Self.report).kind
            #expect(kinds.withLock { $0 } == Array(repeating: image, count: 6600) + [MachineReport.ended(.stopped, "").kind])
        }

        /// The queue's end would be this process's.
        @Test func `more answers than vmm's queue holds wait for it, and stay in order`() throws {
            let bench = try Bench()
            let clients = 1...200 as ClosedRange<UInt32>
            for client in clients {
                bench.role.tell(client, .reports(Array(repeating: Self.report, count: 33)))
                bench.role.tell(client, client % 2 == 0 ? .done : .refused(.other, "no"))
                #expect(bench.channel.backlog <= MachineRole.mostBacklog)
            }
            let expected = clients.flatMap { client -> [MachineReport] in
                Array(repeating: .image(client: client, Self.report), count: 33)
                    + [client % 2 == 0 ? .diskDone(client: client) : .diskRefused(client: client, .other, "no")]
            }
            #expect(try bench.reports() == expected)
        }
    }
}

extension Response {
    fileprivate var refusal: Failure? { if case .failed(let failure, _) = self { failure } else { nil } }
    fileprivate var refusalText: String { if case .failed(_, let text) = self { text } else { "" } }
}
