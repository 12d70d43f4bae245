import CZydis
import VMM

extension TranslatorCPU {
    /// Translates the block at `linear`, whose first byte lies in `page`.
    /// - Parameters:
    ///   - limit: how many instructions at most.
    ///   - isIsolated: runs once and comes back to the run loop; not to be found again.
    ///   - isLoop: a jump backward leads to it.
    /// - Returns: the block's index.
    /// - Throws: the fault of fetching the first instruction.
    func translate(
        _ linear: UInt64, page: CodePage, mode: BlockMode, limit: Int, isIsolated: Bool, isLoop: Bool = false
    ) throws(GuestException) -> Int {
        makeRoom(page.physical + (linear & 0xFFF), mode, isIsolated: isIsolated)
        let start = Int(linear & 0xFFF)
        var count = 0
        var offset = start
        var secondPage = -1
        var isOver = false
        var branches = 0
        memory.setWatched(page: page.ramOffset >> 12, true)
        // Read once: what is checked is what is emitted, whatever other writers do meanwhile.
        let source = work.bytes - start
        work.bytes.update(from: page.host + start, count: min(4096 - start, BlockWorkspace.byteLimit))
        scanned = start..<start
        while count < limit && !isOver {
            if offset >= 4096 || count > 0 && mode.has(BlockMode.breakpoints) && breakpoints.stopsCode(atOffset: offset) { break }
            let decoded = work.decoded + count
            let operands = work.operands + count * Decoder.operandLimit
            var available = 4096 - offset
            var bytes = UnsafeRawPointer(source + offset)
            var status: ZyanStatus
            if available >= 15 {
                status = decoder.decode(codeSize: mode.codeSize, bytes, 15, decoded, operands)
            } else {
                status = decoder.decode(codeSize: mode.codeSize, bytes, available, decoded, operands)
                if status & 0x8000_0000 != 0 && status == zydisNoMoreData {
                    // The instruction goes on in the next page.
                    if count > 0 { break }
                    let next = try nextCodePage(linear)
                    memory.setWatched(page: next.ramOffset >> 12, true)
                    straddleBuffer.copyMemory(from: bytes, byteCount: available)
                    (straddleBuffer + available).copyMemory(from: next.host, byteCount: 16)
                    bytes = UnsafeRawPointer(straddleBuffer)
                    secondPage = next.ramOffset >> 12
                    available = 15
                    status = decoder.decode(codeSize: mode.codeSize, bytes, 15, decoded, operands)
                    isOver = true
                }
            }
            var instruction: Instruction
            if status & 0x8000_0000 != 0 {
                instruction = Instruction(
                    kind: .exception, vector: status == zydisTooLong ? 13 : 6, length: 1, usesVectors: false, offset: offset,
                    flagsRead: arithmeticFlags, flagsWritten: 0, flagsLive: 0, modifiesFlags: false, system: 0)
                isOver = true
            } else {
                if decoded.pointee.address_width == 32 && mode.codeSize == 0 { Self.correctNarrowAddress(decoded, operands) }
                instruction = Classifier.classify(decoded, operands, mode: mode, shown: shown)
                instruction.offset = offset
                switch instruction.kind {
                case .system:
                    if let system = SystemInstruction(decoded, operands: operands)
                        ?? SystemInstruction(vectorMemory: decoded, operands)
                    {
                        instruction.system = systemPool.add(system)
                        if BlockBuilder.canInline(system, mode, hasSMAP: hasSMAP) {
                            instruction.kind = .systemInline
                            // PUSHF reads all; the others touch no arithmetic flag.
                            instruction.flagsRead = system.kind == .pushFlags ? arithmeticFlags : 0
                            instruction.modifiesFlags = BlockBuilder.writesFlags(system)
                            instruction.flagsWritten = instruction.modifiesFlags ? arithmeticFlags : 0
                            isOver = BlockBuilder.changesTable(system, mode)
                        } else if !isIsolated && system.canReturn {
                            instruction.kind = .systemCall
                            instruction.flagsRead = arithmeticFlags
                            instruction.flagsWritten = 0
                        } else {
                            isOver = true
                        }
                    } else {
                        instruction.kind = .exception
                        instruction.vector = 6
                        isOver = true
                    }
                case .exception, .call, .callIndirect, .jump, .jumpIndirect, .ret: isOver = true
                case .conditional, .counted:
                    branches += 1
                    isOver = branches == BlockWorkspace.branchLimit || BlockBuilder.needsBranchCheck(instruction.kind, decoded, mode)
                default: break
                }
            }
            work.instructions[count] = instruction
            count += 1
            offset += Int(instruction.length)
        }
        // The instruction behind STI has to run before an interrupt: only the system half can say so to the run loop.
        if work.instructions[count - 1].kind == .systemInline,
            systemPool.entries[work.instructions[count - 1].system].kind == .sti
        {
            work.instructions[count - 1].kind = .system
            work.instructions[count - 1].flagsRead = arithmeticFlags
        }
        return emit(
            count: count, source: source, start: start, end: offset, page: page, mode: mode, secondPage: secondPage,
            isIsolated: isIsolated, isLoop: isLoop)
    }

    /// In 64-bit code with 32-bit addresses Zydis 4.0 takes a SIB byte's "no base" under REX.B for r13d, and forgets the
    /// displacement (SDM Vol. 2, table 2-5: the base field decides without REX.B). It sign-extends absolute addresses.
    private static func correctNarrowAddress(
        _ decoded: UnsafePointer<ZydisDecodedInstruction>, _ operands: UnsafeMutablePointer<ZydisDecodedOperand>
    ) {
        let raw = decoded.pointee.raw
        let isMisread = raw.sib.offset != 0 && raw.sib.base == 5 && raw.modrm.mod == 0
        for index in 0..<Int(decoded.pointee.operand_count) where operands[index].type == ZYDIS_OPERAND_TYPE_MEMORY {
            if isMisread && operands[index].mem.base == ZYDIS_REGISTER_R13D {
                operands[index].mem.base = ZYDIS_REGISTER_NONE
                operands[index].mem.disp.has_displacement = 1
                operands[index].mem.disp.value = raw.disp.value
            }
            if operands[index].mem.base == ZYDIS_REGISTER_NONE && operands[index].mem.index == ZYDIS_REGISTER_NONE {
                operands[index].mem.disp.value &= 0xFFFF_FFFF
            }
        }
    }

    private func emit(
        count: Int, source: UnsafeMutablePointer<UInt8>, start: Int, end: Int, page: CodePage, mode: BlockMode, secondPage: Int,
        isIsolated: Bool, isLoop: Bool
    ) -> Int {
        let last = work.instructions[count - 1]
        // Flags that the code behind the block's ways out reads.
        let liveFallThrough: UInt32
        switch last.kind {
        case .call, .jump: liveFallThrough = 0
        case .callIndirect, .jumpIndirect, .ret, .system, .exception: liveFallThrough = arithmeticFlags
        default: liveFallThrough = liveFlags(at: end, from: start, page: page, mode: mode)
        }
        let live = findLiveFlags(count: count, fallThrough: liveFallThrough, start: start, page: page, mode: mode)

        let origin = cache.memory.writableBase
        var builder = BlockBuilder(
            code: Emitter(at: origin + cache.codeOffset), origin: origin, thunks: thunks, work: work, mode: mode,
            hasBMI2: hasBMI2, isIsolated: isIsolated)
        builder.slotNumber = cache.nextBlock &* 5
        builder.isLoop = isLoop
        for index in 0..<count {
            switch work.instructions[index].kind {
            case .conditional, .jump, .counted:
                // Into itself, or to a little way in front: the block is a loop's last part.
                let target = branchTarget(index)
                if target <= work.instructions[index].offset && start - target < 256 { builder.isLoop = true }
            default: break
            }
        }
        let savedEntry = cache.codeOffset
        if live != 0 { builder.code.restoreFlags(scratch: RegisterMap.scratch) }
        let entry = builder.code.cursor - origin
        let mapStart = cache.mapStart
        let siteStart = cache.nextSite
        var mapped = 0
        // Branches that are checked make both ways out themselves.
        var goesOn = true
        func emitInstruction(_ index: Int) {
            let instruction = work.instructions[index]
            let decoded = UnsafePointer(work.decoded + index)
            let operands = UnsafePointer(work.operands + index * Decoder.operandLimit)
            builder.here = instruction.offset
            builder.next = instruction.offset + Int(instruction.length)
            builder.live = instruction.flagsLive
            builder.operandWidth = decoded.pointee.operand_width
            builder.addressWidth = decoded.pointee.address_width
            switch instruction.kind {
            case .generic, .nothing, .lea, .conditional: break
            default: builder.forgetKept()
            }
            if instruction.usesVectors && !builder.vectorsReady { builder.readyVectors() }
            if instruction.usesVectors && instruction.usesWideState && !builder.wideStateReady { builder.readyWideState() }
            cache.map[mapStart + mapped] = MapEntry(
                host: UInt16(truncatingIfNeeded: builder.code.cursor - origin - entry),
                guest: UInt16(truncatingIfNeeded: instruction.offset) | (builder.flagsInHost && !builder.flagsSaved ? 0x8000 : 0))
            let slowPathsBefore = builder.slowPathCount
            let bytes = instruction.offset + Int(instruction.length) > 4096
                ? UnsafePointer(straddleBuffer.assumingMemoryBound(to: UInt8.self)) : UnsafePointer(source + instruction.offset)
            switch instruction.kind {
            case let kind where BlockBuilder.needsBranchCheck(kind, decoded, mode):
                builder.branch(
                    instruction.kind, decoded, operands, taken: branchTarget(index), fallThrough: end,
                    liveTaken: instruction.flagsTaken, liveFallThrough: liveFallThrough)
                goesOn = false
            case .generic: builder.generic(decoded, operands, bytes: bytes, info: instruction)
            case .nothing: break
            case .lea: builder.lea(decoded, operands)
            case .push: builder.push(decoded, operands)
            case .pop: builder.pop(decoded, operands)
            case .leave: builder.leave(decoded)
            case .bitString: builder.bitString(decoded, operands, bytes: bytes, info: instruction)
            case .absoluteMove: builder.absoluteMove(decoded, operands)
            case .call: builder.call(to: branchTarget(index), liveAtTarget: instruction.flagsTaken)
            case .jump:
                builder.live = instruction.flagsTaken
                builder.jump(to: branchTarget(index))
            case .callIndirect: builder.indirect(operands, isCall: true)
            case .jumpIndirect: builder.indirect(operands, isCall: false)
            case .ret:
                let extra = operands.pointee.type == ZYDIS_OPERAND_TYPE_IMMEDIATE ? Int(operands.pointee.imm.value.u & 0xFFFF) : 0
                builder.ret(extra: extra)
            case .conditional:
                builder.conditional(decoded.pointee.opcode & 15, taken: branchTarget(index), liveTaken: instruction.flagsTaken)
            case .counted:
                builder.counted(
                    opcode: decoded.pointee.opcode, is32Bit: decoded.pointee.address_width == 32, taken: branchTarget(index),
                    liveTaken: instruction.flagsTaken)
            case .systemInline:
                builder.systemInline(systemPool.entries[instruction.system], index: instruction.system)
                builder.noteFlags(instruction)
            case .systemCall: builder.systemCall(systemPool.entries[instruction.system], index: instruction.system)
            case .system:
                let system = systemPool.entries[instruction.system]
                if BlockBuilder.canTransfer(system, mode, isIsolated: isIsolated) { builder.systemTransfer(system) }
                builder.exit(.system, value: (instruction.system << 13) | instruction.offset)
            case .exception: builder.exit(.exception, vector: instruction.vector, value: instruction.offset)
            }
            // The check of a memory operand has put the flags into the context before the instruction itself can fault.
            if builder.slowPathCount > slowPathsBefore { cache.map[mapStart + mapped].guest &= 0x7FFF }
            mapped += 1
        }
        let mayRun = mode.codeSize == 0 && !mode.has(BlockMode.alignmentCheck) && !isIsolated && secondPage < 0
        let runCount = mayRun ? work.planRuns(count: count) : 0
        var run = 0
        for index in 0..<count {
            if run < runCount && work.runs[run].first == index {
                builder.live = work.instructions[index].flagsLive
                builder.beginRun(run)
            }
            emitInstruction(index)
            if builder.isHeld {
                builder.followRun(
                    run, instruction: index,
                    liveBehind: index + 1 < count ? work.instructions[index + 1].flagsLive : liveFallThrough)
                if !builder.isHeld { run += 1 }
            }
        }
        switch last.kind {
        case .call, .callIndirect, .jump, .jumpIndirect, .ret, .system, .exception: break
        case _ where goesOn:
            builder.live = liveFallThrough
            // Behind STAC or CLAC another jump cache holds.
            let modeHere = builder.mode
            builder.mode = builder.modeBehind ?? modeHere
            builder.directExit(to: end, isBackward: false)
            builder.mode = modeHere
        default: break
        }
        for run in 0..<runCount {
            builder.beginRunCopy(run)
            for index in work.runs[run].first...work.runs[run].last { emitInstruction(index) }
            builder.endRunCopy(run)
        }
        builder.emitSlowPaths()
        builder.emitExits(cache)
        let block = Block(
            physical: page.physical + UInt64(start), mode: mode, entry: UInt32(entry), savedEntry: UInt32(savedEntry),
            end: UInt32(builder.code.cursor - origin), length: UInt16(truncatingIfNeeded: end - start),
            ramOffset: page.ramOffset + start, watchedStart: page.ramOffset + min(start, scanned.lowerBound),
            watchedEnd: page.ramOffset + max(min(end, 4096), scanned.upperBound), secondPage: secondPage, flagsLive: UInt16(truncatingIfNeeded: live),
            isAlive: !isIsolated, firstLink: 0, siteStart: UInt32(siteStart), siteCount: UInt16(cache.nextSite - siteStart),
            mapCount: UInt16(mapped), mapStart: UInt32(mapStart), nextInHash: 0)
        if !isIsolated {
            protectCode(page: page.ramOffset >> 12)
            if secondPage >= 0 { protectCode(page: secondPage) }
        }
        let index = cache.add(block)
        // Behind STAC and CLAC it would be another mode's block.
        if !isIsolated && builder.modeBehind == nil { linkKnown(index, page: page) }
        return index
    }

    /// Where a direct branch of the block leads, as an offset from the code page.
    private func branchTarget(_ index: Int) -> Int {
        let instruction = work.instructions[index]
        return instruction.offset &+ Int(instruction.length)
            &+ Int(truncatingIfNeeded: work.operands[index * Decoder.operandLimit].imm.value.s)
    }

    /// Links a new block's ways out to blocks of the same page that are there already, itself among them.
    private func linkKnown(_ index: Int, page: CodePage) {
        let block = cache.blocks[index]
        // Which offsets are to be stopped at may change while blocks stay.
        if block.mode.has(BlockMode.breakpoints) { return }
        for site in Int(block.siteStart)..<Int(block.siteStart) + Int(block.siteCount) {
            let stub = UnsafeRawPointer(cache.memory.writableBase + Int(cache.sites[site].stub) + 5)
            let descriptor = stub.loadUnaligned(as: ExitDescriptor.self)
            guard !cache.sites[site].movesPage, descriptor.value >= 0 && descriptor.value < 4096 else { continue }
            let target = cache.find(page.physical + UInt64(descriptor.value), block.mode)
            if target != 0 && cache.blocks[target].secondPage < 0 {
                cache.link(site, to: target, saved: descriptor.flagsInHost == 0)
            }
        }
    }

    /// Which arithmetic flags are live in front of each of the block's instructions, and which where its branches lead.
    /// Inside the block that is found by going round until nothing changes: what a loop writes before it reads it is
    /// dead where it begins.
    /// - Returns: those that are live in front of the first.
    private func findLiveFlags(count: Int, fallThrough: UInt32, start: Int, page: CodePage, mode: BlockMode) -> UInt32 {
        for index in 0..<count {
            work.instructions[index].flagsLive = 0
            switch work.instructions[index].kind {
            case .call, .jump, .conditional, .counted:
                let isPlain = BlockBuilder.isPlainTarget(mode, operandWidth: work.decoded[index].operand_width)
                let inside = isPlain ? work.index(ofOffset: branchTarget(index), count: count) : nil
                work.targets[index] = inside ?? -1
                if inside == nil {
                    work.instructions[index].flagsTaken =
                        isPlain ? liveFlags(at: branchTarget(index), from: start, page: page, mode: mode) : arithmeticFlags
                }
            default: break
            }
        }
        var live = fallThrough
        var isChanged = true
        while isChanged {
            isChanged = false
            live = fallThrough
            for index in stride(from: count - 1, through: 0, by: -1) {
                let instruction = work.instructions[index]
                var read = instruction.flagsRead
                switch instruction.kind {
                case .call, .jump, .conditional, .counted:
                    let inside = work.targets[index]
                    let taken = inside >= 0 ? work.instructions[inside].flagsLive : instruction.flagsTaken
                    work.instructions[index].flagsTaken = taken
                    read = instruction.kind == .call || instruction.kind == .jump ? taken : read | taken
                default: break
                }
                live = live & ~instruction.flagsWritten | read
                if live != instruction.flagsLive {
                    work.instructions[index].flagsLive = live
                    isChanged = true
                }
            }
        }
        return live
    }

    /// Bytes of the page that the block's code relies on beside its own.
    private func note(scanned low: Int, _ high: Int) {
        scanned = max(0, min(scanned.lowerBound, low))..<min(4096, max(scanned.upperBound, high))
    }

    /// The arithmetic flags that code at `offset` of the page may read before it writes them; all when that
    /// cannot be seen cheaply.
    private func liveFlags(at offset: Int, from start: Int, page: CodePage, mode: BlockMode) -> UInt32 {
        // What is far away is not looked at: a write between here and there would drop the block.
        guard offset >= 0 && offset < 4096 && abs(offset - start) < 1024 else { return arithmeticFlags }
        let known = cache.find(page.physical + UInt64(offset), mode)
        if known != 0 && cache.blocks[known].watchedEnd - cache.blocks[known].watchedStart < 1024 {
            let base = page.ramOffset
            note(scanned: cache.blocks[known].watchedStart - base, cache.blocks[known].watchedEnd - base)
            return UInt32(cache.blocks[known].flagsLive)
        }
        var position = offset
        var read: UInt32 = 0
        var unknown = arithmeticFlags
        let decoded = work.decoded + BlockWorkspace.instructionLimit
        for _ in 0..<8 {
            guard position + 15 <= 4096,
                decoder.decodeBriefly(codeSize: mode.codeSize, page.host + position, 15, decoded)
            else { break }
            var instruction = Instruction(
                kind: .generic, vector: 0, length: 0, usesVectors: false, offset: 0, flagsRead: 0, flagsWritten: 0,
                flagsLive: 0, modifiesFlags: false, system: 0)
            Classifier.takeFlags(decoded, &instruction)
            note(scanned: offset, position + Int(decoded.pointee.length))
            read |= instruction.flagsRead & unknown
            switch decoded.pointee.meta.category {
            case ZYDIS_CATEGORY_CALL, ZYDIS_CATEGORY_COND_BR, ZYDIS_CATEGORY_UNCOND_BR, ZYDIS_CATEGORY_RET,
                ZYDIS_CATEGORY_SYSCALL, ZYDIS_CATEGORY_SYSRET, ZYDIS_CATEGORY_SYSTEM, ZYDIS_CATEGORY_INTERRUPT,
                ZYDIS_CATEGORY_IOSTRINGOP:
                return read | unknown
            case ZYDIS_CATEGORY_STRINGOP
            where decoded.pointee.attributes & (ZYDIS_ATTRIB_HAS_REP | ZYDIS_ATTRIB_HAS_REPE | ZYDIS_ATTRIB_HAS_REPNE) != 0:
                // Repeated no times, these write no flags.
                return read | unknown
            default: break
            }
            unknown &= ~instruction.flagsWritten
            if unknown == 0 { return read }
            position += Int(decoded.pointee.length)
        }
        return read | unknown
    }
}

/// ZYDIS_STATUS_NO_MORE_DATA and ZYDIS_STATUS_INSTRUCTION_TOO_LONG (Zydis/Status.h): macros with casts, which Swift
/// cannot import.
let zydisNoMoreData: ZyanStatus = 0x8020_0000
let zydisTooLong: ZyanStatus = 0x8020_0002
