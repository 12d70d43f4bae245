// Bits of the system registers, by the manuals' names (SDM Vol. 3, chapters 2 and 4; AMD APM Vol. 2, chapter 3).

package enum CR0 {
    package static let pe: UInt64 = 1 << 0
    package static let mp: UInt64 = 1 << 1
    package static let em: UInt64 = 1 << 2
    package static let ts: UInt64 = 1 << 3
    package static let et: UInt64 = 1 << 4
    package static let ne: UInt64 = 1 << 5
    package static let wp: UInt64 = 1 << 16
    package static let am: UInt64 = 1 << 18
    package static let nw: UInt64 = 1 << 29
    package static let cd: UInt64 = 1 << 30
    package static let pg: UInt64 = 1 << 31
    /// Every bit that has a meaning; the others read as zero.
    static let defined = pe | mp | em | ts | et | ne | wp | am | nw | cd | pg
}

package enum CR4 {
    package static let vme: UInt64 = 1 << 0
    package static let pvi: UInt64 = 1 << 1
    package static let tsd: UInt64 = 1 << 2
    package static let de: UInt64 = 1 << 3
    package static let pse: UInt64 = 1 << 4
    package static let pae: UInt64 = 1 << 5
    package static let mce: UInt64 = 1 << 6
    package static let pge: UInt64 = 1 << 7
    package static let pce: UInt64 = 1 << 8
    package static let osfxsr: UInt64 = 1 << 9
    package static let osxmmexcpt: UInt64 = 1 << 10
    package static let umip: UInt64 = 1 << 11
    package static let fsgsbase: UInt64 = 1 << 16
    package static let pcide: UInt64 = 1 << 17
    package static let osxsave: UInt64 = 1 << 18
    package static let smep: UInt64 = 1 << 20
    package static let smap: UInt64 = 1 << 21
}

package enum EFER {
    package static let sce: UInt64 = 1 << 0
    package static let lme: UInt64 = 1 << 8
    package static let lma: UInt64 = 1 << 10
    package static let nxe: UInt64 = 1 << 11
}

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
