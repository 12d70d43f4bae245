internal import VMM

/// What starts a task switch: decides on busy flags, the back link and NT (SDM Vol. 3, table 8-2).
private enum TaskSwitchReason { case jump, call, interrupt, interruptReturn }

/// The part of a TSS that a switch loads.
private struct TaskImage {
    var cr3: UInt64 = 0
    var rip: UInt64 = 0
    var flags: UInt64 = 0
    var registers: [8 of UInt64] = .init(repeating: 0)
    /// ES, CS, SS, DS, FS, GS.
    var selectors: [6 of UInt16] = .init(repeating: 0)
    var ldt: UInt16 = 0
    /// The T bit: a debug exception follows the switch.
    var traps = false
}

// Hardware task switching, which long mode does not have (SDM Vol. 3, chapter 8).
//
// Whatever can fail before the switch fails first: the new TSS is read and the old one written before any register
// changes. From then on faults belong to the new task, as on the hardware.
extension TranslatorCPU {
    /// A task gate in the IDT.
    func enterTaskGate(
        _ gate: Descriptor, errorCode: UInt32?, source: EventSource, returnAddress: UInt64
    ) throws(GuestException) {
        let external: UInt32 = source == .software ? 0 : 1
        let selector = gate.gateSelector
        guard selector & 4 == 0, selector & 0xFFFC != 0 else { throw .selector(13, selector, external: external) }
        let task = try descriptor(selector, external: external)
        try switchTask(
            to: task, selector, reason: .interrupt, returnAddress: returnAddress, external: external,
            flags: flagsImage(source))
        if let errorCode {
            var stack = rsp
            try push(&stack, UInt64(errorCode), size: task.type & 8 != 0 ? 4 : 2)
            setStackPointer(stack)
        }
    }

    /// IRET with NT set: back to the task that the TSS's link names.
    func returnToLinkedTask(_ instruction: UnsafePointer<SystemInstruction>) throws(GuestException) {
        let link = UInt16(
            truncatingIfNeeded: try load(maskSystemAddress(context.pointee.tr.base), byteCount: 2, user: false, implicit: true))
        guard link & 4 == 0, link & 0xFFFC != 0 else { throw .selector(10, link) }
        let task = try descriptor(link, vector: 10)
        try switchTask(
            to: task, link, reason: .interruptReturn, returnAddress: next(instruction), external: 0,
            flags: context.pointee.rflags & ~RFLAGS.nt)
    }

    /// A far jump or call to a TSS or a task gate.
    func farTask(
        _ target: Descriptor, _ selector: UInt16, isCall: Bool, returnAddress: UInt64
    ) throws(GuestException) {
        if target.privilegeLevel < max(context.pointee.privilegeLevel, Int(selector & 3)) {
            throw .selector(13, selector)
        }
        var task = target
        var taskSelector = selector
        if target.type == SystemType.taskGate {
            if !target.isPresent { throw .selector(11, selector) }
            taskSelector = target.gateSelector
            guard taskSelector & 4 == 0, taskSelector & 0xFFFC != 0 else { throw .selector(13, taskSelector) }
            task = try descriptor(taskSelector)
        } else if selector & 4 != 0 {
            throw .selector(13, selector)
        }
        try switchTask(
            to: task, taskSelector, reason: isCall ? .call : .jump, returnAddress: returnAddress, external: 0,
            flags: context.pointee.rflags)
    }

    private func switchTask(
        to task: Descriptor, _ selector: UInt16, reason: TaskSwitchReason, returnAddress: UInt64, external: UInt32,
        flags: UInt64
    ) throws(GuestException) {
        let isReturn = reason == .interruptReturn
        let wanted = isReturn ? SystemType.busyTSS : SystemType.availableTSS
        guard !task.isSegment, task.type & 7 == wanted & 7 else {
            throw .selector(isReturn ? 10 : 13, selector, external: external)
        }
        if !task.isPresent { throw .selector(11, selector, external: external) }
        let isWide = task.type & 8 != 0
        guard task.limit >= (isWide ? 0x67 : 0x2B) else { throw .selector(10, selector, external: external) }

        let image = try readTask(task.base, isWide: isWide)
        let oldSelector = context.pointee.tr.selector
        try writeTask(returnAddress: returnAddress, flags: flags)
        let nests = reason == .call || reason == .interrupt
        if nests { try store(task.base, UInt64(oldSelector), byteCount: 2, user: false, implicit: true) }
        if !nests, let address = descriptorAddress(oldSelector) { try setBusy(address, false) }
        if !isReturn { try setBusy(task.address, true) }

        var busy = task
        busy.low |= 2 << 40
        context.pointee.tr = busy.register(selector)
        context.pointee.cr0 |= CR0.ts
        // Local breakpoints are a task's own (SDM Vol. 3, 18.2.4).
        if context.pointee.dr7 & (DR7.localEnables | DR7.localExact) != 0 {
            context.pointee.dr7 &= ~(DR7.localEnables | DR7.localExact)
            debugChanged()
        }
        if image.traps { debugHits |= DR6.taskSwitch }
        try commit(image, isWide: isWide, nests: nests)
    }

    private func setBusy(_ address: UInt64, _ busy: Bool) throws(GuestException) {
        let byte = maskSystemAddress(address &+ 5)
        let old = try load(byte, byteCount: 1, user: false, implicit: true)
        try store(byte, busy ? old | 2 : old & ~2, byteCount: 1, user: false, implicit: true)
    }

    // MARK: The two formats (SDM Vol. 3, figures 8-2 and 8-10)

    private func field(_ base: UInt64, _ offset: UInt64, _ size: Int) throws(GuestException) -> UInt64 {
        try load((base &+ offset) & 0xFFFF_FFFF, byteCount: size, user: false, implicit: true)
    }

    private func readTask(_ base: UInt64, isWide: Bool) throws(GuestException) -> TaskImage {
        var image = TaskImage()
        let size = isWide ? 4 : 2
        let step = UInt64(size)
        let start: UInt64 = isWide ? 0x20 : 0x0E
        if isWide { image.cr3 = try field(base, 0x1C, 4) }
        image.rip = try field(base, start, size)
        image.flags = try field(base, start &+ step, size)
        for index in 0..<8 as Range<UInt64> {
            image.registers[Int(index)] = try field(base, start &+ step &* (index &+ 2), size)
        }
        for index in 0..<(isWide ? 6 : 4) as Range<UInt64> {
            let offset = start &+ step &* (index &+ 10)
            image.selectors[Int(index)] = UInt16(truncatingIfNeeded: try field(base, offset, 2))
        }
        let ldtOffset: UInt64 = isWide ? 0x60 : 0x2A
        image.ldt = UInt16(truncatingIfNeeded: try field(base, ldtOffset, 2))
        if isWide { image.traps = try field(base, 0x64, 1) & 1 != 0 }
        return image
    }

    /// Saves the running task; CR3 and the LDT selector are never written.
    private func writeTask(returnAddress: UInt64, flags: UInt64) throws(GuestException) {
        let tr = context.pointee.tr
        let isWide = tr.type & 8 != 0
        let size = isWide ? 4 : 2
        let step = UInt64(size)
        let start: UInt64 = isWide ? 0x20 : 0x0E
        func put(_ offset: UInt64, _ value: UInt64) throws(GuestException) {
            try store((tr.base &+ offset) & 0xFFFF_FFFF, value, byteCount: size, user: false, implicit: true)
        }
        try put(start, returnAddress)
        try put(start &+ step, flags)
        for index in 0..<8 as Range<UInt64> {
            try put(start &+ step &* (index &+ 2), context.pointee.gpr[Int(index)])
        }
        for index in 0..<(isWide ? 6 : 4) as Range<UInt64> {
            let number = UInt8(truncatingIfNeeded: index)
            try put(start &+ step &* (index &+ 10), UInt64(segmentRegister(number).selector))
        }
    }

    /// Loads the new task. Registers and selectors first, then descriptors, whose faults are the new task's.
    private func commit(_ image: TaskImage, isWide: Bool, nests: Bool) throws(GuestException) {
        let mask: UInt64 = isWide ? 0xFFFF_FFFF : 0xFFFF
        for index in 0..<8 {
            context.pointee.gpr[index] = image.registers[index] | (isWide ? 0 : 0xFFFF_0000)
        }
        context.pointee.rip = image.rip & mask
        context.pointee.rflags = image.flags & RFLAGS.defined | (nests ? RFLAGS.nt : 0)
        for number in 0..<6 as Range<UInt8> {
            setSegmentRegister(number, SegmentRegister(selector: image.selectors[Int(number)]))
        }
        // The level is the new CS's from here on, so that a fault is taken at it.
        context.pointee.ldtr = SegmentRegister(selector: image.ldt)
        defer { modeChanged() }
        if isWide && context.pointee.cr0 & CR0.pg != 0 { try writeCR3(image.cr3) }
        try loadTaskLDT(image.ldt)
        if context.pointee.systemFlags & RFLAGS.vm != 0 {
            for number in 0..<6 as Range<UInt8> { loadRealSegment(number, image.selectors[Int(number)]) }
            return
        }
        try loadTaskSegments(image, isWide: isWide)
    }

    private func loadTaskLDT(_ selector: UInt16) throws(GuestException) {
        if selector & 0xFFFC == 0 { return }
        if selector & 4 != 0 { throw .selector(10, selector) }
        let table = try descriptor(selector, vector: 10)
        guard !table.isSegment, table.type == SystemType.ldt, table.isPresent else { throw .selector(10, selector) }
        context.pointee.ldtr = table.register(selector)
    }

    private func loadTaskSegments(_ image: TaskImage, isWide: Bool) throws(GuestException) {
        let selector = image.selectors[Int(SegmentNumber.cs)]
        let level = Int(selector & 3)
        if selector & 0xFFFC == 0 { throw .selector(10, selector) }
        var code = try descriptor(selector, vector: 10)
        guard code.isCode, code.isConforming ? code.privilegeLevel <= level : code.privilegeLevel == level else {
            throw .selector(10, selector)
        }
        if !code.isPresent { throw .selector(11, selector) }
        try markAccessed(&code)
        context.pointee.cs = code.register(selector)
        context.pointee.ss = try stackSegment(
            image.selectors[Int(SegmentNumber.ss)], level: level, vector: 10, external: 0, into64Bit: false)
        for number in [SegmentNumber.es, SegmentNumber.ds, SegmentNumber.fs, SegmentNumber.gs] {
            do throws(GuestException) {
                try loadSegment(number, image.selectors[Int(number)])
            } catch {
                // What is #GP for a MOV is #TS in a task switch.
                if error.vector != 13 { throw error }
                throw GuestException(vector: 10, errorCode: error.errorCode)
            }
        }
        guard context.pointee.rip <= UInt64(code.limit) else { throw .generalProtection() }
    }
}
