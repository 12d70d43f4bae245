internal import VMM

// IN, OUT, INS, OUTS (SDM Vol. 1, chapter 19).
extension TranslatorCPU {
    /// IOPL, and below it the TSS's I/O permission bitmap (SDM Vol. 1, 19.5.2).
    @inline(__always)
    func checkPort(_ port: UInt16, size: UInt8) throws(GuestException) {
        if context.pointee.cr0 & CR0.pe == 0 { return }
        if context.pointee.systemFlags & RFLAGS.vm == 0 && context.pointee.privilegeLevel <= ioPrivilegeLevel { return }
        try checkPortBitmap(port, size: size)
    }

    private func checkPortBitmap(_ port: UInt16, size: UInt8) throws(GuestException) {
        let tr = context.pointee.tr
        guard !tr.isUnusable, tr.type & 8 != 0, tr.limit >= 103 else { throw .generalProtection() }
        let start = try load(maskSystemAddress(tr.base &+ 102), byteCount: 2, user: false, implicit: true)
        let offset = start &+ UInt64(port >> 3)
        // Two bytes are read whatever the port, so both have to lie in the segment.
        guard offset &+ 1 <= UInt64(tr.limit) else { throw .generalProtection() }
        let bits = try load(maskSystemAddress(tr.base &+ offset), byteCount: 2, user: false, implicit: true)
        let wanted = (1 as UInt64) << UInt64(size) &- 1
        if bits >> UInt64(port & 7) & wanted != 0 { throw .generalProtection() }
    }

    @inline(__always)
    private func width(_ size: UInt8) -> AccessWidth {
        size == 1 ? .byte : size == 2 ? .word : .dword
    }

    @inline(__always)
    private func port(_ instruction: UnsafePointer<SystemInstruction>) -> UInt16 {
        let immediate = instruction.pointee.immediate
        return immediate >= 0 ? UInt16(truncatingIfNeeded: immediate) : UInt16(truncatingIfNeeded: rdx)
    }

    @inline(__always)
    func portIn(_ instruction: UnsafePointer<SystemInstruction>) throws(GuestException) {
        let size = instruction.pointee.operandSize
        let port = port(instruction)
        try checkPort(port, size: size)
        setRegister(0, UInt64(ports.read(port, width(size))), size: size)
        notePort(port, size)
    }

    @inline(__always)
    func portOut(_ instruction: UnsafePointer<SystemInstruction>) throws(GuestException) {
        let size = instruction.pointee.operandSize
        let port = port(instruction)
        try checkPort(port, size: size)
        ports.write(port, width(size), UInt32(truncatingIfNeeded: rax & Self.mask(size)))
        notePort(port, size)
    }

    /// I/O breakpoints are traps (SDM Vol. 3, 18.3.1.2).
    @inline(__always)
    private func notePort(_ port: UInt16, _ size: UInt8) {
        if breakpoints.watchesPorts { debugHits |= breakpoints.port(port, size) }
    }

    // MARK: Strings
    //
    // One element a time, registers updated after each: a fault in the middle restarts where it happened. A device
    // is read only after the memory has been found writable, so that no datum is lost.

    /// Returns whether the instruction is done; otherwise it is to be run again, so that interrupts get a chance.
    func portInString(_ instruction: UnsafePointer<SystemInstruction>) throws(GuestException) -> Bool {
        let i = instruction.pointee
        let port = UInt16(truncatingIfNeeded: rdx)
        try checkPort(port, size: i.operandSize)
        return try repeatString(i) { (cpu) throws(GuestException) in
            let offset = cpu.register(7) & Self.mask(i.addressSize)
            let address = try cpu.linear(SegmentNumber.es, offset, UInt64(i.operandSize), write: true)
            try cpu.requireAlignment(address, UInt64(i.operandSize))
            try cpu.probeWrite(address, Int(i.operandSize))
            let value = UInt64(cpu.ports.read(port, cpu.width(i.operandSize)))
            try cpu.store(address, value, byteCount: Int(i.operandSize), user: cpu.isUser)
            cpu.notePort(port, i.operandSize)
            cpu.advance(7, i)
            return true
        }
    }

    func portOutString(_ instruction: UnsafePointer<SystemInstruction>) throws(GuestException) -> Bool {
        let i = instruction.pointee
        let port = UInt16(truncatingIfNeeded: rdx)
        try checkPort(port, size: i.operandSize)
        return try repeatString(i) { (cpu) throws(GuestException) in
            let value = try cpu.read(i.segment, cpu.register(6) & Self.mask(i.addressSize), size: i.operandSize)
            cpu.ports.write(port, cpu.width(i.operandSize), UInt32(truncatingIfNeeded: value))
            cpu.notePort(port, i.operandSize)
            cpu.advance(6, i)
            return true
        }
    }
}
