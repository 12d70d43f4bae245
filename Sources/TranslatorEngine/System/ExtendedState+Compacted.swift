internal import VMM

// XSAVEC, XSAVES, XRSTORS, and XRSTOR of what they wrote (SDM Vol. 1, 13.8.2 and 13.10 to 13.12).
//
// x87, SSE and AVX state lie where they do in the standard format; AVX-512's components follow. IA32_XSS has no bits, so
// XSAVES differs from XSAVEC by its privilege. Both leave out components in their initial state; neither
// makes use of the modified optimisation, which is a CPU's choice.
extension TranslatorCPU {
    private static let compacted: UInt64 = 1 << 63

    func saveCompacted(_ instruction: UnsafePointer<SystemInstruction>) throws(GuestException) {
        let isSupervisor = instruction.pointee.kind == .xsaves
        guard policy.features.contains(isSupervisor ? .xsaves : .xsavec) else { throw .invalidOpcode }
        try requireXSAVE()
        if isSupervisor { try requireSupervisor() }
        let requested = context.pointee.xcr0 & pair
        let size = compactedSize(requested)
        let address = try area(instruction, count: size, alignment: 64, write: true)
        try withImage { (image) throws(GuestException) in
            let fresh = image
            self.captureState(fresh, self.imageComponents)
            let written = requested & self.inUseWithControl(fresh)
            try self.withImage { (old) throws(GuestException) in
                let user = self.isUser
                try self.load(
                    address, into: UnsafeMutableRawBufferPointer(start: old, count: Int(size)), user: user)
                // MXCSR belongs to SSE here, not to AVX.
                self.merge(fresh, into: old, written, written & ~Component.avx)
                self.mergeWide(fresh, into: old, written, compacted: requested)
                old.storeBytes(of: written, toByteOffset: 512, as: UInt64.self)
                old.storeBytes(of: requested | Self.compacted, toByteOffset: 520, as: UInt64.self)
                try self.store(address, from: UnsafeRawBufferPointer(start: old, count: Int(size)), user: user)
            }
        }
    }

    func restoreSupervisor(_ instruction: UnsafePointer<SystemInstruction>) throws(GuestException) {
        guard policy.features.contains(.xsaves) else { throw .invalidOpcode }
        try requireXSAVE()
        try requireSupervisor()
        let requested = context.pointee.xcr0 & pair
        let address = try area(instruction, count: compactedSize(requested), alignment: 64, write: false)
        try withImage { (image) throws(GuestException) in
            try self.readArea(address, requested, into: image)
            if image.load(fromByteOffset: 520, as: UInt64.self) & Self.compacted == 0 { throw .generalProtection() }
            try self.restoreCompacted(image, requested)
        }
    }

    private func compactedSize(_ requested: UInt64) -> UInt64 {
        var size: UInt64 = requested & Component.avx != 0 ? 832 : 576
        wideLayout.forEach(in: requested) { size += UInt64($0.count) }
        return size
    }

    /// Loads a copy of an image whose XCOMP_BV has bit 63.
    func restoreCompacted(_ image: UnsafeMutableRawPointer, _ requested: UInt64) throws(GuestException) {
        let present = image.load(fromByteOffset: 512, as: UInt64.self)
        let held = image.load(fromByteOffset: 520, as: UInt64.self) & ~Self.compacted
        guard present & ~held == 0, held & ~context.pointee.xcr0 == 0, Self.isZero(image, 528..<576) else {
            throw .generalProtection()
        }
        let half = context.pointee.is64Bit ? 256 : 128
        // First: without AVX they lie where it would.
        takeWide(image, present: present, requested: requested, compacted: held)
        if !context.pointee.is64Bit { keepHighRegisters(image) }
        if present & Component.x87 == 0 { Self.initialiseX87(image) }
        if present & Component.sse == 0 {
            Self.clear(image, 160, half)
            image.storeBytes(of: Self.mxcsrDefault, toByteOffset: 24, as: UInt32.self)
        } else if requested & Component.sse != 0 {
            try checkMXCSR(image.load(fromByteOffset: 24, as: UInt32.self))
        }
        if present & Component.avx == 0 { Self.clear(image, 576, half) }
        if requested & Component.sse == 0 {
            // Without SSE, MXCSR is not loaded either; AVX would take it along.
            image.storeBytes(of: context.pointee.mxcsr, toByteOffset: 24, as: UInt32.self)
            keepVectors(image)
        }
        install(image, requested)
    }
}
