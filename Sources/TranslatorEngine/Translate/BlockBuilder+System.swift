import VMM

/// System instructions that kernels use so often that they get code of their own, and the call into the system half
/// for the others that do not end a block.
extension BlockBuilder {
    /// Whether `systemInline` has code for an instruction in this mode.
    static func canInline(_ instruction: SystemInstruction, _ mode: BlockMode, hasSMAP: Bool) -> Bool {
        let isKernel = mode.table != TLB.Table.user.rawValue && !mode.has(BlockMode.outerRing)
        switch instruction.kind {
        case .cli, .sti: return isKernel
        case .cld, .std: return true
        case .movs, .cmps, .scas, .lods, .stos: return isSingleString(instruction)
        default: break
        }
        guard mode.codeSize == 0 else { return false }
        switch instruction.kind {
        case .swapgs: return isKernel
        case .clac, .stac: return isKernel && hasSMAP
        case .readFSBase, .readGSBase, .writeFSBase, .writeGSBase: return true
        case .pushFlags: return instruction.operandSize == 8
        case .rdtsc, .rdtscp: return isKernel || !mode.has(BlockMode.timeStampTrap)
        case .storeSegment:
            return !instruction.isMemory && instruction.operandSize >= 4 && instruction.register <= SegmentNumber.gs
        default: return false
        }
    }

    /// Emits an instruction that `canInline` accepted. `index` is its place in the pool, for the way out.
    mutating func systemInline(_ instruction: SystemInstruction, index: Int) {
        switch instruction.kind {
        case .cli:
            clobberFlags()
            code.arithmeticContext32(.and, ContextOffset.systemFlags, immediate: Int32(truncatingIfNeeded: ~RFLAGS.if))
        case .sti:
            // Only an interrupt that waits cares for the shadow: then the system half does it.
            clobberFlags()
            code.testContext32(ContextOffset.interruptWaiting)
            let nothingWaits = code.jump(if: Condition.equal)
            exit(.system, value: index << 13 | here)
            code.bind(nothingWaits)
            code.arithmeticContext32(.or, ContextOffset.systemFlags, immediate: Int32(RFLAGS.if))
        case .cld:
            clobberFlags()
            code.arithmeticContext32(.and, ContextOffset.systemFlags, immediate: Int32(truncatingIfNeeded: ~RFLAGS.df))
        case .std:
            clobberFlags()
            code.arithmeticContext32(.or, ContextOffset.systemFlags, immediate: Int32(RFLAGS.df))
        case .movs, .cmps, .scas, .lods, .stos: singleString(instruction)
        case .clac: setAccessCheck(false, index: index)
        case .stac: setAccessCheck(true, index: index)
        case .readFSBase, .readGSBase, .writeFSBase, .writeGSBase: accessBase(instruction, index: index)
        case .swapgs:
            code.loadContext(scratch, ContextOffset.gsBase)
            code.loadContext(address, ContextOffset.kernelGSBase)
            code.storeContext(ContextOffset.kernelGSBase, scratch)
            code.storeContext(ContextOffset.gsBase, address)
        case .pushFlags:
            putFlagsAway()
            flagsInHost = false
            loadFlagsImage(into: scratch)
            code.storeContext(ContextOffset.temporary, scratch)
            pushTemporary()
        case .rdtsc, .rdtscp:
            clobberFlags()
            if instruction.kind == .rdtscp {
                // Waits for what was before, as RDTSCP does.
                code.byte(0x0F)
                code.byte(0xAE)
                code.byte(0xE8)
            }
            code.byte(0x0F)
            code.byte(0x31)
            code.shiftLeft(HostRegister.rdx, 32)
            code.arithmetic(.or, HostRegister.rax, HostRegister.rdx)
            code.arithmeticContext(.add, HostRegister.rax, ContextOffset.tscOffset)
            code.move(HostRegister.rdx, HostRegister.rax)
            code.shiftRight(HostRegister.rdx, 32)
            code.move32(HostRegister.rax, HostRegister.rax)
            if instruction.kind == .rdtscp {
                code.loadContext(HostRegister.rcx, ContextOffset.tscAux)
                code.move32(HostRegister.rcx, HostRegister.rcx)
            }
        case .storeSegment:
            let register = Int(instruction.rm)
            let host = RegisterMap.isDisplaced(register) ? scratch : RegisterMap.host(register)
            code.loadContextWord(host, ContextOffset.selectors + Int(instruction.register) * MemoryLayout<SegmentRegister>.stride)
            if RegisterMap.isDisplaced(register) { code.storeContext(RegisterMap.slot(register), scratch) }
        default: break
        }
    }

    /// Runs an instruction in the system half and goes on behind it, unless it changed where to go on.
    mutating func systemCall(_ instruction: SystemInstruction, index: Int) {
        putFlagsAway()
        let run = Self.hasInlineRun(instruction, mode) && !isIsolated ? inlineRun(instruction) : nil
        if let run {
            for jump in run.misses.indices { if let miss = run.misses[jump] { code.bind(miss) } }
        }
        code.call(to: origin + thunks.pointee.systemCall)
        code.exitDescriptor(.system, flagsInHost: false, value: Int32(truncatingIfNeeded: index << 13 | here))
        flagsInHost = false
        flagsSaved = true
        if let run { code.bind(run.done) }
        // The helper left the vectors in the context.
        vectorsReady = false
    }
}

extension Emitter {
    /// `op dword gs:[offset], immediate`.
    mutating func arithmeticContext32(_ operation: Arithmetic, _ offset: Int, immediate: Int32) {
        byte(0x65)
        byte(0x81)
        absolute(Int(operation.rawValue), Int32(offset))
        dword(immediate)
    }
    /// `movzx destination, byte gs:[offset]` and its 16-bit kin.
    mutating func loadContextByte(_ destination: Int, _ offset: Int) { loadContextNarrow(destination, offset, 0xB6) }
    mutating func loadContextWord(_ destination: Int, _ offset: Int) { loadContextNarrow(destination, offset, 0xB7) }
    private mutating func loadContextNarrow(_ destination: Int, _ offset: Int, _ opcode: UInt8) {
        byte(0x65)
        rex(w: false, reg: destination, base: 0)
        byte(0x0F)
        byte(opcode)
        absolute(destination, Int32(offset))
    }
    mutating func shiftLeft(_ destination: Int, _ count: UInt8) {
        rex(w: true, reg: 0, base: destination)
        byte(0xC1)
        modRM(3, 4, destination)
        byte(count)
    }
}

extension SystemInstruction {
    /// Whether code behind it may go on in the same block. Repeated string operations say by RIP when they may not.
    var canReturn: Bool { !endsBlock || kind.isStringOperation }
}
