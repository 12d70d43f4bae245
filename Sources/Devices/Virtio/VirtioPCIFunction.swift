import Synchronization
public import VMM

/// A virtio device on the PCI bus, with the current interface and the legacy one (virtio 1.2, section 4.1).
///
/// Which interface a driver uses shows at its first write to device status, and stays until a reset. Bus mastering is not looked
/// at: legacy drivers use their rings before they turn it on.
///
/// A reset with chains in flight: the queues are off at once, and nothing more is shown to the driver. The current
/// interface's status reads as before until the last chain is back, and becomes 0 then: no vCPU waits. Legacy drivers take
/// the write's return for the end of the reset, so that one waits. What other vCPUs write meanwhile is dropped, by either
/// interface; a reset that one of them asks for is the same one.
public final class VirtioPCIFunction<Device: VirtioDevice>: PCIFunction {
    /// What is saved.
    public struct State: Codable, Hashable, Sendable {
        public var space: PCIConfigurationSpace
        public var registers: VirtioRegisters
        public var vectors: MSIX
        public var positions: [Virtqueue.Position]
        public var device: Device.State
    }

    public let transport: VirtioTransport
    public let device: Device

    /// - Parameter device: made with that transport, which is its alone.
    public init(_ transport: VirtioTransport, _ device: Device) {
        self.transport = transport
        self.device = device
        transport.live.withLock { $0.resetDevice = { [weak device] in device?.reset() } }
    }

    // MARK: Configuration space

    public func readConfiguration(_ offset: UInt8, _ width: AccessWidth) -> UInt32 {
        if offset & ~3 == VirtioLayout.Access.data, let access = access {
            let value = read(VirtioLayout.memoryIndex, access.offset, access.width)
            transport.live.withLock { $0.space.set(VirtioLayout.Access.data, UInt32(truncatingIfNeeded: value)) }
        }
        return transport.live.withLock { $0.space.read(offset, width) }
    }

    public func writeConfiguration(_ offset: UInt8, _ width: AccessWidth, _ value: UInt32) {
        let data = transport.live.withLock { live in
            live.space.write(offset, width, value)
            if let messages = transport.messages, offset & ~3 == VirtioLayout.messageControl & ~3 {
                let control = live.space.get(VirtioLayout.messageControl, as: UInt16.self)
                live.vectors.setControl(MSIX.Control(rawValue: control), messages)
            }
            transport.settle(&live)
            return live.space.get(VirtioLayout.Access.data, as: UInt32.self)
        }
        if offset & ~3 == VirtioLayout.Access.data, let access = access {
            write(VirtioLayout.memoryIndex, access.offset, access.width, UInt64(data) & access.width.allOnes)
        }
    }

    /// What the capability for access by configuration space points at (section 4.1.4.9), if that can be accessed.
    private var access: (offset: UInt64, width: AccessWidth)? {
        transport.live.withLock { live in
            let offset = live.space.get(VirtioLayout.Access.offset, as: UInt32.self)
            let length = live.space.get(VirtioLayout.Access.length, as: UInt32.self)
            guard live.space.get(VirtioLayout.Access.baseAddress, as: UInt8.self) == UInt8(VirtioLayout.memoryIndex),
                length <= 4, let width = AccessWidth(rawValue: Int(length)), offset % length == 0,
                offset < VirtioLayout.memoryByteCount
            else { return nil }
            return (UInt64(offset), width)
        }
    }

    public var windows: [PCIConfigurationSpace.Window] { transport.live.withLock { $0.space.windows } }

    // MARK: Base addresses

    public func read(_ index: Int, _ offset: UInt64, _ width: AccessWidth) -> UInt64 {
        if index == VirtioLayout.portIndex { return readLegacy(offset, width) }
        guard let region = VirtioLayout.region(offset) else { return 0 }
        let inside = offset & 0xFFF
        switch region {
        case .common: return transport.live.withLock { $0.registers.readCommon(inside, width, transport.profile) }
        case .interruptStatus: return inside == 0 ? takeInterruptStatus() : 0
        case .device: return transport.live.withLock { _ in readDevice(inside, width) }
        case .notify: return 0
        case .table: return transport.live.withLock { $0.vectors.readTable(inside, width) }
        case .pending: return transport.live.withLock { $0.vectors.readPending(inside, width) }
        }
    }

    public func write(_ index: Int, _ offset: UInt64, _ width: AccessWidth, _ value: UInt64) {
        if index == VirtioLayout.portIndex { return writeLegacy(offset, width, value) }
        guard let region = VirtioLayout.region(offset) else { return }
        let inside = offset & 0xFFF
        switch region {
        case .notify: notify(inside / VirtioLayout.notifyMultiplier)
        case .common:
            perform { live in
                live.registers.writeCommon(
                    inside, width, value, transport.profile, vectorCount: transport.vectorCount(live))
            }
        case .device: transport.live.withLock { if !$0.isResetting { writeDevice(inside, width, value) } }
        case .table:
            guard let messages = transport.messages else { return }
            transport.live.withLock { $0.vectors.writeTable(inside, width, value, messages) }
        case .interruptStatus, .pending: break
        }
    }

    private func notify(_ queue: UInt64) {
        guard queue < UInt64(transport.queues.count) else { return }
        device.notified(Int(queue))
    }

    /// Reading clears it, and the wire falls (section 4.1.4.5).
    private func takeInterruptStatus() -> UInt64 {
        transport.live.withLock { live in
            let value = live.registers.interruptStatus
            live.registers.interruptStatus = []
            transport.settle(&live)
            return UInt64(value.rawValue)
        }
    }

    private func readDevice(_ offset: UInt64, _ width: AccessWidth) -> UInt64 {
        var value: UInt64 = 0
        for index in 0..<UInt64(width.rawValue) where offset + index < UInt64(transport.profile.configurationByteCount) {
            value |= UInt64(device.readConfiguration(Int(offset + index))) << (index * 8)
        }
        return value
    }

    private func writeDevice(_ offset: UInt64, _ width: AccessWidth, _ value: UInt64) {
        for index in 0..<UInt64(width.rawValue) where offset + index < UInt64(transport.profile.configurationByteCount) {
            device.writeConfiguration(Int(offset + index), UInt8(truncatingIfNeeded: value >> (index * 8)))
        }
    }

    // MARK: The legacy interface

    private func legacyEnd(_ live: borrowing VirtioTransport.Live) -> UInt64 {
        live.vectors.isEnabled ? VirtioRegisters.Legacy.endWithVectors : VirtioRegisters.Legacy.end
    }

    private func readLegacy(_ offset: UInt64, _ width: AccessWidth) -> UInt64 {
        let count = UInt64(width.rawValue)
        let value = transport.live.withLock { live in
            let end = legacyEnd(live)
            if offset >= end { return readDevice(offset - end, width) }
            var value: UInt64 = 0
            for index in 0..<count where offset + index < end {
                value |= UInt64(live.registers.legacyByte(offset + index, transport.profile)) << (index * 8)
            }
            return value
        }
        if VirtioRegisters.Legacy.interruptStatus &- offset < count { _ = takeInterruptStatus() }
        return value
    }

    private func writeLegacy(_ offset: UInt64, _ width: AccessWidth, _ value: UInt64) {
        if offset == VirtioRegisters.Legacy.queueNotify { return notify(value & 0xFFFF) }
        let isReset = offset == VirtioRegisters.Legacy.status && width == .byte && value == 0
        perform(resets: isReset, waits: true) { live in
            let end = legacyEnd(live)
            guard offset < end else {
                writeDevice(offset - end, width, value)
                return .nothing
            }
            return live.registers.writeLegacy(
                offset, width, value, transport.profile,
                vectorCount: live.vectors.isEnabled ? transport.vectorCount(live) : 0)
        }
    }

    // MARK: What registers bring about

    /// - Parameters:
    ///   - resets: the write is one that resets, and nothing else.
    ///   - waits: a reset is over when this returns.
    private func perform(
        resets: Bool = false, waits: Bool = false, _ write: (inout VirtioTransport.Live) -> VirtioRegisters.Effect
    ) {
        let effect: VirtioRegisters.Effect = transport.live.withLock { live in
            // A driver that does not wait for its reset, or another vCPU's: registers that are about to be forgotten take
            // nothing, but who resets as well waits for the same end.
            if live.isResetting { return resets ? .reset : .nothing }
            let effect = write(&live)
            switch effect {
            case .nothing, .reset: break
            case .enable(let index): enable(&live, index)
            case .disable(let index): transport.queues[index].detach()
            case .driverReady:
                device.activate(live.registers.features)
                startQueues(live)
            }
            return effect
        }
        switch effect {
        case .nothing, .enable, .driverReady: break
        case .disable: device.drain()
        case .reset: reset(waits: waits)
        }
    }

    private func enable(_ live: inout VirtioTransport.Live, _ index: Int, at position: Virtqueue.Position? = nil) {
        let registers = live.registers
        guard transport.queues[index].enable(registers.queues[index], registers.features, at: position) else {
            return transport.giveUp(&live)
        }
        guard registers.isServing else { return }
        device.activate(registers.features)
        transport.queues[index].start()
    }

    private func startQueues(_ live: borrowing VirtioTransport.Live) {
        guard live.registers.isServing else { return }
        for (queue, registers) in zip(transport.queues, live.registers.queues) where registers.isEnabled { queue.start() }
    }

    private func reset(waits: Bool) {
        transport.beginReset()
        if waits { device.drain() }
        transport.finishReset()
        if waits { transport.waitForReset() }
    }

    // MARK: State

    /// RST#. Waits for what is in flight: guest memory is nobody else's afterwards.
    public func reset() {
        reset(waits: true)
        transport.live.withLock { live in
            live.space = transport.initialSpace
            live.vectors = MSIX(vectorCount: live.vectors.vectorCount)
            live.registers = VirtioRegisters(transport.profile)
            transport.settle(&live)
        }
    }

    /// The vCPUs stand still. Waits for what is in flight.
    public func save() -> State {
        device.drain()
        return transport.live.withLock { live in
            State(
                space: live.space, registers: live.registers, vectors: live.vectors,
                positions: transport.queues.map(\.position), device: device.save())
        }
    }

    /// Memory is restored before it; `PCIHostBridge.restore` follows, for the base addresses.
    public func restore(_ saved: State) {
        reset()
        transport.live.withLock { live in
            live.space.adopt(saved.space)
            if transport.messages != nil { live.vectors.adopt(saved.vectors) }
            live.registers = saved.registers
            live.registers.sanitize(transport.profile, vectorCount: transport.vectorCount(live))
            device.restore(saved.device)
            let isBroken = live.registers.status.contains(.needsReset)
            for index in live.registers.queues.indices where live.registers.queues[index].isEnabled && !isBroken {
                enable(&live, index, at: index < saved.positions.count ? saved.positions[index] : nil)
            }
            transport.settle(&live)
        }
        for index in transport.queues.indices { device.notified(index) }
    }
}
