import Testing
import VMConfig

@Suite("Errors") struct ErrorTests {
    /// The body of a machine, from line 2 on.
    @Test(arguments: [
        ("memory 1M\nmemory 2M", "3: memory specified more than once, first at vm.conf:2"),
        ("memory 1048575", "2: memory size must be at least 1MB: 1048575 is 1048575 bytes"),
        ("memory 512", "2: memory size must be at least 1MB: 512 is 512 bytes; did you mean 512M?"),
        ("memory 0", "2: memory size must be at least 1MB: 0 is 0 bytes"),
        ("memory 129G", "2: memory size too large (limit is 128G): 129G"),
        ("memory 99999999T", "2: failed to parse size: '99999999T': expected a number with K, M, G or T (512M)"),
        ("memory 1.5G", "2: failed to parse size: '1.5G': expected a number with K, M, G or T (512M)"),
        ("memory 5ß", "2: syntax error: unexpected character 'ß'; write text that holds it in quotes (\")"),
        ("memory \"5ß\"", "2: failed to parse size: '5ß': expected a number with K, M, G or T (512M)"),
        ("memory", "2: syntax error: expected a size (512M, 2G), found end of line"),
        ("memroy 1G", "2: syntax error: expected an option of vm (\(options)), found 'memroy'; did you mean 'memory'?"),
        ("add disk /x", "2: syntax error: expected an option of vm (\(options)), found keyword 'add'"),
        ("kernel /x", "2: syntax error: expected an option of vm (\(options)), found 'kernel'"),
        ("\"memory\" 1G", "2: syntax error: expected an option of vm (\(options)), found string 'memory'"),
        ("cpus 2", "2: cpus 2: machines have one CPU for now; expected cpus 1"),
        ("cpus 0", "2: invalid number of cpus: 0: expected a number of CPUs, 1 to 64"),
        ("cpus 65", "2: invalid number of cpus: 65: expected a number of CPUs, 1 to 64"),
        ("cpus -1", "2: invalid number of cpus: -1: expected a number of CPUs, 1 to 64"),
        ("cpus one", "2: syntax error: expected a number of CPUs, 1 to 64, found 'one'"),
        ("cpus 1\ncpus 1", "3: cpus specified more than once, first at vm.conf:2"),
        ("engine kmv", "2: unknown engine 'kmv': expected auto, kvm, translator; did you mean 'kvm'?"),
        ("engine", "2: syntax error: expected an engine (auto, kvm, translator), found end of line"),
        ("engine kvm\nengine kvm", "3: engine specified more than once, first at vm.conf:2"),
        ("cpu x86-64-v5", "2: unknown CPU model 'x86-64-v5': expected host, x86-64, x86-64-v2, x86-64-v3, x86-64-v4; did you mean 'x86-64-v2'?"),
        ("cpu host\ncpu host", "3: cpu specified more than once, first at vm.conf:2"),
        ("disk", "2: syntax error: expected the path of a disk image, found end of line"),
        ("disk \"\"", "2: disk path is empty"),
        ("disk \(long)", "2: disk path too long: the limit is 4095 bytes"),
        ("disk /1\ndisk /2\ndisk /3\ndisk /4\ndisk /5", "6: too many disks: a machine has at most 4"),
        ("disk /1\ndisk \"//./1\"", "3: disk '//./1' given twice, first at vm.conf:2"),
        ("disk /1 format", "2: syntax error: expected a disk format (qcow2, raw, vmdk), found end of line"),
        ("disk /1 format qcow", "2: unrecognized disk format 'qcow': expected qcow2, raw, vmdk; did you mean 'qcow2'?"),
        ("disk /1 fromat raw", "2: syntax error: expected 'format', found 'fromat'; did you mean 'format'?"),
        ("disk format raw", "2: syntax error: expected the path of a disk image, found keyword 'format'; write \"format\" in quotes if it is meant as text"),
        ("disk 5", "2: syntax error: expected the path of a disk image, found number 5; write \"5\" in quotes"),
        ("cdrom /1\ncdrom /2", "3: cdrom specified more than once, first at vm.conf:2"),
        ("cdrom \(long)", "2: cdrom name too long: the limit is 4095 bytes"),
        ("boot /1\nboot /2", "3: kernel specified more than once, first at vm.conf:2"),
        ("boot \(long)", "2: kernel name too long: the limit is 4095 bytes"),
        ("boot device floppy", "2: unknown boot device 'floppy': expected cdrom, disk, net"),
        ("boot device net\nboot device net", "3: boot device specified more than once, first at vm.conf:2"),
        ("initrd /1\ninitrd /2", "3: initrd specified more than once, first at vm.conf:2"),
        ("cmdline a\ncmdline b", "3: cmdline specified more than once, first at vm.conf:2"),
        ("cmdline \(long)", "2: cmdline too long: the limit is 4095 bytes"),
        ("cmdline root=/dev/vda", "2: syntax error: expected end of line, found '='"),
        ("interfaces 5", "2: too many interfaces: 5: expected a number of interfaces, 0 to 4"),
        ("interfaces 1\ninterfaces 1", "3: interfaces specified more than once, first at vm.conf:2"),
        ("interface\ninterface\ninterface\ninterface\ninterface", "6: too many interfaces: a machine has at most 4"),
        ("interface a/b", "2: invalid interface: 'a/b': expected a name of 1 to 15 bytes, as tap0"),
        ("interface abcdefghijklmnop", "2: invalid interface: 'abcdefghijklmnop': expected a name of 1 to 15 bytes, as tap0"),
        ("interface { swithc lan }", "2: syntax error: expected an option of interface (down, group, lladdr, locked, rdomain, switch, up), found 'swithc'; did you mean 'switch'?"),
        ("interface { switch lan }", "2: switch 'lan' not found; did you mean 'lan0'?"),
        ("interface { group guest1 }", "2: invalid group name: 'guest1': 1 to 15 bytes, not ending in a digit"),
        ("interface { group abcdefghijklmnop }", "2: invalid group name: 'abcdefghijklmnop': 1 to 15 bytes, not ending in a digit"),
        ("interface { lladdr 00:11:22:33:44 }", "2: \(address("00:11:22:33:44"))"),
        ("interface { lladdr 01:11:22:33:44:55 }", "2: \(address("01:11:22:33:44:55"))"),
        ("interface { lladdr 0:0:0:0:0:0 }", "2: \(address("0:0:0:0:0:0"))"),
        ("interface { lladdr 5 }", "2: syntax error: expected a link-layer address (00:11:22:aa:bb:cc), found number 5"),
        ("interface { locked up }", "2: syntax error: expected 'lladdr', found keyword 'up'"),
        ("interface { rdomain 256 }", "2: invalid rdomain: 256: expected a routing domain, 0 to 255"),
        ("local disk /x", "2: syntax error: expected 'interface', found keyword 'disk'"),
        ("owner", "2: syntax error: expected an owner (user, user:group or :group), found end of line"),
        ("owner a:", "2: \(owner("a:"))"), ("owner a:b:c", "2: \(owner("a:b:c"))"), ("owner 4294967295", "2: \(owner("4294967295"))"),
        ("owner -1", "2: \(owner("-1"))"), ("owner \"a b\"", "2: \(owner("a b"))"), ("owner :", "2: \(owner(":"))"),
        ("owner a\nowner b", "3: owner specified more than once, first at vm.conf:2"),
        ("allow", "2: syntax error: expected what is allowed (base, instance), found end of line"),
        ("allow base x", "2: base path is not absolute: 'x'"),
        ("allow instance", "2: syntax error: expected what instances may set (\(flags)), found end of line"),
        ("allow instance { disks }", "2: syntax error: expected what instances may set (\(flags)), found 'disks'; did you mean 'disk'?"),
        ("allow instance { owner }", "2: syntax error: expected an owner (user, user:group or :group), found '}'"),
        ("sev", "2: sev and seves: memory encryption is not supported; the machine would run without it"),
        ("seves", "2: sev and seves: memory encryption is not supported; the machine would run without it"),
        ("include \"x\"", "2: syntax error: expected an option of vm (\(options)), found keyword 'include'"),
        ("memory 1G cdrom /x", "2: syntax error: expected end of line, found keyword 'cdrom'; each option has a line of its own"),
        ("( )", "2: syntax error: expected an option of vm (\(options)), found '('"),
    ])
    func `of a machine's options are said with their line`(body: String, expected: String) {
        #expect(errors("vm a {\n\(body)\n}\nswitch lan0 { interface br0 }\n") == [expected])
    }

    static let long = "/" + String(repeating: "x", count: 4095)
    static let options =
        "allow, boot, cdrom, cmdline, cpu, cpus, disable, disk, enable, engine, initrd, interface, interfaces, local, memory, owner, sev, seves"
    static let flags = "boot, cdrom, cpus, disk, instance, interface, memory, owner"
    static let statements = "agentx, include, local, socket, staggered, switch, vm or name = value"
    static func address(_ text: String) -> String {
        "invalid address: '\(text)': expected six hexadecimal bytes as in fe:e1:bb:d1:00:01, not a group address"
    }
    static func owner(_ text: String) -> String { "invalid owner: '\(text)': expected user, user:group or :group, names or numbers" }

    @Test(arguments: [
        ("vm\n", "1: syntax error: expected the name of a machine, found end of line"),
        ("vm a\n", "1: syntax error: expected '{' on the same line as vm 'a', found end of line"),
        ("vm a x {\n}\n", "1: invalid VM name: 'a x': use letters, digits, '.', '-' and '_'"),
        ("vm a , {\n}\n", "1: syntax error: expected '{' or instance, found ','"),
        ("vm a instnace b { disable }\n", "1: syntax error: expected 'instance', found 'instnace'; did you mean 'instance'?"),
        ("vm a {}\n", "1: syntax error: vm 'a' is empty: expected an option (\(options))"),
        ("vm a {\n", "2: syntax error: the '}' of vm 'a', whose '{' is on line 1, is missing"),
        ("vm \"\" { disable }\n", "1: invalid VM name: it is empty"),
        ("vm _a { disable }\n", "1: invalid VM name: '_a': it must begin with a letter or a digit"),
        ("vm \"-a\" { disable }\n", "1: invalid VM name: '-a': it must begin with a letter or a digit"),
        ("vm a/b { disable }\n", "1: invalid VM name: 'a/b': use letters, digits, '.', '-' and '_'"),
        ("vm \"a\u{202E}b\" { disable }\n", "1: invalid VM name: 'a\\u{202e}b': use letters, digits, '.', '-' and '_'"),
        ("vm \(String(repeating: "x", count: 64)) { disable }\n", "1: vm name too long: the limit is 63 bytes"),
        ("vm disk { disable }\n", "1: syntax error: expected the name of a machine, found keyword 'disk'; write \"disk\" in quotes if it is meant as text"),
        ("vm a { disable } x\n", "1: syntax error: expected end of line, found 'x'"),
        ("}\n", "1: syntax error: '}' without '{'"),
        ("memory 1G\n", "1: syntax error: 'memory' stands outside of vm \"name\" { ... }; is a '{' missing, or a '}' too many?"),
        ("frobnicate\n", "1: syntax error: expected a statement (\(statements)), found 'frobnicate'"),
        ("sockte owner a\n", "1: syntax error: expected a statement (\(statements)), found 'sockte'; did you mean 'socket'?"),
        ("\"x\"\n", "1: syntax error: expected a statement, found string 'x'"),
        ("5\n", "1: syntax error: expected a statement (agentx, include, local, socket, staggered, switch, vm), found number 5"),
        ("vm = 1G\n", "1: syntax error: expected the name of a machine, found '='"),
        ("socket\n", "1: syntax error: expected 'owner', found end of line"),
        ("socket owner a:\n", "1: \(owner("a:"))"),
        ("staggered start parallel 0 delay 1\n", "1: invalid number of machines: 0: expected how many machines start at once, 1 to 512"),
        ("staggered start parallel 1 delay 86401\n", "1: invalid delay: 86401: expected a number of seconds, 0 to 86400"),
        ("staggered start parallel 1\n", "1: syntax error: expected 'delay', found end of line"),
        ("staggered strat parallel 1 delay 1\n", "1: syntax error: expected 'start', found 'strat'; did you mean 'start'?"),
        ("local\n", "1: syntax error: expected what is local (inet6, prefix), found end of line"),
        ("local prefix 10.0.0.0/17\n", "1: \(prefix("10.0.0.0/17"))"), ("local prefix 10.0.0.0/0\n", "1: \(prefix("10.0.0.0/0"))"),
        ("local prefix 10.0.0.256/8\n", "1: \(prefix("10.0.0.256/8"))"), ("local prefix 10.0/8\n", "1: \(prefix("10.0/8"))"),
        ("local prefix \"10.0.0.0/\"\n", "1: \(prefix("10.0.0.0/"))"), ("local prefix fd00::/8\n", "1: \(prefix("fd00::/8"))"),
        ("local inet6 prefix fd00::/65\n", "1: \(prefix6("fd00::/65"))"), ("local inet6 prefix fd00::\n", "1: \(prefix6("fd00::"))"),
        ("local inet6 prefix 1::2::3/64\n", "1: \(prefix6("1::2::3/64"))"), ("local inet6 prefix \":::/64\"\n", "1: \(prefix6(":::/64"))"),
        ("agentx path var\n", "1: agentx path is not absolute: 'var'"),
        ("agentx path /\(String(repeating: "x", count: 108))\n", "1: agentx path too large: the limit is 107 bytes"),
        ("agentx context \(String(repeating: "x", count: 33))\n", "1: agentx context too large: the limit is 32 bytes"),
        ("switch a {\nup\n}\n", "1: switch \"a\" is missing interface name: say interface and a bridge's name"),
        ("switch \"\" { interface b }\n", "1: invalid switch name: it is empty"),
        ("switch \(String(repeating: "x", count: 64)) { interface b }\n", "1: switch name too long: the limit is 63 bytes"),
        ("switch a {\ninterface \"b c\" }\n", "2: invalid switch interface: 'b c': expected a bridge's name of 1 to 15 bytes"),
        ("switch a {\ninterface b\ninterface c\n}\n", "3: interface specified more than once, first on line 2"),
        ("switch a {\ninterface b\nadd c\n}\n", "3: syntax error: expected an option of switch (\(switchOptions)), found keyword 'add'"),
        ("switch a {\ninterface b\nrdomain 256\n}\n", "3: invalid rdomain: 256: expected a routing domain, 0 to 255"),
        ("switch a {\ninterface b\ngroup 1\n}\n", "3: syntax error: expected the name of a group, found number 1; write \"1\" in quotes"),
        ("switch a {\ninterface b\nlocked\n}\n", "3: syntax error: expected 'lladdr', found end of line"),
        ("switch a {\ninterface b\nlladdr x\n}\n", "3: \(address("x"))"),
    ])
    func `of statements are said with their line`(text: String, expected: String) { #expect(errors(text).first == expected) }

    static let switchOptions = "disable, down, enable, group, interface, lladdr, locked, rdomain, up"
    static func prefix(_ text: String) -> String {
        "invalid local prefix: '\(text)': expected an IPv4 ADDRESS/LENGTH with a length of 1 to 16"
    }
    static func prefix6(_ text: String) -> String {
        "invalid local prefix: '\(text)': expected an IPv6 ADDRESS/LENGTH with a length of 1 to 64"
    }

    @Test func `all are found in one pass`() {
        let text = """
            sockte owner a
            vmm "web" {
                memroy 1G
                memory 12
                disk /x format foo
                interface { switch nowhere, rdomain 300 }
                allow instance { disk, foo, owner }
            }
            switch s {
                nonsense { with braces
                } and more
                interface br0
            }
            frob { x
              y { z }
            }
            vm b {
                memory 1G
                interface {
                    up
            vm c instance d {
                owner :
            }
            vm e
            {
                disk "/x
                cpus 3
            }
            """
        let result = parse(text)
        #expect(result.configuration == nil)
        #expect(result.errors.map(\.location.line) == [1, 2, 3, 4, 5, 6, 6, 7, 7, 10, 14, 21, 21, 22, 24, 26, 27], "\(result.errors)")
        #expect(result.errors.first?.description.hasPrefix("vm.conf:1: syntax error: ") == true)
    }

    @Test func `a file that is not there is one`() {
        let result = Configuration.parse(path: "/etc/vm.conf") { (_, _) throws(FileReadError) in throw FileReadError("No such file or directory") }
        #expect(result.errors.map(\.description) == ["/etc/vm.conf: No such file or directory"])
    }
}
