import Devices
import DiskImage
import VMM

/// Puts functions into the slots of PCI bus 0, one after the other from 1 on, and gives them what firmware would: ports
/// from 0x1000, memory from 0xF0000000, an interrupt line.
struct PCISlots {
    /// The lines of PCI's interrupt pins, by slot from 1 on, and again from the first when they run out. Level-triggered,
    /// the SCI's among them.
    static let lines: [UInt8] = [3, 5, 6, 7, 9, 10, 11, 12, 14, 15]
    /// 4 KB of ports each.
    private static let most: UInt8 = 14

    private(set) var functions: [PCIAddress: any PCIFunction] = [:]
    /// The disks' slots, for firmware.
    private(set) var disks: [UInt8] = []
    /// That of the CD-ROM drive, if there is one.
    private(set) var cdrom: UInt8?
    private(set) var blockDevices: [VirtioBlock] = []
    private(set) var drive: VirtioSCSI?
    private var count: UInt8 = 0
    private let memory: GuestMemory
    private let system: InterruptSystem

    init(memory: GuestMemory, interrupts: InterruptSystem) {
        self.memory = memory
        system = interrupts
    }

    private static func line(_ slot: UInt8) -> UInt8 { lines[Int(slot - 1) % lines.count] }

    /// What the next slot has. `put` fills it.
    func next() -> VirtioTransport.Placement {
        let slot = count + 1
        precondition(slot <= Self.most)
        // Around ACPI's ports at 0xB000.
        let ports = UInt16(slot < 11 ? slot : slot + 1) << 12
        let memory = UInt32(PCIBus.memoryWindow.lowerBound) + UInt32(slot - 1) << 16
        return .init(
            ports: ports, memory: memory, line: system.pciLine(slot: slot, Self.line(slot)), lineNumber: Self.line(slot),
            messages: system.messages)
    }

    mutating func put(_ function: any PCIFunction) {
        count += 1
        functions[PCIAddress(device: count)] = function
    }

    /// Which line each slot's pin pulls, for the DSDT.
    var interrupts: [ACPITables.PCIInterrupt] {
        count == 0 ? [] : (1...count).map { .init(device: $0, line: Self.line($0), globalInterrupt: system.globalInterrupt(slot: $0)) }
    }

    // MARK: Virtio devices

    mutating func addEntropy() {
        let transport = VirtioTransport(VirtioEntropy.profile, memory: memory, next())
        put(VirtioPCIFunction(transport, VirtioEntropy(transport)))
    }

    /// - Parameter number: which of the machine's disks it is, from 0.
    mutating func add(_ disk: DiskSource, number: Int) throws(MachineError) {
        let transport = VirtioTransport(VirtioBlock.profile(disk.image), memory: memory, next())
        do {
            let device = try VirtioBlock(transport, disk.image, identifier: disk.identifier ?? "vmd-disk\(number)")
            put(VirtioPCIFunction(transport, device))
            blockDevices.append(device)
        } catch {
            throw MachineError("disk \(number): \(error): raise the limit on processes")
        }
        disks.append(count)
    }

    /// - Parameter disc: what is in the drive.
    mutating func addCDROM(_ disc: DiskSource) throws(MachineError) {
        let transport = VirtioTransport(VirtioSCSI.profile, memory: memory, next())
        do {
            let device = try VirtioSCSI(transport, disc.image)
            put(VirtioPCIFunction(transport, device))
            drive = device
        } catch {
            throw MachineError("cdrom: \(error): raise the limit on processes")
        }
        cdrom = count
    }
}
