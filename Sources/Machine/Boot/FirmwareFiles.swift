import Devices
import VMM

/// The files that firmware finds on the firmware configuration device, as stock SeaBIOS reads them.
struct FirmwareFiles {
    let options: FirmwareOptions
    let map: MemoryMap
    let tables: ACPITables.Configuration
    /// Slots of disks and of the CD drive.
    var disks: [UInt8] = []
    var cdrom: UInt8?

    var all: [FirmwareConfiguration.File] {
        var files = [
            memoryMap,
            // The text screen, as a terminal on the first serial port sees it.
            .init("etc/sercon-port", UInt64(SerialPort.ports[0].lowerBound)),
            // What is on the screen does not go to the debug port as well.
            .init("etc/screen-and-debug", 0 as UInt8),
            // Nobody is to be waited for before a boot, and after one that failed nothing will have changed.
            .init("etc/boot-menu-wait", 0 as UInt32),
            .init("etc/boot-fail-wait", UInt32.max),
            // S1 to S4 are not there; S5 is, by this number.
            .init("etc/system-states", [0x80, 0, 0, 0, 0, 0x80 | UInt8(truncatingIfNeeded: ACPIRegisters.softOff)]),
        ]
        if let order { files.append(.init("bootorder", Array(order.utf8) + [0])) }
        if let rom = options.optionROM { files.append(.init("genroms/" + rom.name, rom.bytes)) }
        var computer = SMBIOSTables.Configuration()
        computer.memory = map.entries.filter { $0.kind == .ram }.map { ($0.base, $0.byteCount) }
        return (options.kernel?.files ?? []) + files + ACPITables.firmwareFiles(tables) + SMBIOSTables.firmwareFiles(computer)
    }

    /// 20 bytes for each entry: address, length, type.
    private var memoryMap: FirmwareConfiguration.File {
        var writer = ByteWriter()
        for entry in map.entries {
            writer.append(entry.base)
            writer.append(entry.byteCount)
            writer.append(entry.kind.rawValue)
        }
        return .init("etc/e820", writer.bytes)
    }

    /// Open Firmware's paths: what to boot from, the first first, then SeaBIOS's word for the end. What stands behind that is never
    /// booted from, but it is there for what was booted: to a strict order firmware leaves out what is not in it.
    /// `nil`: firmware's own order.
    private var order: String? {
        guard let device = options.bootDevice else { return nil }
        let diskPaths = disks.map { "/pci@i0cf8/*@\(String($0, radix: 16))" }
        // Target and unit, the unit as SeaBIOS counts and as OpenBSD's drive calls it.
        let cdromPaths =
            cdrom.map { slot in
                ["0", "40000100"].map { "/pci@i0cf8/*@\(String(slot, radix: 16))/*@0/*@0,\($0)" }
            } ?? []
        let paths: [String]
        let others: [String]
        switch device {
        case .disk: (paths, others) = (diskPaths, cdromPaths)
        case .cdrom: (paths, others) = (cdromPaths, diskPaths)
        case .net: (paths, others) = (options.optionROM.map { ["/rom@genroms/" + $0.name] } ?? [], diskPaths + cdromPaths)
        }
        return (paths + ["HALT"] + others).joined(separator: "\n")
    }
}
