import CLinux
import Glibc

/// Host signals that instructions of translated code raise: division errors, unmasked floating-point exceptions,
/// misaligned vector accesses, instructions that this host does not have.
///
/// The handler finds the CPU by the thread's gs base, which only a vCPU's thread has set, checks that the signal
/// came from its code, notes in the context what happened and sends the thread to the exit thunk with the guest's
/// registers in place. Whether the guest may have caused it is for `TranslatorCPU.signalException` to say.
enum HostSignals {
    private nonisolated(unsafe) static var previous: [32 of sigaction] = .init(repeating: sigaction())

    private static let installation: Void = {
        for number in [SIGFPE, SIGSEGV, SIGBUS, SIGILL] {
            var action = sigaction()
            action.__sigaction_handler.sa_sigaction = { number, info, context in HostSignals.handle(number, info, context) }
            action.sa_flags = SA_SIGINFO | CInt(bitPattern: UInt32(SA_ONSTACK)) | SA_NODEFER
            var old = sigaction()
            sigaction(number, &action, &old)
            previous[Int(number)] = old
        }
    }()

    // Places in ucontext's general registers (sys/ucontext.h: REG_RIP, REG_EFL, REG_TRAPNO, REG_CR2).
    private static let gregRIP = 16, gregFlags = 17, gregTrap = 20, gregCR2 = 22

    /// Installs the handlers, once a process.
    static func install() { installation }

    private static func handle(_ number: CInt, _ info: UnsafeMutablePointer<siginfo_t>?, _ raw: UnsafeMutableRawPointer?) {
        // From a process and not from an instruction, which would raise it again: it means what it says.
        if let info, info.pointee.si_code <= 0 {
            fallBack(number)
            raise(number)
            return
        }
        let base = clinux_get_gs_base()
        guard base != 0, let raw, let context = UnsafeMutablePointer<Context>(bitPattern: UInt(base)) else {
            return fallBack(number)
        }
        let user = raw.assumingMemoryBound(to: ucontext_t.self)
        let isOurs = withUnsafeMutablePointer(to: &user.pointee.uc_mcontext.gregs) { registers in
            registers.withMemoryRebound(to: Int64.self, capacity: 23) { registers in
                let address = UInt64(bitPattern: registers[gregRIP])
                guard address >= context.pointee.codeBase && address < context.pointee.codeEnd else { return false }
                context.pointee.faultAddress = address
                context.pointee.faultFlags = UInt64(bitPattern: registers[gregFlags])
                context.pointee.faultTrap = registers[gregTrap]
                context.pointee.faultSignal = Int64(number)
                context.pointee.faultOperand = UInt64(bitPattern: registers[gregCR2])
                if registers[gregTrap] == 14 { context.pointee.hostPageFaults &+= 1 }
                context.pointee.exitReason = context.pointee.signalReason
                registers[gregRIP] = Int64(bitPattern: context.pointee.signalExit)
                return true
            }
        }
        if !isOurs { fallBack(number) }
    }

    /// Not ours: what was there before has its turn when the instruction runs again.
    private static func fallBack(_ number: CInt) {
        var old = previous[Int(number)]
        sigaction(number, &old, nil)
    }
}
