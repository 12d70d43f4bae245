import CLinux
import Glibc
import Linux
import Synchronization
import VMM

/// A virtual CPU run by KVM.
///
/// `@unchecked Sendable`: everything but the atomics and the `immediate_exit` byte is touched by the CPU's own thread
/// only, as `VirtualCPU` asks.
///
/// How other threads get its attention without a lost wake-up: they set `kicked`, then `immediate_exit`, then send a
/// signal. The CPU's thread clears both *before* it looks at what is asked of it and then enters the guest. A
/// request before the clearing is seen by that look; one after it finds `immediate_exit` set, and KVM_RUN returns
/// at once; one in the guest is ended by the signal.
final class KVMVirtualCPU: VirtualCPU, @unchecked Sendable {
    let descriptor: FileDescriptor
    let runMapping: MemoryMapping
    let wiring: Wiring
    let hasTSCOffset: Bool
    /// Keeps the machine's descriptor open.
    let engine: KVMEngine

    /// The registers that the policy's table answers for by itself; the kernel has the others.
    var tableMSRs = ModelSpecificRegisters()
    /// HLT was executed, in a machine whose CPUs halt here and not in the kernel.
    var isHalted = false
    /// RFLAGS.IF at the last exit.
    var interruptsEnabled = false
    /// KVM_INTERRUPT is allowed now.
    var canInject = false
    /// An instruction waits for the next KVM_RUN to be completed with what a device answered.
    var isCompleting = false

    private let stopRequested = Atomic<Bool>(false)
    private let nmiRequested = Atomic<Bool>(false)
    private let kicked = Atomic<Bool>(false)
    /// The thread inside `run`, or 0.
    private let runner = Atomic<CInt>(0)
    private var preparedThread: CInt = 0

    var area: UnsafeMutablePointer<kvm_run> { runMapping.base.assumingMemoryBound(to: kvm_run.self) }

    init(engine: KVMEngine, descriptor: consuming FileDescriptor, runByteCount: Int, wiring: Wiring) throws {
        self.engine = engine
        self.wiring = wiring
        let raw = descriptor.raw
        self.descriptor = descriptor
        runMapping = try MemoryMapping(
            byteCount: runByteCount, protection: PROT_READ | PROT_WRITE, flags: MAP_SHARED, descriptor: raw)
        hasTSCOffset = Self.supportsTSCOffset(raw)
        Self.installKickHandler
        try setCPUID(raw, wiring.policy)
        try writeState(CPUState())
    }

    // MARK: From other threads

    func stop() {
        stopRequested.store(true, ordering: .sequentiallyConsistent)
        kick()
    }

    func interruptRequested() { kick() }

    func injectNMI() {
        nmiRequested.store(true, ordering: .sequentiallyConsistent)
        kick()
    }

    private func kick() {
        // Whoever kicked first also sends the signal.
        guard !kicked.exchange(true, ordering: .sequentiallyConsistent) else { return }
        clinux_kvm_set_immediate_exit(area, 1)
        let thread = runner.load(ordering: .sequentiallyConsistent)
        // Its own thread, in a device, looks again before it enters the guest.
        guard thread != 0, thread != clinux_gettid() else { return }
        _ = clinux_tgkill(getpid(), thread, Self.kickSignal)
    }

    /// Reserved for this: nobody sends it for anything else.
    private static let kickSignal: CInt = clinux_sigrtmin() + 6
    private static let installKickHandler: Void = {
        var action = sigaction()
        action.__sigaction_handler.sa_handler = { _ in }
        // KVM_RUN ends with EINTR all the same; other calls of the thread need not notice.
        action.sa_flags = SA_RESTART
        sigaction(kickSignal, &action, nil)
    }()

    // MARK: The CPU's thread

    func run() throws -> Exit {
        let thread = clinux_gettid()
        if preparedThread != thread {
            var signals = sigset_t()
            sigemptyset(&signals)
            sigaddset(&signals, Self.kickSignal)
            pthread_sigmask(SIG_UNBLOCK, &signals, nil)
            preparedThread = thread
        }
        runner.store(thread, ordering: .sequentiallyConsistent)
        defer { runner.store(0, ordering: .sequentiallyConsistent) }

        while true {
            kicked.store(false, ordering: .sequentiallyConsistent)
            clinux_kvm_set_immediate_exit(area, 0)
            if let exit = try prepareToEnter() { return exit }

            let result = clinux_ioctl(descriptor.raw, clinux_kvm_run, 0)
            let code = errno
            interruptsEnabled = area.pointee.if_flag != 0
            canInject = area.pointee.ready_for_interrupt_injection != 0
            isCompleting = false
            if result < 0 {
                if code == EINTR || code == EAGAIN {
                    // A halt that no interrupt ends: in the kernel only somebody who looks finds it.
                    if engine.localAPIC != nil, !interruptsEnabled, isUndisturbed, try isHaltedInKernel() {
                        return .halt(interruptsEnabled: false)
                    }
                    continue
                }
                throw KVMError.call(SystemError("KVM_RUN", errno: code))
            }
            if let exit = try handleExit() { return exit }
        }
    }

    /// Nothing but a look at it was asked of this CPU.
    private var isUndisturbed: Bool {
        !stopRequested.load(ordering: .sequentiallyConsistent) && !nmiRequested.load(ordering: .sequentiallyConsistent)
    }

    /// Gives the kernel an NMI that was injected.
    func takeNMI() throws(KVMError) {
        guard nmiRequested.exchange(false, ordering: .sequentiallyConsistent) else { return }
        try kvm("KVM_NMI", descriptor.raw, clinux_kvm_nmi)
        isHalted = false
    }

    /// Looks at what was asked of this CPU and arranges the entry for it.
    /// - Returns: an exit, if the guest is not to be entered.
    private func prepareToEnter() throws(KVMError) -> Exit? {
        if stopRequested.load(ordering: .sequentiallyConsistent) {
            guard isCompleting else {
                stopRequested.store(false, ordering: .sequentiallyConsistent)
                return .stopped
            }
            // The state must not be read in the middle of an instruction: KVM finishes it, then returns.
            clinux_kvm_set_immediate_exit(area, 1)
            return nil
        }
        try takeNMI()
        let isPending = wiring.interrupts.isPending
        if isHalted {
            guard isPending, interruptsEnabled else { return .halt(interruptsEnabled: interruptsEnabled) }
            isHalted = false
        }
        if isPending, canInject {
            var interrupt = kvm_interrupt(irq: UInt32(wiring.interrupts.acknowledge()))
            try kvm("KVM_INTERRUPT", descriptor.raw, clinux_kvm_interrupt, &interrupt)
            canInject = false
            area.pointee.request_interrupt_window = wiring.interrupts.isPending ? 1 : 0
        } else {
            area.pointee.request_interrupt_window = isPending ? 1 : 0
        }
        return nil
    }
}
