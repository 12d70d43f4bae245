import Synchronization

/// The control queue, and the events that tell of changed discs (virtio 1.2, sections 5.6.6.2 and 5.6.6.3).
extension VirtioSCSI {
    private typealias Format = VirtioSCSIFormat

    func serveControl() {
        let queue = transport.queues[Format.Queue.control]
        while true {
            switch queue.pop() {
            case .empty: return
            case .broken: return transport.requestReset()
            case .chain(let chain):
                guard let answer = control(chain) else {
                    transport.requestReset()
                    return transport.complete(queue, chain, written: 0)
                }
                chain.writable.store(answer)
                transport.complete(queue, chain, written: UInt32(truncatingIfNeeded: answer.count))
            }
        }
    }

    /// - Returns: the answer; `nil` to a request that is none.
    private func control(_ chain: VirtqueueChain) -> [UInt8]? {
        let request = chain.readable.bytes(limit: Int(Format.Control.taskManagementByteCount))
        switch chain.readable.load(as: UInt32.self) {
        case Format.Control.taskManagement:
            guard request.count == Format.Control.taskManagementByteCount, chain.writable.byteCount >= 1 else { return nil }
            let kind = (0..<4).reduce(0 as UInt32) { $0 | UInt32(request[4 + $1]) << UInt32(8 * $1) }
            return [manage(kind, .init { request[8 + $0] }).rawValue]
        case Format.Control.asynchronousQuery, Format.Control.asynchronousSubscribe:
            guard request.count >= Format.Control.asynchronousByteCount, chain.writable.byteCount >= 5 else { return nil }
            guard case .unit(0) = Format.Address({ request[4 + $0] }) else { return [0, 0, 0, 0, Format.Response.badTarget.rawValue] }
            // There are no such events: drivers ask by GET EVENT STATUS NOTIFICATION.
            return [0, 0, 0, 0, Format.Response.ok.rawValue]
        default: return nil
        }
    }

    private func manage(_ kind: UInt32, _ address: Format.Address) -> Format.Response {
        guard case .unit(let unit) = address else { return .badTarget }
        guard unit == 0 else { return .incorrectUnit }
        // A read that is under way cannot be taken back; it ends by itself.
        let isBusy = transport.queues[Format.Queue.request].inFlight > 0
        switch Format.TaskManagement(rawValue: kind) {
        case .abortTask, .abortTaskSet, .clearTaskSet: return isBusy ? .functionRejected : .ok
        case .nexusReset, .unitReset:
            guard !isBusy else { return .functionRejected }
            live.withLock { $0.state.drive.resetUnit() }
            return .ok
        case .queryTask, .queryTaskSet: return isBusy ? .functionSucceeded : .ok
        case .clearACA, nil: return .functionRejected
        }
    }

    // MARK: Events

    /// Tells a driver that wants to know of another disc.
    func announceChange() {
        guard live.withLock({ $0.features.contains(Format.Feature.change) }) else { return }
        sendEvent(Format.Event.parameterChange, Format.Event.mediumChanged)
    }

    func sendEvent(_ event: UInt32, _ reason: UInt32) {
        let queue = transport.queues[Format.Queue.event]
        var (isNoted, hadMissed) = (false, false)
        while true {
            switch queue.pop() {
            case .empty:
                guard !isNoted else { return }
                hadMissed = live.withLock { live in
                    defer { live.state.hasMissedEvent = true }
                    return live.state.hasMissedEvent
                }
                // Once more: a driver that has just given a buffer has found nothing noted, and will not notify again.
                isNoted = true
            case .broken: return transport.requestReset()
            case .chain(let chain):
                guard chain.writable.byteCount >= UInt64(Format.Event.byteCount) else {
                    transport.requestReset()
                    return transport.complete(queue, chain, written: 0)
                }
                let hasMissed = live.withLock { live in
                    defer { live.state.hasMissedEvent = false }
                    return live.state.hasMissedEvent
                }
                // Only noted by ourselves, it was not missed in the end.
                let isMissed = hasMissed && (hadMissed || !isNoted)
                let bytes = littleEndianBytes(isMissed ? event | Format.Event.missed : event) + [1, 0, 0, 0, 0, 0, 0, 0]
                chain.writable.store(bytes + littleEndianBytes(reason))
                return transport.complete(queue, chain, written: UInt32(Format.Event.byteCount))
            }
        }
    }
}
