import CZydis
import Testing
import TranslatorEngine
import VMM

/// A CPU with 16 MB of RAM and tables built by hand: the place where system instructions are tested one at a time.
///
/// Linear addresses are physical ones. From `userStart` on pages belong to the user.
final class SystemMachine {
    let memory: GuestMemory
    let cpu: TranslatorCPU
    let ports = RecordingPorts()
    var context: UnsafeMutablePointer<Context> { cpu.context }

    static let pageTables: UInt64 = 0x1000
    static let gdt: UInt64 = 0x8000
    static let idt: UInt64 = 0x9000
    static let tss: UInt64 = 0xA000
    static let ldt: UInt64 = 0xC000
    static let kernelStack: UInt64 = 0x10_0000
    static let interruptStack: UInt64 = 0x18_0000
    static let code: UInt64 = 0x20_0000
    static let userStart: UInt64 = 0x80_0000
    static let userStack: UInt64 = 0x90_0000
    static let scratch: UInt64 = 0xA0_0000

    enum Mode: CaseIterable { case long, compatibility, protected32, protected16, real, virtual8086 }

    // Selectors
    static let kernelCode: UInt16 = 0x08
    static let kernelData: UInt16 = 0x10
    static let userCode32: UInt16 = 0x18
    static let userData: UInt16 = 0x20
    static let userCode: UInt16 = 0x28
    static let conforming: UInt16 = 0x30
    static let absent: UInt16 = 0x38
    static let tssSelector: UInt16 = 0x40
    static let kernelCode16: UInt16 = 0x50
    static let kernelData16: UInt16 = 0x58
    static let callGate: UInt16 = 0x60
    static let kernelCode32: UInt16 = 0x70
    static let readOnly: UInt16 = 0x78
    static let ldtSelector: UInt16 = 0x80

    init(_ mode: Mode = .long, level: Int = 0, localAPICs: [any LocalInterruptController] = []) throws {
        memory = try GuestMemory(ranges: [(0, 16 << 20)])
        let policy = try CPUPolicy(model: nil, engine: .translator, tscFrequencyHz: 2_000_000_000)
        cpu = try TranslatorCPU(
            wiring: Wiring(
                memory: memory, ports: PortBus([.init(0x40...0x4F, ports)]), mmio: MMIOBus([]),
                interrupts: NoInterrupts(), localAPICs: localAPICs, policy: policy))
        buildTables(isLong: mode == .long || mode == .compatibility)
        context.pointee.rip = Self.code
        context.pointee.gdtr = DescriptorTableRegister(base: Self.gdt, limit: 0xFF)
        context.pointee.idtr = DescriptorTableRegister(base: Self.idt, limit: 0xFFF)
        context.pointee.cr0 = CR0.pe | CR0.et | CR0.ne | CR0.wp
        context.pointee.dr7 = 0x400
        context.pointee.systemFlags = 2
        enter(mode, level: level)
    }

    /// Puts the CPU in a mode and level without any instruction.
    func enter(_ mode: Mode, level: Int) {
        let c = context
        let isLong = mode == .long || mode == .compatibility
        if isLong {
            c.pointee.cr0 |= CR0.pg
            c.pointee.cr3 = Self.pageTables
            c.pointee.cr4 = CR4.pae | CR4.pge | CR4.osfxsr | CR4.osxsave
            c.pointee.msr.efer = EFER.lme | EFER.lma | EFER.nxe | EFER.sce
            c.pointee.xcr0 = 7
        }
        c.pointee.tr = SegmentRegister(selector: Self.tssSelector, attributes: 0x8B, limit: 0x1FF, base: Self.tss)
        switch mode {
        case .long:
            c.pointee.cs = loaded(level == 0 ? Self.kernelCode : Self.userCode | 3)
            c.pointee.ss = level == 0 ? SegmentRegister(selector: 0) : loaded(Self.userData | 3)
        case .compatibility:
            c.pointee.cs = loaded(Self.userCode32 | 3)
            c.pointee.ss = loaded(Self.userData | 3)
        case .protected32:
            c.pointee.cs = loaded(level == 0 ? Self.kernelCode32 : Self.userCode32 | 3)
            c.pointee.ss = loaded(level == 0 ? Self.kernelData : Self.userData | 3)
        case .protected16:
            c.pointee.cs = loaded(Self.kernelCode16)
            c.pointee.ss = loaded(Self.kernelData16)
        case .real:
            c.pointee.cr0 &= ~(CR0.pe | CR0.pg)
            c.pointee.cs = SegmentRegister(selector: 0x1000, attributes: 0x9B, limit: 0xFFFF, base: 0x10000)
            c.pointee.ss = SegmentRegister(selector: 0x2000, attributes: 0x93, limit: 0xFFFF, base: 0x20000)
            c.pointee.idtr = DescriptorTableRegister(base: 0, limit: 0x3FF)
        case .virtual8086:
            c.pointee.systemFlags |= RFLAGS.vm
            c.pointee.cs = SegmentRegister(selector: 0x1000, attributes: 0xF3, limit: 0xFFFF, base: 0x10000)
            c.pointee.ss = SegmentRegister(selector: 0x2000, attributes: 0xF3, limit: 0xFFFF, base: 0x20000)
        }
        let data: SegmentRegister
        switch mode {
        case .real: data = SegmentRegister(selector: 0x3000, attributes: 0x93, limit: 0xFFFF, base: 0x30000)
        case .virtual8086: data = SegmentRegister(selector: 0x3000, attributes: 0xF3, limit: 0xFFFF, base: 0x30000)
        case .protected16: data = loaded(Self.kernelData16)
        default: data = loaded(Self.userData | 3)
        }
        c.pointee.ds = data
        c.pointee.es = data
        c.pointee.fs = data
        c.pointee.gs = data
        c.pointee.fsBase = data.base
        c.pointee.gsBase = data.base
        switch mode {
        case .real, .virtual8086, .protected16:
            c.pointee.rip = 0x100
            c.pointee.gpr[4] = 0x8000
        default: c.pointee.gpr[4] = c.pointee.privilegeLevel == 0 ? Self.kernelStack : Self.userStack
        }
    }

    /// The segment register that a good load of this selector gives.
    func loaded(_ selector: UInt16) -> SegmentRegister {
        let low = memory.load(Self.gdt + UInt64(selector & 0xFFF8), as: UInt64.self) ?? 0
        let raw = UInt32(truncatingIfNeeded: low & 0xFFFF | low >> 32 & 0xF_0000)
        return SegmentRegister(
            selector: selector, attributes: UInt32(truncatingIfNeeded: low >> 40 & 0xF0FF),
            limit: low & 1 << 55 != 0 ? raw << 12 | 0xFFF : raw,
            base: low >> 16 & 0xFF_FFFF | low >> 32 & 0xFF00_0000)
    }

    // MARK: Tables

    private func buildTables(isLong: Bool) {
        // Identity map of 16 MB: 2 MB pages from the PDPT at 0x2000 and the directory at 0x3000.
        memory.store(Self.pageTables, 0x2007 as UInt64)
        memory.store(0x2000, 0x3007 as UInt64)
        for index in 0..<8 as Range<UInt64> {
            let user: UInt64 = index * 0x20_0000 >= Self.userStart ? 4 : 0
            memory.store(0x3000 + index * 8, index * 0x20_0000 | 0x83 | user)
        }
        let entries: [(UInt16, UInt64)] = [
            (Self.kernelCode, 0x00AF_9B00_0000_FFFF), (Self.kernelData, 0x00CF_9300_0000_FFFF),
            (Self.userCode32, 0x00CF_FB00_0000_FFFF), (Self.userData, 0x00CF_F300_0000_FFFF),
            (Self.userCode, 0x00AF_FB00_0000_FFFF), (Self.conforming, 0x00AF_9F00_0000_FFFF),
            (Self.absent, 0x00CF_1300_0000_FFFF), (Self.kernelCode16, 0x0000_9B01_0000_FFFF),
            (Self.kernelData16, 0x0000_9302_0000_FFFF), (Self.kernelCode32, 0x00CF_9B00_0000_FFFF),
            (Self.readOnly, 0x00CF_F100_0000_FFFF),
        ]
        for (selector, value) in entries { memory.store(Self.gdt + UInt64(selector), value) }
        setSystemDescriptor(Self.tssSelector, type: 9, base: Self.tss, limit: 0x1FF, isLong: isLong)
        setSystemDescriptor(Self.ldtSelector, type: 2, base: Self.ldt, limit: 0xFF, isLong: isLong)
        if isLong {
            memory.store(Self.tss + 4, Self.kernelStack)
            memory.store(Self.tss + 0x24, Self.interruptStack)
        } else {
            memory.store(Self.tss + 4, UInt32(Self.kernelStack))
            memory.store(Self.tss + 8, UInt32(Self.kernelData))
        }
        // No I/O bitmap.
        memory.store(Self.tss + 102, 0xFFFF as UInt16)
    }

    func setSystemDescriptor(_ selector: UInt16, type: UInt64, base: UInt64, limit: UInt64, isLong: Bool) {
        let low =
            limit & 0xFFFF | (base & 0xFF_FFFF) << 16 | (0x80 | type) << 40 | (limit >> 16 & 0xF) << 48
            | (base >> 24 & 0xFF) << 56
        memory.store(Self.gdt + UInt64(selector), low)
        if isLong { memory.store(Self.gdt + UInt64(selector) + 8, base >> 32) }
    }

    /// An interrupt or trap gate of long mode.
    func setGate(_ vector: UInt8, _ offset: UInt64, type: UInt64 = 14, dpl: UInt64 = 0, ist: UInt64 = 0,
        selector: UInt16 = SystemMachine.kernelCode, present: Bool = true
    ) {
        let low =
            offset & 0xFFFF | UInt64(selector) << 16 | ist << 32 | type << 40 | dpl << 45
            | (present ? 1 << 47 : 0) | (offset >> 16 & 0xFFFF) << 48
        memory.store(Self.idt + UInt64(vector) * 16, low)
        memory.store(Self.idt + UInt64(vector) * 16 + 8, offset >> 32)
    }

    /// The same for protected mode.
    func setGate32(_ vector: UInt8, _ offset: UInt64, type: UInt64 = 14, dpl: UInt64 = 0,
        selector: UInt16 = SystemMachine.kernelCode32
    ) {
        let low =
            offset & 0xFFFF | UInt64(selector) << 16 | type << 40 | dpl << 45 | 1 << 47 | (offset >> 16 & 0xFFFF) << 48
        memory.store(Self.idt + UInt64(vector) * 8, low)
    }

    // MARK: Running

    struct NotDecoded: Error { let bytes: [UInt8] }

    static func decode(_ bytes: [UInt8], _ mode: ZydisMachineMode, _ width: ZydisStackWidth) throws
        -> SystemInstruction?
    {
        var decoder = ZydisDecoder()
        ZydisDecoderInit(&decoder, mode, width)
        var instruction = ZydisDecodedInstruction()
        let operands = UnsafeMutablePointer<ZydisDecodedOperand>.allocate(capacity: 10)
        defer { operands.deallocate() }
        operands.initialize(repeating: ZydisDecodedOperand(), count: 10)
        let status = ZydisDecoderDecodeFull(&decoder, bytes, bytes.count, &instruction, operands)
        guard status & 0x8000_0000 == 0 else { throw NotDecoded(bytes: bytes) }
        return SystemInstruction(&instruction, operands: operands)
    }

    func decode(_ bytes: [UInt8]) throws -> SystemInstruction? {
        if context.pointee.is64Bit {
            return try Self.decode(bytes, ZYDIS_MACHINE_MODE_LONG_64, ZYDIS_STACK_WIDTH_64)
        }
        if context.pointee.cs.isBig {
            return try Self.decode(bytes, ZYDIS_MACHINE_MODE_LONG_COMPAT_32, ZYDIS_STACK_WIDTH_32)
        }
        return try Self.decode(bytes, ZYDIS_MACHINE_MODE_LONG_COMPAT_16, ZYDIS_STACK_WIDTH_16)
    }

    func run(_ bytes: UInt8...) throws {
        guard var instruction = try decode(bytes) else { throw NotDecoded(bytes: bytes) }
        try cpu.perform(&instruction)
    }

    /// The exception that an instruction ends in; registers must be untouched then.
    func fault(_ bytes: UInt8..., sourceLocation: SourceLocation = #_sourceLocation) throws -> GuestException? {
        guard var instruction = try decode(bytes) else { throw NotDecoded(bytes: bytes) }
        let before = registers
        let rip = context.pointee.rip
        let flags = context.pointee.rflags
        do throws(GuestException) {
            try cpu.perform(&instruction)
            return nil
        } catch {
            #expect(registers == before, sourceLocation: sourceLocation)
            #expect(context.pointee.rip == rip, sourceLocation: sourceLocation)
            #expect(context.pointee.rflags == flags, sourceLocation: sourceLocation)
            return error
        }
    }

    var registers: [UInt64] { (0..<16).map { context.pointee.gpr[$0] } }

    /// Eight-byte words on the stack, from its top.
    func stack(_ count: Int) -> [UInt64] {
        (0..<count).map { memory.load(context.pointee.gpr[4] + UInt64($0) * 8, as: UInt64.self) ?? 0 }
    }
    func stack32(_ count: Int) -> [UInt32] {
        (0..<count).map { memory.load(context.pointee.gpr[4] + UInt64($0) * 4, as: UInt32.self) ?? 0 }
    }
    func push(_ values: UInt64...) {
        for value in values.reversed() {
            context.pointee.gpr[4] -= 8
            memory.store(context.pointee.gpr[4], value)
        }
    }
}

/// Remembers writes and answers reads with their port number.
///
/// `@unchecked Sendable`: a test makes every access and looks at them on its own thread.
final class RecordingPorts: PortDevice, @unchecked Sendable {
    var writes: [(port: UInt16, width: AccessWidth, value: UInt32)] = []
    var reads = 0
    func read(_ offset: UInt16, _ width: AccessWidth) -> UInt32 {
        reads += 1
        return 0xA5A5_A500 | UInt32(offset)
    }
    func write(_ offset: UInt16, _ width: AccessWidth, _ value: UInt32) { writes.append((offset, width, value)) }
}

final class NoInterrupts: InterruptSource {
    var isPending: Bool { false }
    func acknowledge() -> UInt8 { 0 }
}
