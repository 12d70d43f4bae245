import Synchronization
import VMM

/// The three areas of a split virtqueue in guest memory (virtio 1.2, section 2.7).
///
///     descriptors   16 bytes each: address, length, flags, next
///     driver area   flags, idx, ring[size], used_event
///     device area   flags, idx, ring[size] of (id, len), avail_event
///
/// The driver writes at the same time: each value is read once. SAFETY: all pointers lie in guest memory, in areas that
/// `init` found to be RAM, and every index is cut by `mask`; the memory lives as long as the queue that holds it. `@unchecked
/// Sendable`: addresses never change, and what both sides touch is atomic.
@safe struct VirtqueueRing: @unchecked Sendable {
    /// A descriptor's flags (section 2.7.5).
    struct Flags: OptionSet {
        let rawValue: UInt16
        static let next = Flags(rawValue: 1)
        static let write = Flags(rawValue: 2)
        static let indirect = Flags(rawValue: 4)
    }

    struct Descriptor {
        let address: UInt64
        let byteCount: UInt32
        let flags: Flags
        let next: UInt16
    }

    /// A table of descriptors: the queue's own, or an indirect one.
    @safe struct Table {
        private let base: UnsafeMutableRawPointer
        let count: UInt32

        /// - Parameter base: `count` descriptors of RAM.
        init(_ base: UnsafeMutableRawPointer, count: UInt32) {
            unsafe self.base = unsafe base
            self.count = count
        }

        /// - Precondition: `index` is below `count`.
        func descriptor(_ index: UInt16) -> Descriptor {
            assert(UInt32(index) < count)
            let place = unsafe base + Int(index) * Int(byteCount)
            return unsafe Descriptor(
                address: UInt64(littleEndian: place.loadUnaligned(as: UInt64.self)),
                byteCount: UInt32(littleEndian: place.loadUnaligned(fromByteOffset: 8, as: UInt32.self)),
                flags: Flags(rawValue: UInt16(littleEndian: place.loadUnaligned(fromByteOffset: 12, as: UInt16.self))),
                next: UInt16(littleEndian: place.loadUnaligned(fromByteOffset: 14, as: UInt16.self)))
        }
    }

    static let byteCount: UInt64 = 16

    let size: UInt16
    let table: Table
    private let driver: UnsafeMutableRawPointer
    private let device: UnsafeMutableRawPointer
    private let memory: GuestMemory

    /// - Returns: `nil` when an area is not all RAM or not aligned as section 2.7 wants it, or the size no power of two.
    init?(_ registers: VirtioRegisters.Queue, _ memory: GuestMemory) {
        let size = UInt64(registers.size)
        guard registers.size.nonzeroBitCount == 1, registers.descriptors % 16 == 0, registers.driver % 2 == 0, registers.device % 4 == 0,
            let table = unsafe memory.hostAddress(of: registers.descriptors, count: size * Self.byteCount),
            let driver = unsafe memory.hostAddress(of: registers.driver, count: 6 + 2 * size),
            let device = unsafe memory.hostAddress(of: registers.device, count: 6 + 8 * size)
        else { return nil }
        self.size = registers.size
        self.table = unsafe Table(table, count: UInt32(registers.size))
        unsafe self.driver = unsafe driver
        unsafe self.device = unsafe device
        self.memory = memory
    }

    private var mask: UInt16 { size &- 1 }

    @inline(__always) private func word(_ base: UnsafeMutableRawPointer, _ offset: Int) -> UnsafeMutablePointer<Atomic<UInt16>> {
        unsafe (base + offset).assumingMemoryBound(to: Atomic<UInt16>.self)
    }

    // MARK: The driver's area

    /// avail.idx. What the driver wrote before it can be read after it.
    var availableIndex: UInt16 { unsafe word(driver, 2).pointee.load(ordering: .acquiring) }

    /// avail.ring: the head of a chain.
    func availableHead(_ index: UInt16) -> UInt16 {
        unsafe word(driver, 4 + 2 * Int(index & mask)).pointee.load(ordering: .relaxed)
    }

    /// Whether the driver wants no interrupts: VIRTQ_AVAIL_F_NO_INTERRUPT.
    var refusesInterrupts: Bool { unsafe word(driver, 0).pointee.load(ordering: .relaxed) & 1 != 0 }

    /// used_event: the driver wants an interrupt for the entry with this index.
    var usedEvent: UInt16 { unsafe word(driver, 4 + 2 * Int(size)).pointee.load(ordering: .relaxed) }

    // MARK: The device's area

    /// used.flags: VIRTQ_USED_F_NO_NOTIFY.
    func setRefusesNotifications(_ refuses: Bool) { store(refuses ? 1 : 0, 0) }

    /// used.ring: an entry, which the driver sees when the index has passed it.
    func setUsed(_ index: UInt16, head: UInt16, byteCount: UInt32) {
        let place = unsafe device + (4 + 8 * Int(index & mask))
        unsafe place.storeBytes(of: UInt32(head).littleEndian, as: UInt32.self)
        unsafe place.storeBytes(of: byteCount.littleEndian, toByteOffset: 4, as: UInt32.self)
        unsafe memory.noteWritten(place, count: 8)
    }

    /// used.idx: everything written before it is there when the driver sees it (section 2.7.8).
    func publishUsed(_ index: UInt16) { store(index, 2) }

    /// avail_event: the device wants a notification for the entry with this index.
    func setAvailableEvent(_ index: UInt16) { store(index, 4 + 8 * Int(size)) }

    private func store(_ value: UInt16, _ offset: Int) {
        unsafe word(device, offset).pointee.store(value, ordering: .releasing)
        unsafe memory.noteWritten(device + offset, count: 2)
    }
}
