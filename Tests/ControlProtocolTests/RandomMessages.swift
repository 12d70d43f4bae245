import ControlProtocol
import TestSupport

/// Messages with random values: every kind, every field.
extension SplitMix64 {
    mutating func chance() -> Bool { Bool.random(using: &self) }

    /// Up to a few hundred bytes, with letters of one to four bytes.
    mutating func text() -> String {
        let letters = Array("az09-_./: \n\u{1}äß€🦫\u{301}")
        return String((0..<Int.random(in: 0...(chance() ? 8 : 200), using: &self)).map { _ in letters.randomElement(using: &self) ?? "x" })
    }

    mutating func optionalText() -> String? { chance() ? text() : nil }
    mutating func number<Number: FixedWidthInteger & UnsignedInteger>() -> Number {
        // Small ones and the ends are more likely than among all.
        switch Int.random(in: 0..<4, using: &self) {
        case 0: Number.random(in: 0...2, using: &self)
        case 1: .max
        default: Number.random(in: 0 ... .max, using: &self)
        }
    }

    mutating func pick<Value: CaseIterable>() -> Value where Value.AllCases == [Value] {
        Value.allCases[Int.random(in: 0..<Value.allCases.count, using: &self)]
    }

    mutating func machine() -> MachineReference { chance() ? .id(number()) : .name(text()) }
    mutating func optionalMachine() -> MachineReference? { chance() ? machine() : nil }

    mutating func startRequest() -> StartRequest {
        var request = StartRequest(machine())
        request.template = optionalText()
        request.kernel = optionalText()
        request.initrd = optionalText()
        request.commandLine = optionalText()
        request.bootDevice = chance() ? pick() : nil
        request.memory = chance() ? number() : nil
        request.cpus = chance() ? number() : nil
        request.disks = (0..<Int.random(in: 0...16, using: &self)).map { _ in text() }
        request.cdrom = optionalText()
        request.interfaceCount = chance() ? number() : nil
        request.interfaces = (0..<Int.random(in: 0...16, using: &self)).map { _ in chance() ? .local : .onSwitch(text()) }
        request.engine = optionalText()
        request.cpuModel = optionalText()
        return request
    }

    mutating func status() -> MachineStatus {
        var status = MachineStatus(
            id: number(), name: text(), state: pick(), cpus: number(), maxMemory: number(), owner: text(), engine: text())
        status.currentMemory = chance() ? number() : nil
        status.pid = chance() ? number() : nil
        status.tty = optionalText()
        status.restarts = number()
        status.lastEvent = optionalText()
        status.startTime = chance() ? number() : nil
        status.consoleHolder = optionalText()
        return status
    }

    static let requestKinds = 1...12
    /// - Parameter kind: which of `requestKinds`.
    mutating func request(kind: Int) -> Request {
        switch kind {
        case 1: .status(optionalMachine(), isRunningOnly: chance())
        case 2: .start(startRequest())
        case 3: .stop(optionalMachine(), isForced: chance(), waits: chance())
        case 4: .wait(machine())
        case 5: .pause(machine())
        case 6: .unpause(machine())
        case 7: .console(machine())
        case 8: .load(text())
        case 9: .reload
        case 10: .reset(pick())
        case 11: .log(isVerbose: chance())
        default: .sendBreak(machine())
        }
    }

    static let responseKinds = 1...8
    mutating func response(kind: Int) -> Response {
        switch kind {
        case 1: .failed(pick(), text())
        case 2: .done
        case 3: .end
        case 4: .machine(status())
        case 5: .started(id: number(), name: text(), tty: text())
        case 6: .stopping(id: number(), name: text(), pick())
        case 7: .ended(id: number(), name: text(), reason: text())
        default: .console(id: number(), name: text(), tty: text())
        }
    }
}
