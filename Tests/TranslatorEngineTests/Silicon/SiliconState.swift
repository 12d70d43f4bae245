import CSilicon
import VMM

/// All user-visible registers, word for word a `struct silicon_state` of the C side.
struct SiliconState {
    var words: [360 of UInt64] = .init(repeating: 0)

    static let byteCount = 2880
    /// Byte offsets of the XSAVE image's parts.
    static let xsave = 192

    subscript(gpr number: Int) -> UInt64 {
        get { words[number] }
        set { words[number] = newValue }
    }
    var rip: UInt64 {
        get { words[16] }
        set { words[16] = newValue }
    }
    var rflags: UInt64 {
        get { words[17] }
        set { words[17] = newValue }
    }
    var fsBase: UInt64 {
        get { words[18] }
        set { words[18] = newValue }
    }
    var gsBase: UInt64 {
        get { words[19] }
        set { words[19] = newValue }
    }
    var vector: Int {
        get { Int(words[20]) }
        set { words[20] = UInt64(newValue) }
    }
    var error: UInt64 {
        get { words[21] }
        set { words[21] = newValue }
    }
    var faultAddress: UInt64 {
        get { words[22] }
        set { words[22] = newValue }
    }
    /// ES, DS, FS and GS, from bit 0 on.
    var selectors: UInt64 {
        get { words[23] }
        set { words[23] = newValue }
    }
    /// A 64-bit word of the XSAVE image.
    subscript(xsave offset: Int) -> UInt64 {
        get { words[24 + offset / 8] }
        set { words[24 + offset / 8] = newValue }
    }
    /// One of the eight words of a ZMM register. Numbers above 15 and words above 3 are AVX-512's.
    subscript(vector number: Int, word: Int) -> UInt64 {
        get { self[xsave: Self.vectorOffset(number, word)] }
        set { self[xsave: Self.vectorOffset(number, word)] = newValue }
    }
    private static func vectorOffset(_ number: Int, _ word: Int) -> Int {
        if number >= 16 { return wide[2] + (number - 16) * 64 + word * 8 }
        if word >= 4 { return wide[1] + number * 32 + (word - 4) * 8 }
        return word < 2 ? 160 + number * 16 + word * 8 : 576 + number * 16 + (word - 2) * 8
    }
    subscript(mask number: Int) -> UInt64 {
        get { self[xsave: Self.wide[0] + number * 8] }
        set { self[xsave: Self.wide[0] + number * 8] = newValue }
    }
    /// Whether the host has AVX-512, and the places of its components: opmask, ZMM_Hi256, Hi16_ZMM.
    static let hasWide = HostCPU.current.features.contains(.avx512f)
    private static let wide = HostCPU.current.components[3...5].map { Int($0.ebx) }
    static let components: UInt64 = hasWide ? 0xE7 : 7
    /// An unmasked x87 exception keeps a store from happening, which a write to device memory does not see.
    var hasUnmaskedX87: Bool { self[xsave: 0] & 0x3F != 0x3F }
    var mxcsr: UInt32 { UInt32(truncatingIfNeeded: self[xsave: 24]) }

    static let arithmeticFlags: UInt64 = 0x8D5
    static let direction: UInt64 = 0x400
    static let alignmentCheck: UInt64 = 0x4_0000

    /// Registers to start a case with.
    /// - Parameter isWide: with AVX-512 state.
    static func random(_ random: inout SiliconRandom, isWide: Bool = false) -> SiliconState {
        var state = SiliconState()
        for number in 0..<16 { state[gpr: number] = random.integer() }
        state.rflags = random.next() & arithmeticFlags | 0x202 | (random.percent(15) ? direction : 0)
        if random.percent(4) { state.rflags |= alignmentCheck }
        state.fsBase = UInt64(SILICON_ARENA) &+ UInt64(random.below(64)) * 8
        state.gsBase = UInt64(SILICON_ARENA) &+ UInt64(random.below(64)) * 8
        // FCW: all masked but in one case of ten; any rounding and precision.
        var control: UInt64 = 0x7F | UInt64(random.below(16)) << 8
        if control >> 8 & 3 == 1 { control |= 0x300 }
        if random.percent(10) { control &= ~UInt64(random.below(64)) }
        // FSW: TOP and condition codes; pending exceptions mostly where they are masked.
        var status = UInt64(random.below(8)) << 11 | random.next() & 0x4700
        if random.percent(30) { status |= random.next() & 0x7F & control & 0x3F }
        if ~control & 0x3F != 0 && random.percent(30) { status |= ~control & 0x3F | 0x8080 }
        let tags = random.percent(50) ? 0 : random.percent(50) ? 0xFF : UInt64(random.byte())
        state[xsave: 0] = control | status << 16 | tags << 32
        var mxcsr: UInt64 = 0x1F80
        if random.percent(30) { mxcsr |= random.next() & 0x603F }
        if random.percent(20) { mxcsr |= random.next() & 0x8040 }
        if random.percent(8) { mxcsr &= ~(random.next() & 0x1F80) }
        state[xsave: 24] = mxcsr | 0xFFFF << 32
        for number in 0..<8 {
            let (significand, exponent) = random.extended()
            state[xsave: 32 + number * 16] = significand
            state[xsave: 40 + number * 16] = UInt64(exponent)
        }
        for number in 0..<16 {
            for word in 0..<4 { state[vector: number, word] = random.vectorWord() }
        }
        state[xsave: 512] = 7
        // Now and then in its initial state.
        if isWide && random.percent(80) {
            state[xsave: 512] = components
            for number in 0..<32 {
                for word in (number < 16 ? 4 : 0)..<8 { state[vector: number, word] = random.vectorWord() }
            }
            for number in 0..<8 { state[mask: number] = random.percent(20) ? ~0 : random.percent(50) ? random.next() : random.integer() }
        }
        return state
    }

    /// Outside of 64-bit code the upper halves of the registers are nobody's.
    mutating func cutToNarrow() {
        for number in 0..<8 { self[gpr: number] &= 0xFFFF_FFFF }
        rip &= 0xFFFF_FFFF
    }

    /// Four selectors, null ones as 0.
    private static func cutNull(_ selectors: UInt64) -> UInt64 {
        stride(from: 0, to: 64, by: 16).reduce(0) { $0 | (selectors >> UInt64($1) & 0xFFFC == 0 ? 0 : selectors & 0xFFFF << UInt64($1)) }
    }

    // MARK: Comparison

    static let registerNames = [
        "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15",
    ]

    /// What differs, in words; empty when nothing does. `self` is the silicon's.
    /// - Parameter flags: the flags that have to agree.
    func differences(_ other: SiliconState, flags: UInt64) -> [String] {
        var result: [String] = []
        func check(_ name: String, _ a: UInt64, _ b: UInt64) {
            if a != b { result.append("\(name): silicon \(hex(a)), translator \(hex(b))") }
        }
        check("vector", words[20], other.words[20])
        if vector != other.vector { return result + ["rip: silicon \(hex(rip)), translator \(hex(other.rip))"] }
        if vector != Int(SILICON_DONE) {
            check("rip", rip, other.rip)
            check("cs", error >> 32 & 0xFFFF, other.error >> 32 & 0xFFFF)
            if vector == 14 { check("fault address", faultAddress, other.faultAddress) }
            // Linux hides from user code which of the kernel's addresses are mapped.
            let hidden: UInt64 = vector == 14 && faultAddress >= 0x7FFF_FFFF_F000 ? 1 : 0
            check("error code", error & 0xFFFF_FFFF | hidden, other.error & 0xFFFF_FFFF | hidden)
        }
        check("ss", error >> 48, other.error >> 48)
        // On the way to a signal's handler null selectors lose their level.
        let isDone = vector == Int(SILICON_DONE)
        check("es, ds, fs, gs", isDone ? selectors : Self.cutNull(selectors), isDone ? other.selectors : Self.cutNull(other.selectors))
        for number in 0..<16 { check(Self.registerNames[number], words[number], other.words[number]) }
        check("rflags", rflags & flags, other.rflags & flags)
        check("fs base", fsBase, other.fsBase)
        check("gs base", gsBase, other.gsBase)
        // FOP and the pointers behind it are addresses of the host's code.
        let control: UInt64 = 0xFF_FFFF_FFFF
        check("x87 control, status, tags", self[xsave: 0] & control, other[xsave: 0] & control)
        check("mxcsr", UInt64(mxcsr), UInt64(other.mxcsr))
        for number in 0..<8 {
            check("st\(number) significand", self[xsave: 32 + number * 16], other[xsave: 32 + number * 16])
            check("st\(number) exponent", self[xsave: 40 + number * 16] & 0xFFFF, other[xsave: 40 + number * 16] & 0xFFFF)
        }
        for number in 0..<16 {
            for word in 0..<4 {
                check("ymm\(number)[\(word)]", self[vector: number, word], other[vector: number, word])
            }
        }
        guard Self.hasWide else { return result }
        for number in 0..<32 {
            for word in (number < 16 ? 4 : 0)..<8 {
                check("zmm\(number)[\(word)]", self[vector: number, word], other[vector: number, word])
            }
        }
        for number in 0..<8 { check("k\(number)", self[mask: number], other[mask: number]) }
        return result
    }
}

func hex(_ value: UInt64) -> String { "0x" + String(value, radix: 16) }
