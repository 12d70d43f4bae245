import CLinux
import Glibc
import Synchronization
internal import VMM

// REP MOVS and REP STOS a page at a time, in both directions, by the host's own copying: what a guest does most with string
// instructions. All else (narrow addresses in 64-bit code, there fs and gs, elements across pages or over a segment's end,
// device memory) is `stringOperation`'s.
extension TranslatorCPU {
    /// Runs as much of the instruction as goes the fast way, up to the next request from outside.
    /// - Returns: `true` when it is done or has to be run again and `rip` says so; `false` for the general way.
    func stringRun(_ i: SystemInstruction) throws(GuestException) -> Bool {
        guard i.kind == .movs || i.kind == .stos, i.options.contains(.rep), context.pointee.systemFlags & RFLAGS.tf == 0,
            !breakpoints.watchesData, !mode.has(BlockMode.alignmentCheck)
        else { return false }
        let isDownward = context.pointee.systemFlags & RFLAGS.df != 0
        guard context.pointee.is64Bit else { return try segmentedRun(i, isDownward) }
        guard i.addressSize == 8, i.kind == .stos || (i.segment != SegmentNumber.fs && i.segment != SegmentNumber.gs)
        else { return false }
        let size = UInt64(i.operandSize)
        var remaining = context.pointee.gpr[1]
        while remaining != 0 {
            let to = context.pointee.gpr[7], from = context.pointee.gpr[6]
            var room = Self.room(to, size, isDownward)
            if i.kind == .movs { room = min(room, Self.room(from, size, isDownward)) }
            if room == 0 { return false }
            let count = min(remaining, room)
            guard try runInPages(i, to: to, from: from, count, isDownward) else { return false }
            let distance = isDownward ? 0 &- count &* size : count &* size
            if i.kind == .movs { context.pointee.gpr[6] = from &+ distance }
            context.pointee.gpr[7] = to &+ distance
            remaining &-= count
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
    private func segmentedRun(_ i: SystemInstruction, _ isDownward: Bool) throws(GuestException) -> Bool {
        let size = UInt64(i.operandSize)
        let mask = Self.mask(i.addressSize)
        var remaining = rcx & mask
        while remaining != 0 {
            let to = register(7) & mask, from = register(6) & mask
            guard let target = elementsInOnePage(SegmentNumber.es, to, mask, size, isDownward, write: true) else { return false }
            var room = target.count
            var source = target.linear
            if i.kind == .movs {
                guard let found = elementsInOnePage(i.segment, from, mask, size, isDownward, write: false) else { return false }
                source = found.linear
                room = min(room, found.count)
            }
            let count = min(remaining, room)
            guard try runInPages(i, to: target.linear, from: source, count, isDownward) else { return false }
            let distance = isDownward ? 0 &- count &* size : count &* size
            if i.kind == .movs { setRegister(6, from &+ distance, size: i.addressSize) }
            setRegister(7, to &+ distance, size: i.addressSize)
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

    /// How many elements from the one at a linear address on lie in its page.
    private static func room(_ linear: UInt64, _ size: UInt64, _ isDownward: Bool) -> UInt64 {
        let inside = linear & 0xFFF
        guard isDownward else { return (4096 - inside) / size }
        return inside + size <= 4096 ? inside / size + 1 : 0
    }

    /// The linear address of the element at an offset, and how many elements from there on lie in one page and between the
    /// offset's ends, all of them inside the segment; `nil` when there is none, they are not or may not be accessed, and each
    /// is to be checked by itself, in the order in which the CPU does.
    private func elementsInOnePage(
        _ segment: UInt8, _ offset: UInt64, _ mask: UInt64, _ size: UInt64, _ isDownward: Bool, write: Bool
    ) -> (linear: UInt64, count: UInt64)? {
        let whole = segmentRegister(segment)
        var base = whole.base
        if segment == SegmentNumber.fs { base = context.pointee.fsBase }
        if segment == SegmentNumber.gs { base = context.pointee.gsBase }
        let first = (base &+ offset) & 0xFFFF_FFFF
        var count = Self.room(first, size, isDownward)
        guard count > 0, mask - offset >= size - 1 else { return nil }
        count = min(count, isDownward ? offset / size + 1 : (mask - offset + 1) / size)
        let below = isDownward ? (count - 1) * size : 0
        guard Self.contains(whole, offset - below, count * size) else { return nil }
        do throws(GuestException) {
            return (try linear(segment, offset - below, count * size, write: write) + below, count)
        } catch {
            return nil
        }
    }

    /// Copies or fills `count` elements from those at linear addresses on, which lie in one page each way.
    /// - Returns: `false` when not all of it is RAM; nothing is done then.
    private func runInPages(
        _ i: SystemInstruction, to: UInt64, from: UInt64, _ count: UInt64, _ isDownward: Bool
    ) throws(GuestException) -> Bool {
        let size = Int(i.operandSize)
        if i.kind == .movs {
            guard let source = try hostElements(from, count, size, isDownward, writes: false),
                let target = try hostElements(to, count, size, isDownward, writes: true)
            else { return false }
            Self.copy(target, source, Int(count) * size, size, isDownward)
        } else {
            guard let target = try hostElements(to, count, size, isDownward, writes: true) else { return false }
            Self.fill(target, rax, Int(count), size)
        }
        return true
    }

    /// The lowest byte of a run's elements. A fault names the first one's address, as the CPU does.
    @inline(__always)
    private func hostElements(
        _ linear: UInt64, _ count: UInt64, _ size: Int, _ isDownward: Bool, writes: Bool
    ) throws(GuestException) -> UnsafeMutableRawPointer? {
        let user = mode.table == 1
        guard isDownward else { return try hostRun(linear, Int(count) * size, writes: writes, user: user) }
        guard try hostRun(linear, size, writes: writes, user: user) != nil else { return nil }
        return try hostRun(linear &- (count &- 1) &* UInt64(size), Int(count) * size, writes: writes, user: user)
    }

    /// As the instruction copies: element after element, so that a target that begins inside the source, in the direction of
    /// the run, repeats it.
    private static func copy(
        _ target: UnsafeMutableRawPointer, _ source: UnsafeMutableRawPointer, _ byteCount: Int, _ size: Int, _ isDownward: Bool
    ) {
        let ahead = UInt(bitPattern: target) &- UInt(bitPattern: source)
        if (isDownward ? 0 &- ahead : ahead) &- 1 >= UInt(byteCount) &- 1 {
            memmove(target, source, byteCount)
            return
        }
        var offset = isDownward ? byteCount - size : 0
        for _ in 0..<byteCount / size {
            switch size {
            case 8: (target + offset).storeBytes(of: (source + offset).loadUnaligned(as: UInt64.self), as: UInt64.self)
            case 4: (target + offset).storeBytes(of: (source + offset).loadUnaligned(as: UInt32.self), as: UInt32.self)
            case 2: (target + offset).storeBytes(of: (source + offset).loadUnaligned(as: UInt16.self), as: UInt16.self)
            default: (target + offset).storeBytes(of: (source + offset).load(as: UInt8.self), as: UInt8.self)
            }
            offset += isDownward ? -size : size
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
