/// The keyboard controller of a PC as a value (IBM PC/AT Technical Reference, "Keyboard Controller"), with no
/// keyboard and no mouse plugged in.
///
/// Modelled: status, command byte, self and interface tests, output port with A20 and reset, pulse commands. What is
/// sent to a keyboard or mouse is answered as a controller does it whose device stays silent: 0xFE with the time-out
/// bit, so that a driver gives up at once.
///
/// Quirks: commands take no time: the input buffer is always empty.
public struct I8042: Codable, Hashable, Sendable {
    /// Port 0x64, read.
    public struct Status: OptionSet, Codable, Hashable, Sendable {
        public let rawValue: UInt8
        public init(rawValue: UInt8) { self.rawValue = rawValue }
        /// Output buffer full: there is a byte at port 0x60.
        public static let obf = Status(rawValue: 0x01)
        public static let ibf = Status(rawValue: 0x02)
        /// The system flag of the command byte.
        public static let sys = Status(rawValue: 0x04)
        /// The last write went to port 0x64.
        public static let a2 = Status(rawValue: 0x08)
        /// The key lock is open.
        public static let unlocked = Status(rawValue: 0x10)
        /// The byte comes from the mouse.
        public static let auxiliary = Status(rawValue: 0x20)
        public static let timeout = Status(rawValue: 0x40)
    }

    public struct CommandByte: OptionSet, Codable, Hashable, Sendable {
        public let rawValue: UInt8
        public init(rawValue: UInt8) { self.rawValue = rawValue }
        public static let keyboardInterrupt = CommandByte(rawValue: 0x01)
        public static let auxiliaryInterrupt = CommandByte(rawValue: 0x02)
        public static let sys = CommandByte(rawValue: 0x04)
        public static let keyboardDisabled = CommandByte(rawValue: 0x10)
        public static let auxiliaryDisabled = CommandByte(rawValue: 0x20)
    }

    public struct OutputPort: OptionSet, Codable, Hashable, Sendable {
        public let rawValue: UInt8
        public init(rawValue: UInt8) { self.rawValue = rawValue }
        /// The CPU runs while this is up.
        public static let notReset = OutputPort(rawValue: 0x01)
        public static let a20 = OutputPort(rawValue: 0x02)
    }

    /// What the next byte to port 0x60 is for.
    private enum Parameter: UInt8, Codable, Sendable {
        case keyboard, commandByte, ignored, outputPort, keyboardBuffer, auxiliaryBuffer, auxiliaryDevice
    }

    /// A byte at port 0x60 and the status bits that come with it.
    private struct Output: Codable, Hashable, Sendable {
        var byte: UInt8
        var status: Status
    }

    private var output: Output?
    private var last: UInt8 = 0
    private var parameter = Parameter.keyboard
    private var lastWasCommand = false
    /// As a BIOS leaves it.
    public private(set) var commandByte: CommandByte = [.sys, .keyboardDisabled, .auxiliaryDisabled]
    public private(set) var outputPort: OutputPort = [.notReset, .a20]

    public init() {}

    public var status: Status {
        var status: Status = [.unlocked]
        if commandByte.contains(.sys) { status.insert(.sys) }
        if lastWasCommand { status.insert(.a2) }
        if let output { status.formUnion(output.status.union(.obf)) }
        return status
    }

    /// The level of IRQ 1.
    public var keyboardInterrupt: Bool {
        commandByte.contains(.keyboardInterrupt) && output.map { !$0.status.contains(.auxiliary) } ?? false
    }

    /// The level of IRQ 12.
    public var auxiliaryInterrupt: Bool {
        commandByte.contains(.auxiliaryInterrupt) && output?.status.contains(.auxiliary) ?? false
    }

    private mutating func answer(_ byte: UInt8, _ status: Status = []) { output = Output(byte: byte, status: status) }

    /// Port 0x60. Without a new byte the last one is still there.
    public mutating func readData() -> UInt8 {
        if let output { last = output.byte }
        output = nil
        return last
    }

    /// Port 0x60. Returns whether the CPU's reset line was pulled.
    public mutating func writeData(_ value: UInt8) -> Bool {
        lastWasCommand = false
        let parameter = parameter
        self.parameter = .keyboard
        switch parameter {
        case .keyboard:
            // The controller opens the interface by itself.
            commandByte.remove(.keyboardDisabled)
            answer(0xFE, .timeout)
        case .commandByte: commandByte = CommandByte(rawValue: value)
        case .ignored: break
        case .outputPort:
            // Reset is a level here, but no guest is there afterwards to raise it.
            outputPort = OutputPort(rawValue: value).union(.notReset)
            return value & OutputPort.notReset.rawValue == 0
        case .keyboardBuffer, .auxiliaryBuffer:
            // A controller with a mouse port would mark the second: this is how drivers look for one.
            answer(value)
        case .auxiliaryDevice: answer(0xFE, [.timeout, .auxiliary])
        }
        return false
    }

    /// Port 0x64. Returns whether the CPU's reset line was pulled.
    public mutating func writeCommand(_ value: UInt8) -> Bool {
        lastWasCommand = true
        parameter = .keyboard
        switch value {
        case 0x20: answer(commandByte.rawValue)
        case 0x21...0x3F: answer(0)
        case 0x60: parameter = .commandByte
        case 0x61...0x7F: parameter = .ignored
        case 0xA7: commandByte.insert(.auxiliaryDisabled)
        case 0xA8: commandByte.remove(.auxiliaryDisabled)
        // The mouse's clock line is stuck high: there is nothing.
        case 0xA9: answer(0x02)
        case 0xAA:
            self = I8042()
            lastWasCommand = true
            answer(0x55)
        case 0xAB: answer(0x00)
        case 0xAD: commandByte.insert(.keyboardDisabled)
        case 0xAE: commandByte.remove(.keyboardDisabled)
        // Input port: key lock open.
        case 0xC0: answer(0x80)
        case 0xD0:
            let full: UInt8 = output.map { $0.status.contains(.auxiliary) ? 0x20 : 0x10 } ?? 0
            answer(outputPort.rawValue & 0xCF | full)
        case 0xD1: parameter = .outputPort
        case 0xD2: parameter = .keyboardBuffer
        case 0xD3: parameter = .auxiliaryBuffer
        case 0xD4: parameter = .auxiliaryDevice
        case 0xDD: outputPort.remove(.a20)
        case 0xDF: outputPort.insert(.a20)
        // Test inputs: both clocks low.
        case 0xE0: answer(0)
        // Pulses the lines whose bits are 0.
        case 0xF0...0xFF: return value & 1 == 0
        default: break
        }
        return false
    }
}
