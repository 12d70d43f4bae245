/// The registers of the 16550A with the datasheet's names (National PC16550D, table II).
extension UART16550 {
    /// Offsets from the first port; 0 and 1 are the divisor latch while DLAB is set.
    public enum Register: UInt16, CaseIterable, Sendable {
        case data, ier, iir, lcr, mcr, lsr, msr, scr
    }

    /// Interrupt enable register.
    public struct IER: OptionSet, Codable, Hashable, Sendable {
        public let rawValue: UInt8
        public init(rawValue: UInt8) { self.rawValue = rawValue }
        /// Received data available, and character timeout.
        public static let erbfi = IER(rawValue: 0x01)
        /// Transmitter holding register empty.
        public static let etbei = IER(rawValue: 0x02)
        /// Receiver line status.
        public static let elsi = IER(rawValue: 0x04)
        /// Modem status.
        public static let edssi = IER(rawValue: 0x08)
        /// The rest reads as zero, which is how drivers tell this chip from its successors.
        public static let writable: IER = [.erbfi, .etbei, .elsi, .edssi]
    }

    /// FIFO control register, write only.
    public struct FCR: OptionSet, Codable, Hashable, Sendable {
        public let rawValue: UInt8
        public init(rawValue: UInt8) { self.rawValue = rawValue }
        public static let enable = FCR(rawValue: 0x01)
        public static let clearReceiver = FCR(rawValue: 0x02)
        public static let clearTransmitter = FCR(rawValue: 0x04)
        public static let dmaMode = FCR(rawValue: 0x08)
        /// What stays; the clear bits clear themselves.
        public static let kept = FCR(rawValue: 0xC9)

        /// Bytes in the receiver FIFO that make received data available.
        public var triggerLevel: UInt8 {
            switch rawValue >> 6 {
            case 0: 1
            case 1: 4
            case 2: 8
            default: 14
            }
        }
    }

    /// What the interrupt identification register shows, in order of priority (table III).
    public enum InterruptID: UInt8, Sendable {
        case modemStatus = 0x00
        case none = 0x01
        case transmitterEmpty = 0x02
        case receivedData = 0x04
        case lineStatus = 0x06
        case characterTimeout = 0x0C
    }

    /// Line control register.
    public struct LCR: OptionSet, Codable, Hashable, Sendable {
        public let rawValue: UInt8
        public init(rawValue: UInt8) { self.rawValue = rawValue }
        public static let setBreak = LCR(rawValue: 0x40)
        public static let dlab = LCR(rawValue: 0x80)
    }

    /// Modem control register.
    public struct MCR: OptionSet, Codable, Hashable, Sendable {
        public let rawValue: UInt8
        public init(rawValue: UInt8) { self.rawValue = rawValue }
        public static let dtr = MCR(rawValue: 0x01)
        public static let rts = MCR(rawValue: 0x02)
        public static let out1 = MCR(rawValue: 0x04)
        /// On a PC this output lets the interrupt through to the bus.
        public static let out2 = MCR(rawValue: 0x08)
        public static let loop = MCR(rawValue: 0x10)
        public static let writable: MCR = [.dtr, .rts, .out1, .out2, .loop]
    }

    /// Line status register.
    public struct LSR: OptionSet, Codable, Hashable, Sendable {
        public let rawValue: UInt8
        public init(rawValue: UInt8) { self.rawValue = rawValue }
        public static let dr = LSR(rawValue: 0x01)
        public static let oe = LSR(rawValue: 0x02)
        public static let pe = LSR(rawValue: 0x04)
        public static let fe = LSR(rawValue: 0x08)
        public static let bi = LSR(rawValue: 0x10)
        public static let thre = LSR(rawValue: 0x20)
        public static let temt = LSR(rawValue: 0x40)
        /// At least one byte in the FIFO has an error.
        public static let fifoError = LSR(rawValue: 0x80)
    }

    /// Modem status register: four lines, and what changed since the last read.
    public struct MSR: OptionSet, Codable, Hashable, Sendable {
        public let rawValue: UInt8
        public init(rawValue: UInt8) { self.rawValue = rawValue }
        public static let dcts = MSR(rawValue: 0x01)
        public static let ddsr = MSR(rawValue: 0x02)
        /// Set when RI falls, not when it rises.
        public static let teri = MSR(rawValue: 0x04)
        public static let ddcd = MSR(rawValue: 0x08)
        public static let cts = MSR(rawValue: 0x10)
        public static let dsr = MSR(rawValue: 0x20)
        public static let ri = MSR(rawValue: 0x40)
        public static let dcd = MSR(rawValue: 0x80)
        public static let lines: MSR = [.cts, .dsr, .ri, .dcd]
        public static let deltas: MSR = [.dcts, .ddsr, .teri, .ddcd]
    }

    /// The receiver FIFO: sixteen bytes and a mark for those that came with a break. Two words instead of an array,
    /// so that it is a plain value and no index can miss it.
    public struct ReceiverFIFO: Codable, Hashable, Sendable {
        private var low: UInt64 = 0
        private var high: UInt64 = 0
        private var marks: UInt16 = 0
        private var stored: UInt8 = 0

        public static let capacity: UInt8 = 16

        public init() {}

        /// Never more than the capacity, whatever a snapshot says.
        public var count: UInt8 { min(stored, Self.capacity) }
        public var isEmpty: Bool { stored == 0 }
        /// Whether the next byte came with a break.
        public var isFirstMarked: Bool { !isEmpty && marks & 1 != 0 }
        public var hasMarks: Bool { !isEmpty && marks != 0 }

        /// Ignored when full.
        public mutating func append(_ byte: UInt8, isMarked: Bool = false) {
            let count = count
            guard count < Self.capacity else { return }
            if count < 8 {
                low = low & ~(0xFF &<< UInt64(count * 8)) | UInt64(byte) &<< UInt64(count * 8)
            } else {
                high = high & ~(0xFF &<< UInt64((count - 8) * 8)) | UInt64(byte) &<< UInt64((count - 8) * 8)
            }
            let mark = 1 as UInt16 &<< UInt16(count)
            marks = isMarked ? marks | mark : marks & ~mark
            stored = count + 1
        }

        public mutating func removeFirst() -> UInt8? {
            guard !isEmpty else { return nil }
            let byte = UInt8(truncatingIfNeeded: low)
            low = low >> 8 | high << 56
            high >>= 8
            marks >>= 1
            stored = count - 1
            return byte
        }

        public mutating func unmarkFirst() { marks &= ~1 }

        public mutating func removeAll() { self = ReceiverFIFO() }
    }
}
