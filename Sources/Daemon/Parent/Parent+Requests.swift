import ControlProtocol
import Linux
import VMConfig

extension Parent {
    func handle(_ report: ControlReport, _ descriptors: inout FileDescriptorList) {
        switch report {
        case .connected(let client):
            guard let socket = descriptors.takeFirst(), let peer = try? Peer(of: socket, acceptedBy: socketName) else {
                return log.warning("control names a client without a socket of ours: it is not listened to")
            }
            clients[client] = Client(peer: peer)
        case .gone(let client): forget(client)
        case .request(let client, let request):
            guard let peer = clients[client]?.peer else { return control.send(.finished(client: client)) }
            log.debug("\(request.name) asked for by uid \(peer.uid), pid \(peer.pid)")
            guard !isEnding || request.isHarmless else {
                return refuse(client, Refusal(.unavailable, "vmd is ending: start it again"))
            }
            do {
                try handle(request, client, peer, &descriptors)
            } catch {
                refuse(client, error)
            }
        case .log(let text): log.info("control: \(text)")
        case .probe(let text): noteProbe("control", text)
        }
    }

    /// A client that has gone stands in no list any more.
    private func forget(_ client: UInt32) {
        clients[client] = nil
        for process in table.records.compactMap(\.process) { process.forget(client) }
    }

    private func handle(
        _ request: Request, _ client: UInt32, _ peer: Peer, _ descriptors: inout FileDescriptorList
    ) throws(Refusal) {
        switch request {
        case .status(let machine, let isRunningOnly):
            let records = try machine.map { machine throws(Refusal) in [try find(machine)] } ?? table.records
            for record in records where !isRunningOnly || record.hasProcess { answer(client, .machine(status(of: record))) }
            reply(client, .end)
        case .start(let request): try start(request, client, peer, &descriptors)
        case .stop(let machine, let isForced, let waits): try stop(machine, isForced, waits, client, peer)
        case .wait(let machine):
            let (_, process) = try running(machine, peer)
            process.waiters.append(client)
        case .pause(let machine):
            let (record, process) = try running(machine, peer)
            // One that is on its way is none that counts: the machine answers to the last.
            let overtaken = process.takeUnpausers()
            for other in overtaken { refuse(other, Refusal(.busy, "vm \(record.name) was told to pause meanwhile")) }
            guard !process.isPaused || !overtaken.isEmpty else { return reply(client, .machine(status(of: record))) }
            process.pausers.append(client)
            tell(process, .pause)
        case .unpause(let machine):
            let (record, process) = try running(machine, peer)
            let overtaken = process.takePausers()
            for other in overtaken { refuse(other, Refusal(.busy, "vm \(record.name) was told to go on meanwhile")) }
            guard process.isPaused || !overtaken.isEmpty else { return reply(client, .machine(status(of: record))) }
            process.unpausers.append(client)
            tell(process, .unpause)
        case .console(let machine):
            let (_, process) = try running(machine, peer)
            process.consoleClients.insert(client)
            tell(process, .attachConsole(client: client, holder: name(of: peer)))
        case .sendBreak(let machine):
            let (_, process) = try running(machine, peer)
            tell(process, .sendBreak)
            reply(client, .done)
        case .describe(let machine):
            let record = try find(machine)
            try requireControl(peer, record)
            reply(client, try describe(record))
        case .disks(let machine, let command): try disks(machine, command, client, peer)
        case .insertDisc(let machine, let path, let isForced):
            try insertDisc(machine, path, isForced: isForced, client, peer)
        case .ejectDisc(let machine, let isForced): try ejectDisc(machine, isForced: isForced, client, peer)
        case .load(let path):
            try requireAdministrator(peer, "load a configuration")
            try load(path)
            reply(client, .done)
        case .reload:
            try requireAdministrator(peer, "reload the configuration")
            try reload()
            reply(client, .done)
        case .reset(let scope):
            try requireAdministrator(peer, "reset the daemon")
            try reset(scope)
            reply(client, .done)
        case .log(let isVerbose):
            try requireAdministrator(peer, "set what is logged")
            setVerbose(isVerbose)
            reply(client, .done)
        }
    }

    // MARK: - Finding machines

    func find(_ reference: MachineReference) throws(Refusal) -> MachineRecord {
        if let record = table.find(reference) { return record }
        throw noSuchMachine(reference)
    }

    func noSuchMachine(_ reference: MachineReference) -> Refusal {
        switch reference {
        case .id(let id): return Refusal(.noSuchMachine, "no vm has id \(id): `vmctl status` lists them")
        case .name(let name):
            let advice = table.nearest(to: name).map { "did you mean \($0)?" } ?? "`vmctl status` lists those that exist"
            return Refusal(.noSuchMachine, "no vm \(name): \(advice)")
        }
    }

    /// A machine that runs, and that this peer may control.
    func running(_ reference: MachineReference, _ peer: Peer) throws(Refusal) -> (MachineRecord, MachineProcess) {
        let record = try find(reference)
        try requireControl(peer, record)
        guard let process = record.process else {
            throw Refusal(.notRunning, "vm \(record.name) is not running: `vmctl start \(record.name)` starts it")
        }
        return (record, process)
    }

    // MARK: - Rights

    func requireControl(_ peer: Peer, _ record: MachineRecord) throws(Refusal) {
        let owner = record.process?.plan.owner ?? record.plan.owner
        guard permissions.mayControl(peer, owner, startedBy: record.process?.starter) else {
            throw Refusal(.permission, "vm \(record.name) belongs to \(owner.text): ask there, or root")
        }
    }

    func requireAdministrator(_ peer: Peer, _ action: String) throws(Refusal) {
        guard permissions.isAdministrator(peer) else {
            throw Refusal(.permission, "only root may \(action)")
        }
    }

    func name(of peer: Peer) -> String {
        "\(UserDatabase.name(ofUser: peer.uid)) (pid \(peer.pid))"
    }

    // MARK: - Rows

    func status(of record: MachineRecord) -> MachineStatus {
        let plan = record.process?.plan ?? record.plan
        var status = MachineStatus(
            id: record.id, name: record.name, state: record.state, cpus: plan.cpus, maxMemory: plan.memory,
            owner: plan.owner.text, engine: plan.engine.rawValue)
        status.lastEvent = record.lastEvent
        guard let process = record.process else { return status }
        status.pid = process.pid
        status.currentMemory = process.pid.flatMap(residentMemory)
        status.tty = process.terminalPath
        status.restarts = process.restarts
        status.startTime = process.startTime
        status.consoleHolder = process.consoleHolder
        return status
    }
}

extension Request {
    /// For the log.
    var name: String {
        switch self {
        case .status: "status"
        case .start(let request): "start of \(request.machine)"
        case .stop(let machine, _, _): "stop of \(machine.map { "\($0)" } ?? "all machines")"
        case .wait(let machine): "wait for \(machine)"
        case .pause(let machine): "pause of \(machine)"
        case .unpause(let machine): "unpause of \(machine)"
        case .console(let machine): "console of \(machine)"
        case .sendBreak(let machine): "break on \(machine)"
        case .describe(let machine): "description of \(machine)"
        case .disks(let machine, _): "work on the disks of \(machine)"
        case .insertDisc(let machine, _, _): "disc for \(machine)"
        case .ejectDisc(let machine, _): "disc out of \(machine)"
        case .load(let path): "load of \(path)"
        case .reload: "reload"
        case .reset(let scope): "reset of \(scope)"
        case .log(let isVerbose): "log \(isVerbose ? "verbose" : "brief")"
        }
    }

    /// Also answered by a daemon that is ending.
    var isHarmless: Bool {
        switch self {
        case .status, .describe, .stop, .wait, .console, .log: true
        default: false
        }
    }
}

extension MachineProcess {
    func takePausers() -> [UInt32] {
        defer { pausers = [] }
        return pausers
    }
    func takeUnpausers() -> [UInt32] {
        defer { unpausers = [] }
        return unpausers
    }

    func forget(_ client: UInt32) {
        starters.removeAll { $0 == client }
        stoppers.removeAll { $0.client == client }
        waiters.removeAll { $0 == client }
        pausers.removeAll { $0 == client }
        unpausers.removeAll { $0 == client }
        consoleClients.remove(client)
        // What the machine does for it comes to its end all the same, and takes its place until then.
        diskClients[client]?.isWaiting = false
    }
}
