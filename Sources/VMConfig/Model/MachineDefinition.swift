/// A machine as configured. For an instance, what its template says is filled in.
public struct MachineDefinition: Hashable, Sendable, Codable {
    public var name: Located<String>
    /// The machine that this is an instance of.
    public var template: Located<String>?
    /// Whether it starts with the daemon.
    public var isEnabled = true
    /// A multiple of 1 MiB, 1 MiB to 128 GiB.
    public var memoryByteCount = Limits.defaultMemoryByteCount
    public var cpuCount = 1
    public var engine = Engine.auto
    /// `nil`: the highest of x86-64-v3, -v2 and x86-64 that host and engine have.
    public var cpuModel: CPUModel?
    /// A kernel or firmware image; `nil`: the default firmware.
    public var boot: Located<String>?
    public var bootDevice: BootDevice?
    public var initrd: Located<String>?
    /// The kernel's.
    public var commandLine: Located<String>?
    /// At most 4.
    public var disks: [DiskDefinition] = []
    /// An image with a CD's or DVD's contents.
    public var cdrom: Located<String>?
    /// At most 4; `interfaces N` has added plain ones.
    public var interfaces: [InterfaceDefinition] = []
    /// `nil`, or a part of it `nil`: root, and no group.
    public var owner: Located<Owner>?
    /// Absolute paths of folders and files where backing files of disks may lie, besides the image's own folder.
    public var allowedBases: [Located<String>] = []
    /// Who may make instances of it and what they may say, besides root, who may all.
    public var instances = InstanceAllowance()

    /// A machine with defaults for all but the name.
    public init(name: Located<String>) { self.name = name }

    /// What runs the guest's code.
    public enum Engine: String, Hashable, Sendable, Codable, CaseIterable { case auto, kvm, translator }

    /// What CPU the guest sees: a level of the x86-64 psABI, or all that the host has.
    public enum CPUModel: String, Hashable, Sendable, Codable, CaseIterable {
        case v1 = "x86-64"
        case v2 = "x86-64-v2"
        case v3 = "x86-64-v3"
        case v4 = "x86-64-v4"
        case host
    }

    /// Where firmware boots from.
    public enum BootDevice: String, Hashable, Sendable, Codable, CaseIterable { case cdrom, disk, net }
}

/// A disk image of a machine.
public struct DiskDefinition: Hashable, Sendable, Codable {
    /// As written; relative paths are the daemon's to resolve.
    public var path: Located<String>
    /// `nil`: not said. Who opens the image finds out.
    public var format: Format?

    public init(path: Located<String>, format: Format? = nil) {
        self.path = path
        self.format = format
    }

    public enum Format: String, Hashable, Sendable, Codable, CaseIterable { case raw, qcow2, vmdk }
}

/// A network interface of a machine.
public struct InterfaceDefinition: Hashable, Sendable, Codable {
    /// Where it was written, or what made it.
    public var location: SourceLocation
    /// Has addresses from the local prefix, with DHCP.
    public var isLocal = false
    public var isUp = true
    /// The host's end; `nil`: the next that is free.
    public var tap: Located<String>?
    public var networkSwitch: Located<String>?
    public var link = LinkOptions()

    public init(at location: SourceLocation) { self.location = location }

    /// Equal when they say the same, wherever they stand.
    public static func == (a: Self, b: Self) -> Bool {
        a.isLocal == b.isLocal && a.isUp == b.isUp && a.tap == b.tap && a.networkSwitch == b.networkSwitch && a.link == b.link
    }

    public func hash(into hasher: inout Hasher) {
        hasher.combine(isLocal)
        hasher.combine(isUp)
        hasher.combine(tap)
        hasher.combine(networkSwitch)
        hasher.combine(link)
    }
}

/// What `allow instance` says.
public struct InstanceAllowance: Hashable, Sendable, Codable {
    /// What the maker of an instance may set.
    public var options: Set<Option> = []
    /// Who may make instances; `nil`: only root.
    public var owner: Located<Owner>?

    public init() {}

    public var isEmpty: Bool { options.isEmpty && owner == nil }

    public enum Option: String, Hashable, Sendable, Codable, CaseIterable {
        /// `boot`, `boot device`, `initrd` and `cmdline`.
        case boot
        case memory, cpus, interface, disk, cdrom
        /// Instances of the instance may be made, by the same rules.
        case instance
    }
}
