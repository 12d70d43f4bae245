/// Base address registers, and what the command register makes of them (PCI 3.0, sections 6.2.2 and 6.2.5.1).
///
/// A register's size and kind are in its bits: those that a guest can write are the address, and bit 0, which it cannot,
/// tells ports from memory. So sizing a register needs no state of its own.
extension PCIConfigurationSpace {
    public struct Command: OptionSet, Hashable, Sendable {
        public let rawValue: UInt16
        public init(rawValue: UInt16) { self.rawValue = rawValue }
        public static let ports = Command(rawValue: 0x0001)
        public static let memory = Command(rawValue: 0x0002)
        public static let busMaster = Command(rawValue: 0x0004)
        public static let interruptDisable = Command(rawValue: 0x0400)
    }

    /// Status: the interrupt pin would be pulled, whatever the command register says.
    private static let interruptStatus: UInt16 = 0x0008

    public enum AddressSpace: Hashable, Sendable { case ports, memory }

    /// Addresses that a function answers.
    public struct Window: Hashable, Sendable {
        /// The number of the base address register, 0 to 5.
        public let index: Int
        public let space: AddressSpace
        public let addresses: Range<UInt64>
        public init(index: Int, space: AddressSpace, addresses: Range<UInt64>) {
            self.index = index
            self.space = space
            self.addresses = addresses
        }
    }

    private static let baseAddressCount = 6

    private static func register(_ index: Int) -> UInt8 { Register.baseAddress0 + UInt8(index) * 4 }

    /// Declares a base address and gives it the place that a PC's firmware would, switched on.
    /// - Parameters:
    ///   - byteCount: a power of two, at least 16: what smaller ones would save is nothing here.
    ///   - address: a multiple of `byteCount`.
    public mutating func addBaseAddress(_ index: Int, _ space: AddressSpace, byteCount: UInt32, at address: UInt32) {
        precondition((0..<Self.baseAddressCount).contains(index) && byteCount >= 16 && byteCount.nonzeroBitCount == 1)
        precondition(address % byteCount == 0)
        set(Self.register(index), address | (space == .ports ? 1 : 0))
        allowWrites(Self.register(index), ~(byteCount - 1))
        set(Register.command, command.union(space == .ports ? .ports : .memory).rawValue)
    }

    /// Declares INTA, and in the register where firmware notes the line, the line. Nothing can route it elsewhere, so the
    /// register cannot be written: SeaBIOS, which does not know this bridge, would note 0xFF there, "not connected", and
    /// kernels without ACPI would believe it.
    public mutating func addInterrupt(line: UInt8) {
        set(Register.interruptPin, 1 as UInt8)
        set(Register.interruptLine, line)
        allowWrites(Register.interruptLine, 0 as UInt8)
    }

    public var command: Command { Command(rawValue: get(Register.command, as: UInt16.self)) }

    /// Notes what the device wants of its interrupt pin, and says what the pin does.
    public mutating func setInterrupt(_ isWanted: Bool) -> Bool {
        let status = get(Register.status, as: UInt16.self) & ~Self.interruptStatus
        set(Register.status, isWanted ? status | Self.interruptStatus : status)
        return isWanted && !command.contains(.interruptDisable)
    }

    /// What is decoded now. The end of the address space may be among it, as while a guest sizes a register: buses reach
    /// no further than their own windows.
    public var windows: [Window] {
        (0..<Self.baseAddressCount).compactMap { index in
            let mask = writableBits(Self.register(index), as: UInt32.self)
            let value = get(Self.register(index), as: UInt32.self)
            let space: AddressSpace = value & 1 != 0 ? .ports : .memory
            guard mask != 0, command.contains(space == .ports ? .ports : .memory) else { return nil }
            let start = UInt64(value & mask)
            return Window(index: index, space: space, addresses: start..<start + UInt64(mask & (0 &- mask)))
        }
    }
}
