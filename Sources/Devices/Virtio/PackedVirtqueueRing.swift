import Synchronization
import VMM

/// A packed virtqueue in guest memory (virtio 1.2, section 2.8): one ring of descriptors that both sides write, and what each
/// wants to hear of.
///
///     descriptors   16 bytes each: address, length, id, flags
///     driver area   4 bytes: for which descriptor the driver wants an interrupt, and whether
///     device area   4 bytes: the same for notifications
///
/// The driver writes at the same time: each value is read once. SAFETY: all pointers lie in guest memory, in areas that `init`
/// found to be RAM; offsets are below `size`, which `Cursor` keeps; the memory lives as long as the queue that holds it.
/// `@unchecked Sendable`: addresses never change, and what both sides touch is atomic.
@safe struct PackedVirtqueueRing: @unchecked Sendable {
    /// A descriptor's flags (section 2.8.20).
    struct Flags: OptionSet {
        let rawValue: UInt16
        static let next = Flags(rawValue: 1)
        static let write = Flags(rawValue: 2)
        static let indirect = Flags(rawValue: 4)
        static let available = Flags(rawValue: 1 << 7)
        static let used = Flags(rawValue: 1 << 15)

        /// Whether the driver has made it available, on the lap that `cursor` is on (section 2.8.1).
        func isAvailable(at cursor: Cursor) -> Bool {
            contains(.available) == cursor.wrap && contains(.used) != cursor.wrap
        }
    }

    struct Descriptor {
        let address: UInt64
        let byteCount: UInt32
        let id: UInt16
        let flags: Flags
    }

    /// A place in the ring and the wrap counter there, as the event structures have them: the counter in bit 15.
    struct Cursor {
        private(set) var rawValue: UInt16
        static let start = Cursor(rawValue: 1 << 15)

        private init(rawValue: UInt16) { self.rawValue = rawValue }
        /// - Returns: `nil` for a place behind the ring.
        init?(_ rawValue: UInt16, size: UInt16) {
            guard rawValue & 0x7FFF < size else { return nil }
            self.rawValue = rawValue
        }

        var offset: UInt16 { rawValue & 0x7FFF }
        var wrap: Bool { rawValue >> 15 != 0 }

        /// - Precondition: `count` is at most `size`.
        mutating func advance(_ count: UInt16, size: UInt16) {
            let next = offset + count
            let counter = rawValue & 1 << 15
            rawValue = next < size ? counter | next : (counter ^ 1 << 15) | (next - size)
        }
    }

    /// RING_EVENT_FLAGS (section 2.8.14).
    enum Event {
        static let enable: UInt16 = 0
        static let disable: UInt16 = 1
        /// For the descriptor at a place alone.
        static let descriptor: UInt16 = 2
    }

    static let byteCount: UInt64 = 16

    let size: UInt16
    private let descriptors: UnsafeMutableRawPointer
    private let driver: UnsafeMutableRawPointer
    private let device: UnsafeMutableRawPointer
    private let memory: GuestMemory

    /// - Returns: `nil` when an area is not all RAM or not aligned as section 2.8.10.1 wants it.
    init?(_ registers: VirtioRegisters.Queue, _ memory: GuestMemory) {
        guard registers.size > 0, registers.size <= Virtqueue.largestSize, registers.descriptors % 16 == 0,
            registers.driver % 4 == 0, registers.device % 4 == 0,
            let descriptors = unsafe memory.hostAddress(of: registers.descriptors, count: UInt64(registers.size) * Self.byteCount),
            let driver = unsafe memory.hostAddress(of: registers.driver, count: 4),
            let device = unsafe memory.hostAddress(of: registers.device, count: 4)
        else { return nil }
        size = registers.size
        unsafe self.descriptors = unsafe descriptors
        unsafe self.driver = unsafe driver
        unsafe self.device = unsafe device
        self.memory = memory
    }

    @inline(__always) private func place(_ offset: UInt16) -> UnsafeMutableRawPointer {
        unsafe descriptors + Int(offset) * Int(Self.byteCount)
    }
    @inline(__always) private func flagsWord(_ place: UnsafeMutableRawPointer) -> UnsafeMutablePointer<Atomic<UInt16>> {
        unsafe (place + 14).assumingMemoryBound(to: Atomic<UInt16>.self)
    }

    // MARK: Descriptors

    /// The flags at a place. What the driver wrote before them can be read after them (section 2.8.21.1).
    func flags(_ offset: UInt16) -> Flags {
        unsafe Flags(rawValue: flagsWord(place(offset)).pointee.load(ordering: .acquiring))
    }

    /// - Parameter flags: those that were read already.
    func descriptor(_ offset: UInt16, flags: Flags? = nil) -> Descriptor {
        unsafe Self.descriptor(place(offset), flags: flags ?? self.flags(offset))
    }

    private static func descriptor(_ place: UnsafeMutableRawPointer, flags: Flags) -> Descriptor {
        unsafe Descriptor(
            address: UInt64(littleEndian: place.loadUnaligned(as: UInt64.self)),
            byteCount: UInt32(littleEndian: place.loadUnaligned(fromByteOffset: 8, as: UInt32.self)),
            id: UInt16(littleEndian: place.loadUnaligned(fromByteOffset: 12, as: UInt16.self)), flags: flags)
    }

    /// An indirect table: its descriptors follow one another, and only WRITE counts in them (section 2.8.7).
    @safe struct Table {
        private let base: UnsafeMutableRawPointer
        let count: UInt32

        /// - Returns: `nil` when it is not a table of whole descriptors in RAM.
        init?(_ descriptor: Descriptor, _ memory: GuestMemory) {
            let byteCount = UInt64(descriptor.byteCount)
            guard byteCount > 0, byteCount % PackedVirtqueueRing.byteCount == 0,
                let base = unsafe memory.hostAddress(of: descriptor.address, count: byteCount)
            else { return nil }
            unsafe self.base = unsafe base
            count = UInt32(byteCount / PackedVirtqueueRing.byteCount)
        }

        /// - Precondition: `index` is below `count`.
        func descriptor(_ index: UInt32) -> Descriptor {
            assert(index < count)
            let place = unsafe base + Int(index) * Int(PackedVirtqueueRing.byteCount)
            // Tables may lie anywhere: no atomic access.
            return unsafe PackedVirtqueueRing.descriptor(
                place, flags: Flags(rawValue: UInt16(littleEndian: place.loadUnaligned(fromByteOffset: 14, as: UInt16.self))))
        }
    }

    /// Shows a chain as used, in place of a descriptor. The flags come last: by them the driver sees it (section 2.8.6).
    func putUsed(at cursor: Cursor, id: UInt16, byteCount: UInt32) {
        let place = unsafe place(cursor.offset)
        unsafe place.storeBytes(of: byteCount.littleEndian, toByteOffset: 8, as: UInt32.self)
        unsafe place.storeBytes(of: id.littleEndian, toByteOffset: 12, as: UInt16.self)
        // WRITE says that the length counts.
        var flags: Flags = byteCount > 0 ? [.write] : []
        if cursor.wrap { flags.formUnion([.available, .used]) }
        unsafe flagsWord(place).pointee.store(flags.rawValue, ordering: .releasing)
        unsafe memory.noteWritten(place, count: Int(Self.byteCount))
    }

    // MARK: Events

    @inline(__always) private func word(_ area: UnsafeMutableRawPointer) -> UnsafeMutablePointer<Atomic<UInt32>> {
        unsafe area.assumingMemoryBound(to: Atomic<UInt32>.self)
    }

    /// What the driver wants interrupts for: a place as `Cursor` has it, and RING_EVENT_FLAGS.
    var interruptEvent: (place: UInt16, flags: UInt16) {
        let both = unsafe word(driver).pointee.load(ordering: .relaxed)
        return (UInt16(truncatingIfNeeded: both), UInt16(truncatingIfNeeded: both >> 16) & 3)
    }

    /// Says which notifications the device wants.
    func setNotificationEvent(_ flags: UInt16, at cursor: Cursor = .start) {
        unsafe word(device).pointee.store(UInt32(flags) << 16 | UInt32(cursor.rawValue), ordering: .releasing)
        unsafe memory.noteWritten(device, count: 4)
    }
}
