import VMM

/// What ACPI says of APICs: the MADT, and PCI's interrupts in both models.
extension ACPITables {
    /// The APICs of a machine.
    public struct InterruptControllers: Hashable, Sendable {
        /// With the ids 0, 1 and so on.
        public let processorCount: Int
        public let ioAPICID: UInt8
        public init(processorCount: Int, ioAPICID: UInt8) {
            self.processorCount = processorCount
            self.ioAPICID = ioAPICID
        }
    }

    /// MPS INTI flags (table 5.27): active high, level-triggered.
    private static let activeHighLevel: UInt16 = 0b1101

    /// Multiple APIC description table, revision 3 (5.2.12).
    static func madt(_ controllers: InterruptControllers) -> Writer {
        table("APIC", revision: 3) { table in
            table.append(0xFEE0_0000 as UInt32)
            // PCAT_COMPAT: the 8259 pair is there as well.
            table.append(1 as UInt32)
            for id in 0..<UInt8(clamping: controllers.processorCount) {
                // Processor local APIC: ACPI's number of the CPU, its id, enabled.
                table.bytes += [0, 8, id, id]
                table.append(1 as UInt32)
            }
            table.bytes += [1, 12, controllers.ioAPICID, 0]
            table.append(UInt32(truncatingIfNeeded: IOAPICPort.addresses.lowerBound))
            table.append(0 as UInt32)
            // Interrupt source overrides. The timer is not where its number says; the SCI is no ISA interrupt but in number.
            for (line, pin, flags) in [(0, 2, 0), (UInt8(truncatingIfNeeded: sci), UInt32(sci), activeHighLevel)] as [(UInt8, UInt32, UInt16)] {
                table.bytes += [2, 10, 0, line]
                table.append(pin)
                table.append(flags)
            }
            // LINT1 of every CPU is NMI.
            table.bytes += [4, 6, 0xFF, 0, 0, 1]
        }
    }

    private static let model = "PICF"

    /// The method by which a system says which model it uses (5.8.1): 0 the 8259 pair, 1 the APICs.
    static func interruptModel(_ aml: inout AML) {
        aml.define(model, .integer(0))
        aml.method("_PIC", arguments: 1) { $0.storeArgument(0, in: model) }
    }

    /// `_PRT`: by lines of the 8259 pair, or by pins of the I/O APIC where the system has said so.
    static func routes(_ interrupts: [PCIInterrupt], _ bridge: inout AML) {
        let lines = AML.Value.package(interrupts.map { route($0, to: $0.line) })
        guard interrupts.contains(where: { $0.globalInterrupt != nil }) else { return bridge.define("_PRT", lines) }
        bridge.method("_PRT", arguments: 0) { method in
            method.ifSet(model) { $0.returns(.package(interrupts.map { route($0, to: $0.globalInterrupt ?? $0.line) })) }
            method.returns(lines)
        }
    }

    /// A row of _PRT (6.2.13): all functions of a device, the pin, no link device, the interrupt.
    private static func route(_ interrupt: PCIInterrupt, to number: UInt8) -> AML.Value {
        .package([
            .integer(UInt64(interrupt.device) << 16 | 0xFFFF), .integer(UInt64(interrupt.pin)), .integer(0),
            .integer(UInt64(number)),
        ])
    }
}
