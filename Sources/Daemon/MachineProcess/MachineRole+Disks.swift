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
            case .describe:
                let disks = try machine.describeDisks()
                let reports = disks.enumerated().flatMap { disk, images in
                    images.enumerated().flatMap { level, image in
                        DiskReport.parts(disk: UInt32(clamping: disk), level: UInt32(clamping: level), image)
                    }
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

    func tell(_ client: UInt32, _ news: DiskNews) {
        switch news {
        case .reports(let reports): for report in reports { monitor.send(.image(client: client, report)) }
        case .done: monitor.send(.diskDone(client: client))
        case .refused(let failure, let text): monitor.send(.diskRefused(client: client, failure, text))
        }
    }
}
