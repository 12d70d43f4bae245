/// Parts of tables in memory, at most `capacity` of them: a part that is not on the medium stays, others go when room is needed,
/// those that were not used for longest first (by a clock hand).
///
/// Not for several threads by itself; its owner says what guards it. Looking up and reading may go on beside each other.
final class QCOW2SliceCache {
    enum State: UInt8 {
        /// As on the medium.
        case clean
        /// Changed since it was written.
        case dirty
        /// Written, but not known to be on the medium.
        case written
    }

    struct Slot {
        /// Which slice it is; `.max` for none.
        var key: UInt64
        /// Where it belongs in the file.
        var hostOffset: UInt64
        var state: State
        let memory: UnsafeMutableRawPointer
    }

    let sliceSize: Int
    let capacity: Int
    private let slots: UnsafeMutablePointer<Slot>
    /// Apart from the slots: set by those who only look.
    private let recent: UnsafeMutablePointer<UInt8>
    private var index: [UInt64: Int] = [:]
    private var made = 0
    private var hand = 0
    /// Slots that are not clean, each once.
    private(set) var unclean: [Int] = []

    static let none = UInt64.max

    /// - Parameter byteCount: the bound on memory, rounded up to 8 slices.
    init(sliceSize: Int, byteCount: Int) {
        self.sliceSize = sliceSize
        capacity = max(8, byteCount / sliceSize)
        slots = .allocate(capacity: capacity)
        recent = .allocate(capacity: capacity)
        recent.initialize(repeating: 0, count: capacity)
    }

    deinit {
        for i in 0..<made { slots[i].memory.deallocate() }
        slots.deallocate()
        recent.deallocate()
    }

    func find(_ key: UInt64) -> Int? {
        guard let slot = index[key] else { return nil }
        recent[slot] = 1
        return slot
    }

    func memory(_ slot: Int) -> UnsafeMutableRawPointer { slots[slot].memory }
    func key(_ slot: Int) -> UInt64 { slots[slot].key }
    func hostOffset(_ slot: Int) -> UInt64 { slots[slot].hostOffset }
    func state(_ slot: Int) -> State { slots[slot].state }

    /// A slot that nobody finds, to be filled and then given to `publish` or `giveBack`.
    /// - Returns: `nil` when no slice is clean.
    func take() -> Int? {
        if made < capacity {
            slots.advanced(by: made).initialize(
                to: Slot(
                    key: Self.none, hostOffset: 0, state: .clean,
                    memory: .allocate(byteCount: sliceSize, alignment: 4096)))
            made += 1
            return made - 1
        }
        // Twice round: the first time may only take marks away.
        for _ in 0..<(2 * capacity) {
            let slot = hand
            hand = hand + 1 == capacity ? 0 : hand + 1
            guard slots[slot].state == .clean else { continue }
            if recent[slot] != 0 {
                recent[slot] = 0
                continue
            }
            if slots[slot].key != Self.none {
                index[slots[slot].key] = nil
                slots[slot].key = Self.none
            }
            return slot
        }
        return nil
    }

    func publish(_ slot: Int, key: UInt64, hostOffset: UInt64) {
        slots[slot].key = key
        slots[slot].hostOffset = hostOffset
        slots[slot].state = .clean
        recent[slot] = 1
        index[key] = slot
    }

    func move(_ slot: Int, to hostOffset: UInt64) { slots[slot].hostOffset = hostOffset }

    func markDirty(_ slot: Int) {
        if slots[slot].state == .clean { unclean.append(slot) }
        slots[slot].state = .dirty
    }

    func markWritten(_ slot: Int) {
        if slots[slot].state == .dirty { slots[slot].state = .written }
    }

    /// What was written is on the medium, or, when the host could not say so, must be written again.
    func synchronized(_ worked: Bool) {
        var kept: [Int] = []
        for slot in unclean {
            if slots[slot].state == .written { slots[slot].state = worked ? .clean : .dirty }
            if slots[slot].state != .clean { kept.append(slot) }
        }
        unclean = kept
    }

    /// Forgets a slice, changed or not.
    func drop(_ key: UInt64) {
        guard let slot = index.removeValue(forKey: key) else { return }
        if slots[slot].state != .clean { unclean.removeAll { $0 == slot } }
        slots[slot].key = Self.none
        slots[slot].state = .clean
        recent[slot] = 0
    }

    func dropAll() {
        for i in 0..<made {
            slots[i].key = Self.none
            slots[i].state = .clean
            recent[i] = 0
        }
        index.removeAll(keepingCapacity: true)
        unclean.removeAll()
    }

    /// The slots to write, by their place in the file.
    func dirtySlots() -> [Int] {
        unclean.filter { slots[$0].state == .dirty }.sorted { slots[$0].hostOffset < slots[$1].hostOffset }
    }

    func bytes(_ slot: Int) -> UnsafeRawBufferPointer { UnsafeRawBufferPointer(start: slots[slot].memory, count: sliceSize) }
}
