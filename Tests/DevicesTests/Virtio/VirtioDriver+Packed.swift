import VMM

/// The driver's side of packed rings (virtio 1.2, section 2.8). A chain's id is the place of its first descriptor, and it is one
/// of those that an array has: so the tests of split rings find the heads that they look for.
extension VirtioDriver.Queue {
    struct Packed {
        /// Wrap counters: of `nextDescriptor`, and of the place where the next used chain is looked for.
        var availableWrap = true
        var usedWrap = true
        var usedPlace: UInt16 = 0
        /// How many descriptors a chain has, by its id.
        var lengths: [UInt16: UInt16] = [:]
        /// Flags that make a chain available, by its id: the first descriptor's come last.
        var pending: [UInt16: UInt16] = [:]
        var offeredCount: UInt16 = 0
        var completed: [(head: UInt32, byteCount: UInt32)] = []
        var takenCount = 0
    }
}

extension VirtioDriver {
    static let available: UInt16 = 1 << 7
    static let used: UInt16 = 1 << 15

    func putPacked(_ table: UInt64, _ index: UInt16, _ address: UInt64, _ byteCount: UInt32, id: UInt16 = 0, _ flags: UInt16) {
        let place = table + 16 * UInt64(index)
        memory.store(place, address)
        memory.store(place + 8, byteCount)
        memory.store(place + 12, id)
        memory.store(place + 14, flags)
    }

    /// Flags by which a descriptor is available on the lap of `wrap`.
    static func lap(_ wrap: Bool) -> UInt16 { wrap ? available : used }

    func putPackedChain(_ buffers: [Buffer], on queue: Int, indirectAt table: UInt64?) -> UInt16 {
        _ = collectPacked(queue)
        let head = queues[queue].nextDescriptor
        func flags(_ buffer: Buffer) -> UInt16 { buffer.isWritable ? Self.write : 0 }
        var entries = buffers.map { (address: $0.address, byteCount: $0.byteCount, flags: flags($0)) }
        if let table {
            for (index, entry) in entries.enumerated() { putPacked(table, UInt16(index), entry.address, entry.byteCount, entry.flags) }
            entries = [(table, UInt32(16 * entries.count), Self.indirect)]
        }
        for (index, entry) in entries.enumerated() {
            let ring = queues[queue]
            let more = index < entries.count - 1 ? Self.next : 0
            let flags = entry.flags | more | Self.lap(ring.packed.availableWrap)
            let old = memory.load(ring.descriptors + 16 * UInt64(ring.nextDescriptor) + 14, as: UInt16.self) ?? 0
            // The first one's flags stay as they are until the chain is offered.
            putPacked(ring.descriptors, ring.nextDescriptor, entry.address, entry.byteCount, id: head, index == 0 ? old : flags)
            if index == 0 { queues[queue].packed.pending[head] = flags }
            queues[queue].nextDescriptor += 1
            if queues[queue].nextDescriptor == ring.size {
                queues[queue].nextDescriptor = 0
                queues[queue].packed.availableWrap.toggle()
            }
        }
        queues[queue].packed.lengths[head] = UInt16(entries.count)
        return head
    }

    func offerPacked(_ head: UInt16, on queue: Int) {
        guard let flags = queues[queue].packed.pending[head] else { return }
        queues[queue].packed.pending[head] = nil
        queues[queue].packed.offeredCount &+= 1
        memory.store(queues[queue].descriptors + 16 * UInt64(head) + 14, flags)
    }

    /// Notes what the device has used since the last look.
    /// - Returns: how many chains it has used in all.
    @discardableResult func collectPacked(_ queue: Int) -> UInt16 {
        let size = queues[queue].size
        for _ in 0..<size {
            let packed = queues[queue].packed
            let place = queues[queue].descriptors + 16 * UInt64(packed.usedPlace)
            guard let flags = memory.load(place + 14, as: UInt16.self), let id = memory.load(place + 12, as: UInt16.self),
                let byteCount = memory.load(place + 8, as: UInt32.self),
                (flags & Self.available != 0) == packed.usedWrap, (flags & Self.used != 0) == packed.usedWrap
            else { break }
            // Without WRITE the length says nothing.
            queues[queue].packed.completed.append((UInt32(id), flags & Self.write != 0 ? byteCount : 0))
            queues[queue].packed.usedPlace += packed.lengths[id] ?? 1
            if queues[queue].packed.usedPlace >= size {
                queues[queue].packed.usedPlace -= size
                queues[queue].packed.usedWrap.toggle()
            }
        }
        return UInt16(truncatingIfNeeded: queues[queue].packed.completed.count)
    }

    func takePackedUsed(_ queue: Int) -> (head: UInt32, byteCount: UInt32)? {
        collectPacked(queue)
        let packed = queues[queue].packed
        guard packed.takenCount < packed.completed.count else { return nil }
        queues[queue].packed.takenCount += 1
        return packed.completed[packed.takenCount]
    }

    /// - Parameter value: the chain's number; those behind the last one that was offered have one descriptor each.
    func setPackedEvent(_ value: UInt16, on queue: Int) {
        let ring = queues[queue]
        let place = ring.nextDescriptor + (value &- ring.packed.offeredCount)
        let isNextLap = place >= ring.size
        let wrap = ring.packed.availableWrap != isNextLap
        memory.store(ring.driver, (wrap ? 1 << 15 : 0) | (isNextLap ? place - ring.size : place))
        memory.store(ring.driver + 2, 2 as UInt16)
    }
}
