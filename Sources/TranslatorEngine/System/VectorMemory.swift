import CZydis

// Vector instructions whose elements touch memory one by one: gathers, scatters, and AVX's moves under a mask. The inline TLB check
// is made for one run of bytes, and what the mask leaves out must not fault.

extension SystemInstruction {
    /// Takes such an instruction apart: `register` is the vector that is loaded or stored, `rm` the mask, `index` the
    /// vector of a gather's indices, `operandSize` the bytes of an element, and `immediate` the bytes of the
    /// operation's vector, with the bytes of an index in bits 8-15.
    init?(vectorMemory decoded: UnsafePointer<ZydisDecodedInstruction>, _ operands: UnsafePointer<ZydisDecodedOperand>) {
        let kind: Kind
        let element: UInt8
        var index: UInt8 = 0
        switch decoded.pointee.mnemonic {
        case ZYDIS_MNEMONIC_VMASKMOVPS, ZYDIS_MNEMONIC_VPMASKMOVD: (kind, element) = (.maskedMove, 4)
        case ZYDIS_MNEMONIC_VMASKMOVPD, ZYDIS_MNEMONIC_VPMASKMOVQ: (kind, element) = (.maskedMove, 8)
        case ZYDIS_MNEMONIC_MASKMOVDQU, ZYDIS_MNEMONIC_VMASKMOVDQU, ZYDIS_MNEMONIC_MASKMOVQ: (kind, element) = (.maskedBytes, 1)
        case ZYDIS_MNEMONIC_VGATHERDPS, ZYDIS_MNEMONIC_VPGATHERDD: (kind, element, index) = (.gather, 4, 4)
        case ZYDIS_MNEMONIC_VGATHERQPS, ZYDIS_MNEMONIC_VPGATHERQD: (kind, element, index) = (.gather, 4, 8)
        case ZYDIS_MNEMONIC_VGATHERDPD, ZYDIS_MNEMONIC_VPGATHERDQ: (kind, element, index) = (.gather, 8, 4)
        case ZYDIS_MNEMONIC_VGATHERQPD, ZYDIS_MNEMONIC_VPGATHERQQ: (kind, element, index) = (.gather, 8, 8)
        case ZYDIS_MNEMONIC_VSCATTERDPS, ZYDIS_MNEMONIC_VPSCATTERDD: (kind, element, index) = (.scatter, 4, 4)
        case ZYDIS_MNEMONIC_VSCATTERQPS, ZYDIS_MNEMONIC_VPSCATTERQD: (kind, element, index) = (.scatter, 4, 8)
        case ZYDIS_MNEMONIC_VSCATTERDPD, ZYDIS_MNEMONIC_VPSCATTERDQ: (kind, element, index) = (.scatter, 8, 4)
        case ZYDIS_MNEMONIC_VSCATTERQPD, ZYDIS_MNEMONIC_VPSCATTERQQ: (kind, element, index) = (.scatter, 8, 8)
        default: return nil
        }
        // Under an opmask register.
        let isMasked = decoded.pointee.encoding == ZYDIS_INSTRUCTION_ENCODING_EVEX
        self.init(kind: kind == .gather && isMasked ? .maskedGather : kind)
        length = decoded.pointee.length
        operandSize = element
        addressSize = decoded.pointee.address_width / 8
        var registers: [2 of UInt8] = [0, 0]
        var count = 0
        var byteCount = 16
        var isStore = false
        for number in 0..<Int(decoded.pointee.operand_count) {
            let operand = operands[number]
            if operand.type == ZYDIS_OPERAND_TYPE_MEMORY {
                if number == 0 { isStore = true }
                takeAddress(operand.mem)
                if index != 0 { self.index = Self.vectorNumber(operand.mem.index) }
            } else if operand.type == ZYDIS_OPERAND_TYPE_REGISTER && Operand.isVector(operand.reg.value) && count < 2 {
                registers[count] = Self.vectorNumber(operand.reg.value)
                count += 1
                if operand.size == 256 { byteCount = 32 }
                if operand.size == 64 { byteCount = 8 }
            }
        }
        switch kind {
        // Loads name the destination, then the mask; stores the mask, then the source.
        case .maskedMove where isStore: (rm, register) = (registers[0], registers[1])
        case .maskedMove, .gather: (register, rm) = (registers[0], registers[1])
        default: (register, rm) = (registers[0], registers[1])
        }
        // The wider of data and indices names the vector length.
        if index != 0 { byteCount = Int(decoded.pointee.avx.vector_length) / 8 }
        if isMasked { rm = decoded.pointee.raw.evex.aaa }
        immediate = Int64(byteCount) | Int64(index) << 8 | (isStore ? 1 << 16 : 0)
    }

    private static func vectorNumber(_ register: ZydisRegister) -> UInt8 {
        UInt8(truncatingIfNeeded: Int(ZydisRegisterGetId(register))) & 31
    }
}

extension TranslatorCPU {
    /// Where a byte of a vector register is in the context.
    @inline(__always) private func place(_ vector: UInt8, _ offset: Int) -> UnsafeMutableRawPointer {
        let number = Int(vector)
        let field =
            number >= 16
            ? ContextOffset.zmmUpper + (number - 16) * 64
            : offset < 32 ? ContextOffset.ymm + number * 32 : ContextOffset.zmmHigh - 32 + number * 32
        return UnsafeMutableRawPointer(context) + field + offset
    }

    private func element(_ vector: UInt8, _ number: Int, _ size: Int) -> UInt64 {
        let at = place(vector, number * size)
        switch size {
        case 8: return at.load(as: UInt64.self)
        case 4: return UInt64(at.load(as: UInt32.self))
        default: return UInt64(at.load(as: UInt8.self))
        }
    }
    private func setElement(_ vector: UInt8, _ number: Int, _ size: Int, _ value: UInt64) {
        let at = place(vector, number * size)
        if size == 8 { at.storeBytes(of: value, as: UInt64.self) } else { at.storeBytes(of: UInt32(truncatingIfNeeded: value), as: UInt32.self) }
    }
    private func isChosen(_ mask: UInt8, _ number: Int, _ size: Int) -> Bool {
        element(mask, number, size) >> UInt64(size * 8 - 1) & 1 != 0
    }

    /// VMASKMOVPS/PD and VPMASKMOVD/Q (SDM Vol. 2).
    func maskedMove(_ instruction: UnsafePointer<SystemInstruction>) throws(GuestException) {
        let i = instruction.pointee
        let size = Int(i.operandSize)
        let count = Int(i.immediate & 0xFF) / size
        let base = effectiveAddress(instruction)
        if i.immediate & 1 << 16 != 0 {
            try maskedStore(i, base, count: count, size: size)
            return
        }
        var loaded: [8 of UInt64] = .init(repeating: 0)
        for number in 0..<count where isChosen(i.rm, number, size) {
            loaded[number] = try load(try linear(i, base, number * size, size), byteCount: size, user: isUser)
        }
        for number in 0..<count { setElement(i.register, number, size, loaded[number]) }
        clearAbove(i.register, count * size)
    }

    /// All elements are looked up before the first is written, so a fault leaves memory as it was.
    private func maskedStore(_ i: SystemInstruction, _ base: UInt64, count: Int, size: Int) throws(GuestException) {
        for pass in 0..<2 {
            for number in 0..<count where isChosen(i.rm, number, size) {
                let address = try linear(i, base, number * size, size, write: true)
                if pass == 0 {
                    try probeWrite(address, size)
                } else {
                    try store(address, element(i.register, number, size), byteCount: size, user: isUser)
                }
            }
        }
    }

    /// The fault that a write would meet, if any.
    func probeWrite(_ address: UInt64, _ size: Int) throws(GuestException) {
        let inFirst = min(size, 4096 - Int(address & 0xFFF))
        _ = try hostRun(address, inFirst, writes: true, user: isUser)
        if inFirst < size {
            let next = maskSystemAddress(address &+ UInt64(inFirst))
            _ = try hostRun(next, size - inFirst, writes: true, user: isUser)
        }
    }

    /// MASKMOVQ, MASKMOVDQU: bytes under a mask to [rdi].
    func maskedBytes(_ instruction: UnsafePointer<SystemInstruction>) throws(GuestException) {
        let i = instruction.pointee
        let base = context.pointee.gpr[7] & Self.mask(i.addressSize)
        try requireAlignment(base, 8)
        if i.immediate & 0xFF == 8 {
            try maskedMMX(i, base)
            return
        }
        try maskedStore(i, base, count: 16, size: 1)
    }

    /// MMX registers are the lower parts of the x87 registers, which are in the host CPU. The image numbers them
    /// from the top of stack; an MMX instruction sets that to 0 and all tags to valid (SDM Vol. 1, 9.5.1).
    private func maskedMMX(_ i: SystemInstruction, _ base: UInt64) throws(GuestException) {
        let image = xsaveArea + 1024
        saveExtendedState(to: image, mask: 1)
        let status = image.load(fromByteOffset: 2, as: UInt16.self)
        if status & 0x80 != 0 { throw GuestException(vector: 16) }
        let top = Int(status >> 11 & 7)
        func mmx(_ number: UInt8) -> UnsafeMutableRawPointer { image + 32 + ((Int(number & 7) - top) & 7) * 16 }
        for pass in 0..<2 {
            for number in 0..<8 where (mmx(i.rm) + number).load(as: UInt8.self) & 0x80 != 0 {
                if pass == 0 {
                    try probeWrite(try linear(i, base, number, 1, write: true), 1)
                } else {
                    let value = UInt64((mmx(i.register) + number).load(as: UInt8.self))
                    try store(try linear(i, base, number, 1, write: true), value, byteCount: 1, user: isUser)
                }
            }
        }
        // Turned so that physical register n comes n-th from the new top.
        let turned = xsaveArea + 2048
        turned.copyMemory(from: image, byteCount: 576)
        for number in 0..<8 { (turned + 32 + number * 16).copyMemory(from: mmx(UInt8(number)), byteCount: 16) }
        turned.storeBytes(of: status & ~0x3800, toByteOffset: 2, as: UInt16.self)
        turned.storeBytes(of: 0xFF, toByteOffset: 4, as: UInt8.self)
        restoreExtendedState(from: turned, mask: 1)
    }

    /// VGATHER and VPGATHER. Elements that are done leave the mask, so that after a fault the instruction goes on.
    func gather(_ instruction: UnsafePointer<SystemInstruction>) throws(GuestException) {
        let i = instruction.pointee
        if i.register == i.rm || i.register == i.index || i.rm == i.index { throw .invalidOpcode }
        let size = Int(i.operandSize)
        let indexSize = Int(i.immediate >> 8 & 0xFF)
        let length = Int(i.immediate & 0xFF)
        let count = length / max(size, indexSize)
        var scalar = i
        scalar.index = SystemInstruction.none
        let base = withUnsafePointer(to: scalar) { effectiveAddress($0) }
        // Masks are taken whole at the start: every element becomes all ones or all zeros.
        for number in 0..<count { setElement(i.rm, number, size, isChosen(i.rm, number, size) ? ~0 : 0) }
        for number in 0..<count {
            let raw = element(i.index, number, indexSize)
            let index = indexSize == 4 ? UInt64(bitPattern: Int64(Int32(truncatingIfNeeded: raw))) : raw
            guard isChosen(i.rm, number, size) else { continue }
            let address = (base &+ index &* UInt64(max(1, i.scale))) & Self.mask(i.addressSize)
            let value = try load(try linear(i, address, 0, size), byteCount: size, user: isUser)
            setElement(i.register, number, size, value)
            setElement(i.rm, number, size, 0)
        }
        for number in 0..<count { setElement(i.rm, number, size, 0) }
        clearAbove(i.register, count * size)
        clearAbove(i.rm, count * size)
    }

    /// VEX instructions clear what is above their result.
    private func clearAbove(_ vector: UInt8, _ byteCount: Int) {
        for offset in stride(from: byteCount, to: context.pointee.wideState != 0 ? 64 : 32, by: 4) {
            place(vector, offset).storeBytes(of: 0, as: UInt32.self)
        }
    }

    /// The elements of an EVEX gather or scatter from the first on: done, they leave the mask, so that after a fault the
    /// instruction goes on. `body` gets the element's number and its address.
    private func forEachElement(
        _ i: SystemInstruction, write: Bool, _ body: (Int, UInt64) throws(GuestException) -> Void
    ) throws(GuestException) {
        context.pointee.wideState = 1
        let size = Int(i.operandSize), mask = Int(i.rm & 7)
        let indexSize = Int(i.immediate >> 8 & 0xFF)
        let count = Int(i.immediate & 0xFF) / max(size, indexSize)
        var scalar = i
        scalar.index = SystemInstruction.none
        let base = withUnsafePointer(to: scalar) { effectiveAddress($0) }
        for number in 0..<count where context.pointee.opmask[mask] >> UInt64(number) & 1 != 0 {
            let raw = element(i.index, number, indexSize)
            let index = indexSize == 4 ? UInt64(bitPattern: Int64(Int32(truncatingIfNeeded: raw))) : raw
            let address = (base &+ index &* UInt64(max(1, i.scale))) & Self.mask(i.addressSize)
            try body(number, try linear(i, address, 0, size, write: write))
            context.pointee.opmask[mask] &= ~(1 << UInt64(number))
        }
        context.pointee.opmask[mask] = 0
    }

    /// VGATHER and VPGATHER under an opmask register (SDM Vol. 2).
    func maskedGather(_ instruction: UnsafePointer<SystemInstruction>) throws(GuestException) {
        let i = instruction.pointee
        if i.register == i.index { throw .invalidOpcode }
        let size = Int(i.operandSize)
        try forEachElement(i, write: false) { (number, address) throws(GuestException) in
            setElement(i.register, number, size, try load(address, byteCount: size, user: isUser))
        }
        clearAbove(i.register, Int(i.immediate & 0xFF) / max(size, Int(i.immediate >> 8 & 0xFF)) * size)
    }

    /// VSCATTER and VPSCATTER.
    func scatter(_ instruction: UnsafePointer<SystemInstruction>) throws(GuestException) {
        let i = instruction.pointee
        let size = Int(i.operandSize)
        try forEachElement(i, write: true) { (number, address) throws(GuestException) in
            try store(address, element(i.register, number, size), byteCount: size, user: isUser)
        }
    }

    /// The linear address of an element.
    private func linear(
        _ i: SystemInstruction, _ offset: UInt64, _ distance: Int, _ size: Int, write: Bool = false
    ) throws(GuestException) -> UInt64 {
        var address = offset &+ UInt64(distance)
        if !context.pointee.is64Bit { address &= 0xFFFF_FFFF }
        return try linear(i.segment, address, UInt64(size), write: write)
    }
}
