import ControlProtocol
import DiskImage
import Linux

/// What is asked of machines' disks. A machine that runs has them open, and does it itself; who works on the disks of another does so
/// with his own rights, and is only told what they are.
extension Parent {
    // MARK: - What there is

    func describe(_ record: MachineRecord) throws(Refusal) -> Response {
        let plan = record.process?.plan ?? record.plan
        var description = MachineDescription(
            id: record.id, name: record.name, state: record.state, memory: plan.memory, cpus: plan.cpus,
            interfaceCount: UInt32(clamping: plan.interfaceCount), hasDrive: plan.cdrom != nil)
        description.disks = plan.disks.map { disk in
            let location = disk.location
            return (location.format.map { "\($0.rawValue):" } ?? "") + location.path
        }
        description.disc = if let process = record.process { process.disc } else { plan.cdrom?.location.path }
        description.allowedBases = plan.allowedBases
        let response = Response.description(description)
        // A configuration may name more than goes into a packet.
        guard let packet = try? response.encoded(), (try? Response(packet: packet, descriptorCount: 0)) != nil else {
            throw Refusal(.other, "vm \(record.name): its `allow base` are too many to be told: name folders instead")
        }
        return response
    }

    // MARK: - Requests

    /// So many requests may be with a machine, or on their way to it. Clients come and go, but what they have asked for stays, with
    /// descriptors; a machine may do it slowly, or never.
    static let mostRequests = 16

    private func requireRoom(_ client: UInt32, _ record: MachineRecord, _ process: MachineProcess) throws(Refusal) {
        // It would take the end of its last one for that of this one.
        guard process.diskClients[client] == nil else {
            throw Refusal(.busy, "vm \(record.name) has not come to the end of what was asked of its disks before: try again")
        }
        guard process.diskClients.count < Self.mostRequests else {
            throw Refusal(.busy, "vm \(record.name) has \(Self.mostRequests) requests on its disks to answer first: try again")
        }
    }

    func disks(
        _ reference: MachineReference, _ command: DiskCommand, _ client: UInt32, _ peer: Peer
    ) throws(Refusal) {
        let (record, process) = try running(reference, peer)
        guard !process.plan.disks.isEmpty else { throw Refusal(.invalid, "vm \(record.name) has no disk") }
        try requireRoom(client, record, process)
        switch command {
        case .createSnapshot(let name): log.info("vm \(record.name): snapshot \(name.oneLine.cut(to: 100)) asked for by \(self.name(of: peer))")
        case .deleteSnapshot(let name):
            log.info("vm \(record.name): snapshot \(name.oneLine.cut(to: 100)) to be deleted, by \(self.name(of: peer))")
        case .describe, .describeTop: break
        }
        process.diskClients[client] = .init(isList: command.isList)
        tell(process, .disks(client: client, command))
    }

    /// The image is opened with the rights of who names it, as for `start -r`.
    func insertDisc(
        _ reference: MachineReference, _ path: String, isForced: Bool, _ client: UInt32, _ peer: Peer
    ) throws(Refusal) {
        let (_, process) = try withDrive(reference, client, peer)
        guard path.hasPrefix("/") else { throw Refusal(.invalid, "\(path): give an absolute path") }
        var descriptors = FileDescriptorList()
        let disc = PlannedImage(location: ImageLocation(path: path, format: .raw), opener: opener(for: peer))
        let members = try open(disc, "cdrom", process.plan, into: &descriptors)
        process.diskClients[client] = .init(disc: (.inserted(path), name(of: peer)))
        monitor.send(
            .tell(run: process.run, .insertDisc(client: client, members, isForced: isForced)), descriptors: descriptors.numbers)
    }

    func ejectDisc(_ reference: MachineReference, isForced: Bool, _ client: UInt32, _ peer: Peer) throws(Refusal) {
        let (_, process) = try withDrive(reference, client, peer)
        process.diskClients[client] = .init(disc: (.ejected, name(of: peer)))
        tell(process, .ejectDisc(client: client, isForced: isForced))
    }

    private func withDrive(
        _ reference: MachineReference, _ client: UInt32, _ peer: Peer
    ) throws(Refusal) -> (MachineRecord, MachineProcess) {
        let (record, process) = try running(reference, peer)
        guard process.plan.cdrom != nil else {
            throw Refusal(.invalid, "vm \(record.name) has no CD-ROM drive: `cdrom` in vm.conf or `vmctl start -r` gives it one")
        }
        try requireRoom(client, record, process)
        return (record, process)
    }

    // MARK: - Answers

    func pass(_ report: DiskReport, to client: UInt32, _ process: MachineProcess) {
        guard let asked = process.diskClients[client], asked.isWaiting else { return }
        let count = asked.reportCount
        guard count < MachineReport.mostImages else {
            process.diskClients[client]?.isWaiting = false
            return refuse(client, Refusal(.other, "vm \(process.plan.name) tells too much of its disks"))
        }
        process.diskClients[client]?.reportCount = count + 1
        answer(client, .image(report))
    }

    func noteDiskDone(_ client: UInt32, _ record: MachineRecord, _ process: MachineProcess) {
        guard let done = process.diskClients.removeValue(forKey: client) else { return }
        switch done.disc {
        case (.inserted(let path), let asker)?:
            process.disc = path
            log.info("vm \(record.name): disc \(path.oneLine.cut(to: 200)) put in by \(asker)")
        case (.ejected, let asker)?:
            process.disc = nil
            log.info("vm \(record.name): disc taken out by \(asker)")
        case nil: break
        }
        if done.isWaiting { reply(client, done.isList ? .end : .done) }
    }
}
