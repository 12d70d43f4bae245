import CSilicon

/// One instruction of a case, with what depends on where it and its target lie.
struct SiliconPiece {
    enum Fix {
        case none
        /// A 32-bit displacement at `at`, relative to the piece's end: leads to a linear address.
        case displacement(at: Int, target: UInt64)
        /// A displacement of `size` bytes at `at`, relative to `from`: leads to the piece of that index.
        case branch(at: Int, size: Int, from: Int, to: Int)
    }
    var bytes: [UInt8]
    var fix = Fix.none
}

/// The kind of code that a case is.
enum SiliconMode: UInt32, CaseIterable, Sendable {
    case long, flat32, segmented16, segmented32
    /// Data and stack lie in segments of the arena, code in one that begins with its case's room.
    var isSegmented: Bool { self == .segmented16 || self == .segmented32 }
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

    /// Room for each case's code.
    static let codeBytes = 8192
    static func codeBase(_ slot: Int) -> UInt64 { UInt64(SILICON_CODE) + UInt64(slot * codeBytes) }

    /// The code as it runs at an address, without an end.
    func code(at address: UInt64) -> [UInt8] {
        var starts: [Int] = []
        var offset = 0
        for piece in pieces {
            starts.append(offset)
            offset += piece.bytes.count
        }
        starts.append(offset)
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
