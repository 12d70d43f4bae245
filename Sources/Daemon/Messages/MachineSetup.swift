import ControlProtocol
import DiskImage
import Linux

/// All that a machine's process is told about its machine. Descriptors come along in the order of `Descriptor`.
struct MachineSetup: Hashable, Sendable, WireValue {
    /// The descriptors of a start, in their order; the optional ones only when `MachineSetup` says so. Those of each disk are
    /// its image and what that stands on, in the order of its members.
    enum Descriptor: Int, CaseIterable {
        case kernel, terminal, initrd, networkROM, kvm, disks, cdrom
    }

    /// As many as there can be: four disks and a CD, each with all that images may stand on.
    static let mostDescriptors = UnixSocket.mostDescriptors
    static let mostDisks = 4

    var name: String
    /// Paths, for messages. The kernel may be firmware.
    var kernel: String
    var initrd: String?
    var networkROM: String?
    /// What firmware boots from.
    var bootDevice: BootDevice?
    var commandLine: String?
    /// Bytes.
    var memory: UInt64
    var engine: String
    var cpuModel: String?
    /// `/dev/kvm` comes along.
    var hasKVM: Bool
    var disks: [[ImageChain.Member]] = []
    var cdrom: [ImageChain.Member] = []
    var isVerbose: Bool
    /// Tests only: try what the sandbox forbids, and say how that went.
    var probes: Bool

    var descriptorCount: Int {
        2 + (initrd == nil ? 0 : 1) + (networkROM == nil ? 0 : 1) + (hasKVM ? 1 : 0) + disks.reduce(0) { $0 + $1.count } + cdrom.count
    }

    func write(to writer: inout MessageWriter) {
        writer.put(name)
        // Names, for messages alone: the packet has to hold all images' as well.
        writer.put(kernel.cut(to: longestLine))
        writer.put(initrd.map { $0.cut(to: longestLine) })
        writer.put(networkROM)
        writer.put(bootDevice)
        writer.put(commandLine)
        writer.put(memory)
        writer.put(engine)
        writer.put(cpuModel)
        writer.put(hasKVM)
        writer.put(disks.map(SetupImage.init))
        SetupImage(cdrom).write(to: &writer)
        writer.put(isVerbose)
        writer.put(probes)
    }

    init(
        name: String, kernel: String, initrd: String?, networkROM: String? = nil, bootDevice: BootDevice? = nil,
        commandLine: String?, memory: UInt64, engine: String, cpuModel: String?, hasKVM: Bool,
        disks: [[ImageChain.Member]] = [], cdrom: [ImageChain.Member] = [], isVerbose: Bool, probes: Bool
    ) {
        self.name = name
        self.kernel = kernel
        self.initrd = initrd
        self.networkROM = networkROM
        self.bootDevice = bootDevice
        self.commandLine = commandLine
        self.memory = memory
        self.engine = engine
        self.cpuModel = cpuModel
        self.hasKVM = hasKVM
        self.disks = disks
        self.cdrom = cdrom
        self.isVerbose = isVerbose
        self.probes = probes
    }

    init(from reader: inout MessageReader) throws(MalformedMessage) {
        name = try reader.string()
        kernel = try reader.string()
        initrd = try reader.optional()
        networkROM = try reader.optional()
        bootDevice = try reader.optional()
        commandLine = try reader.optional()
        memory = try reader.number()
        engine = try reader.string()
        cpuModel = try reader.optional()
        hasKVM = try reader.bool()
        let images: [SetupImage] = try reader.list(atMost: Self.mostDisks)
        disks = images.map { $0.members.map(\.member) }
        cdrom = try SetupImage(from: &reader).members.map(\.member)
        isVerbose = try reader.bool()
        probes = try reader.bool()
    }
}

/// An image of a disk and what it stands on, as messages carry it.
struct SetupImage: WireValue {
    var members: [SetupMember]

    init(_ members: [ImageChain.Member]) { self.members = members.map(SetupMember.init) }

    func write(to writer: inout MessageWriter) { writer.put(members) }

    init(from reader: inout MessageReader) throws(MalformedMessage) {
        members = try reader.list(atMost: ImageChain.depthLimit)
    }
}

struct SetupMember: WireValue {
    var member: ImageChain.Member

    init(_ member: ImageChain.Member) {
        self.member = member
        // For messages alone, and there can be many.
        self.member.name = member.name.cut(to: 256)
    }

    func write(to writer: inout MessageWriter) {
        writer.put(member.name)
        writer.put(member.format.rawValue)
        writer.put(member.isReadOnly)
    }

    init(from reader: inout MessageReader) throws(MalformedMessage) {
        let name = try reader.string()
        guard let format = ImageFormat(rawValue: try reader.string()) else { throw MalformedMessage("unknown format of an image") }
        member = ImageChain.Member(name: name, format: format, isReadOnly: try reader.bool())
    }
}
