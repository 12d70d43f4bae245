/// The registers of OpenBSD's control device vmmci(4) as a value: a legacy virtio function without queues (virtio 1.2,
/// section 4.1.4.8, the layout without MSI-X), through which the host asks the guest to shut down, to reboot or to set its
/// clock, and the guest reads the host's time.
///
/// Modelled: feature negotiation, device status, the interrupt of a changed configuration, all commands. The queue
/// registers are there and say that there is none.
///
/// A guest can acknowledge what nobody asked for, which means nothing, or say that it is switching itself off, which
/// ends it.
public struct VMMCI: Codable, Hashable, Sendable {
    /// What the host asks for.
    public enum Command: UInt32, Codable, Sendable {
        case none = 0
        case shutdown = 1
        case reboot = 2
        /// Set the guest's clock from the real-time clock.
        case synchronizeClock = 3
    }

    public struct Features: OptionSet, Codable, Hashable, Sendable {
        public let rawValue: UInt32
        public init(rawValue: UInt32) { self.rawValue = rawValue }
        /// The guest can read the host's time.
        public static let timeSync = Features(rawValue: 1 << 0)
        /// The guest writes a command back when it has seen it.
        public static let acknowledge = Features(rawValue: 1 << 1)
        /// The guest knows `Command.synchronizeClock`.
        public static let clockSync = Features(rawValue: 1 << 2)
        public static let offered: Features = [.timeSync, .acknowledge, .clockSync]
    }

    /// Device status (virtio 1.2, section 2.1).
    public struct Status: OptionSet, Codable, Hashable, Sendable {
        public let rawValue: UInt8
        public init(rawValue: UInt8) { self.rawValue = rawValue }
        public static let acknowledge = Status(rawValue: 0x01)
        public static let driver = Status(rawValue: 0x02)
        public static let driverOK = Status(rawValue: 0x04)
    }

    /// ISR status (virtio 1.2, section 4.1.4.5).
    public struct InterruptStatus: OptionSet, Codable, Hashable, Sendable {
        public let rawValue: UInt8
        public init(rawValue: UInt8) { self.rawValue = rawValue }
        public static let queue = InterruptStatus(rawValue: 0x01)
        public static let configuration = InterruptStatus(rawValue: 0x02)
    }

    /// Offsets from the base address.
    public enum Register {
        public static let hostFeatures: UInt64 = 0x00
        public static let guestFeatures: UInt64 = 0x04
        public static let status: UInt64 = 0x12
        public static let interruptStatus: UInt64 = 0x13
        public static let command: UInt64 = 0x14
        /// Seconds since 1970, low word first.
        public static let seconds: UInt64 = 0x18
        /// And microseconds.
        public static let microseconds: UInt64 = 0x20
        public static let end: UInt64 = 0x28
    }

    /// What a guest's write means to the host.
    public enum Effect: Hashable, Sendable {
        case nothing
        /// The guest does what it was asked.
        case acknowledged(Command)
        /// The guest switches itself off.
        case shutsDown
        /// The driver reset the device.
        case reset
    }

    public private(set) var guestFeatures: Features = []
    public private(set) var status: Status = []
    public private(set) var interruptStatus: InterruptStatus = []
    public private(set) var command = Command.none
    /// What the guest has written to the command register, a byte at a time if it likes.
    private var written: UInt32 = 0
    /// The host's time when the guest last read the first byte of it.
    private var seconds: UInt64 = 0
    private var microseconds: UInt64 = 0

    public init() {}

    public var isDriverReady: Bool { status.contains(.driverOK) }
    public var interruptPending: Bool { !interruptStatus.isEmpty }

    /// Asks for something; the guest finds it behind the interrupt.
    public mutating func post(_ command: Command) {
        self.command = command
        interruptStatus.insert(.configuration)
    }

    private static func covers(_ register: UInt64, _ offset: UInt64, _ count: Int) -> Bool {
        register &- offset < UInt64(count)
    }

    /// - Parameter wallClock: nanoseconds since 1970, asked for when the guest reads the time.
    public mutating func read(_ offset: UInt64, _ count: Int, wallClock: () -> UInt64) -> UInt64 {
        if Self.covers(Register.seconds, offset, count) {
            let now = wallClock()
            seconds = now / 1_000_000_000
            microseconds = now % 1_000_000_000 / 1000
        }
        var value: UInt64 = 0
        for index in 0..<UInt64(min(count, 8)) { value |= UInt64(byte(offset &+ index)) << (index * 8) }
        if Self.covers(Register.interruptStatus, offset, count) { interruptStatus = [] }
        return value
    }

    private func byte(_ offset: UInt64) -> UInt8 {
        func part(_ value: UInt64, of register: UInt64) -> UInt8 {
            UInt8(truncatingIfNeeded: value >> ((offset - register) * 8))
        }
        switch offset {
        case Register.hostFeatures..<Register.guestFeatures:
            return part(UInt64(Features.offered.rawValue), of: Register.hostFeatures)
        case Register.guestFeatures..<0x08: return part(UInt64(guestFeatures.rawValue), of: Register.guestFeatures)
        // Address, size, selection and notification of queues.
        case 0x08..<Register.status: return 0
        case Register.status: return status.rawValue
        case Register.interruptStatus: return interruptStatus.rawValue
        case Register.command..<Register.seconds: return part(UInt64(command.rawValue), of: Register.command)
        case Register.seconds..<Register.microseconds: return part(seconds, of: Register.seconds)
        case Register.microseconds..<Register.end: return part(microseconds, of: Register.microseconds)
        default: return 0xFF
        }
    }

    public mutating func write(_ offset: UInt64, _ count: Int, _ value: UInt64) -> Effect {
        var effect = Effect.nothing
        for index in 0..<UInt64(min(count, 8)) {
            let result = writeByte(offset &+ index, UInt8(truncatingIfNeeded: value >> (index * 8)))
            if result != .nothing { effect = result }
        }
        return effect
    }

    private mutating func writeByte(_ offset: UInt64, _ value: UInt8) -> Effect {
        switch offset {
        case Register.guestFeatures..<0x08:
            let shift = UInt32(offset - Register.guestFeatures) * 8
            let raw = guestFeatures.rawValue & ~(0xFF << shift) | UInt32(value) << shift
            guestFeatures = Features(rawValue: raw).intersection(.offered)
        case Register.status:
            status = Status(rawValue: value)
            guard value == 0 else { return .nothing }
            self = VMMCI()
            return .reset
        case Register.command..<Register.seconds:
            let shift = UInt32(offset - Register.command) * 8
            written = written & ~(0xFF << shift) | UInt32(value) << shift
            // Drivers that write byte by byte begin with the lowest.
            if offset == Register.seconds - 1 { return acknowledge(written) }
        default: break
        }
        return .nothing
    }

    private mutating func acknowledge(_ value: UInt32) -> Effect {
        switch Command(rawValue: value) {
        case .shutdown where command == .none: return .shutsDown
        case .shutdown, .reboot: return value == command.rawValue ? .acknowledged(command) : .nothing
        case .synchronizeClock where command == .synchronizeClock:
            command = .none
            return .acknowledged(.synchronizeClock)
        case .synchronizeClock, .some(.none), nil: return .nothing
        }
    }
}
