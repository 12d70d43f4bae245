/// Why a machine could not be built or could not go on: one line for a person, naming the file or value, what is
/// wrong with it and what to do.
public struct MachineError: Error, Hashable, Sendable, CustomStringConvertible {
    public let description: String
    public init(_ description: String) { self.description = description }
}

/// A byte count the way people write it: whole units when it is whole, else one decimal.
func sizeText(_ byteCount: UInt64) -> String {
    let units: [(UInt64, String)] = [(1 << 40, "T"), (1 << 30, "G"), (1 << 20, "M"), (1 << 10, "K")]
    for (unit, letter) in units where byteCount >= unit {
        if byteCount % unit == 0 { return "\(byteCount / unit)\(letter)" }
        return "\(byteCount / unit).\(byteCount % unit / (unit / 10 + 1))\(letter)"
    }
    return "\(byteCount) bytes"
}

/// The smallest whole number of megabytes that holds so many bytes, as `-m` takes it.
func megabytesText(_ byteCount: UInt64) -> String { "\(byteCount / (1 << 20) + (byteCount % (1 << 20) == 0 ? 0 : 1))M" }
