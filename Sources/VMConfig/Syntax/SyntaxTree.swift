/// The statements of all files, in order, before anything is looked up.
struct SyntaxTree {
    var settings = GlobalSettings()
    var switches: [SwitchStatement] = []
    var machines: [MachineStatement] = []
}

/// `switch NAME { ... }`
struct SwitchStatement {
    var name: Located<String>
    var isEnabled = true
    var isUp = true
    var interface: Located<String>?
    var link = LinkOptions()
}

/// `vm NAME [instance TEMPLATE] { ... }`
struct MachineStatement {
    var name: Located<String>
    var template: Located<String>?
    var options = MachineOptions()
}

/// What is said of a machine, and no more: `nil` and empty stand for what is not said.
///
/// The body of a `vm` statement, or the options of `vmctl start`.
public struct MachineOptions: Hashable, Sendable, Codable {
    public var isEnabled: Located<Bool>?
    public var memoryByteCount: Located<UInt64>?
    public var cpuCount: Located<Int>?
    public var engine: Located<MachineDefinition.Engine>?
    public var cpuModel: Located<MachineDefinition.CPUModel>?
    public var boot: Located<String>?
    public var bootDevice: Located<MachineDefinition.BootDevice>?
    public var initrd: Located<String>?
    public var commandLine: Located<String>?
    public var disks: [DiskDefinition] = []
    public var cdrom: Located<String>?
    public var interfaces: [InterfaceDefinition] = []
    /// `interfaces N`: plain ones are added up to as many.
    public var minimumInterfaceCount: Located<Int>?
    public var owner: Located<Owner>?
    public var allowedBases: [Located<String>] = []
    public var instances: InstanceAllowance?

    public init() {}
}
