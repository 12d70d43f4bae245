import Devices
import Synchronization
import VMM

/// A guest's driver, played by a test: it lays rings out in guest memory and drives a function's registers.
final class VirtioDriver {
    /// The current registers, with split rings or packed ones, and the legacy registers.
    enum Interface: CaseIterable {
        case modern, legacy, packed
        /// Both kinds of rings.
        static let current: [Interface] = [.modern, .packed]
    }

    struct Buffer {
        var address: UInt64
        var byteCount: UInt32
        var isWritable = false
        static func out(_ address: UInt64, _ byteCount: Int) -> Buffer { .init(address: address, byteCount: UInt32(byteCount)) }
        static func into(_ address: UInt64, _ byteCount: Int) -> Buffer {
            .init(address: address, byteCount: UInt32(byteCount), isWritable: true)
        }
    }

    static let eventIndex: UInt64 = 1 << 29
    static let packedRing: UInt64 = 1 << 34
    static let next: UInt16 = 1
    static let write: UInt16 = 2
    static let indirect: UInt16 = 4

    let function: any PCIFunction
    let memory: GuestMemory
    let interface: Interface
    private(set) var features: UInt64 = 0

    /// One queue's rings and what the driver keeps of them.
    struct Queue {
        var size: UInt16
        var descriptors: UInt64
        var driver: UInt64
        var device: UInt64
        var available: UInt16 = 0
        var seenUsed: UInt16 = 0
        var nextDescriptor: UInt16 = 0
        /// Of a packed ring; `VirtioDriver+Packed` has the rest.
        var packed = Packed()
    }

    var queues: [Queue] = []
    /// Where rings go: pages from here on.
    private var ringAddress: UInt64

    init(_ function: any PCIFunction, _ memory: GuestMemory, _ interface: Interface = .modern, rings: UInt64 = 0x10_0000) {
        self.function = function
        self.memory = memory
        self.interface = interface
        ringAddress = rings
    }

    // MARK: Registers

    func common(_ offset: UInt64, _ width: AccessWidth = .dword) -> UInt64 { function.read(1, offset, width) }
    func setCommon(_ offset: UInt64, _ value: UInt64, _ width: AccessWidth = .dword) { function.write(1, offset, width, value) }
    func port(_ offset: UInt64, _ width: AccessWidth = .dword) -> UInt64 { function.read(0, offset, width) }
    func setPort(_ offset: UInt64, _ value: UInt64, _ width: AccessWidth = .dword) { function.write(0, offset, width, value) }

    var status: UInt64 {
        get { interface != .legacy ? common(0x14, .byte) : port(0x12, .byte) }
        set { interface != .legacy ? setCommon(0x14, newValue, .byte) : setPort(0x12, newValue, .byte) }
    }

    var interruptStatus: UInt64 { interface != .legacy ? common(0x1000, .byte) : port(0x13, .byte) }

    func configuration(_ offset: UInt64, _ width: AccessWidth) -> UInt64 {
        interface != .legacy ? common(0x2000 + offset, width) : port(0x14 + offset, width)
    }

    func setConfiguration(_ offset: UInt64, _ value: UInt64, _ width: AccessWidth) {
        interface != .legacy ? setCommon(0x2000 + offset, value, width) : setPort(0x14 + offset, value, width)
    }

    var offered: UInt64 {
        guard interface != .legacy else { return port(0) }
        setCommon(0, 0)
        let low = common(4)
        setCommon(0, 1)
        return common(4) << 32 | low
    }

    // MARK: Set-up

    /// Reset, feature negotiation, queues, ready.
    func start(features wanted: UInt64 = .max, queues count: Int = 1, size: UInt16? = nil) {
        status = 0
        status = 1
        status = 3
        features = offered & wanted & (interface == .packed ? .max : ~Self.packedRing)
        if interface != .legacy {
            setCommon(8, 0)
            setCommon(0xC, features & 0xFFFF_FFFF)
            setCommon(8, 1)
            setCommon(0xC, features >> 32)
            status = 0xB
        } else {
            setPort(4, features)
        }
        queues = (0..<count).map { setUp(queue: $0, size) }
        status = interface != .legacy ? 0xF : 7
    }

    private func setUp(queue: Int, _ size: UInt16?) -> Queue {
        if interface != .legacy { setCommon(0x16, UInt64(queue), .word) } else { setPort(0xE, UInt64(queue), .word) }
        if let size, interface != .legacy { setCommon(0x18, UInt64(size), .word) }
        let count = UInt64(interface != .legacy ? common(0x18, .word) : port(0xC, .word))
        let descriptors = ringAddress
        let driver = descriptors + 16 * count
        let device = (driver + 6 + 2 * count + 0xFFF) & ~0xFFF
        ringAddress = (device + 6 + 8 * count + 0xFFF) & ~0xFFF
        memory.write([UInt8](repeating: 0, count: Int(ringAddress - descriptors)), at: descriptors)
        if interface != .legacy {
            for (register, address) in [(0x20, descriptors), (0x28, driver), (0x30, device)] as [(UInt64, UInt64)] {
                setCommon(register, address & 0xFFFF_FFFF)
                setCommon(register + 4, address >> 32)
            }
            setCommon(0x1C, 1, .word)
        } else {
            setPort(8, descriptors >> 12)
        }
        // As a split ring's used_event is at first.
        if interface == .packed, features & Self.eventIndex != 0 { memory.store(driver, 0x2_8000 as UInt32) }
        return Queue(size: UInt16(count), descriptors: descriptors, driver: driver, device: device)
    }

    // MARK: Rings

    func putDescriptor(_ table: UInt64, _ index: UInt16, _ address: UInt64, _ byteCount: UInt32, _ flags: UInt16, _ next: UInt16 = 0) {
        let place = table + 16 * UInt64(index)
        memory.store(place, address)
        memory.store(place + 8, byteCount)
        memory.store(place + 12, flags)
        memory.store(place + 14, next)
    }

    /// Writes a chain into the next descriptors, around the table's end.
    /// - Returns: its head.
    func putChain(_ buffers: [Buffer], on queue: Int = 0, indirectAt table: UInt64? = nil) -> UInt16 {
        if interface == .packed { return putPackedChain(buffers, on: queue, indirectAt: table) }
        let size = queues[queue].size
        let head = queues[queue].nextDescriptor
        if let table {
            for (index, buffer) in buffers.enumerated() {
                let flags = (index < buffers.count - 1 ? Self.next : 0) | (buffer.isWritable ? Self.write : 0)
                putDescriptor(table, UInt16(index), buffer.address, buffer.byteCount, flags, UInt16(index + 1))
            }
            putDescriptor(queues[queue].descriptors, head, table, UInt32(16 * buffers.count), Self.indirect)
            queues[queue].nextDescriptor = (head + 1) % size
        } else {
            for (index, buffer) in buffers.enumerated() {
                let place = (head + UInt16(index)) % size
                let flags = (index < buffers.count - 1 ? Self.next : 0) | (buffer.isWritable ? Self.write : 0)
                putDescriptor(
                    queues[queue].descriptors, place, buffer.address, buffer.byteCount, flags, (place + 1) % size)
            }
            queues[queue].nextDescriptor = (head + UInt16(buffers.count)) % size
        }
        return head
    }

    /// Makes a head available, without a notification.
    func offer(_ head: UInt16, on queue: Int = 0) {
        if interface == .packed { return offerPacked(head, on: queue) }
        let ring = queues[queue]
        memory.store(ring.driver + 4 + 2 * UInt64(ring.available % ring.size), head)
        queues[queue].available &+= 1
        memory.store(ring.driver + 2, queues[queue].available)
    }

    func notify(_ queue: Int = 0) {
        if interface != .legacy {
            setCommon(0x3000 + 4 * UInt64(queue), UInt64(queue), .word)
        } else {
            setPort(0x10, UInt64(queue), .word)
        }
    }

    func send(_ buffers: [Buffer], on queue: Int = 0, indirectAt table: UInt64? = nil) {
        offer(putChain(buffers, on: queue, indirectAt: table), on: queue)
        notify(queue)
    }

    /// The next chain that the device has used.
    func takeUsed(_ queue: Int = 0) -> (head: UInt32, byteCount: UInt32)? {
        if interface == .packed { return takePackedUsed(queue) }
        let ring = queues[queue]
        guard usedIndex(queue) != ring.seenUsed else { return nil }
        let place = ring.device + 4 + 8 * UInt64(ring.seenUsed % ring.size)
        queues[queue].seenUsed &+= 1
        guard let head = memory.load(place, as: UInt32.self), let count = memory.load(place + 4, as: UInt32.self) else { return nil }
        return (head, count)
    }

    func usedIndex(_ queue: Int = 0) -> UInt16 {
        if interface == .packed { return collectPacked(queue) }
        return memory.load(queues[queue].device + 2, as: UInt16.self) ?? 0
    }

    /// The chain with that number shall interrupt.
    func setUsedEvent(_ value: UInt16, on queue: Int = 0) {
        if interface == .packed { return setPackedEvent(value, on: queue) }
        memory.store(queues[queue].driver + 4 + 2 * UInt64(queues[queue].size), value)
    }

    func availableEvent(_ queue: Int = 0) -> UInt16? {
        memory.load(queues[queue].device + 4 + 8 * UInt64(queues[queue].size), as: UInt16.self)
    }
}

/// A sink that remembers its messages.
final class MessageRecorder: MSISink {
    struct Message: Equatable {
        let address: UInt64
        let data: UInt32
    }

    private let state = Mutex<[Message]>([])
    func deliver(address: UInt64, data: UInt32) { state.withLock { $0.append(Message(address: address, data: data)) } }
    var messages: [Message] { state.withLock { $0 } }
}

/// A device that copies what it can read into what it can write, at once or when it is told to.
final class EchoDevice: VirtioDevice {
    struct State: Codable, Hashable, Sendable { var setting: UInt8 = 0 }

    static func profile(queues: [UInt16]) -> VirtioProfile {
        VirtioProfile(
            deviceType: 42, transitionalID: 0x1009, classCode: 0x08_80_00, features: .bit(0), queueSizes: queues,
            configurationByteCount: 8)
    }

    private struct Live {
        var holds = false
        var held: [(queue: Int, chain: VirtqueueChain)] = []
        var drainReleases = true
        var drains = 0
        var resets = 0
        var activations: [VirtioFeatures] = []
        var state = State()
        var counter: UInt32 = 7
    }

    let transport: VirtioTransport
    private let live = Mutex(Live())

    init(_ transport: VirtioTransport) { self.transport = transport }

    /// Chains are kept until `release`.
    /// - Parameter drainReleases: `false`: as a thread does that has popped them and done nothing else yet.
    func hold(drainReleases: Bool = true) {
        live.withLock {
            $0.holds = true
            $0.drainReleases = drainReleases
        }
    }
    var drains: Int { live.withLock { $0.drains } }
    var heldCount: Int { live.withLock { $0.held.count } }
    var resets: Int { live.withLock { $0.resets } }
    var activations: [VirtioFeatures] { live.withLock { $0.activations } }

    /// Completes what is kept, oldest first.
    func release(_ count: Int = .max) {
        let released = live.withLock { live in
            let part = Array(live.held.prefix(count))
            live.held.removeFirst(part.count)
            return part
        }
        for (queue, chain) in released { echo(transport.queues[queue], chain) }
    }

    func setCounter(_ value: UInt32) { transport.changeConfiguration { live.withLock { $0.counter = value } } }

    private func echo(_ queue: Virtqueue, _ chain: VirtqueueChain) {
        let bytes = chain.readable.bytes(limit: 1 << 20)
        chain.writable.store(bytes)
        transport.complete(queue, chain, written: UInt32(min(UInt64(bytes.count), chain.writable.byteCount)))
    }

    func notified(_ queue: Int) {
        while true {
            switch transport.queues[queue].pop() {
            case .empty: return
            case .broken: return transport.requestReset()
            case .chain(let chain):
                let holds = live.withLock { live in
                    if live.holds { live.held.append((queue, chain)) }
                    return live.holds
                }
                if !holds { echo(transport.queues[queue], chain) }
            }
        }
    }

    func readConfiguration(_ offset: Int) -> UInt8 {
        live.withLock { offset < 4 ? UInt8(truncatingIfNeeded: $0.counter >> UInt32(offset * 8)) : $0.state.setting }
    }
    func writeConfiguration(_ offset: Int, _ value: UInt8) { if offset == 4 { live.withLock { $0.state.setting = value } } }
    func activate(_ features: VirtioFeatures) { live.withLock { $0.activations.append(features) } }
    func reset() {
        live.withLock {
            $0.resets += 1
            $0.state = State()
        }
    }
    func drain() {
        let releases = live.withLock { live in
            live.drains += 1
            return live.drainReleases
        }
        if releases { release() }
    }
    func save() -> State { live.withLock { $0.state } }
    func restore(_ saved: State) { live.withLock { $0.state = saved } }
}

/// A machine with one virtio function in it.
struct VirtioBench {
    let memory: GuestMemory
    let lines = LineRecorder()
    let messages: MessageRecorder?
    let transport: VirtioTransport

    /// - Parameter ranges: guest memory; a page's hole inside, for buffers that cross it.
    init(
        _ profile: VirtioProfile, hasMessages: Bool = false,
        ranges: [(base: UInt64, byteCount: UInt64)] = [(0, 0x40_0000), (0x40_0000, 0x20_0000), (0x1_0000_0000, 0x10_0000)]
    ) throws {
        // Whether real devices offer packed rings or not.
        let profile = VirtioProfile(
            deviceType: profile.deviceType, transitionalID: profile.transitionalID, classCode: profile.classCode,
            features: profile.features.union(.packedRing), queueSizes: profile.queueSizes,
            configurationByteCount: profile.configurationByteCount)
        memory = try GuestMemory(ranges: ranges)
        messages = hasMessages ? MessageRecorder() : nil
        transport = VirtioTransport(
            profile, memory: memory,
            .init(ports: 0x1000, memory: 0xF000_0000, line: lines.line(5), lineNumber: 5, messages: messages))
    }

    var isInterrupting: Bool { lines.level(5) }
}
