import ControlProtocol
import DiskImage
import Glibc
import Linux
import Machine
import VMConfig

/// The files and terminals that machines are handed.
extension Parent {
    /// Opens what a configuration names; what a client names it has opened itself.
    func open(_ role: String, _ path: String, _ plan: MachinePlan) throws(Refusal) -> FileDescriptor {
        let place = plan.source.map { "\($0): " } ?? ""
        do {
            return try RegularFile(path).release()
        } catch {
            throw Refusal(.invalid, "\(place)vm \(plan.name): \(role) \(path): \(error)")
        }
    }

    /// Whose rights count for files that a peer names; `nil` for the administrator's, who has the daemon's. Which of a user's groups
    /// comes first makes no difference to what may be opened.
    func opener(for peer: Peer) -> FileCredentials? {
        guard !permissions.isAdministrator(peer) else { return nil }
        return FileCredentials(userID: peer.uid, groupID: peer.groups.min() ?? 65534, groups: Array(peer.groups))
    }

    /// Opens an image and what it stands on: a disk to be written, a CD to be read.
    /// - Parameter list: gets the descriptors.
    /// - Returns: what the machine's process is told of them.
    func open(
        _ image: PlannedImage, _ role: String, _ plan: MachinePlan, into list: inout FileDescriptorList
    ) throws(Refusal) -> [ImageChain.Member] {
        let place = plan.source.map { "\($0): " } ?? ""
        var opening = ImageOpening(isReadOnly: role == "cdrom", allowedBases: plan.allowedBases)
        opening.credentials = image.opener
        do {
            var chain = try ImageChain(image.location, opening)
            while let descriptor = chain.descriptors.takeFirst() { list.append(descriptor) }
            return chain.members
        } catch {
            let failure: Response.Failure = error.kind == .inUse ? .busy : .invalid
            throw Refusal(failure, "\(place)vm \(plan.name): \(role) \(error)")
        }
    }

    /// Opens what nobody named: the host's firmware.
    /// - Parameter file: gets it.
    /// - Returns: its path.
    func open(
        _ search: DefaultFirmware.Search, _ plan: MachinePlan, into file: inout FileDescriptor?
    ) throws(Refusal) -> String {
        for path in search.paths {
            guard let found = try? RegularFile(path) else { continue }
            file = found.release()
            return path
        }
        let place = plan.source.map { "\($0): " } ?? ""
        throw Refusal(.invalid, "\(place)vm \(plan.name): \(search.complaint)")
    }

    /// A terminal that the machine's owner may open by its path.
    func makeTerminal(_ plan: MachinePlan) throws(Refusal) -> PseudoTerminal {
        do {
            let terminal = try PseudoTerminal()
            try terminal.makeRaw()
            if options.isSystemWide {
                // As on OpenBSD: the owner's, and of a group when the machine has one.
                let tty = try UserDatabase.group(named: "tty")?.groupID ?? 0
                try terminal.setOwner(
                    user: plan.owner.uid, group: plan.owner.gid ?? tty, mode: plan.owner.gid == nil ? 0o620 : 0o660)
            }
            return terminal
        } catch {
            throw Refusal(.other, "vm \(plan.name): no terminal for its console: \(error)")
        }
    }

    /// Resident bytes of a process.
    func residentMemory(_ pid: UInt32) -> UInt64? {
        guard let file = try? FileDescriptor(open: "/proc/\(pid)/statm", flags: O_RDONLY),
            let text = try? file.readText(limit: 256)
        else { return nil }
        let fields = text.split(separator: " ")
        guard fields.count > 1, let pages = UInt64(fields[1]) else { return nil }
        return pages &* 4096
    }

    /// The rules of names of machines that are in no file.
    func check(name: String) throws(Refusal) {
        if let problem = Names.problem(inMachineName: name) { throw Refusal(.invalid, problem) }
    }

    func noteProbe(_ role: String, _ text: String) { log.info("probe \(role): \(text)") }
}
