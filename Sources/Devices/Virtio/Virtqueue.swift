import Synchronization
import VMM

/// The device's side of a virtqueue: of a split one (virtio 1.2, section 2.7) here, of a packed one in `Virtqueue+Packed`.
///
/// Nothing is allocated and no bytes are copied once it is made: a popped chain is a list of host addresses in a slot that
/// was allocated with the queue. There are as many slots as the queue has entries, which is all that a driver can have in
/// flight without breaking the standard.
///
/// A hostile driver: every index and descriptor is read once and checked; a chain is no longer than the queue (section
/// 2.7.5.3.1), which ends loops. A driver that breaks a rule gets nothing more from this queue until it is set up again; chains
/// in flight end quietly.
///
/// Its lock nests inside nothing and nothing nests in it: the transport's is never held together with it from the device's
/// side; from the transport's side it is the inner one.
public final class Virtqueue: Sendable {
    /// What fits into the room for vectors, with the kernel's limit of 1024 for a transfer (IOV_MAX).
    public static let largestSize: UInt16 = 512

    public enum Next: Sendable {
        case chain(VirtqueueChain)
        /// Nothing now; the driver will notify.
        case empty
        /// The driver has broken the queue: `VirtioTransport.requestReset` follows.
        case broken
    }

    /// What follows a completion.
    enum Completion { case quiet, interrupt, drained }

    /// What is saved beside the registers: indices of a split ring, places and wrap counters of a packed one.
    public struct Position: Codable, Hashable, Sendable {
        public var available: UInt16 = 0
        public var used: UInt16 = 0
    }

    struct State {
        /// One of the two, once the queue is enabled.
        var ring: VirtqueueRing?
        var packedRing: PackedVirtqueueRing?
        var features: VirtioFeatures = []
        /// Chains may be popped.
        var isRunning = false
        /// Completed chains are shown to the driver.
        var isAttached = false
        var wantsNotifications = true
        var nextAvailable: UInt16 = 0
        var nextUsed: UInt16 = 0
        /// The index up to which the driver has had the chance of an interrupt.
        var signalledUsed: UInt16 = 0
        var freeSlots: [UInt16]
        var inFlight = 0
        var packed = Packed()

        /// Where a packed ring is, and how many of its descriptors belong to chains in flight.
        struct Packed {
            var available = PackedVirtqueueRing.Cursor.start
            var used = PackedVirtqueueRing.Cursor.start
            var inFlight: UInt16 = 0
        }
    }

    public let index: Int
    public let maximumSize: UInt16
    let memory: GuestMemory
    let slots: VirtqueueSlots
    private let state: Mutex<State>

    init(index: Int, maximumSize: UInt16, memory: GuestMemory) {
        self.index = index
        self.maximumSize = maximumSize
        self.memory = memory
        slots = VirtqueueSlots(queueSize: maximumSize)
        state = Mutex(State(freeSlots: (0..<maximumSize).reversed()))
    }

    // MARK: The device's side

    /// Takes the next chain. When there is none the driver is told to notify, unless notifications are off.
    public func pop() -> Next {
        state.withLock { state in
            guard state.isRunning else { return .empty }
            guard let ring = state.ring else {
                guard let packed = state.packedRing else { return .empty }
                return popPacked(&state, packed)
            }
            var available = ring.availableIndex
            if available == state.nextAvailable {
                guard state.wantsNotifications, state.features.contains(.eventIndex) else { return .empty }
                ring.setAvailableEvent(available)
                // The event first, then the look: what the driver adds after it, it notifies of (section 2.7.10).
                atomicMemoryFence(ordering: .sequentiallyConsistent)
                available = ring.availableIndex
                guard available != state.nextAvailable else { return .empty }
            }
            // More than the queue holds, with what is in flight.
            guard available &- state.nextAvailable <= ring.size, state.inFlight < Int(ring.size),
                let slot = state.freeSlots.last, let chain = chain(ring, slot, state)
            else {
                state.isRunning = false
                state.isAttached = false
                return .broken
            }
            state.freeSlots.removeLast()
            state.nextAvailable &+= 1
            state.inFlight += 1
            return .chain(chain)
        }
    }

    private func chain(_ ring: VirtqueueRing, _ slot: UInt16, _ state: borrowing State) -> VirtqueueChain? {
        let head = ring.availableHead(state.nextAvailable)
        var builder = slots.builder(slot)
        var table = ring.table
        var index = head
        var isIndirect = false
        var steps: UInt16 = 0
        while true {
            guard UInt32(index) < table.count else { return nil }
            let descriptor = table.descriptor(index)
            if descriptor.flags.contains(.indirect) {
                // One table, at the chain's end (section 2.7.5.3).
                guard !isIndirect, state.features.contains(.indirectDescriptors), !descriptor.flags.contains(.next),
                    let found = indirectTable(descriptor)
                else { return nil }
                table = found
                index = 0
                isIndirect = true
                continue
            }
            guard steps < ring.size else { return nil }
            steps += 1
            guard
                builder.append(
                    descriptor.address, descriptor.byteCount, isWritable: descriptor.flags.contains(.write), memory)
            else { return nil }
            guard descriptor.flags.contains(.next) else { break }
            index = descriptor.next
        }
        let (readable, writable) = builder.finish()
        return VirtqueueChain(
            slot: slot, head: head, ringCount: 1, readableCount: readable.count, readable: readable, writable: writable)
    }

    private func indirectTable(_ descriptor: VirtqueueRing.Descriptor) -> VirtqueueRing.Table? {
        let byteCount = UInt64(descriptor.byteCount)
        guard byteCount > 0, byteCount % VirtqueueRing.byteCount == 0,
            let base = unsafe memory.hostAddress(of: descriptor.address, count: byteCount)
        else { return nil }
        return unsafe VirtqueueRing.Table(base, count: UInt32(byteCount / VirtqueueRing.byteCount))
    }

    /// Says whether the driver shall notify of new chains. Who looks by himself saves it the trouble; after turning
    /// notifications on `pop` must be asked once more.
    public func setNotifications(_ wanted: Bool) {
        state.withLock { state in
            state.wantsNotifications = wanted
            guard state.isRunning else { return }
            if let ring = state.packedRing {
                ring.setNotificationEvent(wanted ? PackedVirtqueueRing.Event.enable : PackedVirtqueueRing.Event.disable)
                return atomicMemoryFence(ordering: .sequentiallyConsistent)
            }
            guard let ring = state.ring, !state.features.contains(.eventIndex) else { return }
            ring.setRefusesNotifications(!wanted)
            atomicMemoryFence(ordering: .sequentiallyConsistent)
        }
    }

    /// How many chains are in flight.
    public var inFlight: Int { state.withLock { $0.inFlight } }

    /// Gives a chain back. `VirtioTransport.complete` is what devices call.
    func complete(_ chain: VirtqueueChain, written: UInt32) -> Completion {
        slots.noteWritten(chain.slot, readableCount: chain.readableCount, memory)
        return state.withLock { state in
            state.inFlight -= 1
            state.freeSlots.append(chain.slot)
            guard state.isAttached else { return state.inFlight == 0 ? .drained : .quiet }
            guard let ring = state.ring else {
                guard let packed = state.packedRing else { return .quiet }
                return completePacked(&state, packed, chain, written: written)
            }
            ring.setUsed(state.nextUsed, head: chain.head, byteCount: written)
            state.nextUsed &+= 1
            ring.publishUsed(state.nextUsed)
            // The index first, then the look whether the driver wants to hear of it (section 2.7.7.2).
            atomicMemoryFence(ordering: .sequentiallyConsistent)
            guard state.features.contains(.eventIndex) else { return ring.refusesInterrupts ? .quiet : .interrupt }
            let before = state.signalledUsed
            state.signalledUsed = state.nextUsed
            // vring_need_event of section 2.7.10: the event lies among what is new.
            let isNew = state.nextUsed &- ring.usedEvent &- 1 < state.nextUsed &- before
            return isNew ? .interrupt : .quiet
        }
    }

    // MARK: The transport's side

    var isIdle: Bool { inFlight == 0 }

    /// Finds the ring that the registers describe; `start` lets it run.
    /// - Parameter position: where it was saved; `nil` for a new one.
    /// - Returns: `false` when it is not in RAM, the position not in the ring, or chains of before are still in flight.
    func enable(_ registers: VirtioRegisters.Queue, _ features: VirtioFeatures, at position: Position? = nil) -> Bool {
        state.withLock { state in
            guard state.inFlight == 0, registers.size <= maximumSize else { return false }
            state.ring = nil
            state.packedRing = nil
            state.packed = .init()
            if features.contains(.packedRing) {
                guard let ring = PackedVirtqueueRing(registers, memory) else { return false }
                if let position {
                    guard let available = PackedVirtqueueRing.Cursor(position.available, size: ring.size),
                        let used = PackedVirtqueueRing.Cursor(position.used, size: ring.size)
                    else { return false }
                    state.packed = .init(available: available, used: used)
                }
                state.packedRing = ring
            } else {
                guard let ring = VirtqueueRing(registers, memory) else { return false }
                state.ring = ring
            }
            state.features = features
            state.isRunning = false
            state.isAttached = true
            state.wantsNotifications = true
            state.nextAvailable = position?.available ?? 0
            state.nextUsed = position?.used ?? 0
            state.signalledUsed = state.nextUsed
            return true
        }
    }

    func start() {
        state.withLock { if $0.isAttached { $0.isRunning = true } }
    }

    /// Gives nothing out and shows nothing to the driver any more. Chains in flight end quietly.
    func detach() {
        state.withLock { state in
            state.isRunning = false
            state.isAttached = false
        }
    }

    var position: Position {
        state.withLock { state in
            state.packedRing == nil
                ? Position(available: state.nextAvailable, used: state.nextUsed)
                : Position(available: state.packed.available.rawValue, used: state.packed.used.rawValue)
        }
    }
}
