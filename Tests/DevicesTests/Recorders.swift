import Devices
import Synchronization
import VMM

/// An interrupt controller that remembers every change of every line.
final class LineRecorder: InterruptController {
    struct Change: Equatable {
        let number: UInt8
        let level: Bool
    }

    private let state = Mutex<(levels: [UInt8: Bool], changes: [Change])>(([:], []))

    func setLine(_ number: UInt8, _ asserted: Bool) {
        state.withLock {
            $0.changes.append(Change(number: number, level: asserted))
            $0.levels[number] = asserted
        }
    }

    func level(_ number: UInt8) -> Bool { state.withLock { $0.levels[number] ?? false } }
    func rises(_ number: UInt8) -> Int { changes.count { $0 == Change(number: number, level: true) } }
    var changes: [Change] { state.withLock { $0.changes } }
    func line(_ number: UInt8) -> InterruptLine { InterruptLine(self, number) }
}

/// A machine's power switch that only remembers.
final class PowerRecorder: PowerControl {
    private let state = Mutex<(resets: [String], powerOffs: Int)>(([], 0))
    func requestReset(_ reason: String) { state.withLock { $0.resets.append(reason) } }
    func requestPowerOff() { state.withLock { $0.powerOffs += 1 } }
    var resets: Int { state.withLock { $0.resets.count } }
    var powerOffs: Int { state.withLock { $0.powerOffs } }
}
