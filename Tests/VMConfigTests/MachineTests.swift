import Testing
import VMConfig

@Suite("Machines") struct MachineTests {
    @Test func `what is not said has its default`() throws {
        let machine = try machine("enable")
        var expected = MachineDefinition(name: machine.name)
        expected.disks = machine.disks
        #expect(machine == expected)
        #expect(machine.memoryByteCount == 512 << 20)
        #expect(machine.isEnabled)
        #expect(machine.engine == .auto)
        #expect(machine.cpuModel == nil)
        #expect(machine.owner == nil)
    }

    @Test func `every option is read`() throws {
        let machine = try machine(
            """
            disable
            memory 2G
            cpus 1
            engine translator
            cpu x86-64-v2
            boot "/boot/vmlinuz"
            boot device cdrom
            initrd "/boot/initrd"
            cmdline "console=ttyS0 root=/dev/vda1"
            disk "/vm/a.qcow2" format qcow2
            disk "/vm/b.vmdk" format "vmdk"
            disk "/vm/c.img" format raw
            cdrom "/iso/debian.iso"
            interfaces 3
            owner alice:vmm
            allow base "/srv/bases"
            allow base /srv/more
            allow instance { boot, disk, memory, owner bob }
            allow instance cpus
            """)
        #expect(!machine.isEnabled)
        #expect(machine.memoryByteCount == 2 << 30)
        #expect(machine.engine == .translator)
        #expect(machine.cpuModel == .v2)
        #expect(machine.boot?.value == "/boot/vmlinuz")
        #expect(machine.boot?.location.line == 7)
        #expect(machine.bootDevice == .cdrom)
        #expect(machine.initrd?.value == "/boot/initrd")
        #expect(machine.commandLine?.value == "console=ttyS0 root=/dev/vda1")
        #expect(machine.disks.map(\.format) == [.qcow2, .vmdk, .raw, nil])
        #expect(machine.disks.map(\.path.location.line) == [11, 12, 13, 21])
        #expect(machine.cdrom?.value == "/iso/debian.iso")
        #expect(machine.interfaces.count == 3)
        #expect(machine.owner?.value == Owner(user: "alice", group: "vmm"))
        #expect(machine.owner?.location.description == "vm.conf:16")
        #expect(machine.allowedBases.map(\.value) == ["/srv/bases", "/srv/more"])
        #expect(machine.instances.options == [.boot, .disk, .memory, .cpus])
        #expect(machine.instances.owner?.value == Owner(user: "bob"))
    }

    @Test(arguments: MachineDefinition.CPUModel.allCases) func `every CPU model is known`(model: MachineDefinition.CPUModel) throws {
        #expect(try machine("cpu \(model.rawValue)").cpuModel == model)
    }

    @Test(arguments: MachineDefinition.Engine.allCases) func `every engine is known`(engine: MachineDefinition.Engine) throws {
        #expect(try machine("engine \(engine.rawValue)").engine == engine)
    }

    @Test(arguments: MachineDefinition.BootDevice.allCases) func `every boot device is known`(device: MachineDefinition.BootDevice) throws {
        #expect(try machine("boot device \(device.rawValue)").bootDevice == device)
    }

    @Test(arguments: InstanceAllowance.Option.allCases) func `every allowance is known`(option: InstanceAllowance.Option) throws {
        #expect(try machine("allow instance \(option.rawValue)").instances.options == [option])
    }

    @Test(arguments: [
        ("1048576", 1 << 20), ("1M", 1 << 20), ("1024k", 1 << 20), ("\"1G\"", 1 << 30), ("128G", 128 << 30), ("134217728K", 128 << 30),
    ] as [(String, UInt64)])
    func `memory has a suffix or is in bytes`(text: String, expected: UInt64) throws {
        #expect(try machine("memory \(text)").memoryByteCount == expected)
    }

    @Test func `memory is rounded down to whole megabytes`() {
        let text = "vm a {\n disk /x\n memory 1073217536\n}\n"
        #expect(warnings(text) == ["3: memory size rounded to 1023M"])
        #expect(parse(text).configuration?.machines[0].memoryByteCount == 1023 << 20)
        #expect(parse("vm a {\n disk /x\n memory 137438953473\n}\n").configuration?.machines[0].memoryByteCount == 128 << 30)
    }

    @Test func `interfaces have all options, with commas, lines or nothing between`() throws {
        let configuration = try configuration(
            """
            switch "lan" { interface br0 }
            vm a {
                disk /x
                interfaces 1
                interface
                local interface tap7
                interface "vnet0" { switch "lan", group guests, rdomain 3, down }
                interface {
                    up
                    locked lladdr
                    switch lan group x
                }
            }
            vm b { interface { lladdr 52:54:00:12:34:56 up }
                cdrom /y
            }
            """)
        let interfaces = configuration.machines[0].interfaces
        #expect(interfaces.count == 4)
        #expect(interfaces.map(\.isLocal) == [false, true, false, false])
        #expect(interfaces.map(\.tap?.value) == [nil, "tap7", "vnet0", nil])
        #expect(interfaces.map(\.isUp) == [true, true, false, true])
        #expect(interfaces[2].networkSwitch?.value == "lan")
        #expect(interfaces[2].networkSwitch?.location.line == 7)
        #expect(interfaces[2].link.group?.value == "guests")
        #expect(interfaces[2].link.routingDomain?.value == 3)
        #expect(interfaces[3].link.isAddressLocked)
        #expect(interfaces[3].link.address == nil)
        #expect(interfaces[3].networkSwitch?.value == "lan")
        #expect(configuration.machines[1].interfaces[0].link.address?.value.description == "52:54:00:12:34:56")
        #expect(!configuration.machines[1].interfaces[0].link.isAddressLocked)
    }

    @Test func `words that only this system knows are good names`() throws {
        let text = "vm base {\n disk /x\n}\nvm engine { disk /y }\nvm cpu instance base { disk /z }\n"
        #expect(try configuration(text).machines.map(\.name.value) == ["base", "engine", "cpu"])
    }

    @Test func `a first machine counts and a second of its name is skipped`() {
        let text = "vm a { disk /x }\nvm a { disk /y }\n"
        #expect(warnings(text) == ["2: vm 'a' is defined at vm.conf:1 already: this one is skipped"])
        #expect(parse(text).configuration?.machines.map { $0.disks[0].path.value } == ["/x"])
    }

    @Test(arguments: [
        ("vm a { memory 1G }\n", "1: vm 'a' has nothing to boot: no boot, disk or cdrom"),
        ("vm a {\ndisk /x\ninitrd /y\n}\n", "3: initrd has no effect without boot"),
        ("vm a {\ndisk /x\ncmdline y\n}\n", "3: cmdline has no effect without boot"),
        ("vm a { disk /x }\nvm b { disk /./x }\n", "2: disk '/x' is used at vm.conf:1 too: the two cannot run at once"),
        ("vm a {\ndisk /x\ninterface tap0\ninterface tap0\n}\n", "4: interface 'tap0' is used at vm.conf:3 too: the two cannot run at once"),
        ("vm a {\ndisk /x\nenable\ndisable\n}\n", "4: enable or disable is set again, after vm.conf:3: the last one counts"),
        ("vm 12 { disk /x }\n", ""), ("vm \"12\" { disk /x }\n", "1: vmctl takes '12' for an id: a name should begin with a letter"),
        ("vm a {\ndisk /x y\n}\n", "2: words joined to '/x y'; write text that holds blanks in quotes"),
        ("vm a {\ndisk /x\"\n}\n", "2: the quote inside of '/x\"' is part of the word"),
    ])
    func `what is odd is warned of`(text: String, expected: String) {
        #expect(warnings(text) == (expected.isEmpty ? [] : [expected]))
    }
}
