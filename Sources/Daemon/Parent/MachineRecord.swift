import ControlProtocol
import DiskImage
import Linux

/// A machine that the daemon knows, whether it runs or not. Only the parent's thread touches it.
final class MachineRecord {
    enum Phase: Hashable {
        case stopped
        /// Its own error ended it.
        case crashed
        /// Its turn has not come yet.
        case waiting
        case starting
        case running
    }

    let id: UInt32
    /// What the next start uses.
    var plan: MachinePlan
    /// It is in the configuration; others are forgotten when they stop.
    var isConfigured: Bool
    private(set) var phase = Phase.stopped
    private(set) var process: MachineProcess?
    /// What happened to it last; one line.
    var lastEvent: String?

    init(id: UInt32, _ plan: MachinePlan, isConfigured: Bool) {
        self.id = id
        self.plan = plan
        self.isConfigured = isConfigured
    }

    var name: String { plan.name }
    var hasProcess: Bool { process != nil }

    func wait() { if process == nil { phase = .waiting } }
    func stopWaiting() { if phase == .waiting { phase = .stopped } }

    func start(_ process: MachineProcess) {
        self.process = process
        phase = .starting
        lastEvent = nil
    }

    func noteRunning() { if phase == .starting { phase = .running } }

    func end(isCrash: Bool, _ event: String) {
        process = nil
        phase = isCrash ? .crashed : .stopped
        lastEvent = event
    }

    var state: MachineStatus.State {
        guard let process else {
            switch phase {
            case .waiting: return .waiting
            case .crashed: return .crashed
            default: return .stopped
            }
        }
        if process.isPaused { return .paused }
        if process.isStopping { return .stopping }
        return phase == .starting ? .starting : .running
    }
}

/// One run of a machine: from the request to start it until its process is gone.
final class MachineProcess {
    /// Never used again.
    let run: UInt32
    /// What it was started with; the record's own may have changed since.
    let plan: MachinePlan
    let terminalPath: String
    let starter: UInt32
    /// Seconds since 1970.
    let startTime: UInt64
    var pid: UInt32?
    var isPaused = false
    var isStopping = false
    /// We ended it, so that its end is no crash.
    var isKilled = false
    var restarts: UInt32 = 0
    var consoleHolder: String?
    /// When it must run.
    var startDeadline: Deadlines.Token?
    /// What it said before it ended.
    var lastWords: (end: MachineReport.End, text: String)?

    /// Clients that wait for something, by what they wait for.
    var starters: [UInt32] = []
    var stoppers: [Stopper] = []
    var waiters: [UInt32] = []
    var pausers: [UInt32] = []
    var unpausers: [UInt32] = []
    var consoleClients: Set<UInt32> = []
    /// Until the machine answers or ends, also those that have gone meanwhile: it has work to do for them, and vmm perhaps descriptors.
    var diskClients: [UInt32: DiskClient] = [:]
    /// What lies in its CD-ROM drive: at first the plan's.
    var disc: String?

    /// Asked for something that the machine does with its disks.
    struct DiskClient {
        /// It has neither gone nor been refused.
        var isWaiting = true
        /// It gets reports, and then the end of a list.
        var isList = false
        /// Reports that it has had.
        var reportCount = 0
        /// What is in the CD-ROM drive when it has worked out, and who wants that, for the log.
        var disc: (change: DiscChange, asker: String)?
    }

    enum DiscChange: Hashable {
        case inserted(String)
        case ejected
    }

    struct Stopper {
        let client: UInt32
        let waits: Bool
        /// It has been told how the guest was asked.
        var isTold = false
    }

    init(run: UInt32, _ plan: MachinePlan, terminalPath: String, starter: UInt32, startTime: UInt64) {
        self.run = run
        self.plan = plan
        self.terminalPath = terminalPath
        self.starter = starter
        self.startTime = startTime
        disc = plan.cdrom?.location.path
    }
}
