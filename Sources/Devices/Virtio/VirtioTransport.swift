import Linux
import Synchronization
public import VMM

/// What a device is given of its transport: its queues, and how to complete, to signal and to give up.
///
/// Locks: the transport's is taken by vCPUs (registers) and by whoever completes (interrupts); queues' and the device's own nest
/// inside it, and the interrupt controller's. Nobody who holds one of those takes it.
public final class VirtioTransport: Sendable {
    /// Where a function is put after power-on, and what carries its interrupts.
    public struct Placement: Sendable {
        public let ports: UInt16
        public let memory: UInt32
        /// The wire of INTA.
        public let line: InterruptLine
        /// Its number, for the guest.
        public let lineNumber: UInt8
        /// Takes messages; without it the function has no MSI-X.
        public let messages: (any MSISink)?

        public init(ports: UInt16, memory: UInt32, line: InterruptLine, lineNumber: UInt8, messages: (any MSISink)? = nil) {
            self.ports = ports
            self.memory = memory
            self.line = line
            self.lineNumber = lineNumber
            self.messages = messages
        }
    }

    struct Live {
        var space: PCIConfigurationSpace
        var registers: VirtioRegisters
        var vectors: MSIX
        /// The wire is pulled.
        var level = false
        /// A reset waits for chains in flight; device status shows what it was (virtio 1.2, section 2.4.1).
        var isResetting = false
        var resetDevice: @Sendable () -> Void = {}
    }

    public let profile: VirtioProfile
    public let memory: GuestMemory
    public let queues: [Virtqueue]
    let live: Mutex<Live>
    let initialSpace: PCIConfigurationSpace
    /// How many resets have ended, for who waits for one.
    private let resetCount = Monitor(0 as UInt64)
    private let line: InterruptLine
    let messages: (any MSISink)?

    public init(_ profile: VirtioProfile, memory: GuestMemory, _ placement: Placement) {
        self.profile = profile
        self.memory = memory
        queues = profile.queueSizes.enumerated().map { index, size in
            Virtqueue(index: index, maximumSize: size, memory: memory)
        }
        line = placement.line
        messages = placement.messages
        let vectors = MSIX(vectorCount: profile.queueSizes.count + 1)
        initialSpace = VirtioLayout.space(profile, placement, vectors)
        live = Mutex(Live(space: initialSpace, registers: VirtioRegisters(profile), vectors: vectors))
    }

    // MARK: The device's side. Any thread, none of the device's own locks held.

    /// Shows a chain to the driver as used, with an interrupt if it wants one.
    /// - Parameter written: how many bytes from the start of the writable part on are written, for certain.
    public func complete(_ queue: Virtqueue, _ chain: VirtqueueChain, written: UInt32) {
        switch queue.complete(chain, written: written) {
        case .quiet: break
        case .interrupt: live.withLock { signal(&$0, .queue, $0.registers.queues[queue.index].vector) }
        case .drained: finishReset()
        }
    }

    /// The driver broke the standard so that the device cannot go on: it serves nothing until it is reset (section 2.1.2).
    public func requestReset() { live.withLock { giveUp(&$0) } }

    /// Changes what the driver reads as the device's configuration, and tells it.
    /// - Parameter body: makes the change; the transport's lock is held.
    public func changeConfiguration(_ body: () -> Void) {
        live.withLock { live in
            body()
            live.registers.generation &+= 1
            if live.registers.isServing { signal(&live, .configuration, live.registers.configurationVector) }
        }
    }

    /// What the driver has agreed to so far.
    public var features: VirtioFeatures { live.withLock { $0.registers.features } }

    // MARK: Inside, with the lock held

    func giveUp(_ live: inout Live) {
        for queue in queues { queue.detach() }
        guard !live.registers.status.contains(.needsReset) else { return }
        let wasServing = live.registers.isServing
        live.registers.status.insert(.needsReset)
        if wasServing { signal(&live, .configuration, live.registers.configurationVector) }
    }

    private func signal(_ live: inout Live, _ cause: VirtioRegisters.InterruptStatus, _ vector: UInt16) {
        guard !live.isResetting else { return }
        if let messages, live.vectors.isEnabled {
            live.vectors.signal(vector, messages)
        } else if !live.registers.interruptStatus.contains(cause) {
            live.registers.interruptStatus.insert(cause)
            settle(&live)
        }
    }

    /// The wire follows ISR status, unless messages are on (section 4.1.5.1).
    func settle(_ live: inout Live) {
        let isWanted = !live.registers.interruptStatus.isEmpty && !live.vectors.isEnabled
        let level = live.space.setInterrupt(isWanted)
        guard level != live.level else { return }
        live.level = level
        line.set(level)
    }

    /// Vectors that a driver can choose from.
    func vectorCount(_ live: borrowing Live) -> Int { messages == nil ? 0 : live.vectors.vectorCount }

    // MARK: Reset

    /// Stops all queues. The reset is over when nothing is in flight: see `finishReset`.
    func beginReset() {
        live.withLock { live in
            live.isResetting = true
            for queue in queues { queue.detach() }
        }
    }

    /// Ends a reset, if one waits and the last chain is back.
    func finishReset() {
        let isOver = live.withLock { live in
            guard live.isResetting, queues.allSatisfy(\.isIdle) else { return false }
            live.isResetting = false
            // The generation goes on: a driver may not mistake the new configuration for the old.
            let generation = live.registers.generation
            live.registers = VirtioRegisters(profile)
            live.registers.generation = generation
            live.resetDevice()
            settle(&live)
            return true
        }
        guard isOver else { return }
        resetCount.withLock { $0 &+= 1 }
        resetCount.broadcast()
    }

    /// Waits for the end of a reset that has begun. A chain that another vCPU's thread has popped, and that the device does not
    /// know of yet, may still be on its way.
    func waitForReset() {
        while true {
            let count = resetCount.withLock { $0 }
            guard live.withLock({ $0.isResetting }) else { return }
            resetCount.withLock(waitingWhile: { $0 == count }) { _ in }
        }
    }
}
