import VMM

/// What local APICs, I/O APICs and devices tell each other (SDM Vol. 3, 12.6.1 and 12.11).
public struct InterruptMessage: Hashable, Sendable {
    /// The encodings of ICR, redirection table and message data.
    public enum Delivery: UInt8, Sendable {
        case fixed = 0, lowestPriority = 1, smi = 2, nmi = 4, initialize = 5, startUp = 6, external = 7
    }

    /// The encodings of ICR bits 19:18.
    public enum Shorthand: UInt8, Sendable {
        case none = 0, itself = 1, all = 2, others = 3
    }

    public var delivery: Delivery
    public var vector: UInt8
    public var isLevel = false
    public var destination: UInt32
    public var isLogical: Bool
    /// The destination has 32 bits, as x2APIC mode sends it, and not 8.
    public var isWide = false
    public var shorthand = Shorthand.none

    public init(_ delivery: Delivery, vector: UInt8, destination: UInt32, isLogical: Bool = false, isLevel: Bool = false) {
        self.delivery = delivery
        self.vector = vector
        self.destination = destination
        self.isLogical = isLogical
        self.isLevel = isLevel
    }

    /// What a device writes to signal an interrupt, if it is that (SDM Vol. 3, 12.11.1 and 12.11.2). The redirection
    /// hint is the delivery mode's: lowest priority chooses.
    public init?(address: UInt64, data: UInt32) {
        guard address >> 20 == 0xFEE, let delivery = Delivery(rawValue: UInt8(truncatingIfNeeded: data >> 8 & 7)) else {
            return nil
        }
        let isLevel = data & 1 << 15 != 0
        // A level that falls says nothing: the device's end of it is cleared by the device.
        if isLevel && data & 1 << 14 == 0 { return nil }
        self.init(
            delivery, vector: UInt8(truncatingIfNeeded: data), destination: UInt32(truncatingIfNeeded: address >> 12 & 0xFF),
            isLogical: address & 1 << 2 != 0, isLevel: isLevel)
    }

    /// The same as a device would write it, with the level asserted. Without shorthands, for destinations of 8 bits.
    var signal: MessageSignal {
        MessageSignal(
            address: 0xFEE0_0000 | UInt64(destination & 0xFF) << 12 | (isLogical ? 1 << 2 : 0),
            data: UInt32(vector) | UInt32(delivery.rawValue) << 8 | (isLevel ? 3 << 14 : 0))
    }

    /// Whether it is for all.
    public var isBroadcast: Bool { isWide ? destination == ~0 : !isLogical && destination == 0xFF }
}
