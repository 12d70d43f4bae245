/// Which vector registers a guest may have, and so what is moved between the host and the context.
package enum VectorExtent: Equatable, Sendable {
    case sse, avx
    /// With opmask registers of 16 bits (AVX512F) or of 64 (AVX512BW).
    case avx512(wideMasks: Bool)

    package var hasAVX512: Bool {
        if case .avx512 = self { true } else { false }
    }
}

/// Sequences that move the state of AVX-512 (SDM Vol. 2, 2.7).
extension Emitter {
    /// An EVEX instruction of 512 bits without a mask up to its opcode: the operands are memory (or a register below
    /// 16) and registers.
    /// - Parameters:
    ///   - w: EVEX.W; `pp`: the prefix; `source`: vvvv, 0 where the instruction has none.
    private mutating func evex(map: Int, w: Bool, pp: Int, register: Int, source: Int = 0, opcode: UInt8) {
        byte(0x62)
        byte(UInt8(truncatingIfNeeded: 0x60 | (register & 8 == 0 ? 0x80 : 0) | (register & 16 == 0 ? 0x10 : 0) | map))
        byte(UInt8(truncatingIfNeeded: (w ? 0x80 : 0) | (~source & 15) << 3 | 4 | pp))
        byte(source & 16 == 0 ? 0x48 : 0x40)
        byte(opcode)
    }

    /// What lies beyond the YMM registers.
    fileprivate mutating func moveRegister(_ register: Int, store: Bool) {
        byte(0x65)
        if register < 16 {
            // vextractf64x4 gs:[...], zmm, 1 and vinsertf64x4 zmm, zmm, gs:[...], 1
            evex(map: 3, w: true, pp: 1, register: register, source: store ? 0 : register, opcode: store ? 0x1B : 0x1A)
            absolute(register, Int32(ContextOffset.zmmHigh + register * 32))
            byte(1)
        } else {
            // vmovups
            evex(map: 1, w: false, pp: 0, register: register, opcode: store ? 0x11 : 0x10)
            absolute(register, Int32(ContextOffset.zmmUpper + (register - 16) * 64))
        }
    }

    mutating func moveWideState(_ extent: VectorExtent, store: Bool) {
        for register in 0..<32 { moveRegister(register, store: store) }
        for register in 0..<8 {
            // kmovw or kmovq: the latter is AVX512BW's
            byte(0x65)
            if extent == .avx512(wideMasks: true) {
                byte(0xC4)
                byte(0xE1)
            } else {
                byte(0xC5)
            }
            byte(0xF8)
            byte(store ? 0x91 : 0x90)
            absolute(register, Int32(ContextOffset.opmask + register * 8))
        }
    }

    /// The initial state of AVX-512 in the host, where the guest's YMM registers are already: their upper halves are
    /// zero since `restoreVectors`.
    mutating func beginWideState() {
        for register in 16..<32 {
            // vpxord zmm, zmm, zmm
            byte(0x62)
            byte(UInt8(truncatingIfNeeded: 1 | (register & 8 == 0 ? 0xA0 : 0)))
            byte(UInt8(truncatingIfNeeded: (~register & 15) << 3 | 5))
            byte(0x40)
            byte(0xEF)
            modRM(3, register, register)
        }
        for register in 0..<8 as Range<UInt8> {
            // kxorw k, k, k
            byte(0xC5)
            byte(0x84 | (~register & 15) << 3)
            byte(0x47)
            byte(0xC0 | register << 3 | register)
        }
        storeContext32(ContextOffset.wideState, immediate: 1)
    }
}
