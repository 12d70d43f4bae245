import Testing

@testable import Linux

@Suite("Patience of who waits") struct PatienceTests {
    private static let short = Patience.shortNanoseconds - 1

    @Test func `only short sleeps in a row make it worthwhile to look out`() {
        var patience = Patience()
        #expect(!patience.isWorthwhile)
        patience.slept(Self.short)
        patience.slept(Patience.shortNanoseconds)
        patience.slept(Self.short)
        #expect(!patience.isWorthwhile)
        patience.slept(Self.short)
        #expect(patience.isWorthwhile)
        patience.slept(4_000_000)
        #expect(!patience.isWorthwhile)
    }

    /// How many short sleeps it takes.
    private func sleeps(_ patience: inout Patience) -> Int {
        var count = 0
        while !patience.isWorthwhile, count < 5000 {
            patience.slept(Self.short)
            count += 1
        }
        return count
    }

    @Test func `who looked out in vain needs twice as many, up to a bound, and one fewer with each success`() {
        var patience = Patience()
        #expect(sleeps(&patience) == 2)
        patience.spun(false)
        #expect(sleeps(&patience) == 4)
        for _ in 0..<2 { patience.spun(true) }
        #expect(patience.isWorthwhile)
        patience.spun(false)
        #expect(sleeps(&patience) == 4)
        for _ in 0..<20 { patience.spun(false) }
        #expect(sleeps(&patience) == Patience.mostSleeps)
    }
}
