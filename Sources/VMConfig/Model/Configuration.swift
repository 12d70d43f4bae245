/// What a vm.conf(5) says: checked, with defaults filled in and instances resolved.
///
/// Whether files, users and interfaces exist is not checked; the values that need it know where they were written.
public struct Configuration: Hashable, Sendable, Codable {
    public var settings: GlobalSettings
    /// In the order of the file.
    public var switches: [SwitchDefinition]
    /// In the order of the file, templates and disabled machines included.
    public var machines: [MachineDefinition]

    public init(settings: GlobalSettings = GlobalSettings(), switches: [SwitchDefinition] = [], machines: [MachineDefinition] = []) {
        self.settings = settings
        self.switches = switches
        self.machines = machines
    }

    /// The machine of that name; names are compared exactly.
    public func machine(named name: String) -> MachineDefinition? { machines.first { $0.name.value == name } }

    /// The switch of that name.
    public func networkSwitch(named name: String) -> SwitchDefinition? { switches.first { $0.name.value == name } }
}

/// What is said outside of machines and switches.
public struct GlobalSettings: Hashable, Sendable, Codable {
    /// Who may use the control socket; `nil` leaves it to the daemon.
    public var socketOwner: Located<Owner>?
    /// `nil` is the default: as many at once as the host has CPUs, every 30 seconds.
    public var staggeredStart: StaggeredStart?
    /// The addresses of local interfaces; `nil` is the default, 100.64.0.0/10.
    public var localPrefix: Located<IPv4Prefix>?
    /// `nil`: local interfaces have no IPv6.
    public var localInet6: LocalInet6?

    public init() {}

    public struct StaggeredStart: Hashable, Sendable, Codable {
        /// Machines that start at once, 1 to 512.
        public var parallel: Int
        /// From one group to the next, 0 to 86400.
        public var delaySeconds: Int

        public init(parallel: Int, delaySeconds: Int) {
            self.parallel = parallel
            self.delaySeconds = delaySeconds
        }
    }

    public enum LocalInet6: Hashable, Sendable, Codable {
        /// A network below fd00::/8 that the daemon chooses.
        case random
        case prefix(Located<IPv6Prefix>)
    }
}

/// A network that interfaces of machines join: a bridge of the host.
public struct SwitchDefinition: Hashable, Sendable, Codable {
    public var name: Located<String>
    public var isEnabled: Bool
    public var isUp: Bool
    /// The bridge's name on the host.
    public var interface: Located<String>
    public var link: LinkOptions

    public init(
        name: Located<String>, isEnabled: Bool = true, isUp: Bool = true, interface: Located<String>, link: LinkOptions = LinkOptions()
    ) {
        self.name = name
        self.isEnabled = isEnabled
        self.isUp = isUp
        self.interface = interface
        self.link = link
    }
}

/// What a switch and a machine's interface have in common.
public struct LinkOptions: Hashable, Sendable, Codable {
    /// The group that the host's interface joins.
    public var group: Located<String>?
    /// 0 to 255; `nil`: the switch's, or the daemon's own.
    public var routingDomain: Located<Int>?
    /// `nil`: chosen at each start.
    public var address: Located<MACAddress>?
    /// Drop frames whose source is not the interface's address, whether that is given or chosen.
    public var isAddressLocked = false

    public init() {}
}
