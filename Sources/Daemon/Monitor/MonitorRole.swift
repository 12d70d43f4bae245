import ControlProtocol
import Glibc
import Linux

/// The process vmm: it starts the machines' processes, watches them, and passes on what they and the parent say to each
/// other, after checking that it is something a machine may say.
final class MonitorRole {
    private final class Machine {
        let run: UInt32
        let child: Child
        let channel: MessageChannel<MachineReport, MachineCommand>
        var complaint: String?
        var budget = ReportBudget()

        init(run: UInt32, child: Child, channel: MessageChannel<MachineReport, MachineCommand>) {
            self.run = run
            self.child = child
            self.channel = channel
        }
    }

    /// Nobody is listened to while the parent is so many reports behind.
    private static let mostBacklog = 512

    /// A machine that does not read takes so many of our descriptors, and no other's. The parent asks less of one that is honest about
    /// what it has answered (`Parent.mostRequests`).
    private static let mostWaitingDescriptors = 32

    private let loop: EventLoop
    private let deadlines: Deadlines
    private let parent: MessageChannel<MonitorCommand, MonitorReport>
    private let program: Program
    /// Tests only: still to be done.
    private var isProbing: Bool
    private var machines: [UInt32: Machine] = [:]
    /// Those that wait for the parent to catch up.
    private var held: Set<UInt32> = []

    init(
        loop: EventLoop, parent: MessageChannel<MonitorCommand, MonitorReport>, program: consuming Program, isProbing: Bool
    ) throws(SystemError) {
        self.loop = loop
        self.parent = parent
        self.program = program
        self.isProbing = isProbing
        deadlines = try Deadlines(loop)
        parent.onMessage = { [unowned self] in handle($0, &$1) }
        parent.onEnd = { [unowned self] _ in self.loop.stop() }
        parent.onRoom = { [unowned self] in
            let runs = held
            held = []
            for run in runs { resume(run) }
        }
    }

    private func handle(_ command: MonitorCommand, _ descriptors: inout FileDescriptorList) {
        switch command {
        case .start(let run, let setup):
            do {
                try start(run, setup, descriptors.numbers)
            } catch {
                parent.send(.exited(run: run, .notStarted("\(error)")))
            }
        case .tell(let run, let command):
            guard let machine = machines[run] else { return }
            machine.budget.note(command)
            machine.channel.send(command, descriptors: descriptors.numbers)
        case .kill(let run, let isForced): machines[run]?.child.signal(isForced ? SIGKILL : SIGTERM)
        }
    }

    private func start(_ run: UInt32, _ setup: MachineSetup, _ descriptors: [CInt]) throws(SystemError) {
        let pair = try UnixSocket.pair()
        var options = ChildProcess.Options(arguments: Role.machine.arguments(title: setup.name))
        options.environment = RoleStarter.environment + Environment.variables(of: .machine, isProbing: setup.probes)
        // There is no /dev/null in here, but these are it.
        (options.input, options.output) = (.inherited, .inherited)
        // Keys of a terminal that we were started on are not for it.
        options.startsSession = true
        options.descriptors = [pair.second.raw]
        let child = Child(try ChildProcess(program, options))
        let channel = try MessageChannel<MachineReport, MachineCommand>(
            try UnixSocket(duplicating: pair.first), loop, descriptorLimit: Self.mostWaitingDescriptors)
        try loop.watch(child.raw, .readable) { [unowned self] in reap(run) }
        machines[run] = Machine(run: run, child: child, channel: channel)
        channel.onMessage = { [unowned self] in pass($0, &$1, from: run) }
        channel.onEnd = { [unowned self] reason in cutOff(run, reason) }
        channel.send(.setUp(setup), descriptors: descriptors)
        parent.send(.started(run: run, pid: UInt32(child.processID)))
    }

    private func pass(_ report: MachineReport, _ descriptors: inout FileDescriptorList, from run: UInt32) {
        guard let machine = machines[run] else { return }
        parent.send(.told(run: run, report), descriptors: descriptors.numbers)
        machine.budget.note(report)
        if isProbing, report == .running {
            // Behind the first machine's start: what it tries of namespaces leaves none for machines.
            isProbing = false
            for line in RoleProbe.lines() { parent.send(.probe(line)) }
        }
        if parent.backlog > Self.mostBacklog {
            held.insert(run)
            machine.channel.suspendReading()
        }
        if machine.budget.isFlood { return cutOff(run, "too many messages") }
        if machine.budget.isSpent { machine.channel.suspendReading() }
        if machine.budget.reportCount == 1 {
            deadlines.schedule(after: ReportBudget.windowNanoseconds) { [unowned self] in endWindow(run) }
        }
    }

    private func endWindow(_ run: UInt32) {
        guard let machine = machines[run] else { return }
        machine.budget.endWindow()
        resume(run)
    }

    /// Listens again, unless there is another reason not to.
    private func resume(_ run: UInt32) {
        guard let machine = machines[run], !held.contains(run), !machine.budget.isSpent else { return }
        machine.channel.resumeReading()
    }

    /// The socket has ended: at the end of the process, or because it said what no machine says.
    private func cutOff(_ run: UInt32, _ reason: String?) {
        guard let machine = machines[run] else { return }
        machine.channel.close()
        machine.complaint = reason
        machine.child.signal(SIGKILL)
    }

    private func reap(_ run: UInt32) {
        guard let machine = machines[run], let status = machine.child.poll() else { return }
        loop.unwatch(machine.child.raw)
        // What it said last comes before its end.
        machine.channel.drain()
        machine.channel.close()
        machines[run] = nil
        held.remove(run)
        let exit: MachineExit =
            if let complaint = machine.complaint {
                .cutOff(complaint)
            } else {
                switch status {
                case .exited(let code): .exited(UInt8(truncatingIfNeeded: code))
                case .killed(let signal): .killed(signal: UInt8(truncatingIfNeeded: signal))
                }
            }
        parent.send(.exited(run: run, exit))
    }
}
