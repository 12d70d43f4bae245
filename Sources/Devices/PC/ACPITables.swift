/// The tables in which a PC's firmware describes the machine to an operating system (ACPI 6.4, chapter 5).
///
/// Without APICs there is no MADT. The loader that takes the firmware's place puts the bytes into memory (`build`); a
/// firmware gets the same bytes with a list of what to change once it knows where they are (`files`, `TableLoader`).
public enum ACPITables {
    /// An interrupt pin of a PCI function and the line that it is wired to.
    public struct PCIInterrupt: Hashable, Sendable {
        public let device: UInt8
        /// 0 is INTA.
        public let pin: UInt8
        public let line: UInt8
        /// The I/O APIC's pin, where there is one.
        public let globalInterrupt: UInt8?
        public init(device: UInt8, pin: UInt8 = 0, line: UInt8, globalInterrupt: UInt8? = nil) {
            self.device = device
            self.pin = pin
            self.line = line
            self.globalInterrupt = globalInterrupt
        }
    }

    /// What differs between machines.
    public struct Configuration: Sendable {
        /// 24 or 32, as `ACPIPowerManagement` has it.
        public var timerBits: UInt8 = 24
        public var pciInterrupts: [PCIInterrupt] = []
        /// Whether functions may send messages instead of pulling lines.
        public var allowsMessageSignalledInterrupts = false
        /// Beside the 8259 pair; `nil` for none.
        public var interruptControllers: InterruptControllers?
        public init() {}
    }

    static let sci: UInt16 = 9

    /// Tables that can be moved, and the pointer to them: pointers count from the first byte of the tables, checksums are
    /// not there yet.
    public static func files(
        _ configuration: Configuration = Configuration()
    ) -> (tables: RelocatableTables, rsdp: RelocatableTables) {
        var image = Image()
        let facs = image.append(facs())
        let dsdt = image.append(dsdt(configuration))
        let fadt = image.append(fadt(facs: facs, dsdt: dsdt, configuration))
        var listed = [fadt]
        if let controllers = configuration.interruptControllers { listed.append(image.append(madt(controllers))) }
        let rsdt = image.append(table("RSDT", revision: 1) { table in for place in listed { table.pointer32(place) } })
        let xsdt = image.append(table("XSDT", revision: 1) { table in for place in listed { table.pointer64(place) } })
        return (image.tables, rsdp(rsdt: rsdt, xsdt: xsdt))
    }

    /// Builds all tables for one place in guest memory, and the pointer to them, which belongs on a 16-byte boundary
    /// in the last 128 KB of the first megabyte or is handed to the guest by a boot protocol.
    /// - Parameter address: a multiple of 64 below 4 GB.
    public static func build(
        at address: UInt64, _ configuration: Configuration = Configuration()
    ) -> (tables: [UInt8], rsdp: [UInt8]) {
        precondition(address % UInt64(alignment) == 0 && address < 1 << 32)
        let (tables, rsdp) = files(configuration)
        return (tables.relocated(by: address), rsdp.relocated(by: address))
    }

    // MARK: Layout

    /// What the FACS needs; the others lie on the same boundary.
    static let alignment = 64

    /// Tables one after the other.
    private struct Image {
        var tables = RelocatableTables()

        /// - Returns: where the table is.
        mutating func append(_ table: Writer) -> UInt64 {
            tables.bytes += Array(repeating: 0, count: (alignment - tables.bytes.count % alignment) % alignment)
            let start = tables.bytes.count
            tables.append(table.tables)
            return UInt64(start)
        }
    }

    /// Bytes in little-endian order.
    struct Writer {
        var tables = RelocatableTables()
        var bytes: [UInt8] {
            get { tables.bytes }
            set { tables.bytes = newValue }
        }

        mutating func append<T: FixedWidthInteger>(_ value: T) {
            for index in 0..<T.bitWidth / 8 { tables.bytes.append(UInt8(truncatingIfNeeded: value >> T(index * 8))) }
        }

        mutating func append(_ text: String) { tables.bytes += text.utf8 }

        mutating func zeros(_ count: Int) { tables.bytes += Array(repeating: 0, count: count) }

        /// The place of another table.
        mutating func pointer32(_ offset: UInt64) {
            tables.pointers.append(.init(offset: tables.bytes.count, byteCount: 4))
            append(UInt32(truncatingIfNeeded: offset))
        }

        mutating func pointer64(_ offset: UInt64) {
            tables.pointers.append(.init(offset: tables.bytes.count, byteCount: 8))
            append(offset)
        }

        /// A generic address structure for a port (5.2.3.2). Access size 1 is a byte, 2 a word, 3 a dword.
        mutating func port(_ port: UInt16, bits: UInt8, access: UInt8) {
            tables.bytes += [1, bits, 0, access]
            append(UInt64(port))
        }
    }

    /// A table with the header that all but the FACS have (5.2.6).
    static func table(_ signature: String, revision: UInt8, _ body: (inout Writer) -> Void) -> Writer {
        var content = Writer()
        body(&content)
        var table = Writer()
        table.append(signature)
        table.append(UInt32(36 + content.bytes.count))
        table.append(revision)
        table.append(0 as UInt8)
        table.append("VMD   ")
        table.append("VMDPC   ")
        table.append(1 as UInt32)
        table.append("VMD ")
        table.append(1 as UInt32)
        table.tables.append(content.tables)
        table.tables.checksums = [.init(range: 0..<table.bytes.count, offset: 9)]
        return table
    }

    // MARK: Tables

    /// Root system description pointer, revision 2 (5.2.5.3).
    private static func rsdp(rsdt: UInt64, xsdt: UInt64) -> RelocatableTables {
        var table = Writer()
        table.append("RSD PTR ")
        table.append(0 as UInt8)
        table.append("VMD   ")
        table.append(2 as UInt8)
        table.pointer32(rsdt)
        table.append(36 as UInt32)
        table.pointer64(xsdt)
        table.zeros(4)
        table.tables.checksums = [.init(range: 0..<20, offset: 8), .init(range: 0..<36, offset: 32)]
        return table.tables
    }

    /// Firmware ACPI control structure, version 2 (5.2.10). Nothing uses the global lock.
    private static func facs() -> Writer {
        var table = Writer()
        table.append("FACS")
        table.append(64 as UInt32)
        table.zeros(24)
        table.append(2 as UInt8)
        table.zeros(31)
        return table
    }

    /// Bits of the FADT's flags (table 5.10).
    private enum Flag {
        static let wbinvd: UInt32 = 1 << 0
        static let procC1: UInt32 = 1 << 2
        /// There is no fixed sleep button. The power button is a fixed one: its bit is clear.
        static let noSleepButton: UInt32 = 1 << 5
        /// The clock cannot wake the machine.
        static let noFixedRTC: UInt32 = 1 << 6
        static let timer32: UInt32 = 1 << 8
        static let resetRegister: UInt32 = 1 << 10
    }

    /// Bits of the IA-PC boot architecture flags (table 5.11). The keyboard controller is left out on purpose: it has
    /// no keyboard, so looking for one is wasted time.
    private enum BootArchitecture {
        static let legacyDevices: UInt16 = 1 << 0
        static let noVGA: UInt16 = 1 << 2
        static let noMSI: UInt16 = 1 << 3
        static let noASPM: UInt16 = 1 << 4
        /// The clock chip is there, for those who look at its ports. Linux, told of it, sets its time of day from it,
        /// to the nearest half second, over the exact time that the paravirtual clock had given.
        static let noCMOSClock: UInt16 = 1 << 5
    }

    /// Fixed ACPI description table, revision 5 (5.2.9).
    private static func fadt(facs: UInt64, dsdt: UInt64, _ configuration: Configuration) -> Writer {
        table("FACP", revision: 5) { table in
            table.pointer32(facs)
            table.pointer32(dsdt)
            // Reserved, preferred profile: unspecified.
            table.zeros(2)
            table.append(sci)
            // No SMI command port: ACPI is always on.
            table.zeros(8)
            table.append(UInt32(ACPIPowerManagement.eventPort))
            table.append(0 as UInt32)
            table.append(UInt32(ACPIPowerManagement.controlPort))
            table.append(0 as UInt32)
            table.append(0 as UInt32)
            table.append(UInt32(ACPIPowerManagement.timerPort))
            // No general purpose events.
            table.zeros(8)
            table.bytes += [4, 2, 0, 4, 0, 0, 0, 0]
            // C2 and C3 latencies that mean "not there".
            table.append(101 as UInt16)
            table.append(1001 as UInt16)
            // Flush size and stride, duty cycle, day and month alarm.
            table.zeros(8)
            // The century's place in the CMOS memory.
            table.append(0x32 as UInt8)
            table.append(
                BootArchitecture.legacyDevices | BootArchitecture.noVGA | BootArchitecture.noASPM
                    | BootArchitecture.noCMOSClock
                    | (configuration.allowsMessageSignalledInterrupts ? 0 : BootArchitecture.noMSI))
            table.append(0 as UInt8)
            table.append(
                Flag.wbinvd | Flag.procC1 | Flag.noSleepButton | Flag.noFixedRTC | Flag.resetRegister
                    | (configuration.timerBits == 32 ? Flag.timer32 : 0))
            table.port(ResetControl.port, bits: 8, access: 1)
            table.append(ResetControl.resetValue)
            // ARM boot flags, minor version.
            table.zeros(3)
            // The same FACS as the 32-bit pointer's, which is for who cannot use this one; Xen says so when they differ.
            table.pointer64(facs)
            table.pointer64(dsdt)
            table.port(ACPIPowerManagement.eventPort, bits: 32, access: 2)
            table.zeros(12)
            table.port(ACPIPowerManagement.controlPort, bits: 16, access: 2)
            table.zeros(12)
            table.zeros(12)
            table.port(ACPIPowerManagement.timerPort, bits: 32, access: 3)
            // General purpose events 0 and 1, sleep control and status.
            table.zeros(48)
        }
    }

    /// Differentiated system description table (5.2.11.1).
    private static func dsdt(_ configuration: Configuration) -> Writer {
        var aml = AML()
        let soft = UInt64(ACPIRegisters.softOff)
        aml.define("_S5", .package([.integer(soft), .integer(soft), .integer(0), .integer(0)]))
        if configuration.interruptControllers != nil { interruptModel(&aml) }
        aml.scope("_SB") { bus in
            bus.device("PCI0") { bridge in
                bridge.define("_HID", .eisaID("PNP0A03"))
                bridge.define("_BBN", .integer(0))
                bridge.define("_UID", .integer(0))
                // The memory window leaves out what I/O APIC, timer and local APIC decode.
                bridge.define(
                    "_CRS",
                    resources: .init().buses(0...0).ports(0xCF8, count: 8).portWindow(PCIBus.portWindow)
                        .memoryWindow(0xF000_0000...0xFEBF_FFFF)
                        .memoryWindow(0xFEF0_0000...0xFFBF_FFFF))
                routes(configuration.pciInterrupts, &bridge)
            }
            isa(&bus)
        }
        return table("DSDT", revision: 2) { $0.bytes += aml.bytes }
    }

    /// The devices at fixed ports.
    private static func isa(_ bus: inout AML) {
        func device(_ name: String, _ id: String, _ resources: AML.Resources, unit: UInt64? = nil) {
            bus.device(name) { device in
                device.define("_HID", .eisaID(id))
                if let unit { device.define("_UID", .integer(unit)) }
                device.define("_CRS", resources: resources)
            }
        }
        device(
            "PIC", "PNP0000",
            .init().ports(0x20, count: 2).ports(0xA0, count: 2).ports(0x4D0, count: 2).interrupt(2))
        device("TIMR", "PNP0100", .init().ports(0x40, count: 4).interrupt(0))
        device("SPKR", "PNP0800", .init().ports(0x61, count: 1))
        device("COM1", "PNP0501", .init().ports(0x3F8, count: 8).interrupt(4), unit: 1)
        // Ports that nobody else may be given: the clock chip, fast A20 and reset, ACPI's own.
        device("MBRD", "PNP0C02", .init().ports(0x70, count: 2).ports(0x92, count: 1).ports(0xB000, count: 16), unit: 1)
    }
}
