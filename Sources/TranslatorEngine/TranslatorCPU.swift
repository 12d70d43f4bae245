import CLinux
import Glibc
import Linux
import Synchronization
package import VMM

/// A virtual CPU of the translator engine.
///
/// `@unchecked Sendable`: everything belongs to the vCPU's thread but `stop`, `interruptRequested` and `injectNMI`, which
/// only write atomics, and what `GuestMemory` tells of devices' writes, which goes to `deviceWrites`. Its parts are in
/// the folders: `Translate/` makes blocks, `CodeCache/` keeps them, `MMU/` finds memory, `System/` runs what may not be
/// copied, and `Run.swift` joins them.
package final class TranslatorCPU: @unchecked Sendable {
    package let context: UnsafeMutablePointer<Context>
    package let memory: GuestMemory
    /// Size of the RAM that begins at physical address 0. Page walks look here first: no array, no reference count.
    let lowRAMByteCount: UInt64
    package let ports: PortBus
    package let mmio: MMIOBus
    package let interrupts: any InterruptSource
    let apic: (any LocalInterruptController)?
    /// The physical page of the local APIC's registers, which lies over what else is there; all ones for none.
    var apicPage: UInt64 = ~0
    package let policy: CPUPolicy
    let clock: ParavirtualClock?

    /// The context, the TLBs and the jump caches, addressed by `ContextOffset`.
    private let contextMapping: MemoryMapping
    let cache: CodeCache
    let crossings: Crossings
    let returnStack: ReturnStack
    let thunks: UnsafeMutablePointer<Thunks>
    let work: BlockWorkspace
    var decoder: Decoder
    /// The instructions that CPUID shows.
    let shown: InstructionSets
    /// An instruction that lies in two pages, put together.
    let straddleBuffer: UnsafeMutableRawPointer
    let hasBMI2: Bool
    /// The guest's vector registers.
    let vectorExtent: VectorExtent
    /// Places of AVX-512's components in an XSAVE area.
    let wideLayout: WideLayout
    /// The guest's CPU maps 1 GB pages.
    let hasHugePages: Bool
    let hasSMAP: Bool
    let systemPool: SystemPool
    /// What the blocks that run now depend on; `modeChanged` keeps it true.
    var mode: BlockMode {
        get { BlockMode(rawValue: context.pointee.mode) }
        set { context.pointee.mode = newValue.rawValue }
    }
    let tlb: TLBState
    let spaces = AddressSpaces()
    let deviceWrites = DeviceWrites()

    /// The exception that a memory helper found; `nil` when it left because the running block is no longer valid.
    var pendingException: GuestException?
    var bounce = BounceState()
    /// Why the machine has to end: `run` returns it at its next look at requests.
    var failure: String?
    var breakpoints = Breakpoints()
    /// Where the blocks made under `BlockMode.breakpoints` end.
    var cutOffsets: UInt64 = 0
    /// Data and port breakpoints that the instruction at hand has hit, and its single step, in DR6's places.
    var debugHits: UInt64 = 0
    /// The block that runs is one instruction that nobody finds.
    var runsAlone = false
    /// An instruction since the flag was last cleared entered a handler, or saw to its single step itself.
    var skipsStep = false
    /// The instruction at hand follows a load of SS.
    var followsStackLoad = false
    /// While a block is made: bytes of its page that were looked at for the flags they read.
    var scanned = 0..<0
    /// What physical addresses are cut with while A20 is closed.
    var addressMask: UInt64 = ~0
    /// Whether the block that was found last lies in global pages.
    var entryIsGlobal = false
    /// Whether jumps may lead to the block last found without another look at it, in segmented code.
    var mayCacheJump = true
    /// Blocks were removed since the flag was last cleared.
    var codeChanged = false
    var interruptWaiting: Bool {
        get { context.pointee.interruptWaiting != 0 }
        set { context.pointee.interruptWaiting = newValue ? 1 : 0 }
    }
    let stopFlag = Atomic<Bool>(false)
    /// `injectNMI` was called. The CPU's thread makes it `nmiPending`.
    let nmiFlag = Atomic<Bool>(false)
    /// An NMI waits to be delivered: state of the CPU.
    var nmiPending = false
    /// Work space for XSAVE images.
    let xsaveArea: UnsafeMutableRawPointer
    /// Images of guests that have AVX-512 enabled, for `withImage`, and how many of them are lent.
    let wideImages: UnsafeMutableRawPointer
    var wideImagesLent = 0
    /// The guest's x87 state between runs, as an XSAVE image of that component alone.
    let x87Image: UnsafeMutableRawPointer
    var x87InHost = false

    /// - Parameter codeByteCount: bound of the translated code's memory; 128 KB at least.
    package init(index: Int = 0, wiring: Wiring, codeByteCount: Int = TranslatorEngine.codeByteCount) throws {
        memory = wiring.memory
        lowRAMByteCount = wiring.memory.ranges.first.map { $0.base == 0 ? $0.byteCount : 0 } ?? 0
        ports = wiring.ports
        mmio = wiring.mmio
        apic = index < wiring.localAPICs.count ? wiring.localAPICs[index] : nil
        interrupts = apic ?? wiring.interrupts
        policy = wiring.policy
        clock = wiring.clock
        contextMapping = try MemoryMapping(
            byteCount: ContextOffset.end, protection: PROT_READ | PROT_WRITE, flags: MAP_PRIVATE | MAP_ANONYMOUS,
            guardByteCount: MemoryMapping.standardGuard)
        context = contextMapping.base.bindMemory(to: Context.self, capacity: 1)
        context.initialize(to: Context())
        shown = InstructionSets(policy.features)
        decoder = Decoder(shown: shown)
        hasBMI2 = HostCPU.current.features.contains(.bmi2)
        hasSMAP = wiring.policy.features.contains(.smap)
        let hasAVX512 = policy.xcr0Mask & Component.wide == Component.wide
        vectorExtent =
            hasAVX512
            ? .avx512(wideMasks: policy.features.contains(.avx512bw)) : HostCPU.current.features.contains(.avx) ? .avx : .sse
        wideLayout = WideLayout(policy)
        hasHugePages = wiring.policy.features.contains(.pdpe1gb)
        let code = try CodeMemory(byteCount: codeByteCount)
        let shared = Thunks(
            in: code, vectors: vectorExtent, hasBMI2: hasBMI2, memoryHelper: MemoryHelpers.accessAddress,
            bounceHelper: MemoryHelpers.finishAddress, systemHelper: MemoryHelpers.systemAddress)
        cache = try CodeCache(memory: code, thunkByteCount: shared.end, ramByteCount: wiring.memory.byteCount)
        crossings = try Crossings(cache: cache, ramByteCount: wiring.memory.byteCount)
        returnStack = try ReturnStack(miss: code.executableBase + UInt64(shared.neverHit))
        // Nothing throws from here on: `deinit`, which frees these, does not run for a CPU that was never whole.
        thunks = .allocate(capacity: 1)
        thunks.initialize(to: shared)
        work = BlockWorkspace()
        straddleBuffer = .allocate(byteCount: 64, alignment: 16)
        xsaveArea = .allocate(byteCount: 4096, alignment: 64)
        memset(xsaveArea, 0, 4096)
        wideImages = .allocate(byteCount: ExtendedImage.wideByteCount * 2, alignment: 64)
        x87Image = .allocate(byteCount: 1024, alignment: 64)
        memset(x87Image, 0, 1024)
        systemPool = SystemPool(segmentCount: cache.segmentCount)
        // FCW as FNINIT leaves it.
        x87Image.storeBytes(of: 0x37F, as: UInt16.self)
        tlb = TLBState(
            base: contextMapping.base, neverHit: code.executableBase + UInt64(thunks.pointee.neverHit))
        context.pointee.owner = UInt64(UInt(bitPattern: Unmanaged.passUnretained(self).toOpaque()))
        context.pointee.jumpMask = JumpCache.mask
        context.pointee.returnBase = returnStack.base
        context.pointee.returnLimit = returnStack.limit
        context.pointee.savedStack = returnStack.base
        let base = code.executableBase
        context.pointee.codeBase = base
        context.pointee.codeEnd = base + UInt64(code.byteCount)
        context.pointee.signalExit = base + UInt64(thunks.pointee.exitSignal)
        context.pointee.signalReason = base + UInt64(thunks.pointee.signalDescriptor)
        modeChanged()
        memory.onWatchedWrite { [weak self] range in
            guard let self else { return }
            deviceWrites.add(range)
            requestAttention()
        }
        if let a20 = wiring.a20 {
            addressMask = a20.isOpen ? ~0 : ~(1 << 20)
            a20.onChange { [weak self, weak a20] in
                if let a20 { self?.a20Changed(isOpen: a20.isOpen) }
            }
        }
    }

    deinit {
        work.deallocate()
        straddleBuffer.deallocate()
        xsaveArea.deallocate()
        wideImages.deallocate()
        x87Image.deallocate()
        thunks.deallocate()
    }

    /// The request flag that translated code polls.
    var interruptRequest: UnsafeMutablePointer<Atomic<UInt32>> {
        (contextMapping.base + ContextOffset.interruptRequest).assumingMemoryBound(to: Atomic<UInt32>.self)
    }
    var jumpMask: UnsafeMutablePointer<Atomic<UInt64>> {
        (contextMapping.base + ContextOffset.jumpMask).assumingMemoryBound(to: Atomic<UInt64>.self)
    }

    private var returnLimit: UnsafeMutablePointer<Atomic<UInt64>> {
        (contextMapping.base + ContextOffset.returnLimit).assumingMemoryBound(to: Atomic<UInt64>.self)
    }

    /// Makes translated code leave at its next poll. Any thread.
    func requestAttention() {
        interruptRequest.pointee.store(1, ordering: .sequentiallyConsistent)
        turnPolls(on: true)
    }
    /// What jumps and calls look at in the place of the request flag.
    func turnPolls(on: Bool) {
        jumpMask.pointee.store(on ? 0 : JumpCache.mask, ordering: .sequentiallyConsistent)
        returnLimit.pointee.store(on ? ~0 : returnStack.limit, ordering: .sequentiallyConsistent)
    }

    /// CPL, CR0, CR4, EFER, CS.L/D, RFLAGS.AC or segments changed: blocks are keyed by mode.
    package func modeChanged() {
        let c = context
        var value: UInt64
        if c.pointee.privilegeLevel == 3 {
            value = UInt64(TLB.Table.user.rawValue)
            if c.pointee.cr0 & CR0.am != 0 && c.pointee.systemFlags & RFLAGS.ac != 0 { value |= BlockMode.alignmentCheck }
        } else if c.pointee.systemFlags & RFLAGS.ac != 0 && c.pointee.cr4 & CR4.smap != 0 {
            value = UInt64(TLB.Table.supervisorAC.rawValue)
        } else {
            value = UInt64(TLB.Table.supervisor.rawValue)
        }
        if !c.pointee.is64Bit {
            value |= (c.pointee.cs.isBig ? 1 : 2) << 2
            value |= updateSegments()
        } else {
            c.pointee.csBase = 0
        }
        if c.pointee.privilegeLevel == 1 || c.pointee.privilegeLevel == 2 { value |= BlockMode.outerRing }
        if c.pointee.cr4 & CR4.tsd != 0 { value |= BlockMode.timeStampTrap }
        if c.pointee.cr0 & CR0.ts != 0 {
            value |= BlockMode.fpuTrap | (c.pointee.cr0 & CR0.mp != 0 ? BlockMode.waitTrap : 0)
        }
        if c.pointee.cr0 & CR0.em != 0 { value |= BlockMode.fpuAbsent }
        if c.pointee.cr4 & CR4.osfxsr == 0 { value |= BlockMode.noSSE }
        if c.pointee.cr4 & (1 << 18) == 0 || c.pointee.xcr0 & 4 == 0 { value |= BlockMode.noAVX }
        if c.pointee.cr4 & CR4.osxsave == 0 || c.pointee.xcr0 & 0xE6 != 0xE6 { value |= BlockMode.noAVX512 }
        if c.pointee.cr4 & CR4.smap != 0 { value |= BlockMode.smap }
        if breakpoints.stopsCode { value |= BlockMode.breakpoints }
        mode = BlockMode(rawValue: value)
        let table = mode.table
        if c.pointee.jumpCacheMode[table] != value {
            tlb.clearJumpCache(table)
            c.pointee.jumpCacheMode[table] = value
        }
    }

    /// Drops all translated code.
    func flushCode() {
        cache.removeAll()
        crossings.removeAll()
        systemPool.begin(segment: cache.segment)
        forgetJumps()
    }

    /// Sees to room for the block to be made at a physical address; drops old code when there is none.
    func makeRoom(_ physical: UInt64, _ mode: BlockMode, isIsolated: Bool) {
        if cache.choose(physical, mode, isIsolated: isIsolated) {
            systemPool.segment = cache.segment
            if cache.hasRoom && !systemPool.isFull { return }
        }
        if cache.advance() { forgetJumps() }
        systemPool.begin(segment: cache.segment)
    }

    /// Empties what leads to code without a link: some of it is no longer valid.
    func forgetJumps() {
        for table in 0..<TLB.tableCount { tlb.clearJumpCache(table) }
        dropReturns()
    }
    /// Empties the return stack. In a helper that translated code called: when that goes on.
    @inline(__always) func dropReturns() { context.pointee.savedStack = context.pointee.returnBase }
}

/// System instructions that translated blocks name by number.
///
/// Each segment of the code cache has its part.
final class SystemPool {
    /// In one segment. A number has to fit into an `ExitDescriptor` beside an offset in a page.
    static let limit = 1 << 11
    let entries: UnsafeMutablePointer<SystemInstruction>
    /// How many of each segment's are used.
    private let counts: UnsafeMutablePointer<Int>
    /// The segment that blocks are made in.
    var segment = 0
    init(segmentCount: Int) {
        precondition(segmentCount * Self.limit <= 1 << 18, "numbers have 18 bits")
        entries = .allocate(capacity: segmentCount * Self.limit)
        counts = .allocate(capacity: segmentCount)
        counts.initialize(repeating: 0, count: segmentCount)
    }
    deinit {
        entries.deallocate()
        counts.deallocate()
    }
    /// Whether a block of nothing else would no longer fit.
    var isFull: Bool { counts[segment] + BlockWorkspace.instructionLimit >= Self.limit }
    func add(_ instruction: SystemInstruction) -> Int {
        let count = counts[segment]
        precondition(count < Self.limit, "translate makes room before the pool is full")
        entries[segment * Self.limit + count] = instruction
        counts[segment] = count + 1
        return segment * Self.limit + count
    }
    /// Blocks are made in another segment now, whose entries nobody uses any more.
    func begin(segment: Int) {
        self.segment = segment
        counts[segment] = 0
    }
}
