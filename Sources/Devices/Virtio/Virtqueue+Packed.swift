import Synchronization
import VMM

/// The device's side of a packed virtqueue (virtio 1.2, section 2.8), with the promises that the split one makes.
///
/// A chain takes as many of the ring's descriptors as it has, or one with an indirect table; when it is completed one of
/// them says so, at the place where the device has got to, and the place moves by as many.
extension Virtqueue {
    func popPacked(_ state: inout State, _ ring: PackedVirtqueueRing) -> Next {
        let cursor = state.packed.available
        var flags = ring.flags(cursor.offset)
        if !flags.isAvailable(at: cursor) {
            guard state.wantsNotifications, state.features.contains(.eventIndex) else { return .empty }
            ring.setNotificationEvent(PackedVirtqueueRing.Event.descriptor, at: cursor)
            // The event first, then the look: what the driver adds after it, it notifies of (section 2.8.21.3.1).
            atomicMemoryFence(ordering: .sequentiallyConsistent)
            flags = ring.flags(cursor.offset)
            guard flags.isAvailable(at: cursor) else { return .empty }
        }
        guard let slot = state.freeSlots.last, let chain = packedChain(ring, slot, flags, state.packed, state.features) else {
            state.isRunning = false
            state.isAttached = false
            return .broken
        }
        state.freeSlots.removeLast()
        state.packed.available.advance(chain.ringCount, size: ring.size)
        state.packed.inFlight += chain.ringCount
        state.inFlight += 1
        return .chain(chain)
    }

    /// - Parameter flags: of its first descriptor.
    private func packedChain(
        _ ring: PackedVirtqueueRing, _ slot: UInt16, _ flags: PackedVirtqueueRing.Flags, _ position: State.Packed,
        _ features: VirtioFeatures
    ) -> VirtqueueChain? {
        // What is in flight and this may not be more than the ring holds: the driver has no other place to put it.
        let room = ring.size - position.inFlight
        var builder = slots.builder(slot)
        var place = position.available
        guard room > 0 else { return nil }
        var descriptor = ring.descriptor(place.offset, flags: flags)
        var count: UInt16 = 1
        if descriptor.flags.contains(.indirect) {
            // Alone, or not at all (section 2.8.19).
            guard features.contains(.indirectDescriptors), !descriptor.flags.contains(.next),
                let table = PackedVirtqueueRing.Table(descriptor, memory), table.count <= UInt32(ring.size)
            else { return nil }
            for index in 0..<table.count {
                let entry = table.descriptor(index)
                guard !entry.flags.contains(.indirect), append(entry, to: &builder) else { return nil }
            }
        } else {
            while true {
                guard !descriptor.flags.contains(.indirect), append(descriptor, to: &builder) else { return nil }
                guard descriptor.flags.contains(.next) else { break }
                guard count < room else { return nil }
                count += 1
                place.advance(1, size: ring.size)
                descriptor = ring.descriptor(place.offset)
            }
        }
        let (readable, writable) = builder.finish()
        // The last one's id is the chain's (section 2.8.6).
        return VirtqueueChain(
            slot: slot, head: descriptor.id, ringCount: count, readableCount: readable.count, readable: readable,
            writable: writable)
    }

    private func append(_ descriptor: PackedVirtqueueRing.Descriptor, to builder: inout VirtqueueSlots.Builder) -> Bool {
        builder.append(
            descriptor.address, descriptor.byteCount, isWritable: descriptor.flags.contains(.write), memory)
    }

    func completePacked(
        _ state: inout State, _ ring: PackedVirtqueueRing, _ chain: VirtqueueChain, written: UInt32
    ) -> Completion {
        ring.putUsed(at: state.packed.used, id: chain.head, byteCount: written)
        state.packed.used.advance(chain.ringCount, size: ring.size)
        state.packed.inFlight -= chain.ringCount
        // The descriptor first, then the look whether the driver wants to hear of it (section 2.8.22.3).
        atomicMemoryFence(ordering: .sequentiallyConsistent)
        let event = ring.interruptEvent
        switch event.flags {
        case PackedVirtqueueRing.Event.disable: return .quiet
        case PackedVirtqueueRing.Event.descriptor where state.features.contains(.eventIndex):
            // Whether the place lies among those that this chain moved over. A place of the lap before is so many further back.
            let used = state.packed.used
            let isSameLap = event.place >> 15 == used.rawValue >> 15
            let place = isSameLap ? event.place & 0x7FFF : event.place & 0x7FFF &- ring.size
            return used.offset &- place &- 1 < chain.ringCount ? .interrupt : .quiet
        default: return .interrupt
        }
    }
}
