import Devices
import VMM

/// The machine's devices, wired to the ports and interrupt lines of a PC.
///
/// | line | device | ports |
/// |---|---|---|
/// | 0 | i8253, counter 0 | 0x40-0x43, 0x61 |
/// | 1, 12 | keyboard controller | 0x60, 0x64, 0x92 |
/// | 4 | 16550A, the console | 0x3F8-0x3FF |
/// | 8 | mc146818 | 0x70, 0x71 |
/// | 9 | ACPI power management | 0xB000-0xB00F |
/// | | firmware configuration | 0x510, 0x511, 0x514-0x51B |
/// | | VGA's registers, with firmware | 0x3B4-0x3DA |
/// | | debug port, with firmware that is logged | 0x402 |
/// | | i8259 pair | 0x20, 0x21, 0xA0, 0xA1, 0x4D0, 0x4D1 |
/// | | I/O APIC, for engines with a local APIC | memory at 0xFEC00000 |
/// | | PCI host bridge, reset control | 0xCF8-0xCFF |
/// | 3, 5, 6, 7, 9... | PCI functions, in the order of their slots | from 0x1000; memory from 0xF0000000 |
///
/// PCI slot 0 is the host bridge, as on OpenBSD 1 entropy, then the disks and the CD-ROM drive, and the last one is always vmmci(4)'s.
final class Board: Sendable {
    let ports: PortBus
    let interrupts: InterruptSystem
    let a20 = AddressLine20()
    let serialPort: SerialPort
    let powerManagement: ACPIPowerManagement
    let controlDevice: VMMCIFunction
    let mmio: MMIOBus
    /// In the order of the machine's disks.
    let blockDevices: [VirtioBlock]
    /// The CD-ROM drive, if there is one.
    let drive: VirtioSCSI?
    private let tables: ACPITables.Configuration
    private let mirror: ScreenMirror?
    private let resettable: [any Resettable]

    /// - Parameters:
    ///   - memory: what devices read and write by themselves.
    ///   - processors: what the CPUs' local APICs have to know; `nil` for CPUs without.
    ///   - firmware: what to tell it, if the machine boots by firmware.
    ///   - debugExitPort: where a write ends the machine with a status; `nil` for nowhere.
    ///   - onControl: what the guest makes of vmmci's requests. Any thread, without locks.
    /// - Throws: when that port is another device's, or the host has no threads for disks.
    init(
        clock: any Clock, requests power: MachineRequests, terminal: any SerialTerminal, map: MemoryMap,
        memory: GuestMemory, disks: [DiskSource] = [], cdrom: DiskSource? = nil, firmware: FirmwareOptions? = nil,
        processors: InterruptSystem.Processors?, debugExitPort: UInt16?,
        onControl: @escaping @Sendable (VMMCIFunction.Event) -> Void = { _ in },
        log: @escaping @Sendable (String) -> Void = { _ in }
    ) throws(MachineError) {
        let interrupts = InterruptSystem(clock: clock, sharedLines: PCISlots.lines, processors: processors)
        func line(_ number: UInt8) -> InterruptLine { interrupts.line(number) }
        var cmos = CMOSMemory()
        cmos.setMemory(
            base: firmware == nil ? MemoryMap.conventionalEnd : MemoryMap.biosConventionalEnd, below4G: map.lowEnd, above4G: map.highByteCount)
        cmos.setBootOrder()

        let timer = I8253Port(clock: clock, line: line(0), isWaiting: { interrupts.isWaiting(0) })
        let keyboard = KeyboardController(power: power, keyboardLine: line(1), auxiliaryLine: line(12), a20: a20)
        let mirror = firmware.map { _ in ScreenMirror(terminal, memory: memory, clock: clock) }
        let serialPort = SerialPort(line: line(4), terminal: mirror ?? terminal, clock: clock)
        let powerManagement = ACPIPowerManagement(clock: clock, line: line(9), power: power)
        let resetControl = ResetControl(power: power)
        var slots = PCISlots(memory: memory, interrupts: interrupts)
        slots.addEntropy()
        for (index, disk) in disks.enumerated() { try slots.add(disk, number: index) }
        if let cdrom { try slots.addCDROM(cdrom) }
        let last = slots.next()
        let controlDevice = VMMCIFunction(
            clock: clock, ports: last.ports, line: last.line, lineNumber: last.lineNumber, power: power, onEvent: onControl)
        slots.put(controlDevice)
        let hostBridge = PCIHostBridge(resetControl: resetControl, functions: slots.functions)
        let realTimeClock = MC146818Port(
            clock: clock, line: line(8), memory: cmos, onTimeStep: { controlDevice.synchronizeClock() })
        var tables = ACPITables.Configuration()
        tables.pciInterrupts = slots.interrupts
        tables.interruptControllers = interrupts.description
        tables.allowsMessageSignalledInterrupts = interrupts.messages != nil
        let files = firmware.map { FirmwareFiles(options: $0, map: map, tables: tables, disks: slots.disks, cdrom: slots.cdrom).all } ?? []
        let firmwareConfiguration = FirmwareConfigurationPort(
            FirmwareConfiguration(memoryByteCount: map.byteCount, processors: 1, files: files, hasTransfers: true),
            memory: memory)

        var claimants: [any PortClaimant & Resettable] = [
            timer, keyboard, serialPort, realTimeClock, powerManagement, hostBridge, firmwareConfiguration,
        ]
        if let mirror {
            let vga = VGAPorts(onWrite: { [weak mirror] in mirror?.watch() })
            mirror.connect(vga) { [weak serialPort] in serialPort?.isDrivenByInterrupts ?? false }
            claimants.append(vga)
        }
        if firmware?.logsDebugPort == true { claimants.append(DebugPort { log("firmware: \($0)") }) }
        // Lines fall before the interrupt controller forgets them.
        resettable = claimants + [resetControl, interrupts]
        self.mirror = mirror
        var claims = interrupts.claims + claimants.flatMap(\.claims)
        if let debugExitPort {
            guard !claims.contains(where: { $0.ports.contains(debugExitPort) }) else {
                throw MachineError(
                    "debug exit port \(hexText(UInt64(debugExitPort))): belongs to another device: give another, as 0xf4")
            }
            claims.append(DebugExit(power.requestExit).claim(debugExitPort))
        }
        ports = PortBus(claims, remainder: hostBridge.bus.portClaim)
        mmio = MMIOBus(interrupts.memoryClaims, remainder: hostBridge.bus.memoryClaim)
        blockDevices = slots.blockDevices
        drive = slots.drive
        self.tables = tables
        self.interrupts = interrupts
        self.serialPort = serialPort
        self.powerManagement = powerManagement
        self.controlDevice = controlDevice
    }

    /// The reset line, and what firmware does after it.
    func reset() {
        for device in resettable { device.reset() }
    }

    /// Looks at the screen from now on, if there is one: an empty one.
    func startScreen() { mirror?.restart() }

    /// Where kernels search for the RSDP if nobody tells them: the first KB of the EBDA, which is in the memory that
    /// the map keeps back below 1 MB.
    private static let extendedBIOSData: UInt64 = 0x9_D000
    /// BIOS data area: segment of the EBDA, and KB of memory below it.
    private static let extendedBIOSDataPointer: UInt64 = 0x40E
    private static let conventionalMemorySize: UInt64 = 0x413

    /// Writes what firmware leaves behind: ACPI's tables, a few words of the BIOS data area, vectors of real mode.
    /// - Returns: where the RSDP is.
    func writeTables(_ memory: GuestMemory) -> UInt64 {
        let (tables, rsdp) = ACPITables.build(at: MemoryMap.acpiBase, self.tables)
        RealModeVectors.write(memory)
        memory.write(tables, at: MemoryMap.acpiBase)
        memory.write(rsdp, at: Self.extendedBIOSData)
        memory.store(Self.extendedBIOSDataPointer, UInt16(truncatingIfNeeded: Self.extendedBIOSData >> 4))
        memory.store(Self.conventionalMemorySize, UInt16(truncatingIfNeeded: MemoryMap.conventionalEnd >> 10))
        return Self.extendedBIOSData
    }
}
