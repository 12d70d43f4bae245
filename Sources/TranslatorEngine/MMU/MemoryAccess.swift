import CLinux
import Glibc
import VMM

/// One run of bytes of an access inside one page.
struct AccessPart {
    /// RAM: its host address; `nil`: device memory at `physical`.
    var host: UnsafeMutableRawPointer?
    var physical: UInt64
    var count: Int
}

/// An access that runs on the bounce buffer.
struct BounceState {
    var first = AccessPart(host: nil, physical: 0, count: 0)
    var second = AccessPart(host: nil, physical: 0, count: 0)
    var buffer: UnsafeMutableRawPointer?
    var continuation: UInt64 = 0
    /// Of a masked access, the bytes that it writes.
    var active: UInt64 = ~0
}

/// What generated code calls, as C function addresses.
enum MemoryHelpers {
    private static let access: @convention(c) (UnsafeMutableRawPointer, UInt64, UnsafeRawPointer) -> UInt64 = {
        owner, linear, descriptor in
        Unmanaged<TranslatorCPU>.fromOpaque(owner)._withUnsafeGuaranteedRef { $0.slowAccess(linear, descriptor) }
    }
    private static let finish: @convention(c) (UnsafeMutableRawPointer) -> Void = { owner in
        Unmanaged<TranslatorCPU>.fromOpaque(owner)._withUnsafeGuaranteedRef { $0.finishBounce() }
    }
    private static let system: @convention(c) (UnsafeMutableRawPointer, UnsafeRawPointer) -> UInt64 = { owner, descriptor in
        Unmanaged<TranslatorCPU>.fromOpaque(owner)._withUnsafeGuaranteedRef { $0.systemInBlock(descriptor) ? 1 : 0 }
    }
    static let systemAddress = UInt64(UInt(bitPattern: unsafeBitCast(system, to: Int.self)))
    static let accessAddress = UInt64(UInt(bitPattern: unsafeBitCast(access, to: Int.self)))
    static let finishAddress = UInt64(UInt(bitPattern: unsafeBitCast(finish, to: Int.self)))
}

extension TranslatorCPU {
    // MARK: The slow path of translated code

    /// A TLB miss in a block. Returns the host address to use, and where to go on in `Context.spill[3]`;
    /// 0 when the block has to be left: an exception is pending, or the block is no longer valid.
    func slowAccess(_ linear: UInt64, _ pointer: UnsafeRawPointer) -> UInt64 {
        let descriptor = pointer.loadUnaligned(as: MemoryDescriptor.self)
        let operation = UInt64(UInt(bitPattern: pointer)) &+ UInt64(bitPattern: Int64(descriptor.operation))
        context.pointee.rip = instructionPointer(Int(descriptor.guest))
        context.pointee.spill[3] = operation
        let size = Int(descriptor.size)
        let writes = descriptor.access & Access.write != 0
        let isMasked = descriptor.access & Access.masked != 0
        if descriptor.slot != 0 && !isMasked { retireSlot(descriptor, pointer, operation) }
        do throws(GuestException) {
            if isMasked { return try maskedAccess(linear, descriptor, operation, pointer) }
            if descriptor.access & Access.stack != 0 && context.pointee.isLongMode && !Self.isCanonical(linear) {
                throw beforePaging(linear, descriptor) ?? .stackFault()
            }
            if mode.has(BlockMode.alignmentCheck) {
                try checkAlignment(linear, size, descriptor.access)
            }
            if Int(linear & 0xFFF) + size <= 4096 {
                let part = try resolve(linear, count: size, writes: writes, table: mode.table)
                if debugHits != 0 && !runsAlone { return leaveToRunAlone() }
                if let host = part.host {
                    if writes && invalidateCode(host, size, running: pointer) {
                        pendingException = nil
                        return leaveForFault()
                    }
                    return UInt64(UInt(bitPattern: host))
                }
                return try startBounce(part, AccessPart(host: nil, physical: 0, count: 0), linear, descriptor, operation, pointer)
            }
            let inFirst = 4096 - Int(linear & 0xFFF)
            // Addresses are checked before pages are.
            let last = linear &+ UInt64(size - 1)
            if context.pointee.isLongMode && !Self.isCanonical(last) || descriptor.access & Access.flat != 0 && last > 0xFFFF_FFFF {
                throw beforePaging(linear, descriptor) ?? (descriptor.access & Access.stack != 0 ? .stackFault() : .generalProtection())
            }
            let first = try resolve(linear, count: inFirst, writes: writes, table: mode.table)
            let second = try resolve(
                (linear &+ UInt64(inFirst)) & linearMask, count: size - inFirst, writes: writes, table: mode.table)
            if debugHits != 0 && !runsAlone { return leaveToRunAlone() }
            return try startBounce(first, second, linear, descriptor, operation, pointer)
        } catch {
            pendingException = error.vector == 14 || error.vector == 17 ? beforePaging(linear, descriptor) ?? error : error
            return leaveForFault()
        }
    }

    /// Lets a site whose slot is never right look into the TLB instead.
    private func retireSlot(_ descriptor: MemoryDescriptor, _ pointer: UnsafeRawPointer, _ operation: UInt64) {
        let slot = UnsafeMutableRawPointer(context) + ContextOffset.slots + Int(descriptor.slot - 1) * TLBSlots.size
        guard slot.load(fromByteOffset: TLBSlots.jumps, as: UInt64.self) >= UInt64(TLBSlots.jumpLimit) else { return }
        slot.storeBytes(of: 0, toByteOffset: TLBSlots.jumps, as: UInt64.self)
        let base = cache.memory.writableBase
        let start = base + Int(operation - cache.memory.executableBase) - Emitter.checkByteCount(hasBMI2: hasBMI2)
        var code = Emitter(at: start)
        let miss = code.checkTLB(
            table: mode.table, writes: descriptor.access & Access.write != 0, size: Int(descriptor.size), hasBMI2: hasBMI2)
        // To the call in front of the descriptor.
        let descriptorOffset = Int(UInt(bitPattern: pointer) - UInt(cache.memory.executableBase))
        code.link(miss, to: base + descriptorOffset - 5)
    }

    /// #AC comes before a page fault, but not before the fault of an address that is not canonical.
    func checkAlignment(_ linear: UInt64, _ size: Int, _ access: UInt8) throws(GuestException) {
        if Int(truncatingIfNeeded: linear) & (Access.alignment(size: size, access) - 1) == 0 { return }
        if context.pointee.isLongMode && !(Self.isCanonical(linear) && Self.isCanonical(linear &+ UInt64(size - 1))) {
            throw access & Access.stack != 0 ? .stackFault() : .generalProtection()
        }
        if access & Access.flat != 0 && linear &+ UInt64(size - 1) > 0xFFFF_FFFF {
            throw access & Access.stack != 0 ? .stackFault() : .generalProtection()
        }
        throw .alignmentCheck
    }

    /// The fault that comes before a page fault or #AC on the same instruction (SDM Vol. 3, table 6-2).
    func beforePaging(_ linear: UInt64, _ descriptor: MemoryDescriptor) -> GuestException? {
        if descriptor.access & Access.aligned != 0 && linear & UInt64(descriptor.size &- 1) != 0 { return .generalProtection() }
        if descriptor.access & Access.x87 != 0 {
            saveExtendedState(to: xsaveArea + 1024, mask: 1)
            // FSW.ES
            if (xsaveArea + 1024).load(fromByteOffset: 2, as: UInt16.self) & 0x80 != 0 { return GuestException(vector: 16) }
        }
        return nil
    }

    func leaveForFault() -> UInt64 {
        context.pointee.exitReason = cache.memory.executableBase + UInt64(thunks.pointee.faultDescriptor)
        return 0
    }

    /// A breakpoint's trap comes behind this instruction, so the block may not go on.
    func leaveToRunAlone() -> UInt64 {
        debugHits = 0
        pendingException = nil
        return leaveForFault()
    }

    /// Finds memory for an access inside one page, and fills the TLB when it is RAM.
    func resolve(
        _ linear: UInt64, count: Int, writes: Bool, table: Int
    ) throws(GuestException) -> AccessPart {
        if context.pointee.isLongMode && !Self.isCanonical(linear) { throw .generalProtection() }
        let translation = try walk(
            linear, access: writes ? .write : .read, user: table == TLB.Table.user.rawValue,
            smapExempt: table == TLB.Table.supervisorAC.rawValue)
        let inside = linear & 0xFFF
        let isWatched = breakpoints.watchesData && breakpoints.watches(page: linear)
        if isWatched { debugHits |= breakpoints.data(linear, count, writes: writes) }
        guard translation.physical != apicPage, let page = memory.hostAddress(of: translation.physical, count: 4096) else {
            let part = AccessPart(host: nil, physical: translation.physical | inside, count: count)
            // The APIC's page hides what lies below it.
            return writes || translation.physical == apicPage ? part : readOnlyMemory(translation, linear, part, table: table, isWatched: isWatched)
        }
        let ramOffset = page - memory.hostBase
        if isWatched { return AccessPart(host: page + Int(inside), physical: translation.physical | inside, count: count) }
        // A page is written through the TLB once its dirty flag is set and it holds no code.
        let mayWrite =
            (writes || (translation.facts.contains(.writable) && translation.facts.contains(.dirty)))
            && !cache.hasCode(page: ramOffset >> 12)
        tlb.fill(
            table: table, linear: linear, host: page, ramOffset: ramOffset, writable: mayWrite,
            global: translation.facts.contains(.global), sizeShift: translation.sizeShift)
        return AccessPart(host: page + Int(inside), physical: translation.physical | inside, count: count)
    }

    /// ROM has memory behind it for reads alone: no entry lets a write in, so writes come here and are a device's, which
    /// nobody is.
    @inline(never)
    private func readOnlyMemory(
        _ translation: PageTranslation, _ linear: UInt64, _ part: AccessPart, table: Int, isWatched: Bool
    ) -> AccessPart {
        guard let rom = memory.readableAddress(of: translation.physical, count: 4096) else { return part }
        let page = UnsafeMutableRawPointer(mutating: rom)
        if !isWatched {
            tlb.fill(
                table: table, linear: linear, host: page, ramOffset: page - memory.hostBase, writable: false,
                global: translation.facts.contains(.global), sizeShift: translation.sizeShift)
        }
        return AccessPart(host: page + Int(linear & 0xFFF), physical: part.physical, count: part.count)
    }

    /// Before a write to RAM: drops blocks made from the bytes that change.
    /// - Parameter running: an address in the code of the block that runs, `nil` for none.
    /// - Returns: whether that block was one of them.
    func invalidateCode(_ host: UnsafeMutableRawPointer, _ count: Int, running: UnsafeRawPointer?) -> Bool {
        let start = host - memory.hostBase
        guard cache.hasCode(page: start >> 12) else { return false }
        var current = 0
        if let running {
            current = cache.find(codeOffset: Int(UInt(bitPattern: running) - UInt(cache.memory.executableBase)))
        }
        let result = cache.removeBlocks(page: start >> 12, overlapping: start..<start + count, running: current)
        if result.removed {
            codeChanged = true
            forgetJumps()
        }
        return result.running
    }

    /// Linear addresses have 32 bits outside of 64-bit code.
    var linearMask: UInt64 { context.pointee.is64Bit ? ~0 : 0xFFFF_FFFF }

    // MARK: Bounced accesses

    private func startBounce(
        _ first: AccessPart, _ second: AccessPart, _ linear: UInt64, _ descriptor: MemoryDescriptor, _ operation: UInt64,
        _ pointer: UnsafeRawPointer
    ) throws(GuestException) -> UInt64 {
        let buffer = UnsafeMutableRawPointer(context) + ContextOffset.bounce + Int(linear & 63)
        let reads = descriptor.access & Access.read != 0
        let writes = descriptor.access & Access.write != 0
        if writes {
            if let host = first.host, invalidateCode(host, first.count, running: pointer) {
                pendingException = nil
                return leaveForFault()
            }
            if let host = second.host, invalidateCode(host, second.count, running: pointer) {
                pendingException = nil
                return leaveForFault()
            }
        }
        take(first, into: buffer, reads: reads)
        if second.count > 0 { take(second, into: buffer + first.count, reads: reads) }
        guard writes else { return UInt64(UInt(bitPattern: buffer)) }
        // The access runs from the slot, and comes back through the bounce thunk.
        bounce = BounceState(
            first: first, second: second, buffer: buffer, continuation: operation + UInt64(descriptor.operationLength))
        fillBounceSlot(descriptor, operation)
        return UInt64(UInt(bitPattern: buffer))
    }

    /// Copies the instruction that makes the access to where it runs on the bounce buffer, and sends the block there.
    func fillBounceSlot(_ descriptor: MemoryDescriptor, _ operation: UInt64) {
        let base = cache.memory.writableBase
        let slot = thunks.pointee.bounceSlot
        let source = Int(operation - cache.memory.executableBase)
        let count = min(Int(descriptor.operationLength), Thunks.bounceSlotSize - 8)
        (base + slot).update(from: base + source, count: count)
        var code = Emitter(at: base + slot + count)
        code.call(to: base + thunks.pointee.bounceFinish)
        context.pointee.spill[3] = cache.memory.executableBase + UInt64(slot)
    }

    func take(_ part: AccessPart, into buffer: UnsafeMutableRawPointer, reads: Bool) {
        if let host = part.host {
            buffer.copyMemory(from: host, byteCount: part.count)
        } else if reads {
            readDevice(part.physical, part.count, into: buffer)
        }
    }

    /// Behind the bounced instruction: what it wrote goes where it belongs.
    func finishBounce() {
        guard let buffer = bounce.buffer else { return }
        if bounce.active != ~0 {
            putActive(buffer)
        } else {
            put(bounce.first, from: buffer)
            if bounce.second.count > 0 { put(bounce.second, from: buffer + bounce.first.count) }
        }
        context.pointee.spill[3] = bounce.continuation
        bounce.buffer = nil
    }

    func put(_ part: AccessPart, from buffer: UnsafeMutableRawPointer) {
        if let host = part.host {
            host.copyMemory(from: buffer, byteCount: part.count)
        } else {
            writeDevice(part.physical, part.count, from: buffer)
        }
    }

    /// The widest aligned access of at most 8 bytes at an address.
    private func width(_ physical: UInt64, _ count: Int) -> AccessWidth {
        if count >= 8 && physical & 7 == 0 { return .qword }
        if count >= 4 && physical & 3 == 0 { return .dword }
        return count >= 2 && physical & 1 == 0 ? .word : .byte
    }
    /// The local APIC, if the address is that of its registers.
    private func localDevice(_ physical: UInt64) -> (any LocalInterruptController)? { physical & ~0xFFF == apicPage ? apic : nil }

    func readDevice(_ physical: UInt64, _ count: Int, into buffer: UnsafeMutableRawPointer) {
        // The first half of a read and write of ROM.
        if localDevice(physical) == nil, let rom = memory.readableAddress(of: physical, count: UInt64(count)) {
            return buffer.copyMemory(from: rom, byteCount: count)
        }
        var done = 0
        while done < count {
            let width = width(physical &+ UInt64(done), count - done)
            let address = physical &+ UInt64(done)
            var value = (localDevice(address)?.read(address & 0xFFF, width) ?? mmio.read(address, width)).littleEndian
            memcpy(buffer + done, &value, width.rawValue)
            done += width.rawValue
        }
    }
    func writeDevice(_ physical: UInt64, _ count: Int, from buffer: UnsafeRawPointer) {
        var done = 0
        while done < count {
            let width = width(physical &+ UInt64(done), count - done)
            var value: UInt64 = 0
            memcpy(&value, buffer + done, width.rawValue)
            let address = physical &+ UInt64(done)
            if let device = localDevice(address) {
                device.write(address & 0xFFF, width, UInt64(littleEndian: value))
            } else {
                mmio.write(address, width, UInt64(littleEndian: value))
            }
            done += width.rawValue
        }
    }

    // MARK: Accesses of the system half

    /// The TLB to look into for an access that is not made by the code of the current mode. RFLAGS.AC exempts no
    /// implicit access, to descriptor tables and the TSS, from SMAP (SDM Vol. 3, 4.6.1).
    @inline(__always) private func table(user: Bool, implicit: Bool) -> Int {
        if user { return TLB.Table.user.rawValue }
        if implicit { return TLB.Table.supervisor.rawValue }
        return mode.table == TLB.Table.supervisorAC.rawValue ? mode.table : TLB.Table.supervisor.rawValue
    }

    /// Host memory for `count` bytes inside one page, by the TLB or by a walk.
    @inline(__always)
    private func find(
        _ linear: UInt64, _ count: Int, writes: Bool, user: Bool, implicit: Bool = false
    ) throws(GuestException) -> AccessPart {
        let table = table(user: user, implicit: implicit)
        let entry = tlb.entries + table * TLB.entryCount + TLBState.index(linear)
        if (writes ? entry.pointee.writeTag : entry.pointee.readTag) == linear & ~0xFFF {
            let host = UnsafeMutableRawPointer(bitPattern: UInt(entry.pointee.host | linear & 0xFFF)).unsafelyUnwrapped
            return AccessPart(host: host, physical: 0, count: count)
        }
        let part = try resolve(linear, count: count, writes: writes, table: table)
        if writes, let host = part.host { _ = invalidateCode(host, count, running: nil) }
        return part
    }

    /// Loads guest memory at a linear address with the checks of an access at privilege `user`; up to 8 bytes, may
    /// cross a page.
    package func load(
        _ linear: UInt64, byteCount: Int, user: Bool, implicit: Bool = false
    ) throws(GuestException) -> UInt64 {
        var value: UInt64 = 0
        if Int(linear & 0xFFF) + byteCount <= 4096 {
            let part = try find(linear, byteCount, writes: false, user: user, implicit: implicit)
            if let host = part.host {
                switch byteCount {
                case 8: return host.loadUnaligned(as: UInt64.self)
                case 4: return UInt64(host.loadUnaligned(as: UInt32.self))
                case 2: return UInt64(host.loadUnaligned(as: UInt16.self))
                case 1: return UInt64(host.load(as: UInt8.self))
                default: break
                }
            }
            try withUnsafeMutableBytes(of: &value) { bytes throws(GuestException) in
                take(part, into: bytes.baseAddress.unsafelyUnwrapped, reads: true)
            }
            return value
        }
        try withUnsafeMutableBytes(of: &value) { bytes throws(GuestException) in
            try load(linear, into: UnsafeMutableRawBufferPointer(rebasing: bytes[..<byteCount]), user: user, implicit: implicit)
        }
        return value
    }

    package func store(
        _ linear: UInt64, _ value: UInt64, byteCount: Int, user: Bool, implicit: Bool = false
    ) throws(GuestException) {
        if Int(linear & 0xFFF) + byteCount <= 4096 {
            let part = try find(linear, byteCount, writes: true, user: user, implicit: implicit)
            if let host = part.host {
                switch byteCount {
                case 8: return host.storeBytes(of: value, as: UInt64.self)
                case 4: return host.storeBytes(of: UInt32(truncatingIfNeeded: value), as: UInt32.self)
                case 2: return host.storeBytes(of: UInt16(truncatingIfNeeded: value), as: UInt16.self)
                case 1: return host.storeBytes(of: UInt8(truncatingIfNeeded: value), as: UInt8.self)
                default: break
                }
            }
        }
        var copy = value
        try withUnsafeBytes(of: &copy) { bytes throws(GuestException) in
            try store(linear, from: UnsafeRawBufferPointer(rebasing: bytes[..<byteCount]), user: user, implicit: implicit)
        }
    }

    /// Outside of long mode linear addresses have 32 bits, and behind the last comes 0; as in `slowAccess`. In long mode,
    /// whatever the code, descriptor tables and stacks of handlers may lie anywhere.
    @inline(__always) private func advanced(_ linear: UInt64, _ count: Int) -> UInt64 {
        let next = linear &+ UInt64(count)
        return context.pointee.isLongMode ? next : next & 0xFFFF_FFFF
    }

    package func load(
        _ linear: UInt64, into buffer: UnsafeMutableRawBufferPointer, user: Bool, implicit: Bool = false
    ) throws(GuestException) {
        guard let base = buffer.baseAddress else { return }
        var done = 0
        while done < buffer.count {
            let at = advanced(linear, done)
            let count = min(buffer.count - done, 4096 - Int(at & 0xFFF))
            take(try find(at, count, writes: false, user: user, implicit: implicit), into: base + done, reads: true)
            done += count
        }
    }

    /// Nothing is written if any page of it would fault.
    package func store(
        _ linear: UInt64, from buffer: UnsafeRawBufferPointer, user: Bool, implicit: Bool = false
    ) throws(GuestException) {
        guard let base = buffer.baseAddress else { return }
        for pass in 0..<2 {
            var done = 0
            while done < buffer.count {
                let at = advanced(linear, done)
                let count = min(buffer.count - done, 4096 - Int(at & 0xFFF))
                let part = try find(at, count, writes: true, user: user, implicit: implicit)
                if pass == 1 { put(part, from: UnsafeMutableRawPointer(mutating: base + done)) }
                done += count
            }
        }
    }

    /// Host memory for a run of bytes in one page, for string operations a page at a time; `nil` when it is device
    /// memory.
    func hostRun(_ linear: UInt64, _ count: Int, writes: Bool, user: Bool) throws(GuestException) -> UnsafeMutableRawPointer? {
        try find(linear, count, writes: writes, user: user).host
    }

    package func flushTLB(global: Bool) {
        tlb.flush(global: global)
        crossings.flush(global: global)
        dropReturns()
        if global { spaces.dropAll() }
    }
    package func flushTLB(page linear: UInt64) {
        guard tlb.flush(page: linear) else { return }
        crossings.flush(global: true)
        dropReturns()
    }
}
