import ControlProtocol
import DiskImage
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

    mutating func diskCommand() -> DiskCommand {
        switch Int.random(in: 0..<4, using: &self) {
        case 0: .createSnapshot(text())
        case 1: .deleteSnapshot(text())
        case 2: .describeTop
        default: .describe
        }
    }

    mutating func machineDescription() -> MachineDescription {
        var description = MachineDescription(
            id: number(), name: text(), state: pick(), memory: number(), cpus: number(), interfaceCount: number(), hasDrive: chance())
        description.disks = (0..<Int.random(in: 0...16, using: &self)).map { _ in text() }
        description.disc = optionalText()
        description.allowedBases = (0..<Int.random(in: 0...20, using: &self)).map { _ in text() }
        return description
    }

    mutating func imageSummary(snapshotCount: Int) -> ImageSummary {
        let snapshots = (0..<snapshotCount).map { _ in
            ImageSnapshot(id: text(), name: text(), seconds: number(), machineStateByteCount: number(), byteCount: number())
        }
        let info = QCOW2Info(
            version: chance() ? 2 : 3, byteCount: number(), fileByteCount: number(), clusterSize: number(), refcountBits: 16,
            compression: pick(), hasLazyRefcounts: chance(), hasExtendedL2: chance(), isDirty: chance(), isCorrupt: chance(),
            backing: chance() ? QCOW2Backing(name: text(), format: optionalText()) : nil, snapshots: snapshots, bitmapCount: 3)
        return ImageSummary(
            path: text(), format: pick(), byteCount: number(), fileByteCount: number(), hostByteCount: number(),
            qcow2: chance() ? info : nil, vmdkKind: optionalText())
    }

    static let requestKinds = 1...16
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
        case 12: .sendBreak(machine())
        case 13: .describe(machine())
        case 14: .disks(machine(), diskCommand())
        case 15: .insertDisc(machine(), path: text(), isForced: chance())
        default: .ejectDisc(machine(), isForced: chance())
        }
    }

    static let responseKinds = 1...10
    mutating func response(kind: Int) -> Response {
        switch kind {
        case 1: .failed(pick(), text())
        case 2: .done
        case 3: .end
        case 4: .machine(status())
        case 5: .started(id: number(), name: text(), tty: text())
        case 6: .stopping(id: number(), name: text(), pick())
        case 7: .ended(id: number(), name: text(), reason: text())
        case 8: .console(id: number(), name: text(), tty: text())
        case 9: .description(machineDescription())
        default: .image(DiskReport(disk: number(), level: number(), image: imageSummary(snapshotCount: 5)))
        }
    }
}
