/// Host registers in encoding order.
package enum HostRegister {
    package static let rax = 0, rcx = 1, rdx = 2, rbx = 3, rsp = 4, rbp = 5, rsi = 6, rdi = 7
    package static let r8 = 8, r9 = 9, r10 = 10, r11 = 11, r12 = 12, r13 = 13, r14 = 14, r15 = 15
}

/// Condition codes as Jcc, SETcc and CMOVcc encode them (SDM Vol. 2, B.1.4.7).
package enum Condition {
    package static let equal: UInt8 = 4, notEqual: UInt8 = 5, below: UInt8 = 2, belowOrEqual: UInt8 = 6, above: UInt8 = 7
}

/// An arithmetic operation of the first opcode group: the /digit of opcode 81 and bits 3-5 of its opcodes.
package enum Arithmetic: UInt8 {
    case add, or, adc, sbb, and, sub, xor, cmp
}

/// Writes x86-64 machine code at a cursor in raw memory.
///
/// The caller guarantees room: `CodeCache.reserve` keeps more free than the longest block needs. Nothing here
/// allocates. Register numbers are encodings (0-15).
package struct Emitter {
    package var cursor: UnsafeMutablePointer<UInt8>

    @inlinable package init(at address: UnsafeMutablePointer<UInt8>) { cursor = address }

    @inline(__always) package mutating func byte(_ value: UInt8) {
        cursor.pointee = value
        cursor += 1
    }
    /// Clears bits of the byte just written.
    package func maskLastByte(_ mask: UInt8) { (cursor - 1).pointee &= mask }
    @inline(__always) package mutating func word(_ value: UInt16) {
        UnsafeMutableRawPointer(cursor).storeBytes(of: value, as: UInt16.self)
        cursor += 2
    }
    @inline(__always) package mutating func dword(_ value: Int32) {
        UnsafeMutableRawPointer(cursor).storeBytes(of: value, as: Int32.self)
        cursor += 4
    }
    @inline(__always) package mutating func qword(_ value: UInt64) {
        UnsafeMutableRawPointer(cursor).storeBytes(of: value, as: UInt64.self)
        cursor += 8
    }

    // MARK: Encoding

    /// REX for a 64-bit or smaller operand; omitted when it would be 0x40 and is not forced.
    @inline(__always)
    package mutating func rex(w: Bool, reg: Int, index: Int = 0, base: Int, force: Bool = false) {
        let value = 0x40 | (w ? 8 : 0) | (reg & 8) >> 1 | (index & 8) >> 2 | (base & 8) >> 3
        if value != 0x40 || force { byte(UInt8(truncatingIfNeeded: value)) }
    }
    @inline(__always) package mutating func modRM(_ mod: Int, _ reg: Int, _ rm: Int) {
        byte(UInt8(truncatingIfNeeded: mod << 6 | (reg & 7) << 3 | rm & 7))
    }
    /// ModRM, SIB and displacement for `[base + displacement]`.
    @inline(__always) package mutating func memory(_ reg: Int, base: Int, _ displacement: Int32) {
        let needsSIB = base & 7 == 4
        if displacement == 0 && base & 7 != 5 {
            modRM(0, reg, base)
            if needsSIB { byte(0x24) }
        } else if displacement >= -128 && displacement < 128 {
            modRM(1, reg, base)
            if needsSIB { byte(0x24) }
            byte(UInt8(truncatingIfNeeded: displacement))
        } else {
            modRM(2, reg, base)
            if needsSIB { byte(0x24) }
            dword(displacement)
        }
    }
    /// ModRM, SIB and displacement for `[base + index * scale + displacement]`; `index` is not 4 (rsp), `scale` is log2.
    @inline(__always)
    package mutating func memory(_ reg: Int, base: Int, index: Int, scale: Int, _ displacement: Int32) {
        let sib = UInt8(truncatingIfNeeded: scale << 6 | (index & 7) << 3 | base & 7)
        if displacement == 0 && base & 7 != 5 {
            modRM(0, reg, 4)
            byte(sib)
        } else if displacement >= -128 && displacement < 128 {
            modRM(1, reg, 4)
            byte(sib)
            byte(UInt8(truncatingIfNeeded: displacement))
        } else {
            modRM(2, reg, 4)
            byte(sib)
            dword(displacement)
        }
    }
    /// ModRM, SIB and displacement for an absolute 32-bit address: with a gs prefix, a field of the context.
    @inline(__always) package mutating func absolute(_ reg: Int, _ displacement: Int32) {
        modRM(0, reg, 4)
        byte(0x25)
        dword(displacement)
    }

    // MARK: Moves

    @inline(__always) package mutating func move(_ destination: Int, _ source: Int) {
        rex(w: true, reg: source, base: destination)
        byte(0x89)
        modRM(3, source, destination)
    }
    @inline(__always) package mutating func move32(_ destination: Int, _ source: Int) {
        rex(w: false, reg: source, base: destination)
        byte(0x89)
        modRM(3, source, destination)
    }
    /// `mov destination, imm64`, in its shortest form.
    package mutating func move(_ destination: Int, immediate: UInt64) {
        if immediate <= 0xFFFF_FFFF {
            rex(w: false, reg: 0, base: destination)
            byte(0xB8 | UInt8(truncatingIfNeeded: destination & 7))
            dword(Int32(truncatingIfNeeded: immediate))
        } else if Int64(bitPattern: immediate) == Int64(Int32(truncatingIfNeeded: immediate)) {
            rex(w: true, reg: 0, base: destination)
            byte(0xC7)
            modRM(3, 0, destination)
            dword(Int32(truncatingIfNeeded: immediate))
        } else {
            rex(w: true, reg: 0, base: destination)
            byte(0xB8 | UInt8(truncatingIfNeeded: destination & 7))
            qword(immediate)
        }
    }
    @inline(__always) package mutating func lea(_ destination: Int, base: Int, _ displacement: Int32, wide: Bool = true) {
        rex(w: wide, reg: destination, base: base)
        byte(0x8D)
        memory(destination, base: base, displacement)
    }
    @inline(__always)
    package mutating func lea(
        _ destination: Int, base: Int, index: Int, scale: Int, _ displacement: Int32, wide: Bool = true
    ) {
        rex(w: wide, reg: destination, index: index, base: base)
        byte(0x8D)
        memory(destination, base: base, index: index, scale: scale, displacement)
    }
    /// `lea destination, [index * scale + displacement]`.
    @inline(__always)
    package mutating func lea(_ destination: Int, index: Int, scale: Int, _ displacement: Int32, wide: Bool = true) {
        rex(w: wide, reg: destination, index: index, base: 0)
        byte(0x8D)
        modRM(0, destination, 4)
        byte(UInt8(truncatingIfNeeded: scale << 6 | (index & 7) << 3 | 5))
        dword(displacement)
    }

    /// `movzx register, register16`.
    @inline(__always) package mutating func zeroExtend16(_ register: Int) { zeroExtend16(register, from: register) }
    @inline(__always) package mutating func zeroExtend16(_ destination: Int, from source: Int) {
        rex(w: false, reg: destination, base: source)
        byte(0x0F)
        byte(0xB7)
        modRM(3, destination, source)
    }

    // MARK: Context fields (gs-relative)

    @inline(__always) package mutating func loadContext(_ destination: Int, _ offset: Int) {
        byte(0x65)
        rex(w: true, reg: destination, base: 0)
        byte(0x8B)
        absolute(destination, Int32(truncatingIfNeeded: offset))
    }
    @inline(__always) package mutating func storeContext(_ offset: Int, _ source: Int) {
        byte(0x65)
        rex(w: true, reg: source, base: 0)
        byte(0x89)
        absolute(source, Int32(truncatingIfNeeded: offset))
    }
    /// `mov dword gs:[offset], immediate`.
    package mutating func storeContext32(_ offset: Int, immediate: Int32) {
        byte(0x65)
        byte(0xC7)
        absolute(0, Int32(truncatingIfNeeded: offset))
        dword(immediate)
    }
    /// `op destination, gs:[offset]`.
    @inline(__always) package mutating func arithmeticContext(_ operation: Arithmetic, _ destination: Int, _ offset: Int) {
        byte(0x65)
        rex(w: true, reg: destination, base: 0)
        byte(operation.rawValue << 3 | 3)
        absolute(destination, Int32(truncatingIfNeeded: offset))
    }
    /// `op destination, gs:[base + offset]`; `base` is not rsp or r12.
    @inline(__always)
    package mutating func arithmeticContext(_ operation: Arithmetic, _ destination: Int, base: Int, _ offset: Int) {
        byte(0x65)
        rex(w: true, reg: destination, base: base)
        byte(operation.rawValue << 3 | 3)
        modRM(2, destination, base)
        dword(Int32(truncatingIfNeeded: offset))
    }
    /// `cmp dword gs:[offset], 0`.
    @inline(__always) package mutating func testContext32(_ offset: Int) {
        byte(0x65)
        byte(0x83)
        absolute(7, Int32(truncatingIfNeeded: offset))
        byte(0)
    }

    // MARK: Arithmetic

    @inline(__always) package mutating func arithmetic(_ operation: Arithmetic, _ destination: Int, _ source: Int) {
        rex(w: true, reg: source, base: destination)
        byte(operation.rawValue << 3 | 1)
        modRM(3, source, destination)
    }
    @inline(__always)
    package mutating func arithmetic(_ operation: Arithmetic, _ destination: Int, immediate: Int32, wide: Bool = true) {
        rex(w: wide, reg: 0, base: destination)
        if immediate >= -128 && immediate < 128 {
            byte(0x83)
            modRM(3, Int(operation.rawValue), destination)
            byte(UInt8(truncatingIfNeeded: immediate))
        } else {
            byte(0x81)
            modRM(3, Int(operation.rawValue), destination)
            dword(immediate)
        }
    }
    @inline(__always) package mutating func shiftRight(_ destination: Int, _ count: UInt8) {
        rex(w: true, reg: 0, base: destination)
        byte(0xC1)
        modRM(3, 5, destination)
        byte(count)
    }
    @inline(__always) package mutating func shiftRightArithmetic(_ destination: Int, _ count: UInt8, wide: Bool) {
        rex(w: wide, reg: 0, base: destination)
        byte(0xC1)
        modRM(3, 7, destination)
        byte(count)
    }
    /// BMI2 `rorx destination, source, count`: no flags, no extra move.
    @inline(__always) package mutating func rotateRight(_ destination: Int, _ source: Int, _ count: UInt8) {
        byte(0xC4)
        byte(UInt8(truncatingIfNeeded: (destination & 8 == 0 ? 0x80 : 0) | 0x40 | (source & 8 == 0 ? 0x20 : 0) | 3))
        byte(0xFB)
        byte(0xF0)
        modRM(3, destination, source)
        byte(count)
    }

    // MARK: Branches

    /// `jcc rel32`, returning where the displacement stands.
    @inline(__always) package mutating func jump(if condition: UInt8) -> UnsafeMutablePointer<UInt8> {
        byte(0x0F)
        byte(0x80 | condition)
        dword(0)
        return cursor - 4
    }
    @inline(__always) package mutating func jump() -> UnsafeMutablePointer<UInt8> {
        byte(0xE9)
        dword(0)
        return cursor - 4
    }
    /// Makes a displacement emitted earlier lead here.
    @inline(__always) package func bind(_ displacement: UnsafeMutablePointer<UInt8>) {
        let distance = cursor - (displacement + 4)
        UnsafeMutableRawPointer(displacement).storeBytes(of: Int32(truncatingIfNeeded: distance), as: Int32.self)
    }
    /// `call`/`jmp` register-indirect.
    package mutating func call(register: Int) {
        rex(w: false, reg: 0, base: register)
        byte(0xFF)
        modRM(3, 2, register)
    }
    package mutating func jump(register: Int) {
        rex(w: false, reg: 0, base: register)
        byte(0xFF)
        modRM(3, 4, register)
    }
    package mutating func push(_ register: Int) {
        rex(w: false, reg: 0, base: register)
        byte(0x50 | UInt8(truncatingIfNeeded: register & 7))
    }
    package mutating func pop(_ register: Int) {
        rex(w: false, reg: 0, base: register)
        byte(0x58 | UInt8(truncatingIfNeeded: register & 7))
    }
    package mutating func ret() { byte(0xC3) }
}
