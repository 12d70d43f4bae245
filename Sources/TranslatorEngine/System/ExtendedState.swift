import Glibc
internal import VMM

/// The XSAVE image that state passes through: 64-byte aligned room on the stack, no guest memory.
struct ExtendedImage {
    /// Legacy region, header and AVX (SDM Vol. 1, 13.4): 832 bytes and 64 for alignment.
    static let byteCount = 832
    var storage: [112 of UInt64] = .init(repeating: 0)
    /// Room for one with AVX-512, at Intel's places or AMD's.
    static let wideByteCount = 4096
}

/// Bits of XCR0 and of XSTATE_BV (SDM Vol. 1, 13.1).
enum Component {
    static let x87: UInt64 = 1
    static let sse: UInt64 = 2
    static let avx: UInt64 = 4
    static let known = x87 | sse | avx
    /// AVX-512: the opmask registers, the upper halves of ZMM0-15, and ZMM16-31. Enabled together.
    static let opmask: UInt64 = 0x20
    static let zmmHigh: UInt64 = 0x40
    static let zmmUpper: UInt64 = 0x80
    static let wide = opmask | zmmHigh | zmmUpper
}

/// Where the components of AVX-512 lie in an XSAVE area of standard format, as the guest's CPUID says.
struct WideLayout {
    typealias Part = (component: UInt64, offset: Int, field: Int, count: Int)
    /// Component, place in the area, place in the context, bytes.
    let parts: [3 of Part]

    init(_ policy: CPUPolicy) {
        func offset(_ leaf: UInt32) -> Int { Int(policy.cpuid(0xD, leaf, cr4: 0, xcr0: 0).ebx) }
        parts = [
            (Component.opmask, offset(5), ContextOffset.opmask, 64), (Component.zmmHigh, offset(6), ContextOffset.zmmHigh, 512),
            (Component.zmmUpper, offset(7), ContextOffset.zmmUpper, 1024),
        ]
    }

    /// The parts of the components in a set, in the order of their numbers.
    @inline(__always) func forEach(in components: UInt64, _ body: (Part) -> Void) {
        for index in 0..<3 where components & parts[index].component != 0 { body(parts[index]) }
    }

    /// Bytes of a part that code can reach: outside of 64-bit code there are eight registers (SDM Vol. 1, 13.5.4).
    static func reach(_ part: Part, is64Bit: Bool) -> Int {
        is64Bit || part.component == Component.opmask ? part.count : part.component == Component.zmmHigh ? 256 : 0
    }
}

// FXSAVE, FXRSTOR, XSAVE, XSAVEOPT, XRSTOR in the standard format (SDM Vol. 1, chapter 13, and Vol. 2); the compacted
// one is ExtendedState+Compacted.swift's.
//
// State goes through an image of our own, never straight between the host's registers and guest memory: guest
// bytes are checked in a copy, and the host's last x87 instruction and data pointers, which are addresses of
// translated code, do not get out.
extension TranslatorCPU {
    static let mxcsrDefault: UInt32 = 0x1F80

    /// Lends `body` a zeroed, aligned image.
    @inline(__always)
    func withImage<Failure: Error>(
        _ body: (UnsafeMutableRawPointer) throws(Failure) -> Void
    ) throws(Failure) {
        if context.pointee.xcr0 & Component.wide != 0 {
            let base = wideImages + wideImagesLent * ExtendedImage.wideByteCount
            memset(base, 0, ExtendedImage.wideByteCount)
            wideImagesLent += 1
            defer { wideImagesLent -= 1 }
            return try body(base)
        }
        var image = ExtendedImage()
        try withUnsafeMutableBytes(of: &image) { (raw) throws(Failure) in
            guard let base = raw.baseAddress else { return }
            try body(base.alignedUp(toMultipleOf: 64))
        }
    }
    /// What `withImage`'s images have room for.
    var imageComponents: UInt64 { Component.known | context.pointee.xcr0 & Component.wide }

    /// Fills an image with the guest's state.
    func captureState(_ image: UnsafeMutableRawPointer, _ mask: UInt64) {
        // What is in its initial state is there already: zeros.
        let wide = context.pointee.wideState != 0 ? mask : mask & ~Component.wide
        saveExtendedState(to: image, mask: wide)
        hidePointers(image)
    }

    /// FOP, FIP and FDP: no guest instruction has the addresses that the host recorded.
    private func hidePointers(_ image: UnsafeMutableRawPointer) {
        image.storeBytes(of: 0, toByteOffset: 6, as: UInt16.self)
        image.storeBytes(of: 0, toByteOffset: 8, as: UInt64.self)
        image.storeBytes(of: 0, toByteOffset: 16, as: UInt64.self)
    }

    static func isZero(_ image: UnsafeMutableRawPointer, _ range: Range<Int>) -> Bool {
        var bits: UInt64 = 0
        for offset in stride(from: range.lowerBound, to: range.upperBound, by: 8) {
            bits |= image.load(fromByteOffset: offset, as: UInt64.self)
        }
        return bits == 0
    }

    /// XINUSE of a full image (SDM Vol. 1, 13.6): which components differ from their initial state. MXCSR is none of
    /// SSE's, and outside of 64-bit mode neither are registers 8 to 15.
    func inUse(_ image: UnsafeMutableRawPointer) -> UInt64 {
        var bits: UInt64 = 0
        let half = context.pointee.is64Bit ? 256 : 128
        // FCW 37FH, FSW 0, abridged tag 0, FOP 0.
        let control = image.load(as: UInt64.self)
        if control != 0x37F || !Self.isZero(image, 8..<24) || !Self.isZero(image, 32..<160) { bits |= Component.x87 }
        if !Self.isZero(image, 160..<160 &+ half) { bits |= Component.sse }
        if !Self.isZero(image, 576..<576 &+ half) { bits |= Component.avx }
        if context.pointee.wideState != 0 && context.pointee.xcr0 & Component.wide != 0 {
            let is64Bit = context.pointee.is64Bit
            wideLayout.forEach(in: Component.wide) { part in
                let end = part.offset + WideLayout.reach(part, is64Bit: is64Bit)
                if !Self.isZero(image, part.offset..<end) { bits |= part.component }
            }
        }
        return bits
    }

    /// For XGETBV, XSAVEC and XSAVES, which count MXCSR as SSE's (SDM Vol. 1, 13.6 and 13.10).
    func inUseWithControl(_ image: UnsafeMutableRawPointer) -> UInt64 {
        let mxcsr = image.load(fromByteOffset: 24, as: UInt32.self)
        return inUse(image) | (mxcsr != Self.mxcsrDefault ? Component.sse : 0)
    }

    func extendedStateInUse() -> UInt64 {
        var used: UInt64 = 0
        withImage { image in
            captureState(image, imageComponents)
            used = inUseWithControl(image)
        }
        return used
    }

    // MARK: Checks

    /// The linear address of the area, after the checks that all of these share.
    func area(
        _ instruction: UnsafePointer<SystemInstruction>, count: UInt64, alignment: UInt64, write: Bool
    ) throws(GuestException) -> UInt64 {
        let address = try linear(
            instruction.pointee.segment, effectiveAddress(instruction), count, write: write)
        // FXSAVE's and FXRSTOR's #AC is for addresses that are not even multiples of 4; XSAVE has none.
        if alignment == 16 { try requireAlignment(address, 4) }
        if address & (alignment &- 1) != 0 { throw .generalProtection() }
        return address
    }

    func requireXSAVE() throws(GuestException) {
        if context.pointee.cr4 & CR4.osxsave == 0 { throw .invalidOpcode }
        if context.pointee.cr0 & CR0.ts != 0 { throw .deviceNotAvailable }
    }

    private func requireFXSAVE() throws(GuestException) {
        if context.pointee.cr0 & (CR0.ts | CR0.em) != 0 { throw .deviceNotAvailable }
    }

    /// Reserved bits of MXCSR are those that its mask in the image lacks.
    func checkMXCSR(_ value: UInt32) throws(GuestException) {
        if value & ~0xFFFF == 0 { return }
        // Misaligned-SSE mode is AMD's bit 17.
        guard vendor == .amd, value & ~0x2_FFFF == 0 else { throw .generalProtection() }
    }

    // MARK: XSAVE, XSAVEOPT

    /// Both forms write what RFBM asks for; XSAVEOPT leaves out components in their initial state. The image in
    /// guest memory is written in one go, or not at all.
    func saveXState(_ instruction: UnsafePointer<SystemInstruction>) throws(GuestException) {
        try requireXSAVE()
        let optimised = instruction.pointee.kind == .xsaveopt
        if optimised && !policy.features.contains(.xsaveopt) { throw .invalidOpcode }
        let requested = context.pointee.xcr0 & pair
        let size = standardSize(requested)
        let address = try area(instruction, count: size, alignment: 64, write: true)
        try withImage { (image) throws(GuestException) in
            let fresh = image
            self.captureState(fresh, self.imageComponents)
            let used = self.inUse(fresh)
            let written = optimised ? requested & used : requested
            try self.withImage { (old) throws(GuestException) in
                // What is not saved stays as it was: read, merge, write.
                let user = self.isUser
                try self.load(
                    address, into: UnsafeMutableRawBufferPointer(start: old, count: Int(size)), user: user)
                self.merge(fresh, into: old, written, requested)
                self.mergeWide(fresh, into: old, written, compacted: nil)
                let header = old.load(fromByteOffset: 512, as: UInt64.self)
                old.storeBytes(of: header & ~requested | used & requested, toByteOffset: 512, as: UInt64.self)
                try self.store(address, from: UnsafeRawBufferPointer(start: old, count: Int(size)), user: user)
            }
        }
    }

    /// Copies the components of `written`; MXCSR comes along with SSE or AVX.
    func merge(
        _ fresh: UnsafeMutableRawPointer, into old: UnsafeMutableRawPointer, _ written: UInt64, _ requested: UInt64
    ) {
        if written & Component.x87 != 0 {
            old.copyMemory(from: fresh, byteCount: 24)
            old.advanced(by: 32).copyMemory(from: fresh.advanced(by: 32), byteCount: 128)
        }
        if requested & (Component.sse | Component.avx) != 0 {
            old.advanced(by: 24).copyMemory(from: fresh.advanced(by: 24), byteCount: 8)
        }
        if written & Component.sse != 0 {
            let count = context.pointee.is64Bit ? 256 : 128
            old.advanced(by: 160).copyMemory(from: fresh.advanced(by: 160), byteCount: count)
        }
        if written & Component.avx != 0 {
            let count = context.pointee.is64Bit ? 256 : 128
            old.advanced(by: 576).copyMemory(from: fresh.advanced(by: 576), byteCount: count)
        }
    }

    // MARK: AVX-512

    /// Bytes of a standard area for these components.
    func standardSize(_ requested: UInt64) -> UInt64 {
        if requested & Component.wide != 0 { return UInt64(policy.xsaveAreaSize(requested)) }
        return requested & Component.avx != 0 ? 832 : 576
    }

    /// Where a component lies in an area: in its standard place or, compacted, behind those before it that `held` names
    /// (SDM Vol. 1, 13.4.3).
    private func place(_ part: WideLayout.Part, compacted held: UInt64?) -> Int {
        guard let held else { return part.offset }
        var offset = held & Component.avx != 0 ? 832 : 576
        wideLayout.forEach(in: held & (part.component &- 1)) { offset += $0.count }
        return offset
    }

    /// Copies the components of `written` into an area.
    func mergeWide(
        _ fresh: UnsafeMutableRawPointer, into old: UnsafeMutableRawPointer, _ written: UInt64, compacted held: UInt64?
    ) {
        guard written & Component.wide != 0 else { return }
        let is64Bit = context.pointee.is64Bit
        wideLayout.forEach(in: written) { part in
            (old + place(part, compacted: held)).copyMemory(
                from: fresh + part.offset, byteCount: WideLayout.reach(part, is64Bit: is64Bit))
        }
    }

    /// Brings the components of an image that was read to their standard places, those that are not `present` in their
    /// initial state, and what code cannot reach as it is.
    func takeWide(_ image: UnsafeMutableRawPointer, present: UInt64, requested: UInt64, compacted held: UInt64?) {
        guard requested & Component.wide != 0 else { return }
        let is64Bit = context.pointee.is64Bit
        // From the last on: standard places are never in front of compacted ones.
        for index in (0..<3).reversed() {
            let part = wideLayout.parts[index]
            if present & part.component == 0 {
                Self.clear(image, part.offset, part.count)
            } else {
                memmove(image + part.offset, image + place(part, compacted: held), part.count)
            }
            let reach = WideLayout.reach(part, is64Bit: is64Bit)
            if reach < part.count {
                (image + part.offset + reach).copyMemory(
                    from: UnsafeRawPointer(context) + part.field + reach, byteCount: part.count - reach)
            }
        }
    }

    // MARK: XRSTOR

    /// Reads an area of whichever format.
    func readArea(
        _ address: UInt64, _ requested: UInt64, into image: UnsafeMutableRawPointer
    ) throws(GuestException) {
        let user = isUser
        func read(_ range: Range<Int>) throws(GuestException) {
            try load(
                address &+ UInt64(range.lowerBound), into: UnsafeMutableRawBufferPointer(start: image + range.lowerBound, count: range.count),
                user: user)
        }
        guard context.pointee.xcr0 & Component.wide != 0 else { return try read(0..<Int(standardSize(requested))) }
        // How long it is depends on the format.
        try read(0..<576)
        var end = Int(standardSize(requested))
        let held = image.load(fromByteOffset: 520, as: UInt64.self)
        if held >> 63 != 0 {
            end = held & requested & Component.avx != 0 ? 832 : 576
            wideLayout.forEach(in: held & requested) { end = place($0, compacted: held) + $0.count }
        }
        try read(576..<end)
    }

    func restoreXState(_ instruction: UnsafePointer<SystemInstruction>) throws(GuestException) {
        try requireXSAVE()
        let xcr0 = context.pointee.xcr0
        let requested = xcr0 & pair
        let address = try area(instruction, count: standardSize(requested), alignment: 64, write: false)
        try withImage { (image) throws(GuestException) in
            try self.readArea(address, requested, into: image)
            let present = image.load(fromByteOffset: 512, as: UInt64.self)
            if image.load(fromByteOffset: 520, as: UInt64.self) >> 63 != 0 && self.policy.features.contains(.xsavec) {
                try self.restoreCompacted(image, requested)
                return
            }
            // Bytes 8...23 of the header must be zero (SDM Vol. 1, 13.8).
            if present & ~xcr0 != 0 || !Self.isZero(image, 520..<536) { throw .generalProtection() }
            if requested & (Component.sse | Component.avx) != 0 {
                try self.checkMXCSR(image.load(fromByteOffset: 24, as: UInt32.self))
            }
            if !self.context.pointee.is64Bit { self.keepHighRegisters(image) }
            if present & Component.x87 == 0 { Self.initialiseX87(image) }
            if present & Component.sse == 0 { Self.clear(image, 160, self.context.pointee.is64Bit ? 256 : 128) }
            if present & Component.avx == 0 { Self.clear(image, 576, self.context.pointee.is64Bit ? 256 : 128) }
            self.takeWide(image, present: present, requested: requested, compacted: nil)
            if requested & (Component.sse | Component.avx) != Component.sse | Component.avx {
                self.keepUnrequested(image, requested)
            }
            self.install(image, requested)
        }
    }

    /// Registers 8 to 15 cannot be reached outside of 64-bit mode and keep their values.
    func keepHighRegisters(_ image: UnsafeMutableRawPointer) { keep(image, 288..<416, 704..<832) }

    /// MXCSR belongs to two components: loading AVX alone takes it along and leaves the XMM registers.
    private func keepUnrequested(_ image: UnsafeMutableRawPointer, _ requested: UInt64) {
        guard requested & (Component.sse | Component.avx) == Component.avx else { return }
        keepVectors(image)
    }

    func keepVectors(_ image: UnsafeMutableRawPointer) { keep(image, 160..<416) }

    /// Puts what the registers hold now into parts of an image.
    private func keep(_ image: UnsafeMutableRawPointer, _ first: Range<Int>, _ second: Range<Int> = 0..<0) {
        var current = ExtendedImage()
        withUnsafeMutableBytes(of: &current) { raw in
            guard let base = raw.baseAddress?.alignedUp(toMultipleOf: 64) else { return }
            saveExtendedState(to: base, mask: Component.known)
            image.advanced(by: first.lowerBound).copyMemory(from: base.advanced(by: first.lowerBound), byteCount: first.count)
            image.advanced(by: second.lowerBound).copyMemory(from: base.advanced(by: second.lowerBound), byteCount: second.count)
        }
    }

    static func initialiseX87(_ image: UnsafeMutableRawPointer) {
        image.storeBytes(of: 0x37F, as: UInt64.self)
        clear(image, 8, 16)
        clear(image, 32, 128)
    }

    static func clear(_ image: UnsafeMutableRawPointer, _ offset: Int, _ count: Int) {
        image.advanced(by: offset).initializeMemory(as: UInt8.self, repeating: 0, count: count)
    }

    /// Hands a checked image over. Every component in it is given with its values, so XSTATE_BV has them all.
    func install(_ image: UnsafeMutableRawPointer, _ requested: UInt64) {
        var mask = requested
        if mask & (Component.sse | Component.avx) == Component.avx { mask |= Component.sse }
        hidePointers(image)
        // Header: the standard form.
        Self.clear(image, 512, 64)
        image.storeBytes(of: mask, toByteOffset: 512, as: UInt64.self)
        restoreExtendedState(from: image, mask: mask)
    }

    // MARK: FXSAVE, FXRSTOR

    func saveFXState(_ instruction: UnsafePointer<SystemInstruction>) throws(GuestException) {
        try requireFXSAVE()
        let address = try area(instruction, count: 512, alignment: 16, write: true)
        try withImage { (image) throws(GuestException) in
            self.captureState(image, Component.x87 | Component.sse)
            // XMM registers are not saved without CR4.OSFXSR, nor at CPL 0 under EFER.FFXSR; bytes 464 to 511 are software's in any case, and
            // those of registers 8 to 15 stay as they were outside of 64-bit mode.
            let hasSSE = self.context.pointee.cr4 & CR4.osfxsr != 0
            let count = !hasSSE || self.skipsVectors ? 160 : self.context.pointee.is64Bit ? 416 : 288
            try self.store(address, from: UnsafeRawBufferPointer(start: image, count: count), user: self.isUser)
        }
    }

    func restoreFXState(_ instruction: UnsafePointer<SystemInstruction>) throws(GuestException) {
        try requireFXSAVE()
        let address = try area(instruction, count: 512, alignment: 16, write: false)
        try withImage { (image) throws(GuestException) in
            try self.load(address, into: UnsafeMutableRawBufferPointer(start: image, count: 512), user: self.isUser)
            let hasSSE = self.context.pointee.cr4 & CR4.osfxsr != 0
            if hasSSE { try self.checkMXCSR(image.load(fromByteOffset: 24, as: UInt32.self)) }
            if !self.context.pointee.is64Bit { self.keepHighRegisters(image) }
            if hasSSE && self.skipsVectors { self.keepVectors(image) }
            self.install(image, hasSSE ? Component.x87 | Component.sse : Component.x87)
        }
    }

    /// Fast FXSAVE and FXRSTOR (APM Vol. 2, 11.4.4.3): kernels' own move no XMM registers.
    private var skipsVectors: Bool {
        context.pointee.msr.efer & EFER.ffxsr != 0 && context.pointee.is64Bit && context.pointee.privilegeLevel == 0
    }
}
