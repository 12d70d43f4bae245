import Devices
public import DiskImage
import Linux

/// What its owner can do with the disks of a machine that runs. All of it waits for disks, and is for any thread but the event
/// handlers' and the CPU's.
extension Machine {
    /// Keeps what all disks that can be written hold at one moment, under a name: the CPU stands still meanwhile, and what it has
    /// asked of its disks is done. So each disk is as after a power failure at that moment, and so are they together.
    /// - Throws: when one of them cannot; then none has the snapshot.
    public func createSnapshot(_ name: String) throws(MachineError) {
        let snapshots = try writableDisks()
        do throws(ImageError) {
            try snapshots.checkCreate(name)
            // What has been written so far goes to the medium now, and not while the CPU stands still.
            try snapshots.flush()
        } catch {
            throw MachineError("\(error)")
        }
        try holdingCPU { () throws(MachineError) in
            // Only the CPU gives a disk something to do, and what follows from that is waited for here.
            for device in board.blockDevices { device.drain() }
            do throws(ImageError) { try snapshots.create(name) } catch { throw MachineError("\(error)") }
        }
    }

    /// The guest runs on; its requests wait for an image that is changed.
    public func deleteSnapshot(_ name: String) throws(MachineError) {
        let snapshots = try writableDisks()
        do throws(ImageError) { try snapshots.delete(name) } catch { throw MachineError("\(error)") }
    }

    /// What each disk's image says of itself, and each that it stands on.
    /// - Parameter withBases: otherwise only the disk's own image.
    public func describeDisks(withBases: Bool) throws(MachineError) -> [[ImageSummary]] {
        do throws(ImageError) {
            return try disks.map { disk throws(ImageError) in
                try ImageSummary.chain(of: disk.image, atMost: withBases ? ImageChain.depthLimit : 1)
            }
        } catch {
            throw MachineError("\(error)")
        }
    }

    private func writableDisks() throws(MachineError) -> DiskSnapshots {
        do throws(ImageError) { return try DiskSnapshots(disks.map(\.image)) } catch { throw MachineError("\(error)") }
    }

    private func holdingCPU(_ body: () throws(MachineError) -> Void) throws(MachineError) {
        let isHeld = Monitor<Bool?>(nil)
        requests.hold { answer in
            isHeld.withLock { $0 = answer }
            isHeld.broadcast()
        }
        guard isHeld.withLock(waitingWhile: { $0 == nil }, { $0 }) == true else { throw MachineError("the machine has ended") }
        defer { requests.release() }
        try body()
    }

    // MARK: - The CD-ROM drive

    /// How an attempt to change the disc came out.
    public enum DiscChange: Hashable, Sendable {
        case done
        /// The guest wants the disc to stay; it has been told that somebody wants it back.
        case isLocked
    }

    /// Puts a disc into the CD-ROM drive, in place of the one that is there.
    /// - Parameter force: also against the guest's will.
    public func insertDisc(_ image: any BlockImage, force: Bool) throws(MachineError) -> DiscChange {
        let drive = try driveOrNot()
        guard image.byteCount > 0 else { throw MachineError("the disc is empty: give an ISO image") }
        do {
            return try drive.insert(image, force: force) ? .done : .isLocked
        } catch {
            throw MachineError("cdrom: \(error): raise the limit on processes")
        }
    }

    /// Takes the disc out of the CD-ROM drive, if one is in it.
    public func ejectDisc(force: Bool) throws(MachineError) -> DiscChange { try driveOrNot().eject(force: force) ? .done : .isLocked }

    private func driveOrNot() throws(MachineError) -> VirtioSCSI {
        guard let drive = board.drive else { throw MachineError("the machine has no CD-ROM drive") }
        return drive
    }
}
