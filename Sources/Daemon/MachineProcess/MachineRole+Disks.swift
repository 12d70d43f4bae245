import ControlProtocol
import DiskImage
import Linux
import Machine

/// What comes of work on the disks.
enum DiskNews: Sendable {
    case reports([DiskReport])
    case done
    case refused(Response.Failure, String)
}

/// Work on the disks of a machine that runs. The event loop only hands it out: disks take their time.
extension MachineRole {
    func handle(_ command: DiskCommand, for client: UInt32) {
        work(for: client) { machine throws(MachineError) in
            switch command {
            case .createSnapshot(let name): try machine.createSnapshot(name)
            case .deleteSnapshot(let name): try machine.deleteSnapshot(name)
            case .describe, .describeTop:
                let disks = try machine.describeDisks(withBases: command == .describe)
                let reports = disks.enumerated().flatMap { disk, images in
                    images.enumerated().flatMap { level, image in
                        DiskReport.parts(disk: UInt32(clamping: disk), level: UInt32(clamping: level), image)
                    }
                }
                guard reports.count <= MachineReport.mostImages else {
                    return [.refused(.other, "its disks have more snapshots than one that runs can list: stop it, and ask again")]
                }
                return [.reports(reports), .done]
            }
            return [.done]
        }
    }

    func insertDisc(_ members: [ImageChain.Member], _ descriptors: inout FileDescriptorList, isForced: Bool, for client: UInt32) {
        let disc: any BlockImage
        do {
            disc = try Self.image("cdrom", members, &descriptors)
        } catch {
            return tell(client, .refused(.invalid, "\(error)"))
        }
        work(for: client) { machine throws(MachineError) in [Self.answer(try machine.insertDisc(disc, force: isForced))] }
    }

    func ejectDisc(isForced: Bool, for client: UInt32) {
        work(for: client) { machine throws(MachineError) in [Self.answer(try machine.ejectDisc(force: isForced))] }
    }

    private static func answer(_ change: Machine.DiscChange) -> DiskNews {
        switch change {
        case .done: .done
        case .isLocked: .refused(.busy, "the guest has locked the drive, and was asked for the disc: try again, or take it with -f")
        }
    }

    private func work(for client: UInt32, _ body: @escaping @Sendable (Machine) throws(MachineError) -> [DiskNews]) {
        guard let machine else { return tell(client, .refused(.notRunning, "does not run yet")) }
        do {
            try diskWork.add { [mailbox] in
                do throws(MachineError) {
                    for news in try body(machine) { mailbox.post(.disks(client, news)) }
                } catch {
                    mailbox.post(.disks(client, .refused(.invalid, error.description)))
                }
            }
        } catch {
            tell(client, .refused(.other, "no thread for it: \(error)"))
        }
    }

    // MARK: - Answers

    /// So many packets may wait for vmm when there is one more to send: many who ask at once must not fill the channel's queue, which is
    /// the end of the machine.
    static let mostBacklog = 64

    func tell(_ client: UInt32, _ news: DiskNews) {
        switch news {
        case .reports(let reports): diskAnswers += reports.map { .image(client: client, $0) }
        case .done: diskAnswers.append(.diskDone(client: client))
        case .refused(let failure, let text): diskAnswers.append(.diskRefused(client: client, failure, text))
        }
        sendDiskAnswers()
    }

    /// Sends what there is room for. While anything is left the channel's queue is not empty, so that its `onRoom` follows.
    func sendDiskAnswers() {
        var count = 0
        while count < diskAnswers.count, monitor.backlog < Self.mostBacklog {
            monitor.send(diskAnswers[count])
            count += 1
        }
        diskAnswers.removeFirst(count)
    }
}
