import Devices
import Glibc
import Linux
import Synchronization
import Testing
import VMM

@testable import Machine

/// Collects what the guest prints, and waits for it.
final class Recorder: SerialTerminal {
    private let bytes = Monitor<[UInt8]>([])
    var text: String { String(decoding: bytes.withLock { $0 }, as: UTF8.self) }
    func send(_ byte: UInt8) {
        bytes.withLock { $0.append(byte) }
        bytes.broadcast()
    }
    func roomAvailable() {}

    /// Waits until the guest has printed a text, so many times.
    func wait(for text: String, count: Int = 1, seconds: UInt64 = 20) -> Bool {
        bytes.withLock(
            waitingWhile: { String(decoding: $0, as: UTF8.self).split(separator: text, omittingEmptySubsequences: false).count <= count },
            until: SystemTime.monotonic() + seconds * 1_000_000_000
        ) { String(decoding: $0, as: UTF8.self).split(separator: text, omittingEmptySubsequences: false).count > count }
    }
}

extension EngineChoice {
    /// Makes the engine, or skips the test.
    func makeForTest() throws -> (engine: any Engine, features: EngineFeatures) {
        if self == .kvm, access("/dev/kvm", R_OK | W_OK) != 0 { try Test.cancel("/dev/kvm does not open here") }
        return try make()
    }
}

/// A machine that runs, with what it has to say.
final class RunningMachine: Sendable {
    let machine: Machine
    let clock: HostClock
    private let log = Monitor<[Machine.Event]>([])

    init(
        _ configuration: MachineConfiguration, _ engine: any Engine, features: EngineFeatures = .translator, terminal: any SerialTerminal
    ) throws {
        clock = try HostClock()
        machine = try Machine(
            configuration, engine: engine, features: features, clock: clock, terminal: terminal)
        try machine.start { [log] event in
            log.withLock { $0.append(event) }
            log.broadcast()
        }
    }

    var events: [Machine.Event] { log.withLock { $0 } }

    func wait(for event: Machine.Event, seconds: UInt64 = 20) -> Bool {
        log.withLock(waitingWhile: { !$0.contains(event) }, until: SystemTime.monotonic() + seconds * 1_000_000_000) {
            $0.contains(event)
        }
    }

    /// Waits for the end; ends it by force, which is then the outcome, when it does not come.
    func end(seconds: UInt64 = 30) -> Machine.Outcome? {
        func outcome(_ events: [Machine.Event]) -> Machine.Outcome? {
            if case .ended(let outcome) = events.last { outcome } else { nil }
        }
        let deadline = SystemTime.monotonic() + seconds * 1_000_000_000
        let isOver = log.withLock(waitingWhile: { outcome($0) == nil }, until: deadline) { outcome($0) != nil }
        if !isOver { machine.requestStop() }
        let ended = log.withLock(waitingWhile: { outcome($0) == nil }) { outcome($0) }
        machine.join()
        clock.stop()
        return ended
    }

    /// Whether a pause, or its end, was reached.
    func pause(_ isWanted: Bool = true) -> Bool? {
        let answer = Monitor<Bool?>(nil)
        let reply: @Sendable (Bool) -> Void = { value in
            answer.withLock { $0 = value }
            answer.broadcast()
        }
        if isWanted { machine.pause(reply) } else { machine.unpause(reply) }
        return answer.withLock(waitingWhile: { $0 == nil }, until: SystemTime.monotonic() + 10_000_000_000) { $0 }
    }
}
