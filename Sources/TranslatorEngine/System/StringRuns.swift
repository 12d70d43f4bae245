import CLinux
import Glibc
import Synchronization
internal import VMM

// REP MOVS and REP STOS a page at a time, by the host's own copying: what a guest does most with string
// instructions. All else (downward, narrow addresses in 64-bit code, there fs and gs, elements across pages or over a
// segment's end, device memory) is `stringOperation`'s.
extension TranslatorCPU {
    /// Runs as much of the instruction as goes the fast way, up to the next request from outside.
    /// - Returns: `true` when it is done or has to be run again and `rip` says so; `false` for the general way.
    func stringRun(_ i: SystemInstruction) throws(GuestException) -> Bool {
        guard i.kind == .movs || i.kind == .stos, i.options.contains(.rep),
            context.pointee.systemFlags & (RFLAGS.df | RFLAGS.tf) == 0,
            !breakpoints.watchesData, !mode.has(BlockMode.alignmentCheck)
        else { return false }
        guard context.pointee.is64Bit else { return try segmentedRun(i) }
        guard i.addressSize == 8, i.kind == .stos || (i.segment != SegmentNumber.fs && i.segment != SegmentNumber.gs)
        else { return false }
        let size = Int(i.operandSize)
        let user = mode.table == 1
        var remaining = context.pointee.gpr[1]
        while remaining != 0 {
            let destination = context.pointee.gpr[7]
            var room = (4096 - Int(destination & 0xFFF)) / size
            if i.kind == .movs { room = min(room, (4096 - Int(context.pointee.gpr[6] & 0xFFF)) / size) }
            if room == 0 { return false }
            let count = remaining < UInt64(room) ? Int(remaining) : room
            let byteCount = count * size
            if i.kind == .movs {
                guard let source = try hostRun(context.pointee.gpr[6], byteCount, writes: false, user: user),
                    let target = try hostRun(destination, byteCount, writes: true, user: user)
                else { return false }
                Self.copyForward(target, source, byteCount, size)
                context.pointee.gpr[6] &+= UInt64(byteCount)
            } else {
                guard let target = try hostRun(destination, byteCount, writes: true, user: user) else { return false }
                Self.fill(target, context.pointee.gpr[0], count, size)
            }
            context.pointee.gpr[7] = destination &+ UInt64(byteCount)
            remaining &-= UInt64(count)
            context.pointee.gpr[1] = remaining
            if remaining != 0 && interruptRequest.pointee.load(ordering: .relaxed) != 0 {
                context.pointee.systemFlags |= RFLAGS.rf
                return true
            }
        }
        context.pointee.rip &+= UInt64(i.length)
        return true
    }

    /// The same outside of 64-bit code, where offsets have 16 or 32 bits and segments a base and a limit.
    private func segmentedRun(_ i: SystemInstruction) throws(GuestException) -> Bool {
        let size = UInt64(i.operandSize)
        let mask = Self.mask(i.addressSize)
        let user = mode.table == 1
        var remaining = rcx & mask
        while remaining != 0 {
            let to = register(7) & mask, from = register(6) & mask
            guard let target = bytesInOnePage(SegmentNumber.es, to, mask, write: true) else { return false }
            var room = target.byteCount / size
            var source = target
            if i.kind == .movs {
                guard let found = bytesInOnePage(i.segment, from, mask, write: false) else { return false }
                source = found
                room = min(room, source.byteCount / size)
            }
            if room == 0 { return false }
            let count = min(remaining, room)
            let byteCount = Int(count * size)
            if i.kind == .movs {
                guard let bytes = try hostRun(source.linear, byteCount, writes: false, user: user),
                    let place = try hostRun(target.linear, byteCount, writes: true, user: user)
                else { return false }
                Self.copyForward(place, bytes, byteCount, Int(size))
                setRegister(6, from &+ UInt64(byteCount), size: i.addressSize)
            } else {
                guard let place = try hostRun(target.linear, byteCount, writes: true, user: user) else { return false }
                Self.fill(place, rax, Int(count), Int(size))
            }
            setRegister(7, to &+ UInt64(byteCount), size: i.addressSize)
            remaining &-= count
            setRegister(1, remaining, size: i.addressSize)
            if remaining != 0 && interruptRequest.pointee.load(ordering: .relaxed) != 0 {
                context.pointee.systemFlags |= RFLAGS.rf
                return true
            }
        }
        context.pointee.rip = (context.pointee.rip &+ UInt64(i.length)) & 0xFFFF_FFFF
        return true
    }

    /// The linear address of an offset, and how many bytes from there lie in one page and before the offset's end, all of
    /// them inside the segment; `nil` when they are not or may not be accessed, and each element is to be checked by itself,
    /// in the order in which the CPU does.
    private func bytesInOnePage(
        _ segment: UInt8, _ offset: UInt64, _ mask: UInt64, write: Bool
    ) -> (linear: UInt64, byteCount: UInt64)? {
        let whole = segmentRegister(segment)
        var base = whole.base
        if segment == SegmentNumber.fs { base = context.pointee.fsBase }
        if segment == SegmentNumber.gs { base = context.pointee.gsBase }
        let first = (base &+ offset) & 0xFFFF_FFFF
        let byteCount = min(4096 - (first & 0xFFF), mask - offset + 1)
        guard Self.contains(whole, offset, byteCount) else { return nil }
        do throws(GuestException) {
            return (try linear(segment, offset, byteCount, write: write), byteCount)
        } catch {
            return nil
        }
    }

    /// As the instruction copies: element after element, so that a target that begins inside the source repeats it.
    private static func copyForward(
        _ target: UnsafeMutableRawPointer, _ source: UnsafeMutableRawPointer, _ byteCount: Int, _ size: Int
    ) {
        let distance = UInt(bitPattern: target) &- UInt(bitPattern: source)
        if distance >= UInt(byteCount) {
            memmove(target, source, byteCount)
            return
        }
        var offset = 0
        while offset < byteCount {
            switch size {
            case 8: (target + offset).storeBytes(of: (source + offset).loadUnaligned(as: UInt64.self), as: UInt64.self)
            case 4: (target + offset).storeBytes(of: (source + offset).loadUnaligned(as: UInt32.self), as: UInt32.self)
            case 2: (target + offset).storeBytes(of: (source + offset).loadUnaligned(as: UInt16.self), as: UInt16.self)
            default: (target + offset).storeBytes(of: (source + offset).load(as: UInt8.self), as: UInt8.self)
            }
            offset += size
        }
    }

    private static func fill(_ target: UnsafeMutableRawPointer, _ value: UInt64, _ count: Int, _ size: Int) {
        switch size {
        case 1: memset(target, CInt(value & 0xFF), count)
        case _ where value == 0: memset(target, 0, count * size)
        case 2: for index in 0..<count { target.storeBytes(of: UInt16(truncatingIfNeeded: value), toByteOffset: index * 2, as: UInt16.self) }
        case 4: for index in 0..<count { target.storeBytes(of: UInt32(truncatingIfNeeded: value), toByteOffset: index * 4, as: UInt32.self) }
        default: for index in 0..<count { target.storeBytes(of: value, toByteOffset: index * 8, as: UInt64.self) }
        }
    }
}
