import ControlProtocol
import DiskImage
import Linux
import VMConfig

/// What a command on disks is about: an image's file, or the disks of a machine.
///
/// A path has a slash or a format in front; a word is a machine's name or number when there is such a machine, else a file's.
/// The files of a machine that does not run are worked on with the caller's own rights, and locked meanwhile; a machine that runs
/// is asked to do it itself.
struct DiskOperand {
    /// As it was typed.
    let word: String
    /// `nil`: an image's file.
    let machine: MachineDescription?
    let images: [ImageLocation]
    /// Absolute paths that the administrator lets the machine's images stand on.
    let allowedBases: [String]

    private init(image word: String) { self.init(word, nil, [ImageLocation(word)], []) }

    private init(_ word: String, _ machine: MachineDescription?, _ images: [ImageLocation], _ allowedBases: [String]) {
        self.word = word
        self.machine = machine
        self.images = images
        self.allowedBases = allowedBases
    }

    init(_ word: String, _ connection: Connection) throws {
        guard ImageLocation(word).format == nil, !word.contains("/"), Names.problem(inMachineName: word) == nil else {
            self.init(image: word)
            return
        }
        let isFile = FileDescriptor.exists(word)
        do {
            var client = try connection.open()
            let machine = try client.describe(word)
            if isFile {
                let other = MachineReference(word) == .id(machine.id) ? machine.name : "\(machine.id)"
                throw Failure("\(word) is a vm and a file: ./\(word) is the file, \(other) the vm")
            }
            guard !machine.disks.isEmpty else { throw Failure("vm \(machine.name) has no disk") }
            self.init(word, machine, machine.disks.map { ImageLocation($0) }, machine.allowedBases)
        } catch ControlError.refused(.noSuchMachine, let text) {
            guard isFile else { throw Failure("\(word): no such file, and \(text)") }
            self.init(image: word)
        } catch ControlError.refused(let failure, let text) {
            guard isFile else { throw Failure(text) }
            switch failure {
            // Said of a machine that there is.
            case .permission, .other: throw Failure("\(word) is a vm and a file: ./\(word) is the file; \(text)")
            case .malformed, .noSuchMachine, .alreadyRunning, .notRunning, .busy, .invalid, .timeout, .unavailable:
                throw Failure("whether \(word) is a vm is not known: \(text); ./\(word) is the file")
            }
        } catch ControlError.connect(let path, let reason, let advice) {
            guard isFile else {
                throw Failure("\(word): no such file, and no vmd to ask for a vm: \(path): \(reason)" + (advice.map { ": \($0)" } ?? ""))
            }
            self.init(image: word)
        }
    }

    /// The machine, when it runs.
    var running: MachineDescription? { machine.flatMap { $0.isRunning ? $0 : nil } }

    /// - Parameter reason: why this is not done while a guest uses the disk.
    func refuseRunning(_ reason: String) throws(Failure) {
        try refuseWaiting()
        guard let running else { return }
        throw Failure("vm \(running.name) runs: \(reason): `vmctl stop -w \(running.name)` first")
    }

    /// A machine that is about to start would fail with its disks in use.
    func refuseWaiting() throws(Failure) {
        guard let machine, machine.state == .waiting else { return }
        throw Failure("vm \(machine.name) waits to be started and needs its disks then: `vmctl stop \(machine.name)` first")
    }

    /// Those that `--disk` names, or all.
    func images(_ number: UInt32?) throws -> [ImageLocation] { try Self.chosen(number, of: images, self) }

    /// The only one, or that which `--disk` names.
    func image(_ number: UInt32?) throws -> ImageLocation {
        let chosen = try images(number)
        guard chosen.count == 1, let only = chosen.first else {
            throw WrongUsage("vm \(word) has \(chosen.count) disks: --disk gives the number of one, from 0")
        }
        return only
    }

    private static func chosen(_ number: UInt32?, of images: [ImageLocation], _ operand: DiskOperand) throws -> [ImageLocation] {
        guard let number else { return images }
        guard operand.machine != nil else { throw WrongUsage("--disk is for machines: \(operand.word) is a file") }
        guard images.indices.contains(Int(number)) else {
            throw Failure("vm \(operand.word) has no disk \(number): its disks are \(images.count == 1 ? "0" : "0 to \(images.count - 1)")")
        }
        return [images[Int(number)]]
    }

    // MARK: - Of a machine that runs

    /// What it says of its disks' images.
    /// - Parameter withBases: each with what it stands on.
    func describe(_ connection: Connection, withBases: Bool) throws -> [[ImageSummary]] {
        var disks: [[ImageSummary]] = images.map { _ in [] }
        var client = try connection.open()
        try client.perform(.disks(MachineReference(word), withBases ? .describe : .describeTop)) { response in
            guard case .image(let report) = response, disks.indices.contains(Int(report.disk)) else { return }
            let disk = Int(report.disk)
            if Int(report.level) == disks[disk].count - 1 {
                // One more part of the same image.
                disks[disk][Int(report.level)].qcow2?.snapshots += report.image.qcow2?.snapshots ?? []
            } else if Int(report.level) == disks[disk].count, disks[disk].count < ImageChain.depthLimit {
                disks[disk].append(report.image)
            }
        }
        return disks
    }

    func perform(_ command: DiskCommand, _ connection: Connection) throws {
        var client = try connection.open()
        try client.perform(.disks(MachineReference(word), command))
    }
}

extension ControlClient {
    /// - Parameter word: a machine's name or number.
    mutating func describe(_ word: String) throws -> MachineDescription {
        let answer = try perform(.describe(MachineReference(word)))
        guard case .description(let machine) = answer else { throw ControlError.unexpected("no description of \(word)") }
        return machine
    }
}
