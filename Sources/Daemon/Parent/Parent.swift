import ControlProtocol
import Glibc
import Linux
import VMConfig

/// The process that the others come from: it knows the configuration and the machines, opens files and terminals,
/// decides who may do what, and hands descriptors out.
///
/// One thread, one event loop. Nothing here waits for a client, a machine or another role: whoever is to be told later
/// stands in a list of the machine's `MachineProcess`.
final class Parent {
    let loop: EventLoop
    let deadlines: Deadlines
    let log: Log
    let options: DaemonOptions
    let permissions: Permissions
    let monitor: MessageChannel<MonitorReport, MonitorCommand>
    let control: MessageChannel<ControlReport, ControlCommand>
    let priv: MessageChannel<PrivReport, PrivCommand>
    let notification: ServiceNotification?
    /// Clients come by this socket and no other.
    let socketName: [UInt8]
    /// Called when the settings have been read again.
    var onSettings: (DaemonSettings) -> Void = { _ in }
    /// What is configured, as parsed: what further files may refer to.
    var configuration = Configuration()
    var table = MachineTable()
    var clients: [UInt32: Client] = [:]
    var queue: StartQueue
    var settings: DaemonSettings
    private var turn: Deadlines.Token?
    private var nextRun: UInt32 = 1
    /// It is to end as soon as no machine is left.
    private(set) var isEnding = false

    /// Somebody connected, and what is left of the one request that control lets a connection have at a time.
    struct Client {
        let peer: Peer
        /// Machines that it still waits for.
        var outstanding = 0
    }

    /// A machine that shuts itself down is waited for so long when the daemon ends.
    static let endingNanoseconds = UInt64.seconds(30)
    /// From SIGTERM to SIGKILL, as on OpenBSD.
    static let killNanoseconds = UInt64.seconds(10)
    /// A machine that is not running by then never will.
    static let startNanoseconds = UInt64.seconds(120)
    /// No request is read while so many answers wait for control.
    private static let mostBacklog = 256

    init(
        _ options: DaemonOptions, _ settings: DaemonSettings, loop: EventLoop, log: Log,
        notification: consuming ServiceNotification?, socketName: [UInt8],
        monitor: MessageChannel<MonitorReport, MonitorCommand>,
        control: MessageChannel<ControlReport, ControlCommand>, priv: MessageChannel<PrivReport, PrivCommand>
    ) throws(SystemError) {
        self.options = options
        self.settings = settings
        self.loop = loop
        self.log = log
        self.monitor = monitor
        self.control = control
        self.priv = priv
        self.notification = notification
        self.socketName = socketName
        deadlines = try Deadlines(loop)
        permissions = Permissions(daemonUID: options.uid)
        queue = StartQueue(parallel: settings.staggerParallel, delay: .seconds(settings.staggerDelay))
        monitor.onMessage = { [unowned self] in handle($0, &$1) }
        control.onMessage = { [unowned self] in
            handle($0, &$1)
            // Control always reads ours, so this cannot last.
            if control.backlog > Self.mostBacklog { control.suspendReading() }
        }
        control.onRoom = { [unowned self] in self.control.resumeReading() }
        priv.onMessage = { [unowned self] report, _ in
            switch report {
            case .log(let text): log.warning(text)
            case .probe(let text): noteProbe("priv", text)
            }
        }
    }

    func takeRunNumber() -> UInt32 {
        defer { nextRun &+= 1 }
        return nextRun
    }

    // MARK: - Answers

    func answer(_ client: UInt32, _ response: Response, descriptors: [CInt] = []) {
        guard clients[client] != nil else { return }
        control.send(.answer(client: client, response), descriptors: descriptors)
    }

    func finish(_ client: UInt32) {
        guard clients[client] != nil else { return }
        clients[client]?.outstanding = 0
        control.send(.finished(client: client))
    }

    func reply(_ client: UInt32, _ response: Response) {
        answer(client, response)
        finish(client)
    }

    func refuse(_ client: UInt32, _ refusal: Refusal) { reply(client, .failed(refusal.failure, refusal.text)) }

    /// One of several machines that a client waited for is done with; the last one ends the list.
    func settle(_ client: UInt32) {
        guard let left = clients[client]?.outstanding, left > 0 else { return }
        clients[client]?.outstanding = left - 1
        if left == 1 { reply(client, .end) }
    }

    // MARK: - Turns to start

    /// Starts the machines whose turn has come, and sets the clock for the next ones.
    func startNext() {
        guard !isEnding else { return }
        for id in queue.take(at: SystemTime.monotonic()) {
            guard let record = table.find(.id(id)), record.phase == .waiting else { continue }
            record.stopWaiting()
            do {
                try start(record, record.plan, RunFiles(), by: record.plan.owner.uid)
            } catch {
                record.end(isCrash: true, error.text)
                log.error("vm \(record.name): \(error.text)")
            }
        }
        deadlines.cancel(turn)
        turn = queue.deadline.map { deadlines.schedule(at: $0) { [unowned self] in startNext() } }
    }

    // MARK: - The end

    /// Asks all machines to end, then makes them; a second time makes them at once.
    func end() {
        let isAgain = isEnding
        isEnding = true
        try? notification?.stopping()
        for record in table.records {
            record.stopWaiting()
            guard record.hasProcess else { continue }
            if isAgain { kill(record, isForced: true) } else { askToEnd(record) }
        }
        if !isAgain {
            deadlines.schedule(after: Self.endingNanoseconds) { [unowned self] in
                for record in table.records where record.hasProcess {
                    log.warning("vm \(record.name): did not shut down in time, and is killed")
                    kill(record, isForced: true)
                }
            }
        }
        endIfDone()
    }

    func endIfDone() {
        if isEnding, !isRunningAny { loop.stop() }
    }

    private var isRunningAny: Bool { table.records.contains { $0.hasProcess } }
    /// Everything is done that had to be done before the end.
    var isEnded: Bool { isEnding && !isRunningAny }

    func handle(signal: CInt) {
        switch signal {
        case SIGTERM, SIGINT:
            log.info(isEnding ? "ending at once" : "ending: the machines are asked to shut down")
            end()
        case SIGHUP:
            guard !isEnding else { return }
            do { try reload() } catch { log.error("reload: \(error.text)") }
        default: break
        }
    }
}

/// Why a request is not done: for programs and for people.
struct Refusal: Error, Hashable {
    let failure: Response.Failure
    let text: String

    init(_ failure: Response.Failure, _ text: String) {
        self.failure = failure
        // Names in it are the client's own, of any length.
        self.text = text.oneLine.cut(to: longestLine)
    }
}
