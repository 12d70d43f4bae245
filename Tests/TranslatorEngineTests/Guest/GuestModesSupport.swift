import Foundation
import Testing
import TranslatorEngine
import VMM

/// How a run of blocks on a `SystemMachine` ended.
struct ModeOutcome: Hashable {
    /// The vector that was delivered; `nil` when the code's own HLT ended it.
    var vector: Int?
    var errorCode: UInt32 = 0
    /// Where the handler would return to, or of the HLT.
    var ip: UInt64
    var cs: UInt16
    var flags: UInt64 = 0
}

/// Runs translated code outside of 64-bit mode: every vector leads to a HLT.
extension SystemMachine {
    static let modeHandlers: UInt64 = 0x30_0000
    struct UnexpectedExit: Error { let exit: Exit }

    /// Where the code of the current CS lies at an offset.
    func codeAddress(_ offset: UInt64) -> UInt64 { (context.pointee.cs.base + offset) & 0xFFFF_FFFF }

    /// Makes the descriptor of a selector: `attributes` as segment registers have them.
    func setSegment(_ selector: UInt16, base: UInt64, limit: UInt64, attributes: UInt64) {
        let value =
            limit & 0xFFFF | (base & 0xFF_FFFF) << 16 | (attributes & 0xF0FF) << 40 | (limit >> 16 & 0xF) << 48
            | (base >> 24 & 0xFF) << 56
        memory.store(Self.gdt + UInt64(selector & 0xFFF8), value)
    }

    private func buildHandlers() {
        for vector in 0..<256 as Range<UInt64> {
            if context.pointee.cr0 & CR0.pe == 0 {
                memory.store(vector * 4, UInt32(0xF000_0000 | vector))
                memory.store(0xF_0000 + vector, 0xF4 as UInt8)
            } else if context.pointee.isLongMode {
                setGate(UInt8(vector), Self.modeHandlers + vector)
                memory.store(Self.modeHandlers + vector, 0xF4 as UInt8)
            } else {
                setGate32(UInt8(vector), Self.modeHandlers + vector, dpl: 3)
                memory.store(Self.modeHandlers + vector, 0xF4 as UInt8)
            }
        }
        if !context.pointee.isLongMode { context.pointee.idtr.limit = context.pointee.cr0 & CR0.pe == 0 ? 0x3FF : 0x7FF }
    }

    /// Runs code at CS:IP to a HLT.
    @discardableResult
    func runBlocks(_ bytes: [UInt8], at offset: UInt64? = nil) throws -> ModeOutcome {
        if let offset { context.pointee.rip = offset }
        memory.write(bytes, at: codeAddress(context.pointee.rip))
        return try runBlocks()
    }

    func runBlocks() throws -> ModeOutcome {
        buildHandlers()
        context.pointee.isHalted = false
        context.pointee.systemFlags &= ~RFLAGS.if
        // What was written behind the translator's back would not be seen.
        cpu.writeState(cpu.readState())
        let cpu = cpu
        let isOver = DispatchSemaphore(value: 0)
        Thread.detachNewThread { if isOver.wait(timeout: .now() + 20) == .timedOut { cpu.stop() } }
        defer { isOver.signal() }
        let exit = try cpu.run()
        guard case .halt = exit else { throw UnexpectedExit(exit: exit) }
        return outcome()
    }

    private func outcome() -> ModeOutcome {
        let c = context
        let isReal = c.pointee.cr0 & CR0.pe == 0
        let at = codeAddress(c.pointee.rip)
        let handlers = isReal ? 0xF_0000 : Self.modeHandlers
        guard at > handlers && at <= handlers + 256 && (!isReal || c.pointee.cs.selector == 0xF000) else {
            return ModeOutcome(vector: nil, ip: c.pointee.rip - 1, cs: c.pointee.cs.selector, flags: c.pointee.rflags)
        }
        let vector = Int(at - handlers) - 1
        let size: UInt64 = isReal ? 2 : c.pointee.isLongMode ? 8 : 4
        var stack = c.pointee.ss.base + c.pointee.gpr[4]
        func next() -> UInt64 {
            defer { stack += size }
            let value = memory.load(stack, as: UInt64.self) ?? 0
            return size == 8 ? value : value & (1 << (size * 8) - 1)
        }
        let code = !isReal && [8, 10, 11, 12, 13, 14, 17].contains(vector) ? UInt32(truncatingIfNeeded: next()) : 0
        let ip = next()
        let cs = UInt16(truncatingIfNeeded: next())
        return ModeOutcome(vector: vector, errorCode: code, ip: ip, cs: cs, flags: next())
    }

    subscript(register: GeneralRegister) -> UInt64 {
        get { context.pointee.gpr[register.rawValue] }
        set { context.pointee.gpr[register.rawValue] = newValue }
    }
    func word(_ address: UInt64) -> UInt16 { memory.load(address, as: UInt16.self) ?? 0 }
    func dword(_ address: UInt64) -> UInt32 { memory.load(address, as: UInt32.self) ?? 0 }
}
