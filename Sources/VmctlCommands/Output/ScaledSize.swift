/// Sizes in four characters and a unit, as OpenBSD prints them (fmt_scaled(3)): `512M`, `1.0G`, `88.1M`.
enum ScaledSize {
    private static let units = Array("BKMGTPE")

    static func describe(_ bytes: UInt64) -> String {
        var unit = 0
        var scale: UInt64 = 1
        while bytes / scale >= 1024, unit + 1 < units.count {
            scale <<= 10
            unit += 1
        }
        var whole = bytes / scale
        if unit == 0 { return "\(whole)B" }
        // What is left, in tenths, rounded; below 2^60 times 10.
        let left = bytes % scale
        var tenths = (left / (scale >> 10) * 10 + 512) / 1024
        if tenths >= 10 {
            whole += 1
            tenths = 0
        }
        if whole >= 100 { return "\(tenths >= 5 ? whole + 1 : whole)\(units[unit])" }
        return "\(whole).\(tenths)\(units[unit])"
    }
}
