import CLinux
import Glibc
import Synchronization
package import VMM

/// The run loop: finds or makes the block at the guest's instruction pointer, enters it, and acts on why it left.
extension TranslatorCPU: VirtualCPU {
    package func run() throws -> Exit {
        HostSignals.install()
        // A thread outside of `run` has nothing for the signal handler to find.
        let hostBase = clinux_get_gs_base()
        defer { _ = clinux_set_gs_base(hostBase) }
        _ = clinux_set_gs_base(UInt64(UInt(bitPattern: context)))
        let enter = unsafeBitCast(
            Int(cache.memory.executableBase) + thunks.pointee.enter,
            to: (@convention(c) (UnsafeMutableRawPointer, UInt64) -> Void).self)
        takeHost()
        defer { leaveHost() }
        do throws(TripleFault) {
            while true {
                if debugHits != 0 {
                    context.pointee.pendingDebug |= debugHits
                    debugHits = 0
                }
                if interruptRequest.pointee.load(ordering: .relaxed) != 0 {
                    if let exit = takeRequests() { return exit }
                }
                // Traps of the instruction before come ahead of interrupts (SDM Vol. 3, table 6-2).
                if context.pointee.pendingDebug != 0 && !context.pointee.stackShadow {
                    try deliverDebug(context.pointee.pendingDebug)
                }
                var limit = BlockWorkspace.instructionLimit
                if context.pointee.isHalted || interruptWaiting || nmiPending {
                    try acceptInterrupts(&limit)
                    if context.pointee.isHalted {
                        return .halt(interruptsEnabled: context.pointee.systemFlags & RFLAGS.if != 0)
                    }
                }
                followsStackLoad = context.pointee.stackShadow
                context.pointee.interruptShadow = false
                context.pointee.stackShadow = false
                let isDebugging =
                    context.pointee.systemFlags & (RFLAGS.tf | RFLAGS.rf) | context.pointee.pendingDebug
                    | mode.rawValue & BlockMode.breakpoints
                if isDebugging != 0, try runCarefully(afterStackLoad: followsStackLoad, enter) { continue }
                do throws(GuestException) {
                    let entry =
                        limit == 1 ? try isolatedEntry() : try self.entry(at: context.pointee.rip)
                    enter(context, entry)
                    try leave(entry, isolated: limit == 1)
                } catch {
                    try deliver(error)
                    modeChanged()
                }
            }
        } catch {
            return .shutdown(
                ShutdownReason(rip: context.pointee.rip, mode: modeName, reason: error.reason))
        }
    }

    /// Clears the request flag, then looks at what it may stand for. Returns why to stop, if that is it.
    private func takeRequests() -> Exit? {
        interruptRequest.pointee.store(0, ordering: .sequentiallyConsistent)
        turnPolls(on: false)
        // The other side stores the flag, then the others: a store that came between ours must not be undone.
        if interruptRequest.pointee.load(ordering: .sequentiallyConsistent) != 0 { turnPolls(on: true) }
        interruptWaiting = true
        takeNMI()
        if deviceWrites.areWaiting { takeDeviceWrites() }
        if let text = failure {
            failure = nil
            return .failure(text)
        }
        return stopFlag.exchange(false, ordering: .sequentiallyConsistent) ? .stopped : nil
    }

    /// An NMI that another thread has injected is the CPU's from here on.
    func takeNMI() {
        if nmiFlag.exchange(false, ordering: .sequentiallyConsistent) { nmiPending = true }
    }

    /// Delivers what may be delivered now. In the shadow of STI or MOV SS one instruction has to run first.
    private func acceptInterrupts(_ limit: inout Int) throws(TripleFault) {
        if nmiPending && !context.pointee.nmiBlocked {
            if context.pointee.interruptShadow && !context.pointee.isHalted {
                limit = 1
                return
            }
            nmiPending = false
            try deliverNMI()
            modeChanged()
        }
        guard interrupts.isPending else {
            interruptWaiting = false
            // A request that came between the two looks has set the flag again.
            return
        }
        interruptWaiting = true
        guard context.pointee.systemFlags & RFLAGS.if != 0 else { return }
        if context.pointee.interruptShadow && !context.pointee.isHalted {
            limit = 1
            return
        }
        try deliverInterrupt(vector: interrupts.acknowledge())
        modeChanged()
    }

    // MARK: Entering

    /// The host address of the code at an instruction pointer, translated if need be, and `ripPage` set for it.
    /// - Parameter site: a direct jump to link, 0 for none; `saved`: to the entry for flags in the context.
    private func entry(at ip: UInt64, site: Int = 0, saved: Bool = true) throws(GuestException) -> UInt64 {
        let linear = linearCode(ip)
        let blockMode = try blockMode(at: ip, linear)
        let page = try codePage(linear)
        runsAlone = false
        entryIsGlobal = page.isGlobal
        crossings.note(page: page.ramOffset >> 12, runsAt: linear, isGlobal: page.isGlobal)
        var index = cache.find(page.physical + (linear & 0xFFF), blockMode)
        if index != 0 && cache.blocks[index].secondPage >= 0 {
            // The instruction's other half may be elsewhere than when the block was made.
            let second = try nextCodePage(linear)
            entryIsGlobal = entryIsGlobal && second.isGlobal
            if second.ramOffset >> 12 != cache.blocks[index].secondPage {
                cache.remove(index)
                index = 0
            }
        }
        var isFlushed = false
        if index == 0 {
            let before = cache.evictionCount
            index = try translate(
                linear, page: page, mode: blockMode, limit: BlockWorkspace.instructionLimit, isIsolated: false,
                isLoop: site != 0 && cache.sites[site].isBackward)
            if cache.blocks[index].secondPage >= 0 { entryIsGlobal = false }
            isFlushed = before != cache.evictionCount
        }
        var mayLink = site != 0
        if blockMode.has(BlockMode.segmented) {
            mayCacheJump = !blockMode.has(BlockMode.partialPage) && cache.blocks[index].secondPage < 0
            if !mayCacheJump {
                mayLink = false
                if passesLimit(ip, block: index) { return try isolatedEntry() }
            }
        } else if mayLink && blockMode.has(BlockMode.nearHole) && cache.sites[site].movesPage {
            mayLink = false
        }
        // The site is gone when room had to be made.
        if mayLink && !isFlushed {
            if cache.sites[site].movesPage || cache.blocks[index].secondPage >= 0 {
                crossings.link(site, to: index, saved: saved, isGlobal: entryIsGlobal)
            } else {
                cache.link(site, to: index, saved: saved)
            }
        }
        return executable(Int(cache.blocks[index].savedEntry))
    }

    /// One instruction, translated for this once.
    func isolatedEntry() throws(GuestException) -> UInt64 {
        let ip = context.pointee.rip
        let linear = linearCode(ip)
        let blockMode = try blockMode(at: ip, linear)
        let page = try codePage(linear)
        let index = try translate(linear, page: page, mode: blockMode, limit: 1, isIsolated: true)
        runsAlone = true
        if blockMode.has(BlockMode.segmented) && passesLimit(ip, block: index) { throw .generalProtection() }
        return executable(Int(cache.blocks[index].savedEntry))
    }

    private func executable(_ offset: Int) -> UInt64 { cache.memory.executableBase + UInt64(offset) }

    // MARK: Leaving

    /// Acts on the descriptor that the exit thunk stored. Afterwards `rip` is where to go on.
    /// - Parameter isolated: come back after the block that was entered.
    func leave(_ entered: UInt64, isolated: Bool) throws(GuestException) {
        var next = entered
        var isolated = isolated
        while true {
            let pointer = UnsafeRawPointer(bitPattern: UInt(context.pointee.exitReason)).unsafelyUnwrapped
            let descriptor = pointer.loadUnaligned(as: ExitDescriptor.self)
            let value = Int(descriptor.value)
            let kind = ExitDescriptor.Kind(rawValue: descriptor.kind).unsafelyUnwrapped
            switch kind {
            case .chain:
                let ip = instructionPointer(value)
                context.pointee.rip = ip
                if mode.has(BlockMode.breakpoints) && breakpoints.stopsCode(atOffset: Int(linearCode(ip) & 0xFFF)) { return }
                let site = Int(pointer.loadUnaligned(fromByteOffset: ExitDescriptor.size, as: UInt32.self))
                next = try entry(at: ip, site: site, saved: descriptor.flagsInHost == 0)
            case .goto:
                context.pointee.rip = instructionPointer(value)
                return
            case .indirect:
                if mode.codeSize == 0 && !Self.isCanonical(context.pointee.rip) { try refuseTarget() }
                if isolated { return }
                // A mask that came after its request was taken would turn the jump cache off for good.
                if jumpMask.pointee.load(ordering: .relaxed) == 0 && interruptRequest.pointee.load(ordering: .relaxed) == 0 {
                    requestAttention()
                }
                let linear = linearCode(context.pointee.rip)
                if mode.has(BlockMode.breakpoints) && breakpoints.stopsCode(atOffset: Int(linear & 0xFFF)) { return }
                next = try entry(at: context.pointee.rip)
                if mode.has(BlockMode.segmented) && !mayCacheJump { break }
                tlb.addJump(table: mode.table, linear: linear, host: next, isGlobal: entryIsGlobal)
            case .system:
                context.pointee.rip = instructionPointer(value & 0x1FFF)
                try system(systemPool.entries + (value >> 13))
                return
            case .exception:
                context.pointee.rip = instructionPointer(value)
                let hasCode = descriptor.vector == 13 || descriptor.vector == 12
                throw GuestException(vector: descriptor.vector, errorCode: hasCode ? 0 : nil)
            case .refusedCall: throw refusedCall(at: value)
            case .fault:
                guard let exception = pendingException else {
                    // The instruction writes into its own block, or hits a breakpoint: it runs alone.
                    next = try isolatedEntry()
                    isolated = true
                    break
                }
                throw exception
            case .resume: return
            case .signal:
                let isBounced = bounce.buffer != nil
                guard let exception = signalException() else {
                    // The run loop ends with it at its next look at requests, before anything else runs.
                    failure = hostFailure
                    requestAttention()
                    return
                }
                if context.pointee.faultTrap == 13 && !isBounced && !isolated {
                    // An address that is not canonical may have hit an empty slot (`TLBSlots.empty`). Alone, the
                    // instruction asks the TLB, and raises #SS where the segment is the stack's.
                    next = try isolatedEntry()
                    isolated = true
                    break
                }
                throw exception
            }
            if interruptRequest.pointee.load(ordering: .relaxed) != 0 { return }
            enterAgain(next)
        }
    }

    @inline(__always) private func enterAgain(_ entry: UInt64) {
        unsafeBitCast(
            Int(cache.memory.executableBase) + thunks.pointee.enter,
            to: (@convention(c) (UnsafeMutableRawPointer, UInt64) -> Void).self)(context, entry)
    }

    private func system(_ instruction: UnsafePointer<SystemInstruction>) throws(GuestException) {
        let copy = instruction.pointee
        if copy.kind.isStringOperation, try stringRun(copy) { return }
        try withUnsafePointer(to: copy) { (pointer) throws(GuestException) in try perform(pointer) }
        // Interrupts may be on now that were off when the request came.
        if context.pointee.systemFlags & RFLAGS.if != 0 && interrupts.isPending { interruptWaiting = true }
    }

    /// An instruction of the system half in the middle of a block. `false`: leave the block.
    func systemInBlock(_ pointer: UnsafeRawPointer) -> Bool {
        let value = Int(pointer.loadUnaligned(as: ExitDescriptor.self).value)
        let start = instructionPointer(value & 0x1FFF)
        context.pointee.rip = start
        codeChanged = false
        let modeBefore = mode
        let instruction = systemPool.entries + (value >> 13)
        do throws(GuestException) {
            try system(instruction)
        } catch {
            pendingException = error
            context.pointee.exitReason = cache.memory.executableBase + UInt64(thunks.pointee.faultDescriptor)
            return false
        }
        // What the instruction asked for from outside (an interrupt of a device that it wrote to) is seen behind it.
        if context.pointee.rip == (start &+ UInt64(instruction.pointee.length)) & codeMask && !codeChanged && mode == modeBefore
            && debugHits == 0 && interruptRequest.pointee.load(ordering: .relaxed) == 0
        {
            return true
        }
        context.pointee.exitReason = cache.memory.executableBase + UInt64(thunks.pointee.resumeDescriptor)
        return false
    }

    /// The guest exception that a host signal in translated code stands for; `nil` for one that no guest can cause.
    private func signalException() -> GuestException? {
        var host = Int(context.pointee.faultAddress - cache.memory.executableBase)
        if host >= thunks.pointee.bounceSlot && host < thunks.pointee.bounceSlot + Thunks.bounceSlotSize && bounce.buffer != nil {
            // The copy of an instruction: the fault is the original's, and what it would have written is dropped.
            host = Int(bounce.continuation - cache.memory.executableBase) - 1
            bounce.buffer = nil
        }
        let index = cache.find(codeOffset: host)
        guard index != 0 else { return nil }
        let (offset, flagsInHost) = cache.guestOffset(of: host, in: index)
        context.pointee.rip = instructionPointer(offset)
        if flagsInHost {
            context.pointee.rflags = context.pointee.systemFlags | context.pointee.faultFlags & UInt64(arithmeticFlags)
        }
        // Host trap numbers are the exception vectors.
        switch context.pointee.faultTrap {
        case 0: return .divideError
        case 6: return .invalidOpcode
        // A misaligned vector operand, or an address that is not canonical. A host address whose check passed is.
        case 13: return .generalProtection()
        case 16: return GuestException(vector: 16)
        case 17: return GuestException(vector: 17, errorCode: 0)
        // Without CR4.OSXMMEXCPT it is #UD (SDM Vol. 3, 2.5).
        case 19: return context.pointee.cr4 & CR4.osxmmexcpt != 0 ? GuestException(vector: 19) : .invalidOpcode
        default: return nil
        }
    }

    /// Why a host signal that is not the guest's doing ends the machine.
    private var hostFailure: String {
        func hex(_ value: UInt64) -> String { "0x" + String(value, radix: 16) }
        let c = context.pointee
        let place = "at guest rip \(hex(c.rip)), \(modeName)"
        let isInRAM = c.faultOperand &- UInt64(UInt(bitPattern: memory.hostBase)) < memory.byteCount
        if c.faultTrap == 14 && c.faultSignal == Int64(SIGBUS) && isInRAM {
            // RAM is a file in memory without a reservation: the host gives each page when it is first touched.
            return "the host has no memory left for guest RAM (\(place))"
        }
        let operand = c.faultTrap == 14 ? " on host address \(hex(c.faultOperand))" : ""
        return "translated code raised host trap \(c.faultTrap)\(operand) (\(place)): this is a bug in vmd's translator"
    }

    private var modeName: String {
        let c = context
        return ShutdownReason.modeName(
            cr0: c.pointee.cr0, rflags: c.pointee.systemFlags, efer: c.pointee.msr.efer, is64Bit: c.pointee.cs.isLong)
    }

    // MARK: From other threads

    package func stop() {
        stopFlag.store(true, ordering: .sequentiallyConsistent)
        requestAttention()
    }
    package func interruptRequested() { requestAttention() }
    package func injectNMI() {
        nmiFlag.store(true, ordering: .sequentiallyConsistent)
        requestAttention()
    }
}
