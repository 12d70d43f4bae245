import VMM

/// A register's number: its offset in the page divided by 16, or its model-specific register less 0x800.
extension LocalAPIC {
    enum Register {
        static let id: UInt16 = 0x02
        static let version: UInt16 = 0x03
        static let taskPriority: UInt16 = 0x08
        static let arbitrationPriority: UInt16 = 0x09
        static let processorPriority: UInt16 = 0x0A
        static let endOfInterrupt: UInt16 = 0x0B
        static let remoteRead: UInt16 = 0x0C
        static let logicalDestination: UInt16 = 0x0D
        static let destinationFormat: UInt16 = 0x0E
        static let spuriousVector: UInt16 = 0x0F
        static let inService: ClosedRange<UInt16> = 0x10...0x17
        static let triggerMode: ClosedRange<UInt16> = 0x18...0x1F
        static let request: ClosedRange<UInt16> = 0x20...0x27
        static let errorStatus: UInt16 = 0x28
        static let commandLow: UInt16 = 0x30
        static let commandHigh: UInt16 = 0x31
        static let localVectors: ClosedRange<UInt16> = 0x32...0x37
        static let initialCount: UInt16 = 0x38
        static let currentCount: UInt16 = 0x39
        static let divide: UInt16 = 0x3E
        static let selfInterrupt: UInt16 = 0x3F
    }

    /// What a write asks of the world outside.
    public enum Effect: Hashable, Sendable {
        case none
        /// I/O APICs are to hear of it.
        case endOfInterrupt(UInt8)
        case send(InterruptMessage)
        /// #GP(0); nothing changed.
        case refused
    }

    /// xAPIC with six local vectors, and EOI broadcasts that can be suppressed.
    static let versionValue: UInt32 = 0x14 | 5 << 16 | 1 << 24

    // MARK: Both modes

    /// A register that both modes have, or `nil`.
    private func readCommon(_ register: UInt16, _ now: UInt64) -> UInt32? {
        switch register {
        case Register.version: Self.versionValue
        case Register.taskPriority: UInt32(tpr)
        case Register.processorPriority: UInt32(ppr)
        case Register.spuriousVector: svr
        case Register.inService: isr.register(register & 7)
        case Register.triggerMode: tmr.register(register & 7)
        case Register.request: irr.register(register & 7)
        case Register.errorStatus: UInt32(esr.rawValue)
        case Register.localVectors: LVT(rawValue: Int(register - Register.localVectors.lowerBound)).map { self[$0] }
        case Register.initialCount: timer.initialCount
        case Register.currentCount: timer.count(now, timerMode)
        case Register.divide: UInt32(timer.divide)
        default: nil
        }
    }

    /// Bits that a register has, both modes alike; a write of others is #GP(0) in x2APIC mode and without effect in the
    /// other. `nil`: cannot be written.
    private func acceptedBits(_ register: UInt16) -> UInt32? {
        switch register {
        case Register.taskPriority: return 0xFF
        case Register.endOfInterrupt, Register.errorStatus: return 0
        case Register.spuriousVector: return 0x11FF
        case Register.localVectors:
            return LVT(rawValue: Int(register - Register.localVectors.lowerBound)).map { $0.writable | $0.readOnly }
        case Register.initialCount: return ~0
        case Register.divide: return 0xB
        default: return nil
        }
    }

    private mutating func writeCommon(_ register: UInt16, _ value: UInt32, _ now: UInt64) -> Effect {
        switch register {
        case Register.taskPriority: setTaskPriority(UInt8(truncatingIfNeeded: value))
        case Register.endOfInterrupt:
            if let vector = endInterrupt() { return .endOfInterrupt(vector) }
        case Register.spuriousVector:
            svr = value & 0x11FF
            // Turned off, all local vectors are masked and stay so (SDM Vol. 3, 12.4.7.2).
            if !isSoftwareEnabled { for entry in LVT.allCases { self[entry] |= LVT.masked } }
        case Register.errorStatus:
            esr = errors
            errors = []
        case Register.localVectors:
            if let entry = LVT(rawValue: Int(register - Register.localVectors.lowerBound)) { write(entry, value) }
        case Register.initialCount:
            if timerMode != .deadline { timer.start(value, now) }
        case Register.divide: timer.setDivide(value, now, timerMode)
        default: break
        }
        return .none
    }

    private mutating func write(_ entry: LVT, _ value: UInt32) {
        let before = timerMode
        self[entry] = value & entry.writable | (isSoftwareEnabled ? 0 : LVT.masked)
        if entry == .timer { timer.modeChanged(from: before, to: timerMode) }
    }

    // MARK: xAPIC mode

    /// Reads the register at 16 times this offset.
    public mutating func read(_ register: UInt16, _ now: UInt64) -> UInt32 {
        switch register {
        case Register.id: return id << 24
        case Register.logicalDestination: return UInt32(ldr) << 24
        case Register.destinationFormat: return UInt32(dfr) << 28 | 0x0FFF_FFFF
        case Register.commandLow: return UInt32(truncatingIfNeeded: icr)
        case Register.commandHigh: return UInt32(truncatingIfNeeded: icr >> 32)
        case Register.arbitrationPriority, Register.endOfInterrupt, Register.remoteRead: return 0
        default: break
        }
        if let value = readCommon(register, now) { return value }
        report(.illegalRegister)
        return 0
    }

    public mutating func write(_ register: UInt16, _ value: UInt32, _ now: UInt64) -> Effect {
        switch register {
        case Register.logicalDestination: ldr = UInt8(truncatingIfNeeded: value >> 24)
        case Register.destinationFormat: dfr = UInt8(truncatingIfNeeded: value >> 28)
        case Register.commandHigh: icr = icr & 0xFFFF_FFFF | UInt64(value & 0xFF00_0000) << 32
        case Register.commandLow:
            icr = icr & ~0xFFFF_FFFF | UInt64(value & 0xC_CFFF)
            return send(destination: UInt32(truncatingIfNeeded: icr >> 56), isWide: false)
        case Register.id: break
        case _ where acceptedBits(register) != nil: return writeCommon(register, value, now)
        default: report(.illegalRegister)
        }
        return .none
    }

    // MARK: x2APIC mode

    /// Reads a model-specific register; `nil` for #GP(0) (SDM Vol. 3, 12.12.1).
    public func readWide(_ register: UInt16, _ now: UInt64) -> UInt64? {
        guard mode == .x2APIC else { return nil }
        return switch register {
        case Register.id: UInt64(id)
        case Register.logicalDestination: UInt64(wideLogicalID)
        case Register.commandLow: icr
        default: readCommon(register, now).map { UInt64($0) }
        }
    }

    public mutating func writeWide(_ register: UInt16, _ value: UInt64, _ now: UInt64) -> Effect {
        guard mode == .x2APIC else { return .refused }
        switch register {
        case Register.commandLow:
            // The delivery status is gone, but nobody minds those who write it.
            guard value & 0xFFF3_2000 == 0 else { return .refused }
            icr = value & ~(1 << 12)
            return send(destination: UInt32(truncatingIfNeeded: value >> 32), isWide: true)
        case Register.selfInterrupt:
            guard value >> 8 == 0 else { return .refused }
            icr = UInt64(InterruptMessage.Shorthand.itself.rawValue) << 18 | value
            return send(destination: 0, isWide: true)
        default:
            guard let bits = acceptedBits(register), value & ~UInt64(bits) == 0 else { return .refused }
            return writeCommon(register, UInt32(truncatingIfNeeded: value), now)
        }
    }

    // MARK: Sending

    /// What the interrupt command register says to send (SDM Vol. 3, 12.6.1).
    private mutating func send(destination: UInt32, isWide: Bool) -> Effect {
        let low = UInt32(truncatingIfNeeded: icr)
        guard let delivery = InterruptMessage.Delivery(rawValue: UInt8(truncatingIfNeeded: low >> 8 & 7)),
            let shorthand = InterruptMessage.Shorthand(rawValue: UInt8(truncatingIfNeeded: low >> 18 & 3)),
            delivery != .external
        else { return .none }
        let isFixed = delivery == .fixed || delivery == .lowestPriority
        // Table 12-3: oneself and all take nothing but fixed interrupts.
        if !isFixed && (shorthand == .itself || shorthand == .all) { return .none }
        // INIT level de-assert is not for CPUs that can be shown here.
        if delivery == .initialize && low & 1 << 15 != 0 && low & 1 << 14 == 0 { return .none }
        let vector = UInt8(truncatingIfNeeded: low)
        if isFixed && vector < 16 {
            report(.sendIllegalVector)
            return .none
        }
        var message = InterruptMessage(delivery, vector: vector, destination: destination, isLogical: low & 1 << 11 != 0)
        message.isWide = isWide
        message.shorthand = shorthand
        return .send(message)
    }

    // MARK: The timer

    /// The encodings of LVT bits 18:17.
    public enum TimerMode: UInt8, Sendable { case oneShot = 0, periodic = 1, deadline = 2, reserved = 3 }

    public var timerMode: TimerMode { TimerMode(rawValue: UInt8(truncatingIfNeeded: self[.timer] >> 17 & 3)) ?? .reserved }

    /// When the timer fires next, if it does.
    public var expiry: UInt64? { timer.expiry }

    /// IA32_TSC_DEADLINE: 0 in the other modes.
    public var deadline: UInt64 { timerMode == .deadline ? timer.deadline : 0 }

    /// Writes IA32_TSC_DEADLINE, which has no effect in other modes (SDM Vol. 3, 12.5.4.1).
    public mutating func setDeadline(_ value: UInt64, timeStamp: UInt64, frequency: UInt64, _ now: UInt64) {
        guard timerMode == .deadline, frequency > 0 else { return }
        timer.setDeadline(value, timeStamp: timeStamp, frequency: frequency, now)
    }

    /// Brings the timer up to date.
    public mutating func advance(_ now: UInt64) {
        guard timer.fire(now, timerMode), !isMasked(.timer) else { return }
        request(UInt8(truncatingIfNeeded: self[.timer]), isLevel: false)
    }

    /// Time counts from elsewhere.
    public mutating func shift(by nanoseconds: UInt64) { timer.shift(by: nanoseconds) }
}
