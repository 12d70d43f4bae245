import CZydis

/// Which parts of an EVEX instruction's memory operand its mask leaves out: what it leaves out must not fault, nor be
/// written (SDM Vol. 2, 2.7.8 and the exception types behind it).
///
/// Bits 0-2: the mask register; 3-5: log2 of how many of its bits count; 6-8: log2 of how many elements are in memory;
/// 9: the elements lie one behind the other, as many as bits are set (compress and expand).
package struct AccessMask: Equatable, Sendable {
    package let rawValue: UInt16
    package init(rawValue: UInt16) { self.rawValue = rawValue }

    package var register: Int { Int(rawValue & 7) }
    private var bitCount: Int { 1 << Int(rawValue >> 3 & 7) }
    private var elementCount: Int { 1 << Int(rawValue >> 6 & 7) }
    private var isContiguous: Bool { rawValue & 0x200 != 0 }

    /// The bytes of an operand of `size` bytes, at most 64, that are accessed under a mask's value.
    package func bytes(size: Int, mask: UInt64) -> UInt64 {
        var bits = mask & Self.low(bitCount)
        if isContiguous {
            return Self.low(bits.nonzeroBitCount * max(1, size / bitCount))
        }
        // An element that goes to several places counts when any of them does.
        var width = bitCount
        while width > elementCount {
            width /= 2
            bits |= bits >> UInt64(width)
        }
        let granule = granule(size: size)
        var result: UInt64 = 0
        for element in 0..<elementCount where bits >> UInt64(element) & 1 != 0 {
            result |= Self.low(granule) &<< UInt64(element * granule)
        }
        return result
    }
    /// Bytes of an element in memory.
    func granule(size: Int) -> Int { max(1, size / elementCount) }
    static func low(_ count: Int) -> UInt64 { count >= 64 ? ~0 : (1 << UInt64(count)) &- 1 }
}

extension AccessMask {
    /// `nil` when the whole operand is accessed: without a mask, and where the manual says "no fault suppression" (NF).
    init?(_ decoded: UnsafePointer<ZydisDecodedInstruction>, _ operand: UnsafePointer<ZydisDecodedOperand>) {
        let first = operand - Int(operand.pointee.id)
        guard decoded.pointee.encoding == ZYDIS_INSTRUCTION_ENCODING_EVEX, decoded.pointee.raw.evex.aaa != 0,
            Self.suppressesFaults(decoded), operand.pointee.element_size > 0
        else { return nil }
        let memoryBits = Int(operand.pointee.element_size)
        let isBroadcast = decoded.pointee.avx.broadcast.mode != ZYDIS_BROADCAST_MODE_INVALID
        let resultBits = Int(first.pointee.element_size)
        var isContiguous = false
        let bitCount: Int, elementCount: Int
        switch decoded.pointee.mnemonic {
        case ZYDIS_MNEMONIC_VCOMPRESSPS, ZYDIS_MNEMONIC_VCOMPRESSPD, ZYDIS_MNEMONIC_VPCOMPRESSB, ZYDIS_MNEMONIC_VPCOMPRESSW,
            ZYDIS_MNEMONIC_VPCOMPRESSD, ZYDIS_MNEMONIC_VPCOMPRESSQ, ZYDIS_MNEMONIC_VEXPANDPS, ZYDIS_MNEMONIC_VEXPANDPD,
            ZYDIS_MNEMONIC_VPEXPANDB, ZYDIS_MNEMONIC_VPEXPANDW, ZYDIS_MNEMONIC_VPEXPANDD, ZYDIS_MNEMONIC_VPEXPANDQ:
            isContiguous = true
            bitCount = Int(operand.pointee.size) / memoryBits
            elementCount = bitCount
        default:
            if operand.pointee.element_count == 1 && !isBroadcast {
                // Scalar.
                bitCount = 1
            } else if operand.pointee.id == 0 {
                bitCount = Int(operand.pointee.element_count)
            } else {
                // A mask as the result has elements of one bit.
                bitCount = Int(decoded.pointee.avx.vector_length) / max(memoryBits, resultBits)
            }
            if !isBroadcast {
                elementCount = bitCount
            } else if decoded.pointee.avx.broadcast.is_static != 0 {
                elementCount = Int(operand.pointee.size) / max(8, resultBits)
            } else {
                elementCount = 1
            }
        }
        guard bitCount > 0, elementCount > 0, bitCount & (bitCount - 1) == 0, elementCount & (elementCount - 1) == 0,
            elementCount <= bitCount, bitCount <= 64
        else { return nil }
        rawValue =
            UInt16(decoded.pointee.raw.evex.aaa) | UInt16(truncatingIfNeeded: bitCount.trailingZeroBitCount) << 3
            | UInt16(truncatingIfNeeded: elementCount.trailingZeroBitCount) << 6 | (isContiguous ? 0x200 : 0)
    }

    private static func suppressesFaults(_ decoded: UnsafePointer<ZydisDecodedInstruction>) -> Bool {
        // Zydis has these in type E4; the manual has them in E4NF.
        switch decoded.pointee.mnemonic {
        case ZYDIS_MNEMONIC_VDBPSADBW, ZYDIS_MNEMONIC_VGF2P8AFFINEQB, ZYDIS_MNEMONIC_VGF2P8AFFINEINVQB,
            ZYDIS_MNEMONIC_VCVTNE2PS2BF16:
            return false
        default: break
        }
        switch decoded.pointee.meta.exception_class {
        case ZYDIS_EXCEPTION_CLASS_E1, ZYDIS_EXCEPTION_CLASS_E2, ZYDIS_EXCEPTION_CLASS_E3, ZYDIS_EXCEPTION_CLASS_E4,
            ZYDIS_EXCEPTION_CLASS_E5, ZYDIS_EXCEPTION_CLASS_E6, ZYDIS_EXCEPTION_CLASS_E10, ZYDIS_EXCEPTION_CLASS_E11:
            return true
        default: return false
        }
    }
}
