import Foundation
import TestSupport
import Testing
import VMConfig

@Suite("Configurations as text") struct RoundTripTests {
    @Test func `text is canonical`() throws {
        let configuration = try configuration(InstanceTests.template)
        #expect(
            configuration.description == """
                switch "lan" {
                    interface "br0"
                }

                vm "base" {
                    disable
                    memory 1G
                    cpus 1
                    engine kvm
                    cpu host
                    boot "/kernel"
                    initrd "/initrd"
                    cmdline "quiet"
                    boot device disk
                    disk "/base.img"
                    cdrom "/base.iso"
                    local interface "tap1" { switch "lan", group "x", locked lladdr fe:e1:bb:00:00:01 }
                    interface
                    owner "alice:users"
                    allow base "/bases"
                    allow instance { memory, disk, owner "bob" }
                }

                """)
    }

    @Test func `random configurations are the same when read again`() throws {
        var random = SplitMix64(seed: 3)
        for _ in 0..<300 {
            var generator = Generator(random: random)
            let configuration = generator.configuration()
            random = generator.random
            let text = configuration.description
            let result = parse(text)
            #expect(result.errors == [], "\(text)")
            #expect(result.configuration == configuration, "\(text)")
            #expect(result.configuration?.description == text)
            let coded = try JSONDecoder().decode(Configuration.self, from: JSONEncoder().encode(configuration))
            #expect(coded == configuration)
        }
    }

    @Test func `the examples of the manual are right`() throws {
        let manual = try String(
            contentsOf: URL(filePath: #filePath).deletingLastPathComponent().appending(path: "../../man/vm.conf.5"), encoding: .utf8)
        let examples = try #require(manual.split(separator: ".Sh EXAMPLES").last)
        let blocks = examples.split(separator: ".Bd -literal -offset indent\n").dropFirst().map { $0.split(separator: ".Ed").first ?? "" }
        #expect(blocks.count >= 5)
        for block in blocks {
            // \e is mdoc's backslash.
            let result = parse(String(block).replacing("\\e", with: "\\"))
            #expect(result.diagnostics == [], "\(block)")
        }
    }
}

/// Makes configurations that are right, with strings of all kinds.
private struct Generator {
    var random: SplitMix64

    private let place = VMConfig.SourceLocation(file: "random", line: 7)

    private mutating func chance(_ percent: Int = 50) -> Bool { Int.random(in: 0..<100, using: &random) < percent }
    private mutating func pick<C: Collection>(_ choices: C) -> C.Element {
        choices[choices.index(choices.startIndex, offsetBy: Int.random(in: 0..<choices.count, using: &random))]
    }

    private mutating func at<Value>(_ value: Value) -> Located<Value> { Located(value, at: place) }

    private mutating func path() -> Located<String> {
        let pieces = ["/a", "\"", "'", "\\", " ", "\t", "#", "$x", "ü", "{", "}", "=", ",", "\\\"", "日本", "\\\\", "x"]
        return at("/" + (0..<Int.random(in: 0...6, using: &random)).map { _ in pick(pieces) }.joined() + "\(UInt32.random(in: 0 ... .max, using: &random))")
    }

    private mutating func owner() -> Located<Owner>? {
        pick([nil, at(Owner(user: "alice")), at(Owner(user: "0", group: "vmm")), at(Owner(group: "17"))])
    }

    private mutating func link() -> LinkOptions {
        var link = LinkOptions()
        if chance() { link.group = at(pick(["x", "guests", "a-b"])) }
        if chance() { link.routingDomain = at(Int.random(in: 0...255, using: &random)) }
        if chance() { link.address = MACAddress("fe:e1:bb:d1:\(pick(0...9)):\(pick(10...99))").map { Located($0, at: place) } }
        link.isAddressLocked = chance()
        return link
    }

    private mutating func options(disksFrom index: Int, switches: [String], isInstance: Bool) -> MachineOptions {
        var options = MachineOptions()
        if chance() { options.isEnabled = at(chance()) }
        if chance() { options.memoryByteCount = at(UInt64.random(in: 1...131072, using: &random) << 20) }
        if chance() { options.cpuCount = at(1) }
        if chance() { options.engine = at(pick(MachineDefinition.Engine.allCases)) }
        if chance() { options.cpuModel = at(pick(MachineDefinition.CPUModel.allCases)) }
        if chance() { options.boot = path() }
        if chance() { options.bootDevice = at(pick(MachineDefinition.BootDevice.allCases)) }
        if chance() { options.initrd = path() }
        if chance() { options.commandLine = path() }
        if chance() { options.cdrom = path() }
        for _ in 0..<pick(0...4) { options.disks.append(DiskDefinition(path: path(), format: pick([nil] + DiskDefinition.Format.allCases))) }
        for _ in 0..<pick(0...4) {
            var interface = InterfaceDefinition(at: place)
            interface.isLocal = chance()
            interface.isUp = chance(80)
            if chance() { interface.tap = at("tap\(index)\(options.interfaces.count)") }
            if let name = switches.randomElement(using: &random), chance() { interface.networkSwitch = at(name) }
            interface.link = link()
            options.interfaces.append(interface)
        }
        if chance() { options.minimumInterfaceCount = at(pick(0...4)) }
        options.owner = owner()
        for _ in 0..<pick(0...2) { options.allowedBases.append(path()) }
        if !isInstance, chance() {
            var allowance = InstanceAllowance()
            allowance.options = Set(InstanceAllowance.Option.allCases.filter { _ in chance() })
            allowance.owner = owner()
            options.instances = allowance
        }
        return options
    }

    mutating func configuration() -> Configuration {
        var configuration = Configuration()
        configuration.settings.socketOwner = owner()
        let base = parse("staggered start parallel \(pick(1...512)) delay \(pick(0...86400))\nlocal prefix 10.0.0.0/\(pick(8...16))\nlocal inet6 prefix fd00:\(pick(0...9))::/64\n").configuration?.settings
        if chance() { configuration.settings.staggeredStart = base?.staggeredStart }
        if chance() { configuration.settings.localPrefix = base?.localPrefix }
        if chance() { configuration.settings.localInet6 = chance() ? base?.localInet6 : .random }
        for index in 0..<pick(0...3) {
            let more = parse("switch s\(index) {\ninterface br\(index)\n\(pick(["up", "down"]))\n\(pick(["enable", "disable"]))\n}\n").configuration?.switches ?? []
            configuration.switches += more
            configuration.switches[index].link = link()
        }
        let switches = configuration.switches.map(\.name.value)
        for index in 0..<pick(0...5) {
            let name = at("m\(index)")
            if let template = configuration.machines.randomElement(using: &random), chance() {
                let options = options(disksFrom: index, switches: switches, isInstance: true)
                let (instance, problems) = template.makeInstance(named: name, template: template.name, options)
                if problems.isEmpty { configuration.machines.append(instance) }
            } else {
                configuration.machines.append(MachineDefinition(name: name, options(disksFrom: index, switches: switches, isInstance: false)))
            }
        }
        return configuration
    }
}
