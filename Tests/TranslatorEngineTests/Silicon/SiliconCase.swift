import CSilicon

/// One instruction of a case, with what depends on where it and its target lie.
struct SiliconPiece {
    enum Fix {
        case none
        /// A 32-bit displacement at `at`, relative to the piece's end: leads to a linear address.
        case displacement(at: Int, target: UInt64)
        /// A displacement of `size` bytes at `at`, relative to `from`: leads to the piece of that index.
        case branch(at: Int, size: Int, from: Int, to: Int)
        /// A far pointer at `at` to the piece of that index, whose code is of another mode.
        case far(at: Int, size: Int, to: Int, SiliconMode)
    }
    var bytes: [UInt8]
    var fix = Fix.none
    /// An end of the case, in code of that mode.
    var landing: SiliconMode?

    /// Where control may go instead of the case's end; what runs there says so in AL.
    static func ends(_ mode: SiliconMode) -> [SiliconPiece] {
        let end = [0xCD, 0x80] + [UInt8](repeating: 0x90, count: Int(SILICON_EXIT_BYTES) - 2)
        return [SiliconPiece(bytes: [0xB0, 0xE0 | UInt8(mode.rawValue)]), SiliconPiece(bytes: end, landing: mode)]
    }
}

/// Bytes that lie in the arena when a case begins, with addresses of its pieces among them.
struct SiliconPatch {
    /// In the arena.
    var offset: Int
    var bytes: [UInt8]
    /// The address of a piece as code of a mode knows it; of no bytes: that code's selector.
    var addresses: [(at: Int, size: Int, to: Int, mode: SiliconMode)] = []

    func bytes(_ one: SiliconCase, at address: UInt64) -> [UInt8] {
        var result = bytes
        for (at, size, to, mode) in addresses {
            let value = size == 0 ? UInt64(mode.codeSelector(at: address)) : mode.offset(of: address + UInt64(one.starts[to]))
            for byte in 0..<(size == 0 ? 2 : size) { result[at + byte] = UInt8(truncatingIfNeeded: value >> UInt64(byte * 8)) }
        }
        return result
    }
}

/// The kind of code that a case is.
enum SiliconMode: UInt32, CaseIterable, Sendable {
    case long, flat32, segmented16, segmented32
    /// Data and stack lie in segments of the arena, code in one that begins with its case's room.
    var isSegmented: Bool { self == .segmented16 || self == .segmented32 }

    /// The selector of its code in the case that lies there.
    func codeSelector(at address: UInt64) -> UInt16 {
        let slot = UInt16((address - UInt64(SILICON_CODE)) / UInt64(SiliconCase.codeBytes))
        switch self {
        case .long: return 0x33
        case .flat32: return 0x23
        case .segmented16: return UInt16(SILICON_CODE_16) + slot * 8
        case .segmented32: return UInt16(SILICON_CODE_32) + slot * 8
        }
    }
    /// An address in that segment.
    func offset(of address: UInt64) -> UInt64 {
        isSegmented ? (address - UInt64(SILICON_CODE)) % UInt64(SiliconCase.codeBytes) : address
    }
}

/// Code, registers and surroundings: everything that makes both sides do the same.
struct SiliconCase {
    var pieces: [SiliconPiece]
    var state: SiliconState
    /// The arithmetic flags that are defined at the end.
    var flags: UInt64 = SiliconState.arithmeticFlags
    /// Those that are known when an instruction faults: flags that will be overwritten are not kept up to date.
    var faultFlags: UInt64 = 0
    /// Which fault comes first, and at which byte, is the CPU model's own choice.
    var isFaultLoose = false
    /// The CPU runs UD2 in its place: CPUID does not show the instruction.
    var isHidden = false
    /// A memory operand of 16 bytes or more: which fault comes first is up to the CPU.
    var isWide = false
    /// A memory operand under a mask of AVX-512.
    var isMasked = false
    /// Zydis knows no such instruction.
    var isUndefined = false
    var mode = SiliconMode.long
    var pattern: UInt32 = 0
    /// Where in its two pages the code starts.
    var codeOffset = 0
    /// Bit n: page n of the arena is device memory to the guest.
    var devicePages: UInt8 = 0
    /// The guest's software TLB is empty at the start.
    var flushesTLB = true

    var patch: SiliconPatch?
    /// Places of the arena that hold addresses of the host's code.
    var ignored: [Range<Int>] = []
    /// The bases of FS and GS are the CPU model's choice.
    var ignoresBases = false
    /// Its pieces belong together.
    var canBeReduced = true

    /// Room for each case's code.
    static let codeBytes = 8192
    static func codeBase(_ slot: Int) -> UInt64 { UInt64(SILICON_CODE) + UInt64(slot * codeBytes) }

    /// Where each piece begins, and where the last one ends.
    var starts: [Int] { pieces.reduce(into: [0]) { $0.append($0[$0.count - 1] + $1.bytes.count) } }

    /// The code as it runs at an address, without an end.
    func code(at address: UInt64) -> [UInt8] {
        let starts = starts
        var result: [UInt8] = []
        for (index, piece) in pieces.enumerated() {
            var bytes = piece.bytes
            func patch(_ at: Int, _ size: Int, _ value: Int) {
                for byte in 0..<size { bytes[at + byte] = UInt8(truncatingIfNeeded: value >> (byte * 8)) }
            }
            switch piece.fix {
            case .none: break
            case .displacement(let at, let target):
                let end = address &+ UInt64(starts[index] + bytes.count)
                patch(at, 4, Int(Int64(bitPattern: target &- end)))
            case .branch(let at, let size, let from, let to):
                patch(at, size, starts[to] - (starts[index] + from))
            case .far(let at, let size, let to, let mode):
                patch(at, size, Int(truncatingIfNeeded: mode.offset(of: address + UInt64(starts[to]))))
                patch(at + size, 2, Int(mode.codeSelector(at: address)))
            }
            result += bytes
        }
        return result
    }

    /// The case without one piece; branches to it lead behind it.
    func removing(_ index: Int) -> SiliconCase {
        var result = self
        result.pieces.remove(at: index)
        for position in result.pieces.indices {
            if case .branch(let at, let size, let from, let to) = result.pieces[position].fix, to > index {
                result.pieces[position].fix = .branch(at: at, size: size, from: from, to: to - 1)
            }
        }
        return result
    }

    func description(at address: UInt64, _ decoder: SiliconDecoder) -> String {
        let bytes = code(at: address)
        var lines: [String] = []
        var offset = 0
        while offset < bytes.count {
            let rest = Array(bytes[offset..<min(bytes.count, offset + 15)])
            let text = decoder.text(rest, at: address + UInt64(offset))
            let length = max(1, min(rest.count, decoder.length))
            let encoded = rest[..<length].map { String($0 >> 4, radix: 16) + String($0 & 15, radix: 16) }.joined(separator: " ")
            lines.append("    \(hex(address + UInt64(offset))): \(encoded)  \(text)")
            offset += length
        }
        let registers = (0..<16).map { "\(SiliconState.registerNames[$0])=\(hex(state[gpr: $0]))" }.joined(separator: " ")
        lines.append("    \(registers)")
        lines.append(
            "    rflags=\(hex(state.rflags)) fs=\(hex(state.fsBase)) gs=\(hex(state.gsBase)) mxcsr=\(hex(UInt64(state.mxcsr)))"
                + " x87=\(hex(state[xsave: 0])) device pages=\(devicePages) pattern=\(pattern)"
                + " flags compared=\(hex(flags))")
        return lines.joined(separator: "\n")
    }
}
