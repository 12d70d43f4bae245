import CSilicon
import Foundation
import TranslatorEngine
import VMM

/// Runs cases on the silicon and on the translator and says where they differ.
final class SiliconRunner {
    struct Failure {
        var one: SiliconCase
        var slot: Int
        var differences: [String]
        /// The translator was stopped: every further run of it would take as long.
        var isHang: Bool { differences[0].hasPrefix("the translator left") }
    }
    struct NoSilicon: Error {}
    static let needed: CPUFeatures = [.avx2, .bmi2, .fsgsbase]

    private var silicon: silicon
    let machine: TestMachine
    private let device = ArenaDevice()
    /// One for each mode.
    let decoders: [SiliconDecoder]
    private let image = UnsafeMutableRawPointer.allocate(byteCount: 4096, alignment: 64)
    private var mappedDevices: UInt8 = 0

    private static let codePhysical: UInt64 = 0x10_0000
    private static let arenaPhysical: UInt64 = 0x20_0000
    static let devicePhysical: UInt64 = 0xE000_0000
    static let arena = UInt64(SILICON_ARENA)

    init(model: CPUModel? = nil) throws {
        silicon = silicon_start()
        guard silicon.shared != nil else { throw NoSilicon() }
        machine = try TestMachine(
            mmio: [.init(Self.devicePhysical..<Self.devicePhysical + UInt64(SILICON_ARENA_BYTES), device)], model: model)
        let shown = InstructionSets(machine.cpu.policy.features)
        decoders = SiliconMode.allCases.map { SiliconDecoder($0, shown: shown) }
        machine.map(UInt64(SILICON_CODE), to: Self.codePhysical, count: UInt64(SILICON_CODE_PAGES), [.user])
        for page in 0..<Int(SILICON_ARENA_PAGES) { mapArena(page, isDevice: false) }
        image.initializeMemory(as: UInt8.self, repeating: 0, count: 4096)
        buildDescriptors()
        fillPatterns()
        // The other process is ready once it has done nothing at all.
        guard silicon_run(&silicon, 0) != 0 else { throw NoSilicon() }
        machine.watch(seconds: 5)
    }
    deinit {
        silicon_stop(&silicon)
        image.deallocate()
        // Unmasked x87 exceptions may not stay behind for whoever uses this thread next.
        var clean = CPUState()
        clean.xsave[512] = 7
        machine.cpu.writeState(clean)
    }

    /// What user code sees of Linux's tables: its 32-bit code, the process's LDT, and which gates INT n may use.
    private func buildDescriptors() {
        let memory = machine.memory
        memory.store(TestMachine.gdt + 0x20, 0x00CF_FB00_0000_FFFF as UInt64)
        for number in 0..<UInt32(SILICON_SEGMENT_COUNT) { memory.store(Self.ldt + UInt64(number) * 8, silicon_descriptor(number)) }
        machine.context.pointee.ldtr = SegmentRegister(
            selector: 0x50, attributes: 0x82, limit: UInt32(SILICON_SEGMENT_COUNT) * 8 - 1, base: TestMachine.kernelBase + Self.ldt)
        for vector in 0..<256 as Range<UInt64> where ![3, 4, 0x80].contains(vector) { memory.store(TestMachine.idt + vector * 16 + 5, 0x8E as UInt8) }
    }
    private static let ldt: UInt64 = 0x5_0000

    private func mapArena(_ page: Int, isDevice: Bool) {
        let base = isDevice ? Self.devicePhysical : Self.arenaPhysical
        machine.map(
            Self.arena + UInt64(page) * 4096, to: base + UInt64(page) * 4096,
            page == Int(SILICON_ARENA_READ_ONLY_PAGE) ? [.user, .noExecute] : [.user, .writable, .noExecute])
    }

    /// Bytes that are small integers, floating-point numbers and noise.
    private func fillPatterns() {
        for number in 0..<UInt32(SILICON_PATTERNS) {
            var random = SiliconRandom(seed: 0x5EED + UInt64(number))
            let base = silicon_pattern(silicon.shared, number)!
            for offset in stride(from: 0, to: Int(SILICON_ARENA_BYTES), by: 8) {
                (base + offset).storeBytes(of: random.percent(50) ? random.integer() : random.vectorWord(), as: UInt64.self)
            }
        }
    }

    // MARK: Running

    /// At most `SILICON_CASES` cases.
    func run(_ cases: [SiliconCase]) throws -> [Failure] {
        precondition(cases.count <= Int(SILICON_CASES))
        for (slot, one) in cases.enumerated() { prepare(one, slot) }
        if silicon_run(&silicon, UInt32(cases.count)) == 0 {
            let slot = Int(silicon_running(silicon.shared))
            silicon_stop(&silicon)
            silicon = silicon_start()
            guard silicon.shared != nil else { throw NoSilicon() }
            fillPatterns()
            return [Failure(one: cases[slot], slot: slot, differences: ["the silicon's process died or does not come back"])]
        }
        // New code was written behind the translator's back.
        machine.cpu.writeState(machine.cpu.readState())
        var failures: [Failure] = []
        for (slot, one) in cases.enumerated() {
            // Blocks are linked to each other only once they have run.
            for round in 1...(one.pieces.count > 1 ? 3 : 1) {
                let differences = try compare(one, slot, flushesTLB: one.flushesTLB && round == 1)
                if differences.isEmpty { continue }
                failures.append(Failure(one: one, slot: slot, differences: differences + (round > 1 ? ["in round \(round)"] : [])))
                break
            }
        }
        return failures
    }

    private func prepare(_ one: SiliconCase, _ slot: Int) {
        let address = SiliconCase.codeBase(slot) + UInt64(one.codeOffset)
        let code = one.code(at: address)
        let offset = slot * SiliconCase.codeBytes + one.codeOffset
        let native = silicon_code(silicon.shared)! + offset
        var onCPU = one.isHidden ? [0x0F, 0x0B] : code
        for (piece, start) in zip(one.pieces, one.starts) {
            guard let landing = piece.landing else { continue }
            onCPU.withUnsafeMutableBytes { write(exit: landing, $0.baseAddress! + start) }
        }
        onCPU.withUnsafeBytes { native.copyMemory(from: $0.baseAddress!, byteCount: onCPU.count) }
        write(exit: one.mode, native + onCPU.count)
        machine.memory.write(code + [0xCD, 0x80], at: Self.codePhysical + UInt64(offset))
        var state = one.state
        state.rip = Self.start(one, slot)
        let input = silicon_input(silicon.shared, UInt32(slot))!
        withUnsafeBytes(of: state.words) { input.copyMemory(from: $0.baseAddress!, byteCount: SiliconState.byteCount) }
        silicon_set_case(silicon.shared, UInt32(slot), one.pattern, one.mode.rawValue)
        let patch = one.patch?.bytes(one, at: address) ?? []
        let room = silicon_patch(silicon.shared, UInt32(slot), UInt32(one.patch?.offset ?? 0), UInt32(patch.count))
        patch.withUnsafeBytes { if let base = $0.baseAddress { room?.copyMemory(from: base, byteCount: patch.count) } }
    }

    private func write(exit mode: SiliconMode, _ place: UnsafeMutableRawPointer) {
        let place = place.assumingMemoryBound(to: UInt8.self)
        if mode == .long { silicon_write_exit(place) } else { silicon_write_narrow_exit(place, mode.rawValue) }
    }

    private func compare(_ one: SiliconCase, _ slot: Int, flushesTLB: Bool) throws -> [String] {
        let memory = machine.memory
        let arena = memory.hostBase + Int(Self.arenaPhysical)
        let readOnly = Int(SILICON_ARENA_READ_ONLY_PAGE) * 4096
        let source = silicon_pattern(silicon.shared, one.pattern)!
        let count = Int(SILICON_ARENA_BYTES)
        memcpy(arena, source, count)
        memcpy(arena + readOnly, silicon_pattern(silicon.shared, 0)! + readOnly, 4096)
        if let patch = one.patch {
            let bytes = patch.bytes(one, at: SiliconCase.codeBase(slot) + UInt64(one.codeOffset))
            bytes.withUnsafeBytes { (arena + patch.offset).copyMemory(from: $0.baseAddress!, byteCount: bytes.count) }
        }
        memcpy(device.bytes, arena, count)
        if one.devicePages != mappedDevices || flushesTLB {
            for page in 0..<Int(SILICON_ARENA_PAGES) { mapArena(page, isDevice: one.devicePages >> UInt8(page) & 1 != 0) }
            mappedDevices = one.devicePages
            machine.cpu.flushTLB(global: true)
        }
        var guest: SiliconState
        do {
            guest = try runGuest(one, slot)
        } catch let error as TestMachine.UnexpectedExit {
            return ["the translator left with \(error.exit)"]
        }
        var native = SiliconState()
        let output = silicon_output(silicon.shared, UInt32(slot))!
        withUnsafeMutableBytes(of: &native.words) { $0.baseAddress!.copyMemory(from: output, byteCount: SiliconState.byteCount) }
        if one.mode != .long || one.pieces.contains(where: { $0.landing != nil && $0.landing != .long }) {
            native.cutToNarrow()
            guest.cutToNarrow()
        }
        if one.ignoresBases {
            native.fsBase = guest.fsBase
            native.gsBase = guest.gsBase
        }
        // The CPU has things that no manual has; the translator does not let them through.
        let start = Self.start(one, slot)
        if one.isUndefined && guest.vector == 6 && guest.rip == start && (native.vector != 6 || native.rip != start) { return [] }
        let isAccessFault = { (vector: Int) in 12...14 ~= vector || vector == 17 }
        if one.isFaultLoose && (isAccessFault(native.vector) || isAccessFault(guest.vector)) { return [] }
        // The translator checks a segment's limit for all of an operand, whatever its mask leaves out.
        if one.mode != .long && one.isMasked && 12...13 ~= guest.vector { return [] }
        // Misaligned, and beyond the stack segment.
        if one.mode != .long && one.isWide && native.vector == 13 && guest.vector == 12 { return [] }
        // An x87 exception that is pending is found after the memory operand's page.
        if native.vector == 16 && 12...14 ~= guest.vector { return [] }
        let flags = SiliconState.direction | (native.vector == Int(SILICON_DONE) ? one.flags : one.faultFlags)
        var differences = native.differences(guest, flags: flags)
        for page in 0..<Int(SILICON_ARENA_PAGES) where one.devicePages >> UInt8(page) & 1 != 0 {
            memcpy(arena + page * 4096, device.bytes + page * 4096, 4096)
        }
        let expected = silicon_arena(silicon.shared, UInt32(slot))!
        for range in one.ignored { memcpy(arena + range.lowerBound, expected + range.lowerBound, range.count) }
        if memcmp(expected, arena, count) != 0 {
            for offset in stride(from: 0, to: count, by: 8) {
                let a = (expected + offset).load(as: UInt64.self), b = (arena + offset).load(as: UInt64.self)
                if a != b && differences.count < 20 {
                    differences.append("memory \(hex(Self.arena + UInt64(offset))): silicon \(hex(a)), translator \(hex(b))")
                }
            }
        }
        return differences
    }

    private var components: UInt64 { machine.cpu.policy.xcr0Mask & 0xE0 | 7 }

    private func runGuest(_ one: SiliconCase, _ slot: Int) throws -> SiliconState {
        let context = machine.context
        machine.enter(level: 3)
        if one.mode != .long { enter(one.mode, slot) }
        for number in 0..<16 { context.pointee.gpr[number] = one.state[gpr: number] }
        context.pointee.rflags = one.state.rflags
        context.pointee.fsBase = one.state.fsBase
        context.pointee.gsBase = one.state.gsBase
        machine.cpu.modeChanged()
        withUnsafeBytes(of: one.state.words) { words in
            image.copyMemory(from: words.baseAddress! + SiliconState.xsave, byteCount: Int(SILICON_XSAVE_BYTES))
        }
        machine.cpu.restoreExtendedState(from: image, mask: components)
        let outcome = try machine.run(from: Self.start(one, slot))
        var state = SiliconState()
        for number in 0..<16 { state[gpr: number] = context.pointee.gpr[number] }
        state.rflags = outcome.rflags
        state.rip = outcome.rip
        state.fsBase = context.pointee.fsBase
        state.gsBase = context.pointee.gsBase
        state.vector = outcome.vector == Outcome.done ? Int(SILICON_DONE) : outcome.vector
        func frame(_ offset: UInt64) -> UInt64 { machine.memory.load(TestMachine.stackTop - offset, as: UInt64.self) ?? 0 }
        state.error = UInt64(outcome.errorCode) | (frame(32) & 0xFFFF) << 32 | frame(8) << 48
        state.selectors =
            UInt64(context.pointee.es.selector) | UInt64(context.pointee.ds.selector) << 16 | UInt64(context.pointee.fs.selector) << 32
            | UInt64(context.pointee.gs.selector) << 48
        state.faultAddress = outcome.address
        machine.cpu.saveExtendedState(to: image, mask: components)
        withUnsafeMutableBytes(of: &state.words) { words in
            (words.baseAddress! + SiliconState.xsave).copyMemory(from: image, byteCount: Int(SILICON_XSAVE_BYTES))
        }
        return state
    }

    /// Whether this host runs code of a mode.
    func has(_ mode: SiliconMode) -> Bool { !mode.isSegmented || silicon_has_segments(silicon.shared) != 0 }

    /// The instruction pointer that a case starts with.
    private static func start(_ one: SiliconCase, _ slot: Int) -> UInt64 {
        (one.mode.isSegmented ? 0 : SiliconCase.codeBase(slot)) + UInt64(one.codeOffset)
    }

    /// Linux's segments of 32-bit programs or the silicon's own, which fs and gs are in any case.
    private func enter(_ mode: SiliconMode, _ slot: Int) {
        let context = machine.context
        let flat = SegmentRegister(selector: 0x2B, attributes: 0xC0F3, limit: 0xFFFF_FFFF)
        var code = SegmentRegister(selector: 0x23, attributes: 0xC0FB, limit: 0xFFFF_FFFF)
        var data = flat
        if mode.isSegmented {
            let is16 = mode == .segmented16
            let base = UInt16(is16 ? SILICON_CODE_16 : SILICON_CODE_32)
            code = SegmentRegister(
                selector: base + UInt16(slot * 8), attributes: is16 ? 0xFB : 0x40FB, limit: 0xFFFF, base: SiliconCase.codeBase(slot))
            data = SegmentRegister(
                selector: UInt16(is16 ? SILICON_DATA_16 : SILICON_DATA_32), attributes: is16 ? 0xF3 : 0x40F3,
                limit: UInt32(SILICON_ARENA_BYTES) - 1, base: Self.arena)
        }
        context.pointee.cs = code
        context.pointee.ss = data
        context.pointee.ds = data
        context.pointee.es = data
        context.pointee.fs = flat
        context.pointee.fs.selector = UInt16(silicon_selector(silicon.shared, 0))
        context.pointee.gs = flat
        context.pointee.gs.selector = UInt16(silicon_selector(silicon.shared, 1))
        machine.cpu.modeChanged()
    }

    // MARK: Reporting

    /// The same failure with as few instructions as possible.
    func reduce(_ failure: Failure) throws -> Failure {
        var smallest = failure
        var index = 0
        while !smallest.isHang && smallest.one.canBeReduced && smallest.one.pieces.count > 1 && index < smallest.one.pieces.count {
            if let smaller = try run([smallest.one.removing(index)]).first {
                smallest = smaller
            } else {
                index += 1
            }
        }
        return smallest
    }

    func decoder(_ one: SiliconCase) -> SiliconDecoder { decoders[Int(one.mode.rawValue)] }

    /// Which instructions, and what differs: failures that are alike in these are likely to have one cause.
    func kind(_ failure: Failure) -> String {
        let names = failure.one.pieces.map { decoder(failure.one).name($0.bytes + [0, 0, 0, 0]) }
        let fields = failure.differences.prefix(2).map { $0.prefix(while: { $0 != ":" && !$0.isNumber }) }
        let vectors = failure.differences[0].hasPrefix("vector") ? failure.differences[0] : fields.joined(separator: ", ")
        return names.joined(separator: ", ") + " | " + vectors
    }

    func report(_ failure: Failure) -> String {
        let address = SiliconCase.codeBase(failure.slot) + UInt64(failure.one.codeOffset)
        let differences = failure.differences.map { "    " + $0 }.joined(separator: "\n")
        return failure.one.description(at: address, decoder(failure.one)) + "\n" + differences
    }
}

/// Device memory that behaves as RAM does.
///
/// `@unchecked Sendable`: a runner, its CPU and their accesses are one thread's.
final class ArenaDevice: MMIODevice, @unchecked Sendable {
    let bytes = UnsafeMutableRawPointer.allocate(byteCount: Int(SILICON_ARENA_BYTES), alignment: 4096)
    deinit { bytes.deallocate() }
    func read(_ offset: UInt64, _ width: AccessWidth) -> UInt64 {
        var value: UInt64 = 0
        memcpy(&value, bytes + Int(offset), width.rawValue)
        return value
    }
    func write(_ offset: UInt64, _ width: AccessWidth, _ value: UInt64) {
        var value = value
        memcpy(bytes + Int(offset), &value, width.rawValue)
    }
}
