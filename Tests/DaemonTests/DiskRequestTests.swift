import ControlProtocol
import Glibc
import Linux
import Testing

@testable import Daemon

extension DaemonTests {
    /// What is asked of a machine's disks, in the parts of the daemon that it passes through.
    @Suite("Requests on disks", .timeLimit(.minutes(1))) struct DiskRequestTests {
        static let report = DiskReport(disk: 0, level: 0, image: MessageTests.image)

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
