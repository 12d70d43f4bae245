import Glibc

// Between the registers and an XSAVE image of our own.
extension TranslatorCPU {
    /// The x87 state from the host CPU to the image, and back.
    private func saveX87() {
        unsafeBitCast(
            Int(cache.memory.executableBase) + thunks.pointee.xsave,
            to: (@convention(c) (UnsafeMutableRawPointer, UInt64) -> Void).self)(x87Image, 1)
    }
    private func loadX87() {
        unsafeBitCast(
            Int(cache.memory.executableBase) + thunks.pointee.xrstor,
            to: (@convention(c) (UnsafeMutableRawPointer, UInt64) -> Void).self)(x87Image, 1)
    }

    /// `run` begins and ends: between runs the thread may do other things, and the next run may be on another one.
    func takeHost() {
        loadX87()
        x87InHost = true
    }
    func leaveHost() {
        saveX87()
        x87InHost = false
    }

    /// Moves the guest's x87, SSE, AVX and AVX-512 state into an XSAVE image of standard format (64-byte aligned, with
    /// room for the components): `mask` says which components. The x87 state is in the host CPU while `run` is under way, else in
    /// `x87Image`; the vectors are in the context.
    package func saveExtendedState(to area: UnsafeMutableRawPointer, mask: UInt64) {
        if mask & 1 != 0 {
            if x87InHost { saveX87() }
            // FCW to FDP, and the registers behind MXCSR.
            area.copyMemory(from: x87Image, byteCount: 24)
            (area + 32).copyMemory(from: x87Image + 32, byteCount: 128)
        }
        let vectors = UnsafeRawPointer(context) + ContextOffset.ymm
        if mask & 6 != 0 {
            area.storeBytes(of: context.pointee.mxcsr, toByteOffset: 24, as: UInt32.self)
            area.storeBytes(of: 0xFFFF, toByteOffset: 28, as: UInt32.self)
        }
        if mask & 2 != 0 {
            for register in 0..<16 { (area + 160 + register * 16).copyMemory(from: vectors + register * 32, byteCount: 16) }
        }
        if mask & 4 != 0 {
            for register in 0..<16 { (area + 576 + register * 16).copyMemory(from: vectors + register * 32 + 16, byteCount: 16) }
        }
        if mask & Component.wide != 0 {
            wideLayout.forEach(in: mask) { part in
                (area + part.offset).copyMemory(from: UnsafeRawPointer(context) + part.field, byteCount: part.count)
            }
        }
    }

    /// The reverse of `saveExtendedState`. MXCSR comes with component 1 or 2 and must be valid.
    package func restoreExtendedState(from area: UnsafeRawPointer, mask: UInt64) {
        if mask & 1 != 0 {
            memset(x87Image, 0, 576)
            x87Image.copyMemory(from: area, byteCount: 24)
            (x87Image + 32).copyMemory(from: area + 32, byteCount: 128)
            x87Image.storeBytes(of: 1, toByteOffset: 512, as: UInt64.self)
            if x87InHost { loadX87() }
        }
        let vectors = UnsafeMutableRawPointer(context) + ContextOffset.ymm
        if mask & 6 != 0 { context.pointee.mxcsr = area.load(fromByteOffset: 24, as: UInt32.self) & 0xFFFF }
        if mask & 2 != 0 {
            for register in 0..<16 { (vectors + register * 32).copyMemory(from: area + 160 + register * 16, byteCount: 16) }
        }
        if mask & 4 != 0 {
            for register in 0..<16 { (vectors + register * 32 + 16).copyMemory(from: area + 576 + register * 16, byteCount: 16) }
        }
        guard mask & Component.wide != 0 else { return }
        wideLayout.forEach(in: mask) { part in
            (UnsafeMutableRawPointer(context) + part.field).copyMemory(from: area + part.offset, byteCount: part.count)
        }
        let fields = ContextOffset.zmmHigh..<ContextOffset.opmask + 64
        context.pointee.wideState = Self.isZero(UnsafeMutableRawPointer(context), fields) ? 0 : 1
    }
}
