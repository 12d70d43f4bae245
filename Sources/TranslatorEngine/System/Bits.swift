// Flags by the manuals' names (SDM Vol. 1, 3.4.3).
/// Bits of RFLAGS.
package enum RFLAGS {
    package static let cf: UInt64 = 1 << 0
    package static let pf: UInt64 = 1 << 2
    package static let af: UInt64 = 1 << 4
    package static let zf: UInt64 = 1 << 6
    package static let sf: UInt64 = 1 << 7
    package static let tf: UInt64 = 1 << 8
    package static let `if`: UInt64 = 1 << 9
    package static let df: UInt64 = 1 << 10
    package static let of: UInt64 = 1 << 11
    package static let iopl: UInt64 = 3 << 12
    package static let nt: UInt64 = 1 << 14
    package static let rf: UInt64 = 1 << 16
    package static let vm: UInt64 = 1 << 17
    package static let ac: UInt64 = 1 << 18
    package static let vif: UInt64 = 1 << 19
    package static let vip: UInt64 = 1 << 20
    package static let id: UInt64 = 1 << 21
    /// Every flag that software can store.
    static let defined: UInt64 = 0x3F_7FD5
}

/// Numbers of segment registers in encoding order.
enum SegmentNumber {
    static let es: UInt8 = 0
    static let cs: UInt8 = 1
    static let ss: UInt8 = 2
    static let ds: UInt8 = 3
    static let fs: UInt8 = 4
    static let gs: UInt8 = 5
}
