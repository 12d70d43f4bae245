/// Tells a guest that reboots from one that cannot start: more than three restarts within six seconds are too many.
struct RestartLimiter {
    static let limit = 3
    static let window: UInt64 = 6_000_000_000

    private var recent: [UInt64] = []

    /// Counts a restart at `now` (monotonic nanoseconds). `false` when it is one too many.
    mutating func allowsRestart(at now: UInt64) -> Bool {
        recent.removeAll { now &- $0 > Self.window }
        recent.append(now)
        return recent.count <= Self.limit
    }
}
