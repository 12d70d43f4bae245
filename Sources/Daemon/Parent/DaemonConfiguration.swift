import ControlProtocol
import DiskImage
import Glibc
import Linux
import VMConfig

/// A configuration as the daemon uses it: owners are ids, paths are absolute.
struct DaemonConfiguration {
    struct Machine {
        var plan: MachinePlan
        /// It starts with the daemon.
        var isEnabled: Bool
    }

    var machines: [Machine] = []
    var settings = DaemonSettings()
    /// As parsed: what further files may refer to.
    var parsed = Configuration()
    var warnings: [String] = []

    /// Why a configuration cannot be used.
    struct Invalid: Error {
        /// A line each.
        let errors: [String]
        /// Those and warnings, in the order of the file.
        let lines: [String]
    }

    init() {}

    /// Reads a file.
    /// - Parameters:
    ///   - known: what further files may refer to.
    ///   - uid: whose the machines are that say nothing of an owner.
    init(
        path: String, macros: [String: String], known: Configuration = Configuration(), uid: UInt32
    ) throws(Invalid) {
        let result = Configuration.parse(path: path, macros: macros, known: known, read: Self.read)
        warnings = result.warnings.map(\.description)
        guard let configuration = result.configuration else {
            throw Invalid(errors: result.errors.map(\.description), lines: result.diagnostics.map(\.description))
        }
        parsed = configuration
        var errors: [String] = []
        func resolve(_ owner: Located<Owner>?) -> ResolvedOwner? {
            guard let owner else { return nil }
            do {
                return try ResolvedOwner(owner.value, defaultUID: uid)
            } catch {
                errors.append("\(owner.location): \(error.text)")
                return nil
            }
        }
        let standard = ResolvedOwner(uid: uid)
        settings = DaemonSettings(configuration.settings)
        settings.socketOwner = resolve(configuration.settings.socketOwner)
        for machine in configuration.machines {
            var plan = MachinePlan(machine, owner: resolve(machine.owner) ?? standard)
            plan.instanceOwner = resolve(machine.instances.owner)
            machines.append(Machine(plan: plan, isEnabled: machine.isEnabled))
        }
        guard errors.isEmpty else { throw Invalid(errors: errors, lines: warnings + errors) }
    }

    private static func read(_ path: String, _ byteLimit: Int) throws(FileReadError) -> [UInt8] {
        let file: RegularFile
        do {
            file = try RegularFile(path)
        } catch {
            throw FileReadError("\(error)")
        }
        do {
            return try file.read(at: 0, count: byteLimit + 1)
        } catch {
            throw FileReadError(error.reason)
        }
    }
}

/// What is configured outside of machines.
struct DaemonSettings: Sendable {
    /// `nil`: the group `vmd` where there is one, else root alone; a user's daemon serves that user.
    var socketOwner: ResolvedOwner?
    var staggerParallel = max(1, sysconf(CInt(_SC_NPROCESSORS_ONLN)))
    /// Seconds.
    var staggerDelay: UInt64 = 30

    init() {}

    init(_ settings: GlobalSettings) {
        guard let stagger = settings.staggeredStart else { return }
        staggerParallel = stagger.parallel
        staggerDelay = UInt64(stagger.delaySeconds)
    }
}

extension MachinePlan {
    init(_ machine: VMConfig.MachineDefinition, owner: ResolvedOwner) {
        self.init(name: machine.name.value, owner: owner)
        kernel = machine.boot.map(Self.absolute)
        initrd = machine.initrd.map(Self.absolute)
        commandLine = machine.commandLine?.value
        bootDevice = machine.bootDevice.flatMap { ControlProtocol::BootDevice(name: $0.rawValue) }
        memory = machine.memoryByteCount
        cpus = UInt32(clamping: machine.cpuCount)
        engine = machine.engine
        cpuModel = machine.cpuModel?.rawValue
        disks = machine.disks.map { disk in
            let format = disk.format.flatMap { ImageFormat(rawValue: $0.rawValue) }
            return PlannedImage(location: ImageLocation(path: Self.absolute(disk.path), format: format))
        }
        cdrom = machine.cdrom.map { PlannedImage(location: ImageLocation(path: Self.absolute($0), format: .raw)) }
        allowedBases = machine.allowedBases.map(\.value)
        interfaceCount = machine.interfaces.count
        source = machine.name.location.description
        instances = machine.instances
    }

    /// A relative path is one from the folder of the file that names it, as with `include`.
    private static func absolute(_ path: Located<String>) -> String {
        guard !path.value.hasPrefix("/") else { return path.value }
        let folder = path.location.file.split(separator: "/", omittingEmptySubsequences: false).dropLast().joined(separator: "/")
        return folder.isEmpty ? path.value : folder + "/" + path.value
    }
}
