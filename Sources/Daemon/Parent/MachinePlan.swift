import ControlProtocol
import DiskImage
import Linux
import VMConfig

/// An image as it is to be opened.
struct PlannedImage: Hashable, Sendable {
    var location: ImageLocation
    /// Whose rights count for it; `nil`: the daemon's own, since the administrator named it.
    var opener: FileCredentials?
}

/// What a machine is made of when it starts: the configuration's word, or `vmctl start`'s, with owners as ids and paths
/// absolute.
struct MachinePlan: Hashable, Sendable {
    var name: String
    var owner: ResolvedOwner
    /// Path of a kernel; `nil` means firmware.
    var kernel: String?
    var initrd: String?
    var commandLine: String?
    /// What firmware boots from; `nil` for its own order.
    var bootDevice: ControlProtocol::BootDevice?
    /// Bytes.
    var memory = Limits.defaultMemoryByteCount
    var cpus: UInt32 = 1
    var engine = VMConfig.MachineDefinition.Engine.auto
    var cpuModel: String?
    var disks: [PlannedImage] = []
    var cdrom: PlannedImage?
    /// Absolute paths of files and folders that images may stand on, besides those of their own folder.
    var allowedBases: [String] = []
    var interfaceCount = 0
    /// FILE:LINE, for messages; `nil` when it is not from a file.
    var source: String?
    /// Who may make instances of it, and how they may differ.
    var instances = InstanceAllowance()
    /// `nil`: only administrators.
    var instanceOwner: ResolvedOwner?

    init(name: String, owner: ResolvedOwner) {
        self.name = name
        self.owner = owner
    }

    /// Puts a request's options in place of its own.
    /// - Parameter opener: whose rights count for the files that it names.
    /// - Throws: for values that a configuration could not have either.
    mutating func apply(_ request: StartRequest, opener: FileCredentials?) throws(Refusal) {
        kernel = request.kernel ?? kernel
        initrd = request.initrd ?? initrd
        commandLine = request.commandLine ?? commandLine
        bootDevice = request.bootDevice ?? bootDevice
        if let bytes = request.memory {
            guard Limits.memoryByteCount.contains(bytes) else {
                throw Refusal(.invalid, "memory of \(bytes >> 20)M: give 1M to \(Limits.memoryByteCount.upperBound >> 30)G")
            }
            // Whole megabytes, as with a configuration's.
            memory = (bytes >> 20) << 20
        }
        cpus = request.cpus ?? cpus
        if let name = request.engine {
            guard let known = VMConfig.MachineDefinition.Engine(rawValue: name) else {
                throw Refusal(.invalid, "engine \(name): give auto, kvm or translator")
            }
            engine = known
        }
        if let name = request.cpuModel {
            guard VMConfig.MachineDefinition.CPUModel(rawValue: name) != nil else {
                let names = VMConfig.MachineDefinition.CPUModel.allCases.map(\.rawValue).joined(separator: ", ")
                throw Refusal(.invalid, "cpu \(name): give one of \(names)")
            }
            cpuModel = name
        }
        disks += request.disks.map { PlannedImage(location: ImageLocation($0), opener: opener) }
        if disks.count > MachineSetup.mostDisks {
            throw Refusal(.invalid, "\(disks.count) disks: a machine has at most \(MachineSetup.mostDisks)")
        }
        if let path = request.cdrom {
            cdrom = PlannedImage(location: ImageLocation(path: path, format: .raw), opener: opener)
        }
        for path in disks.map(\.location.path) + (cdrom.map { [$0.location.path] } ?? []) where !path.hasPrefix("/") {
            throw Refusal(.invalid, "\(path): give an absolute path")
        }
        interfaceCount = max(interfaceCount + request.interfaces.count, Int(request.interfaceCount ?? 0))
    }
}
