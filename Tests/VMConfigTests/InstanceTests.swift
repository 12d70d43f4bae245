import Testing
import VMConfig

@Suite("Instances") struct InstanceTests {
    static let template = """
        switch lan { interface br0 }
        vm "base" {
            disable
            memory 1G
            engine kvm
            cpu host
            boot /kernel
            boot device disk
            initrd /initrd
            cmdline quiet
            disk /base.img
            cdrom /base.iso
            local interface tap1 { switch lan, locked lladdr fe:e1:bb:00:00:01, group x }
            interface
            owner alice:users
            allow base /bases
            allow instance { disk, memory, owner bob }
        }

        """

    @Test func `what is not said is the template's, and what must be its own is not`() throws {
        let configuration = try configuration(Self.template + "vm one instance base { disk /one.img }\n")
        let base = try #require(configuration.machine(named: "base"))
        let one = try #require(configuration.machine(named: "one"))
        #expect(one.template?.value == "base")
        #expect(one.isEnabled)
        #expect(one.memoryByteCount == 1 << 30)
        #expect(one.engine == .kvm)
        #expect(one.cpuModel == .host)
        #expect([one.boot, one.initrd, one.commandLine, one.cdrom] == [base.boot, base.initrd, base.commandLine, base.cdrom])
        #expect(one.boot?.location.line == 7)
        #expect(one.bootDevice == .disk)
        #expect(one.disks.map(\.path.value) == ["/one.img"])
        #expect(one.owner == base.owner)
        #expect(one.allowedBases == base.allowedBases)
        #expect(one.instances.isEmpty)
        #expect(one.interfaces.count == 2)
        #expect(one.interfaces[0].isLocal)
        #expect(one.interfaces[0].tap == nil)
        #expect(one.interfaces[0].link.address == nil)
        #expect(one.interfaces[0].link.isAddressLocked)
        #expect(one.interfaces[0].link.group?.value == "x")
        #expect(one.interfaces[0].networkSwitch?.value == "lan")
    }

    @Test func `what is said wins, interfaces by their position`() throws {
        let one = try #require(
            configuration(
                Self.template + "vm one instance base {\nmemory 2G\ninterface tap3\ninterfaces 3\nowner carol\ncdrom /own.iso\nallow base /own\n}\n"
            ).machine(named: "one"))
        #expect(one.memoryByteCount == 2 << 30)
        #expect(one.interfaces.map(\.tap?.value) == ["tap3", nil, nil])
        #expect(one.interfaces.map(\.isLocal) == [false, false, false])
        #expect(one.owner?.value == Owner(user: "carol", group: "users"))
        #expect(one.cdrom?.value == "/own.iso")
        #expect(one.disks.isEmpty)
        #expect(one.allowedBases.map(\.value) == ["/bases", "/own"])
    }

    @Test func `templates may stand behind, be instances, be empty, and be known already`() throws {
        let configuration = try configuration(
            "vm c instance b {}\nvm b instance a { memory 2G }\nvm a {\nboot /k\nmemory 1G\nallow instance { instance, memory }\n}\n")
        #expect(configuration.machines.map(\.memoryByteCount) == [2 << 30, 2 << 30, 1 << 30])
        #expect(configuration.machines.map(\.instances.options) == Array(repeating: [.instance, .memory], count: 3))
        let more = parse("vm d instance c { disk /d }\n", known: configuration)
        #expect(more.diagnostics == [])
        #expect(more.configuration?.machines.map(\.boot?.value) == ["/k"])
    }

    @Test func `an instance made while running is as one of the file`() throws {
        let base = try #require(configuration(Self.template).machine(named: "base"))
        let place = SourceLocation(file: "vmctl", line: 0)
        var options = MachineOptions()
        options.disks = [DiskDefinition(path: Located("/one.img", at: place))]
        let (made, problems) = base.makeInstance(named: Located("one", at: place), template: base.name, options)
        #expect(problems == [])
        #expect(made == (try configuration(Self.template + "vm one instance base { disk /one.img }\n").machine(named: "one")))
    }

    @Test(arguments: [
        ("vm one instance bsae { disk /x }\n", "vm 'bsae', which 'one' is an instance of, not found; did you mean 'base'?"),
        ("vm one instance base {\ndisk /base.img }\n", "disk '/base.img' cannot be reused: it is the template's"),
        ("vm one instance base {\ninterface tap1 }\n", "interface 'tap1' cannot be reused: it is the template's"),
        ("vm one instance base {\ninterface { lladdr fe:e1:bb:0:0:1 } }\n", "lladdr cannot be reused: fe:e1:bb:00:00:01 is the template's"),
        ("vm one instance base {\nallow instance disk }\n", "vm 'one' cannot change instance permissions: they are the template's"),
        ("vm one instance one {}\n", "instances of each other: 'one' is an instance of 'one'"),
        ("vm x instance y {}\nvm y instance z {}\nvm z instance y {}\n", "instances of each other: 'y' is an instance of 'z' is an instance of 'y'"),
        ("vm x instance nil {}\nvm y instance x {}\n", "vm 'nil', which 'x' is an instance of, not found"),
    ])
    func `what cannot be is said once`(text: String, expected: String) {
        #expect(parse(Self.template + text).errors.map(\.message) == [expected])
    }
}
