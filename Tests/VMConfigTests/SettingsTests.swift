import Testing
import VMConfig

@Suite("Settings and switches") struct SettingsTests {
    @Test func `defaults are not said`() throws {
        let configuration = try configuration("\n\n")
        #expect(configuration == Configuration())
        #expect(configuration.description == "")
    }

    @Test(arguments: [
        ("alice", "alice", nil), ("alice:vmm", "alice", "vmm"), (":vmm", nil, "vmm"), ("1000", "1000", nil), ("0:0", "0", "0"), ("\"a.b-c\"", "a.b-c", nil),
    ] as [(String, String?, String?)])
    func `the socket has an owner`(source: String, user: String?, group: String?) throws {
        let owner = try #require(configuration("\nsocket owner \(source)\n").settings.socketOwner)
        #expect(owner.value == Owner(user: user, group: group))
        #expect(owner.location.description == "vm.conf:2")
        #expect(owner.value.user.flatMap(Owner.number) == UInt32(user ?? "-"))
    }

    @Test func `starting is staggered`() throws {
        let start = try configuration("staggered start parallel 4 delay 0\n").settings.staggeredStart
        #expect(start?.parallel == 4)
        #expect(start?.delaySeconds == 0)
    }

    @Test func `local networks have a prefix`() throws {
        #expect(try configuration("local prefix 10.0.0.0/8\n").settings.localPrefix?.value.description == "10.0.0.0/8")
        #expect(try configuration("local inet6\n").settings.localInet6 == .random)
        let settings = try configuration("local inet6 prefix \"fd00:0:0:1::/64\"\n").settings
        #expect(settings.description == "local inet6 prefix \"fd00:0:0:1::/64\"\n")
        #expect(try configuration("local inet6 prefix fd00::/8\n").settings.localInet6 != settings.localInet6)
    }

    @Test(arguments: [
        ("agentx\n", "1: agentx has no effect here"),
        ("agentx context x path \"/var/agentx/master\"\n", "1: agentx has no effect here"),
        ("socket owner a\nsocket owner b\n", "2: socket owner is set again, after vm.conf:1: the last one counts"),
        ("staggered start parallel 1 delay 1\nstaggered start parallel 1 delay 1\n", "2: staggered start is set again: the last one counts"),
        ("local prefix 10.1.2.3/8\n", "1: local prefix '10.1.2.3/8' taken as 10.0.0.0/8"),
        ("local prefix 10.1.0.0\n", "1: local prefix '10.1.0.0' taken as 10.1.0.0/16"),
        ("local inet6\nlocal inet6\n", "2: local inet6 is set again: the last one counts"),
        ("switch a { interface b }\nswitch a { interface c }\n", "2: switch 'a' is defined at vm.conf:1 already: this one is skipped"),
    ])
    func `what is odd is warned of`(text: String, expected: String) {
        #expect(warnings(text) == [expected])
        #expect(errors(text) == [])
    }

    @Test func `a switch has all options`() throws {
        let text = """
            switch "uplink" {
                disable
                group trunk
                interface br0
                locked lladdr fe:e1:ba:d0:00:1
                rdomain 255
                down
            }
            switch lan { interface veb0 }
            """
        let configuration = try configuration(text)
        let uplink = try #require(configuration.networkSwitch(named: "uplink"))
        #expect(!uplink.isEnabled)
        #expect(!uplink.isUp)
        #expect(uplink.interface.value == "br0")
        #expect(uplink.link.group?.value == "trunk")
        #expect(uplink.link.routingDomain?.value == 255)
        #expect(uplink.link.isAddressLocked)
        #expect(uplink.link.address?.value.bytes == [0xFE, 0xE1, 0xBA, 0xD0, 0, 1])
        let lan = try #require(configuration.networkSwitch(named: "lan"))
        #expect(lan == SwitchDefinition(name: lan.name, interface: lan.interface))
    }
}
