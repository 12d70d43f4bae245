/// A crystal: turns nanoseconds since a clock's origin into ticks and back, without drift and without overflow
/// for any time.
public struct TickRate: Hashable, Sendable {
    /// The 8254's clock: the colour burst frequency divided by three.
    public static let pit = TickRate(hertz: 1_193_182)
    /// The ACPI power management timer (ACPI 6.4, 4.8.3.3).
    public static let acpi = TickRate(hertz: 3_579_545)

    public let hertz: UInt64

    /// - Precondition: below 10^9, so that a tick is longer than a nanosecond.
    public init(hertz: UInt64) {
        precondition(hertz > 0 && hertz < 1_000_000_000)
        self.hertz = hertz
    }

    /// Ticks that have passed at a time.
    @inlinable
    public func ticks(at nanoseconds: UInt64) -> UInt64 {
        // The upper half is below `hertz`, so below the divisor.
        UInt64(1_000_000_000).dividingFullWidth(nanoseconds.multipliedFullWidth(by: hertz)).quotient
    }

    /// The first nanosecond at which `ticks` have passed; the end of time when that is later.
    @inlinable
    public func nanoseconds(at ticks: UInt64) -> UInt64 {
        let product = ticks.multipliedFullWidth(by: 1_000_000_000)
        guard product.high < hertz else { return .max }
        let (quotient, remainder) = hertz.dividingFullWidth(product)
        return remainder == 0 ? quotient : quotient &+ 1
    }
}
