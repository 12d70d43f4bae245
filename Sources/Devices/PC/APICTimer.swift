import VMM

/// The local APIC's timer (SDM Vol. 3, 12.5.4): when it fires, in nanoseconds that its owner tells it.
struct APICTimer: Codable, Hashable, Sendable {
    typealias Mode = LocalAPIC.TimerMode

    /// Nanoseconds of one tick of the crystal that CPUID names.
    static let tick = 1_000_000_000 / CPUPolicy.crystalHz
    /// The shortest time between two firings of a periodic timer.
    static let shortestPeriod: UInt64 = 20_000

    private(set) var initialCount: UInt32 = 0
    /// Bits 0, 1 and 3 of the divide configuration register.
    private(set) var divide: UInt8 = 0
    /// When it fires next, if it runs.
    private(set) var expiry: UInt64?
    /// IA32_TSC_DEADLINE; 0 while disarmed.
    private(set) var deadline: UInt64 = 0

    /// Nanoseconds of one count. 0b111 divides by 1, the others by 2, 4 and so on up to 128.
    private var period: UInt64 {
        let code = divide & 3 | divide >> 1 & 4
        return Self.tick &<< UInt64((code &+ 1) & 7)
    }

    private var interval: UInt64 { UInt64(initialCount) &* period }

    /// The count as it reads.
    func count(_ now: UInt64, _ mode: Mode) -> UInt32 {
        guard let expiry, mode == .oneShot || mode == .periodic else { return 0 }
        var left = expiry > now ? expiry - now : 0
        // The firing is late: counting went on meanwhile.
        if left == 0, mode == .periodic, interval > 0 { left = interval - (now - expiry) % interval }
        // A period that is too short to be kept lasts longer, but counts no higher than it begins.
        if mode == .periodic, interval > 0, left > interval { left = (left - 1) % interval + 1 }
        return UInt32(clamping: (left &+ (period - 1)) / period)
    }

    mutating func start(_ count: UInt32, _ now: UInt64) {
        initialCount = count
        expiry = count == 0 ? nil : Self.sum(now, interval)
    }

    /// What is left is counted by the new divisor.
    mutating func setDivide(_ value: UInt32, _ now: UInt64, _ mode: Mode) {
        let left = UInt64(count(now, mode))
        divide = UInt8(truncatingIfNeeded: value & 0xB)
        if expiry != nil && (mode == .oneShot || mode == .periodic) { expiry = Self.sum(now, left &* period) }
    }

    /// - Parameters:
    ///   - value: of the time-stamp counter; 0 disarms.
    ///   - timeStamp: what the counter says now.
    ///   - frequency: of the counter.
    mutating func setDeadline(_ value: UInt64, timeStamp: UInt64, frequency: UInt64, _ now: UInt64) {
        deadline = value
        guard value != 0 else { return expiry = nil }
        guard value > timeStamp else { return expiry = now }
        let product = (value - timeStamp).multipliedFullWidth(by: 1_000_000_000)
        guard product.high < frequency else { return expiry = .max }
        // One more, so that the counter is there by then.
        expiry = Self.sum(now, frequency.dividingFullWidth(product).quotient &+ 1)
    }

    /// Between deadlines and counts there is no way that keeps it running (SDM Vol. 3, 12.5.4.1).
    mutating func modeChanged(from old: Mode, to new: Mode) {
        guard old != new, old == .deadline || new == .deadline || new == .reserved else { return }
        expiry = nil
        deadline = 0
    }

    /// - Returns: whether it fired since it was last asked.
    mutating func fire(_ now: UInt64, _ mode: Mode) -> Bool {
        guard let expiry, expiry <= now else { return false }
        deadline = 0
        if mode == .periodic, interval > 0 {
            let step = max(interval, Self.shortestPeriod)
            self.expiry = Self.sum(expiry, ((now - expiry) / step &+ 1) &* step)
        } else {
            self.expiry = nil
        }
        return true
    }

    /// Time counts from elsewhere.
    mutating func shift(by nanoseconds: UInt64) { expiry = expiry.map { $0 == .max ? .max : $0 &+ nanoseconds } }

    private static func sum(_ a: UInt64, _ b: UInt64) -> UInt64 {
        let (sum, overflow) = a.addingReportingOverflow(b)
        return overflow ? .max : sum
    }
}
