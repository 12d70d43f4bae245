/// Sequences that move guest state between host registers and the context.
extension Emitter {
    /// Saves SF ZF AF PF CF OF to the context without changing them. Clobbers `scratch`, not rax.
    package mutating func saveFlags(scratch: Int) {
        move(scratch, HostRegister.rax)
        byte(0x9F)  // lahf
        byte(0x0F)
        byte(0x90)
        byte(0xC0)  // seto al
        byte(0x65)
        byte(0x66)
        byte(0x89)
        absolute(HostRegister.rax, Int32(ContextOffset.lahf))
        move(HostRegister.rax, scratch)
    }

    /// The reverse of `saveFlags`.
    package mutating func restoreFlags(scratch: Int) {
        move(scratch, HostRegister.rax)
        byte(0x65)
        byte(0x0F)
        byte(0xB7)
        absolute(HostRegister.rax, Int32(ContextOffset.lahf))  // movzx eax, word
        byte(0x04)
        byte(0x7F)  // add al, 0x7F: 1 overflows, 0 does not
        byte(0x9E)  // sahf
        move(HostRegister.rax, scratch)
    }

    /// Guest registers that live in host registers, to the context.
    package mutating func saveRegisters() {
        for register in 0..<13 where register != 4 { storeContext(ContextOffset.gpr + register * 8, register) }
        storeContext(ContextOffset.gpr + 4 * 8, RegisterMap.guestStack)
    }
    package mutating func restoreRegisters() {
        for register in 0..<13 where register != 4 { loadContext(register, ContextOffset.gpr + register * 8) }
        loadContext(RegisterMap.guestStack, ContextOffset.gpr + 4 * 8)
    }
    /// Those that a C function may clobber.
    package mutating func restoreCallerSaved() {
        for register in [0, 1, 2, 6, 7, 8, 9, 10, 11] { loadContext(register, ContextOffset.gpr + register * 8) }
    }

    /// `vmovups` (or `movups`) between a vector register and the context.
    private mutating func vector(_ register: Int, store: Bool, wide: Bool) {
        let offset = Int32(ContextOffset.ymm + register * 32)
        byte(0x65)
        if wide {
            // VEX.256.0F.WIG 10/11
            byte(0xC5)
            byte((register & 8 == 0 ? 0x80 : 0) | 0x7C)
        } else {
            rex(w: false, reg: register, base: 0)
            byte(0x0F)
        }
        byte(store ? 0x11 : 0x10)
        absolute(register, offset)
    }
    /// The guest's vector registers and MXCSR to the context; the host's MXCSR takes over. Clobbers flags.
    package mutating func saveVectors(_ extent: VectorExtent) {
        let wide = extent != .sse
        for register in 0..<16 { vector(register, store: true, wide: wide) }
        if extent.hasAVX512 {
            testContext32(ContextOffset.wideState)
            let skip = jump(if: Condition.equal)
            moveWideState(extent, store: true)
            bind(skip)
        }
        byte(0x65)
        byte(0x0F)
        byte(0xAE)
        absolute(3, Int32(ContextOffset.mxcsr))  // stmxcsr
        byte(0x65)
        byte(0x0F)
        byte(0xAE)
        absolute(2, Int32(ContextOffset.hostMXCSR))  // ldmxcsr
        storeContext32(ContextOffset.vectorsSaved, immediate: 1)
        if wide {
            // vzeroupper: no transition penalties in Swift's SSE code
            byte(0xC5)
            byte(0xF8)
            byte(0x77)
        }
    }
    /// The reverse. The VEX moves clear what is above their 256 bits, as the initial state wants it.
    package mutating func restoreVectors(_ extent: VectorExtent) {
        for register in 0..<16 { vector(register, store: false, wide: extent != .sse) }
        if extent.hasAVX512 {
            testContext32(ContextOffset.wideState)
            let skip = jump(if: Condition.equal)
            moveWideState(extent, store: false)
            bind(skip)
        }
        byte(0x65)
        byte(0x0F)
        byte(0xAE)
        absolute(2, Int32(ContextOffset.mxcsr))
        storeContext32(ContextOffset.vectorsSaved, immediate: 0)
    }
}

/// Where guest registers live while translated code runs.
///
/// rax...r12 but rsp are the host's own. The guest's rsp is the host's r15, because the host's rsp is the host's
/// stack. r13 and r14 are scratch, so the guest's r13, r14 and r15 stay in the context: no instruction names
/// them implicitly, and compilers use them last.
package enum RegisterMap {
    package static let guestStack = HostRegister.r15
    /// Effective, then host address.
    package static let address = HostRegister.r14
    /// TLB index, then any operand that has no register.
    package static let scratch = HostRegister.r13

    @inline(__always) package static func isDisplaced(_ guest: Int) -> Bool { guest >= 13 }
    /// The host register of one that is not displaced.
    @inline(__always) package static func host(_ guest: Int) -> Int { guest == 4 ? guestStack : guest }
    @inline(__always) package static func slot(_ guest: Int) -> Int { ContextOffset.gpr + guest * 8 }
}
