import ControlProtocol
import Linux

/// How machines come to their end, and what they say until then.
extension Parent {
    func tell(_ process: MachineProcess, _ command: MachineCommand) {
        monitor.send(.tell(run: process.run, command), descriptors: [])
    }

    // MARK: - Stopping

    func stop(
        _ reference: MachineReference?, _ isForced: Bool, _ waits: Bool, _ client: UInt32, _ peer: Peer
    ) throws(Refusal) {
        var records: [MachineRecord]
        if let reference {
            let record = try find(reference)
            try requireControl(peer, record)
            guard record.hasProcess || record.phase == .waiting else {
                throw Refusal(.notRunning, "vm \(record.name) is not running")
            }
            records = [record]
        } else {
            records = table.records.filter { $0.hasProcess || $0.phase == .waiting }.filter {
                permissions.mayControl(
                    peer, $0.process?.plan.owner ?? $0.plan.owner, startedBy: $0.process?.starter)
            }
        }
        // Those that only wait for their turn are done with at once.
        for record in records where !record.hasProcess {
            record.stopWaiting()
            queue.remove(record.id)
            log.info("vm \(record.name): will not be started, by \(name(of: peer))")
            answer(client, .stopping(id: record.id, name: record.name, .notStarted))
        }
        records.removeAll { !$0.hasProcess }
        guard !records.isEmpty else { return reply(client, .end) }
        clients[client]?.outstanding = records.count
        for record in records {
            guard let process = record.process else { continue }
            log.info("vm \(record.name): asked to \(isForced ? "end at once" : "shut down") by \(name(of: peer))")
            process.stoppers.append(.init(client: client, waits: waits))
            if isForced {
                kill(record, isForced: false)
            } else if process.isStopping {
                noteStopping(record, process, .alreadyStopping)
            } else {
                askToEnd(record)
            }
        }
    }

    func askToEnd(_ record: MachineRecord) {
        guard let process = record.process else { return }
        process.isStopping = true
        // A guest that stands still, or is about to, cannot answer.
        let overtaken = process.takePausers()
        for other in overtaken { refuse(other, Refusal(.busy, "vm \(record.name) was told to shut down meanwhile")) }
        if process.isPaused || !overtaken.isEmpty { tell(process, .unpause) }
        tell(process, .shutDown)
    }

    /// Ends the process, by SIGTERM and after a while by SIGKILL, or by that at once.
    func kill(_ record: MachineRecord, isForced: Bool) {
        guard let process = record.process else { return }
        // Who asks again and again makes no more deadlines.
        let isKilledAlready = process.isKilled
        process.isStopping = true
        process.isKilled = true
        monitor.send(.kill(run: process.run, isForced: isForced), descriptors: [])
        noteStopping(record, process, .killed)
        guard !isForced, !isKilledAlready else { return }
        let run = process.run
        deadlines.schedule(after: Self.killNanoseconds) { [unowned self] in
            guard table.find(run: run) != nil else { return }
            monitor.send(.kill(run: run, isForced: true), descriptors: [])
        }
    }

    /// Tells those who asked for it how the machine was asked; those who do not wait for its end are done.
    private func noteStopping(_ record: MachineRecord, _ process: MachineProcess, _ means: Response.StopMeans) {
        for index in process.stoppers.indices where !process.stoppers[index].isTold {
            process.stoppers[index].isTold = true
            let stopper = process.stoppers[index]
            answer(stopper.client, .stopping(id: record.id, name: record.name, means))
            if !stopper.waits { settle(stopper.client) }
        }
        process.stoppers.removeAll { !$0.waits }
    }

    // MARK: - What vmm reports

    func handle(_ report: MonitorReport, _ descriptors: inout FileDescriptorList) {
        switch report {
        case .log(let text): log.info("vmm: \(text)")
        case .probe(let text): noteProbe("vmm", text)
        case .started(let run, let pid): table.find(run: run)?.process?.pid = pid
        case .told(let run, let report):
            guard let record = table.find(run: run), let process = record.process else { return }
            handle(report, record, process, &descriptors)
        case .exited(let run, let exit):
            guard let record = table.find(run: run), let process = record.process else { return }
            noteExit(record, process, exit)
        }
    }

    private func handle(
        _ report: MachineReport, _ record: MachineRecord, _ process: MachineProcess,
        _ descriptors: inout FileDescriptorList
    ) {
        switch report {
        case .running:
            record.noteRunning()
            deadlines.cancel(process.startDeadline)
            log.info("vm \(record.name): runs, pid \(process.pid ?? 0), tty \(process.terminalPath)")
            for client in process.starters {
                reply(client, .started(id: record.id, name: record.name, tty: process.terminalPath))
            }
            process.starters = []
        case .restarted(let reason):
            process.restarts &+= 1
            record.lastEvent = "restarted: \(reason)"
            log.info("vm \(record.name): guest restarts: \(reason)")
        case .paused:
            process.isPaused = true
            log.info("vm \(record.name): paused")
            for client in process.takePausers() { reply(client, .machine(status(of: record))) }
        case .unpaused:
            process.isPaused = false
            log.info("vm \(record.name): unpaused")
            for client in process.takeUnpausers() { reply(client, .machine(status(of: record))) }
        case .shutDownAsked(let means): noteStopping(record, process, means)
        case .shutDownTimedOut(let text):
            // Ask again, or force it: both are possible from here.
            process.isStopping = false
            record.lastEvent = text
            log.warning("vm \(record.name): \(text)")
            for stopper in process.stoppers where stopper.waits {
                answer(
                    stopper.client,
                    .failed(.timeout, "vm \(record.name): \(text): `vmctl stop -f \(record.name)` ends it at once"))
                settle(stopper.client)
            }
            process.stoppers.removeAll { $0.waits }
        case .ended(let end, let text): process.lastWords = (end, text)
        case .consoleAttached(let client):
            guard process.consoleClients.remove(client) != nil, let stream = descriptors.takeFirst() else { return }
            answer(
                client, .console(id: record.id, name: record.name, tty: process.terminalPath), descriptors: [stream.raw])
            finish(client)
        case .consoleRefused(let client, let holder):
            guard process.consoleClients.remove(client) != nil else { return }
            refuse(
                client, Refusal(.busy, "the console of vm \(record.name) is held by \(holder): they leave it with ~."))
        case .consoleHolder(let holder): process.consoleHolder = holder
        case .image(let client, let report): pass(report, to: client, process)
        case .diskDone(let client): noteDiskDone(client, record, process)
        case .diskRefused(let client, let failure, let text):
            guard process.diskClients.removeValue(forKey: client)?.isWaiting == true else { return }
            refuse(client, Refusal(failure, "vm \(record.name): \(text)"))
        case .log(let text): log.info("vm \(record.name): \(text)")
        case .probe(let text): noteProbe("vm", text)
        }
    }

    /// The process is gone: everybody who waited for anything of it gets an answer, and its terminal is closed.
    private func noteExit(_ record: MachineRecord, _ process: MachineProcess, _ exit: MachineExit) {
        let (isCrash, reason) = Self.reason(process, exit)
        record.end(isCrash: isCrash, reason)
        deadlines.cancel(process.startDeadline)
        if isCrash { log.error("vm \(record.name): \(reason)") } else { log.info("vm \(record.name): \(reason)") }
        for client in process.starters { refuse(client, Refusal(.other, "vm \(record.name): \(reason)")) }
        for stopper in process.stoppers {
            answer(stopper.client, .ended(id: record.id, name: record.name, reason: reason))
            settle(stopper.client)
        }
        for client in process.waiters { reply(client, .ended(id: record.id, name: record.name, reason: reason)) }
        let ended = Refusal(.notRunning, "vm \(record.name) has ended: \(reason)")
        let others = process.consoleClients.union(process.diskClients.filter(\.value.isWaiting).keys)
        for client in process.pausers + process.unpausers + others.sorted() { refuse(client, ended) }
        if !record.isConfigured { table.remove(record) }
        endIfDone()
    }

    private static func reason(_ process: MachineProcess, _ exit: MachineExit) -> (isCrash: Bool, String) {
        if let words = process.lastWords { return (words.end == .failed, words.text) }
        if process.isKilled { return (false, "was killed") }
        switch exit {
        case .exited(let status): return (true, "its process ended with status \(status)")
        case .killed(let signal): return (true, "its process was killed by signal \(signal)")
        case .notStarted(let text): return (true, "no process for it: \(text)")
        case .cutOff(let text): return (true, "its process was killed for a wrong message: \(text)")
        }
    }
}
